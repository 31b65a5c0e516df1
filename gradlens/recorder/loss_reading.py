"""Read how a loss is computed from the model's outputs: its kind, its targets, and what is unusual between them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlens.recorder.broadcasting import broadcast_output, broadcast_product
from gradlens.recorder.class_dims import mixed_classes, wrong_softmax
from gradlens.recorder.compared_outputs import compared_outputs
from gradlens.recorder.divergence_sign import maximized_divergence
from gradlens.recorder.graph_reading import (
    MOST_NODES,
    RESHAPES,
    VIEWS,
    Facts,
    Shape,
    children,
    dim_of,
    labels_of,
    op_of,
    saved,
    saved_factor,
    shape_of,
    through_views,
)
from gradlens.recorder.label_signs import hinge_labels, pair_labels
from gradlens.recorder.layer_inputs import MOST_ELEMENTS, thinned
from gradlens.recorder.likelihood_sign import likelihood_sign, signed_error
from gradlens.recorder.logit_range import logit_range
from gradlens.recorder.loss_weights import (
    label_smoothing,
    look_for_equal_examples,
    look_for_late_weights,
    take_class_weights,
    take_soft_targets,
)
from gradlens.recorder.overlap_sign import overlap_sign
from gradlens.recorder.own_targets import only_target, own_target
from gradlens.recorder.policy_gradients import policy_gradients, trained_advantages
from gradlens.recorder.policy_reading import entropy_signs, look_for_picked
from gradlens.recorder.undefined_values import look_for_clamp, look_for_count, look_for_logarithm

CTC = {"CtcLoss", "CudnnCtcLoss"}
LOSSES = {
    "NllLoss", "NllLoss2D", "MseLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy", "SoftMarginLoss",
    "BinaryCrossEntropyWithLogits", "MultiMarginLoss", "MultilabelMarginLoss", *CTC,
}  # fmt: skip
REDUCTIONS = {"Mean": "mean", "Sum": "sum"}
SCALINGS = {"Mul", "Div"}
ARITHMETIC = VIEWS | LOSSES | SCALINGS | set(REDUCTIONS) | {
    "Add", "Sub", "Rsub", "Neg", "Pow", "Abs", "Sqrt", "Rsqrt", "Log", "Log1P", "Log2", "Exp", "Expm1", "Clamp",
    "ClampMin", "ClampMax", "Where", "MaskedFill", "MaskedSelect", "Index", "IndexSelect", "Gather", "Stack", "Cat",
    "Maximum", "Minimum", "Max", "Min", "Amax", "Amin", "Norm", "LinalgVectorNorm", "LogSigmoid", "Logsumexp", "Var",
    "Std", "StdMean", "VarMean", "Square", "LogSoftmax", "Reciprocal", "Xlogy", "Addcmul", "Addcdiv", "Lerp",
}  # fmt: skip
"""Operations from which a loss is computed; what is not among them, or is a module's output, is the model's."""
COMPARISONS = {"Sub", "Rsub", "MseLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy"} | {
    "BinaryCrossEntropyWithLogits",
    "SoftMarginLoss",
}
ACTIVATIONS = {
    "Relu", "Softmax", "LogSoftmax", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Gelu", "Silu", "Softplus", "Hardtanh",
    "Threshold", "PreluKernel", "Hardsigmoid", "Hardswish", "Clamp", "ClampMin",
}  # fmt: skip
LOGITS = {"Softmax", "Sigmoid"}
"""Activation functions that make probabilities."""


def _reordered(node: Any) -> list[Facts]:
    """Describe a view that gives the same sizes in another order, as a transposition would."""
    result, found = shape_of(node), []
    for child, index in children(node):
        shape = shape_of(child, index)
        sizes, others = ([size for size in each if size > 1] for each in (shape, result))
        if sizes != others and sorted(sizes) == sorted(others):
            names = through_views(child)[1]
            found.append({"layer": names[0] if names else None, "shape": list(shape), "result": list(result)})
    return found


@dataclass
class LossReading:
    """How one loss is computed from the model's outputs."""

    losses: list[Facts] = field(default_factory=list)
    outputs: list[Facts] = field(default_factory=list)
    softmax_twice: list[Facts] = field(default_factory=list)
    probabilities_as_logs: list[Facts] = field(default_factory=list)
    broadcast: list[Facts] = field(default_factory=list)
    targets: list[Facts] = field(default_factory=list)
    masks: list[Facts] = field(default_factory=list)
    minimax: list[Facts] = field(default_factory=list)
    mixed_views: list[Facts] = field(default_factory=list)
    ratios: list[Facts] = field(default_factory=list)
    softmax_off_classes: list[Facts] = field(default_factory=list)
    mixed_classes: list[Facts] = field(default_factory=list)
    logit_range: list[Facts] = field(default_factory=list)
    likelihoods: list[Facts] = field(default_factory=list)
    compared: list[Facts] = field(default_factory=list)
    signed_errors: list[Facts] = field(default_factory=list)
    class_weights: list[Facts] = field(default_factory=list)
    late_weights: list[Facts] = field(default_factory=list)
    equal_examples: list[Facts] = field(default_factory=list)
    picked: list[Facts] = field(default_factory=list)
    entropies: list[Facts] = field(default_factory=list)
    logarithms: list[Facts] = field(default_factory=list)
    counted: list[Facts] = field(default_factory=list)
    clamps: list[Facts] = field(default_factory=list)
    label_signs: list[Facts] = field(default_factory=list)
    overlaps: list[Facts] = field(default_factory=list)
    policy_gradients: list[Facts] = field(default_factory=list)
    trained_advantages: list[Facts] = field(default_factory=list)
    maximized_divergences: list[Facts] = field(default_factory=list)
    soft_targets: list[Facts] = field(default_factory=list)
    own_targets: list[Facts] = field(default_factory=list)
    only_targets: list[Facts] = field(default_factory=list)
    smoothing: list[Facts] = field(default_factory=list)


def read_loss(root: Any) -> LossReading:
    """Walk from a loss to the model's outputs: the last modules, or the last operation that is no arithmetic.

    Args:
        root: The loss's node.

    Returns:
        What was found.
    """
    found = LossReading()
    found.minimax += _look_for_minimax(root)
    found.likelihoods += likelihood_sign(root)
    found.compared += compared_outputs(root)
    found.signed_errors += signed_error(root)
    found.entropies += entropy_signs(root)
    found.label_signs += hinge_labels(root) + pair_labels(root)
    found.overlaps += overlap_sign(root)
    found.policy_gradients += policy_gradients(root)
    found.trained_advantages += trained_advantages(root)
    found.maximized_divergences += maximized_divergence(root)
    stack: list[tuple[Any, str | None, bool]] = [(root, None, False)]
    seen = {root}
    top: Facts = {}
    by_hand: set[Any] = set()
    factors: dict[Any, Tensor] = {}
    while stack and len(seen) < MOST_NODES:
        node, loss, is_compared = stack.pop()
        op = op_of(node)
        if name := _loss_by_hand(node):
            loss = name
            by_hand.add(node)
            found.losses.append(
                {"op": name, "reduction": REDUCTIONS[op], "classes": None, "shape": list(_input_shape(node))}
            )
        if op in LOSSES:
            loss = op
            found.losses.append(_describe_loss(node, op))
            found.targets += _take_targets(node, op, factors.get(node))
            found.class_weights += take_class_weights(node, op)
            found.equal_examples += look_for_equal_examples(node, op)
            _look_under_loss(node, op, found)
            if op.startswith("NllLoss"):
                found.softmax_off_classes += wrong_softmax(node)
                found.mixed_classes += mixed_classes(node)
                found.logit_range += logit_range(node)
        elif op in REDUCTIONS and not top and not by_hand:
            top = {"op": op, "reduction": REDUCTIONS[op], "classes": None, "shape": list(_input_shape(node))}
        if op == "LogSoftmax":
            shape = shape_of(node)
            top.setdefault("classes", None)
            top["classes"] = top["classes"] or (shape[dim_of(node, len(shape)) or 0] if shape else None)
            _look_for_twice(node, op, found)
        if op == "AccumulateGrad":
            continue
        if op in RESHAPES and not labels_of(node):
            found.mixed_views += _reordered(node)
        found.probabilities_as_logs += _look_for_divergence(node)
        found.ratios += _look_for_ratio(node)
        found.late_weights += look_for_late_weights(node, op)
        found.picked += look_for_picked(node, op)
        found.logarithms += look_for_logarithm(node, op)
        found.counted += look_for_count(node, op)
        found.clamps += look_for_clamp(node, op)
        factors |= _factors_of_losses(node, op)
        if op == "Mul" and is_compared:
            found.masks += _take_mask(node, loss)
        found.broadcast += broadcast_product(node, op)
        found.own_targets += own_target(node, op)
        found.only_targets += only_target(node, op)
        found.smoothing += label_smoothing(node, op)
        if op == "Mul":
            found.soft_targets += take_soft_targets(node)
        if op not in ARITHMETIC or (labels_of(node) and op not in LOSSES):
            found.outputs.append(_describe_output(node, loss))
            continue
        below = children(node)
        if op in COMPARISONS and len(below) == 1:
            found.broadcast += broadcast_output(node, op, LOSSES)
        is_compared |= op in COMPARISONS or op == "LogSoftmax"
        for child, _ in below:
            if child not in seen:
                seen.add(child)
                stack.append((child, loss, is_compared))
    if not found.losses and "op" in top:
        found.losses.append(top)
    for fact in found.losses:
        fact |= {"negated": False, "alone": False, "scaled": False} | (
            _above(root, by_hand) if len(found.losses) == 1 else {}
        )
    return found


def _look_for_minimax(node: Any) -> list[Facts]:
    """Look for the mean of log(1 - sigmoid(x)), written by hand: the generator's loss in the minimax game."""
    ops = []
    while op_of(node) in (*REDUCTIONS, *SCALINGS, *VIEWS, "Log", "Rsub", "Add", "Clamp", "ClampMin"):
        below = children(node)
        if len(below) != 1:
            return []
        ops += [op_of(node)] if op_of(node) in ("Log", "Rsub") else []
        node = below[0][0]
    if ops != ["Log", "Rsub"] or op_of(node) != "Sigmoid":
        return []
    behind = through_views(children(node)[0][0])[1] if children(node) else []
    return [{"op": "Sigmoid", "behind": behind[0] if behind else None}]


def _look_for_divergence(node: Any) -> list[Facts]:
    """Look for a Kullback-Leibler divergence whose input is no logarithm, in either way in which torch computes it."""
    path: list[str] = []
    while len(below := children(node)) == 1 and len(path) < 3:
        path.append(op_of(node))
        node = below[0][0]
    made, names = through_views(node)
    if not path or path[0] not in REDUCTIONS or sorted(path[1:]) != ["Mul", "Sub"] or op_of(made) not in LOGITS:
        return []
    return [{"loss": "KlDiv", "op": op_of(made), "layer": names[0] if names else None}]


def _look_for_ratio(node: Any) -> list[Facts]:
    """Look for exp(a - b), the ratio of two probabilities, in which both have a graph."""
    below = children(node)
    if op_of(node) != "Exp" or len(below) != 1 or op_of(below[0][0]) != "Sub" or len(children(below[0][0])) != 2:
        return []
    return [{"op": "Exp", "shape": list(shape_of(node))}]


def _loss_by_hand(node: Any) -> str:
    """Return the name of a loss of one comparison that is written by hand: ``((output - target) ** 2).mean()``, or "".

    ``F.l1_loss`` leaves the same operations. A target that has a graph of its own does not count.
    """
    below = children(node)
    if op_of(node) not in REDUCTIONS or len(below) != 1:
        return ""
    inner = below[0][0]
    squares = op_of(inner) == "Pow" and getattr(inner, "_saved_exponent", None) == 2
    compared = children(inner)
    if not (squares or op_of(inner) == "Abs") or len(compared) != 1:
        return ""
    difference = compared[0][0]
    if op_of(difference) not in ("Sub", "Rsub") or len(children(difference)) != 1 or labels_of(difference):
        return ""
    return "MseLoss" if squares else "L1Loss"


def _above(node: Any, by_hand: Collection[Any]) -> Facts:
    """Return what is between the root and the only loss, where that is no sum.

    Args:
        node: The root.
        by_hand: Nodes of losses that are written by hand.

    Returns:
        negated: the root is minus the loss; alone: it is the loss, averaged or divided at most; scaled: it is
        multiplied or divided by a number. All three are missing where other terms take part.
    """
    signs, scalings = 0, []
    while node not in by_hand and op_of(node) in (*SCALINGS, *REDUCTIONS, "Neg", *VIEWS):
        signs += op_of(node) == "Neg"
        scalings += [op_of(node)] if op_of(node) in SCALINGS else []
        below = children(node)
        if len(below) != 1:
            return {}
        node = below[0][0]
    if node not in by_hand and op_of(node) not in LOSSES and not _is_smoothed(node):
        return {}
    return {"negated": bool(signs % 2), "alone": not signs and "Mul" not in scalings, "scaled": bool(scalings)}


def _is_smoothed(node: Any) -> bool:
    """Return whether a sum is a cross entropy with label smoothing: all its terms are of one log-softmax."""
    ends = set()
    for child, _ in children(node) if op_of(node) == "Add" else ():
        end = child
        while op_of(end) in (*SCALINGS, *REDUCTIONS, *LOSSES, *VIEWS, "Neg", "MaskedFill") and len(children(end)) == 1:
            end = children(end)[0][0]
        ends.add(end)
    return len(ends) == 1 and op_of(*ends) == "LogSoftmax"


def _input_shape(node: Any) -> Shape:
    return next((shape_of(child, index) for child, index in children(node)), ())


def _describe_loss(node: Any, op: str) -> Facts:
    reduction = {0: "none", 1: "mean", 2: "sum"}.get(getattr(node, "_saved_reduction", -1))
    shape, classes = _input_shape(node), None
    for child, _ in children(node):
        under, _ = through_views(child)
        if op.startswith("NllLoss") and op_of(under) in ("LogSoftmax", "Log"):
            size = shape_of(under)
            dim = dim_of(under, len(size)) if op_of(under) == "LogSoftmax" else min(1, len(size) - 1)
            classes = size[dim] if dim is not None and size else None
    return {"op": op, "reduction": reduction, "classes": classes, "shape": list(shape)}


def _take_targets(node: Any, op: str, factors: Tensor | None = None) -> list[Facts]:
    """Copy the targets that a loss has saved, unread, where no hook on saved tensors would have to run."""
    values = saved(node, "target")
    if values is None or values.is_complex():
        return []
    ignored = getattr(node, "_saved_ignore_index", None)  # a class that the loss leaves out
    factors = saved(node, "weight") if factors is None and not op.startswith("Nll") else factors
    fact = {"op": op, "count": values.numel(), "values": thinned(values).clone(), "ignored": ignored}
    fact |= {"along": _apart_along(values)} if values.dim() == 3 and values.is_floating_point() else {}
    if factors is None or factors.numel() == 1:
        return [fact]
    if factors.numel() != values.numel():
        try:
            factors = factors.expand(values.shape)
        except RuntimeError:  # it is not known which of them count
            return []
    return [fact | {"factors": thinned(factors).clone()}]


@torch.no_grad()
def _apart_along(values: Tensor) -> Tensor:
    """Return how far (B, T, F) targets are from their mean over T, as a share of their size, unread."""
    part = values[: max(MOST_ELEMENTS // max(values[0].numel(), 1), 1)].float()
    return ((part - part.mean(1, keepdim=True)).square().mean() / part.square().mean()).sqrt()


def _factors_of_losses(node: Any, op: str) -> dict[Any, Tensor]:
    """Return losses of single elements that something multiplies or chooses, each with its factors (0: left out)."""
    if op not in ("Mul", "Where", "MaskedFill", "MaskedSelect", "Index"):
        return {}
    made = [through_views(child)[0] for child, _ in children(node)]
    losses = [under for under in made if op_of(under) in LOSSES and getattr(under, "_saved_reduction", -1) == 0]
    if len(losses) != 1:
        return {}
    if op == "Mul":
        factors = saved_factor(node)
    elif op == "MaskedFill":
        filled = saved(node, "mask")
        factors = None if filled is None else ~filled
    else:
        factors = saved(node, "condition" if op == "Where" else "mask")
    if factors is None:
        factors = torch.empty(0)  # not known, so that nothing is known of the targets that count
    return {losses[0]: factors}


def _take_mask(node: Any, loss: str | None) -> list[Facts]:
    """Copy what outputs are multiplied by before a loss compares them, unread: the only trace of dropout on a CPU."""
    for values in (saved(node, "other"), saved(node, "self")):
        if values is not None and values.is_floating_point() and values.shape == shape_of(node) != ():
            names = labels_of(node)
            return [{"layer": names[0] if names else None, "loss": loss, "values": thinned(values).clone()}]
    return []


def describe_mask(layer: str | None, loss: str | None, values: Tensor) -> Facts | None:
    """Return what outputs are multiplied by, where that is 0 or one number above 1; this waits for an accelerator.

    Args:
        layer: The module that multiplied them, or None.
        loss: The loss that compares them, or None.
        values: (n,) copies of evenly spaced factors.

    Returns:
        Its facts; None where it is no such mask.
    """
    factors = values.float().cpu().numpy()
    kept = factors[factors != 0]
    if not len(kept) or len(kept) == len(factors) or not (kept == kept[0]).all() or not kept[0] > 1:
        return None
    return {"layer": layer, "loss": loss, "factor": float(kept[0]), "zeros": float(1 - len(kept) / len(factors))}


def describe_targets(
    op: str,
    count: int,
    values: Tensor,
    ignored: int | None = None,
    factors: Tensor | None = None,
    along: Tensor | None = None,
) -> Facts | None:
    """Return what the targets of a loss are; this waits for an accelerator.

    Args:
        op: The operation that makes the loss.
        count: The number of targets.
        values: (n,) copies of evenly spaced ones.
        ignored: The class that the loss leaves out, or None.
        factors: (n,) what their losses are multiplied by, or None; 0 leaves them out.
        along: How far targets of three dimensions are from their mean over the second one, or None.

    Returns:
        Their facts; None where the loss leaves out all of them: classes are negative then, or the one that is ignored.
    """
    fact: Facts = {"op": op, "count": count, "distinct": None, "common": None}
    numbers = (values.float() if values.is_floating_point() else values).cpu().numpy()
    if factors is not None:
        numbers = numbers[factors.cpu().numpy() != 0]
        if not len(numbers):
            return None
    if not values.is_floating_point():
        numbers = numbers[(numbers >= 0) & (numbers != ignored)]
        found, counts = np.unique(numbers, return_counts=True)
        if not len(counts):
            return None
        fact |= {"distinct": len(counts), "common": float(counts.max() / counts.sum())}
        fact["commonest"] = int(found[counts.argmax()])
    wide = numbers.astype(np.float64)
    fact |= {} if along is None else {"along": float(along)}
    return fact | {
        "least": float(wide.min()),
        "largest": float(wide.max()),
        "mean": float(wide.mean()),
        "rms": float(np.sqrt(np.square(wide).mean())),
    }


def _describe_output(node: Any, loss: str | None) -> Facts:
    shape = shape_of(node)
    made, names = through_views(node)
    op = op_of(made)
    fact: Facts = {"op": op, "layer": names[0] if names else None, "behind": None, "behind_op": None}
    if op in ACTIVATIONS and children(made):
        under, labels = through_views(children(made)[0][0])
        fact |= {"behind": labels[0] if labels else None, "behind_op": op_of(under)}
    return fact | {"shape": list(shape), "loss": loss}


def _look_under_loss(node: Any, op: str, found: LossReading) -> None:
    if op == "BinaryCrossEntropyWithLogits":
        _look_for_twice(node, op, found)
    elif op.startswith("NllLoss") or op in CTC:
        for child, _ in children(node):
            under, names = through_views(child)
            terms = {op_of(through_views(term)[0]) for term, _ in children(under)}
            if op_of(under) == "Add" and "AccumulateGrad" in terms and terms & {"Mm", "Bmm"}:
                under = next(term for term, _ in children(under) if op_of(term) != "AccumulateGrad")  # a linear layer
                under = through_views(under)[0]
            if op_of(under) not in ("LogSoftmax", "Log", "LogSigmoid", "Logsumexp", "Add", "Sub", "Mul"):
                found.probabilities_as_logs.append(
                    {"loss": op, "op": op_of(under), "layer": names[0] if names else None}
                )


def _look_for_twice(node: Any, loss: str, found: LossReading) -> None:
    """Look for an activation directly under a loss that applies its own; scaling by a constant may lie between."""
    for child, _ in children(node):
        under, names = through_views(child)
        while op_of(under) in SCALINGS and len(children(under)) == 1:
            under, names = through_views(children(under)[0][0])
        if op_of(under) in ("Softmax", "Sigmoid", "LogSoftmax"):
            found.softmax_twice.append({"loss": loss, "op": op_of(under), "layer": names[0] if names else None})
