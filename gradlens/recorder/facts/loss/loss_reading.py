"""Walk from a loss to the model's outputs: the losses that it consists of, their targets, and their inputs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from gradlens.recorder.facts.loss.graph_reading import (
    MOST_NODES,
    VIEWS,
    Facts,
    Found,
    Shape,
    children,
    dim_of,
    labels_of,
    op_of,
    shape_of,
    through_views,
)
from gradlens.recorder.facts.loss.kinds import EVERYWHERE, OF_LOSS, OF_OPERATION
from gradlens.recorder.facts.loss.loss_operations import (
    ACTIVATIONS,
    ARITHMETIC,
    COMPARISONS,
    LOSSES,
    REDUCTIONS,
    SCALINGS,
)
from gradlens.recorder.facts.loss.targets_and_masks import factors_of_losses, take_mask, take_targets


def read_loss(root: Any) -> Found:
    """Walk from a loss to the model's outputs: the last modules, or the last operation that is no arithmetic.

    Args:
        root: The loss's node.

    Returns:
        Kind (see ``kinds``) to the facts that were found.
    """
    walk = _Walk(root)
    for name, of_loss in OF_LOSS:
        walk.found[name] += of_loss(root)
    walk.run()
    return walk.found


class _Walk:
    """One walk from a loss to the model's outputs.

    Args:
        root: The loss's node.
    """

    def __init__(self, root: Any) -> None:
        self.found = Found(list)
        self._root = root
        self._stack: list[tuple[Any, str | None, bool]] = [(root, None, False)]
        """Nodes to read, each with the loss above it, and whether something above compares it."""
        self._seen = {root}
        self._top: Facts = {}
        """The first sum or mean: the loss, where no other is found."""
        self._by_hand: set[Any] = set()
        """Nodes of losses that are written by hand."""
        self._factors: dict[Any, Tensor] = {}
        """Losses of single elements to what multiplies or chooses them."""

    def run(self) -> None:
        """Read all nodes, and say of the only loss what is between it and the root."""
        while self._stack and len(self._seen) < MOST_NODES:
            self._read(*self._stack.pop())
        losses = self.found["losses"]
        if not losses and "op" in self._top:
            losses.append(self._top)
        for fact in losses:
            only = _above(self._root, self._by_hand) if len(losses) == 1 else {}
            fact |= {"negated": False, "alone": False, "scaled": False} | only

    def _read(self, node: Any, loss: str | None, is_compared: bool) -> None:
        op = op_of(node)
        loss = self._note_loss(node, op) or loss
        if op == "AccumulateGrad":
            return
        for name, of_operation in OF_OPERATION.get(op, OF_OPERATION[EVERYWHERE]):
            self.found[name] += of_operation(node, op)
        self._factors |= factors_of_losses(node, op)
        if op == "Mul" and is_compared:
            self.found["masks"] += take_mask(node, loss)
        if op not in ARITHMETIC or (labels_of(node) and op not in LOSSES):
            self.found["outputs"].append(_describe_output(node, loss))
            return
        is_compared |= op in COMPARISONS or op == "LogSoftmax"
        for child, _ in children(node):
            if child not in self._seen:
                self._seen.add(child)
                self._stack.append((child, loss, is_compared))

    def _note_loss(self, node: Any, op: str) -> str:
        """Note a loss, and return its name; "" for another operation."""
        name = _loss_by_hand(node)
        fact = {"op": name or op, "reduction": REDUCTIONS.get(op), "classes": None, "shape": list(_input_shape(node))}
        if name:
            self._by_hand.add(node)
            self.found["losses"].append(fact)
        elif op in LOSSES:
            self.found["losses"].append(_describe_loss(node, op))
            self.found["targets"] += take_targets(node, op, self._factors.get(node))
            return op
        elif op in REDUCTIONS and not self._top and not self._by_hand:
            self._top = fact
        if op == "LogSoftmax":
            shape = shape_of(node)
            self._top.setdefault("classes", None)
            self._top["classes"] = self._top["classes"] or (shape[dim_of(node, len(shape)) or 0] if shape else None)
        return name


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


def _describe_output(node: Any, loss: str | None) -> Facts:
    shape = shape_of(node)
    made, names = through_views(node)
    op = op_of(made)
    fact: Facts = {"op": op, "layer": names[0] if names else None, "behind": None, "behind_op": None}
    if op in ACTIVATIONS and children(made):
        under, labels = through_views(children(made)[0][0])
        fact |= {"behind": labels[0] if labels else None, "behind_op": op_of(under)}
    return fact | {"shape": list(shape), "loss": loss}
