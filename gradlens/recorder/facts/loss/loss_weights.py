"""Read how a loss weighs its examples: weights of classes, weights that come after the average, examples alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlens.recorder.facts.layer_inputs import MOST_ELEMENTS, thinned
from gradlens.recorder.facts.loss.graph_reading import (
    Facts,
    children,
    dim_of,
    op_of,
    saved,
    saved_factor,
    shape_of,
    through_views,
)

MOST_CLASSES = 64
LEAST_EXAMPLES = 4
"""Examples that are no chance."""
ALIKE = 1e-5
"""Rows of one product of matrices may differ by roundings (IEEE 754: 1e-7 each)."""
REDUCED = {"Mean", "Sum"}
NO_REDUCTION = 0


def take_class_weights(node: Any, op: str) -> list[Facts]:
    """Copy the weights of the classes and the targets of a loss, unread.

    Args:
        node: The loss's node.
        op: Its operation.

    Returns:
        One fact, or none.
    """
    values = saved(node, "target")
    if op == "BinaryCrossEntropyWithLogits":
        weights = saved(node, "pos_weight")
        if weights is not None and weights.numel() == 1:
            weights = torch.cat([torch.ones_like(weights.reshape(1)), weights.reshape(1)])
    else:
        weights = saved(node, "weight") if op.startswith("NllLoss") else None
    if weights is None or values is None or not 1 < weights.numel() <= MOST_CLASSES or weights.dim() != 1:
        return []
    ignored = getattr(node, "_saved_ignore_index", -1)
    return [{"op": op, "weights": weights.clone(), "values": thinned(values).clone(), "ignored": int(ignored)}]


def count_classes(weights: Tensor, values: Tensor, ignored: int) -> tuple[list[float], list[int]] | None:
    """Return the weights of the classes, and how many targets each has; this waits for an accelerator.

    Args:
        weights: (C,) weights.
        values: (n,) targets.
        ignored: The class that is left out; classes below 0 are, too.

    Returns:
        Both; None where the targets are no classes.
    """
    numbers = values.cpu().numpy()
    classes = numbers.astype(np.int64)
    size = weights.numel()
    kept = classes[(classes >= 0) & (classes != ignored)]
    if (classes != numbers).any() or not len(kept) or kept.max() >= size:
        return None
    return [float(weight) for weight in weights.cpu().tolist()], np.bincount(kept, minlength=size).tolist()


def look_for_late_weights(node: Any, op: str) -> list[Facts]:
    """Look for an average over examples that is multiplied by as many weights: each of them multiplies one number.

    Args:
        node: An operation between the model and the loss.
        op: Its name.

    Returns:
        One fact, with ``varies`` unread, or none.
    """
    shape, below = shape_of(node), children(node)
    count = shape[0] if shape else 0
    if op != "Mul" or count < LEAST_EXAMPLES or any(size != 1 for size in shape[1:]) or len(below) != 1:
        return []
    if shape_of(*below[0]) != ():
        return []
    made = through_views(below[0][0])[0]
    while op_of(made) == "Neg":
        made = through_views(children(made)[0][0])[0]
    weights = saved_factor(node)
    if weights is None or weights.numel() != count or _averaged_over(made) != count:
        return []
    flat = weights.reshape(-1)
    return [{"op": op_of(made), "count": count, "varies": (flat != flat[0]).any()}]


def _averaged_over(node: Any) -> int:
    """Return over how many examples an operation averages or sums; 0 where it does not."""
    is_reduced = op_of(node) in REDUCED or getattr(node, "_saved_reduction", NO_REDUCTION) != NO_REDUCTION
    below = children(node)
    shape = shape_of(*below[0]) if is_reduced and below else ()
    return shape[0] if shape and (op_of(node) not in REDUCED or all(size == 1 for size in shape[1:])) else 0


def look_for_equal_examples(node: Any, op: str) -> list[Facts]:
    """Compare what a loss gets for the examples of a batch, outputs and targets.

    Args:
        node: The loss's node.
        op: Its operation.

    Returns:
        One fact, with ``alike`` unread, or none where too few or too many numbers were saved.
    """
    outputs, targets = saved(node, "self"), saved(node, "target")
    if outputs is None or targets is None or not outputs.dim() or not targets.dim():
        return []
    count = outputs.shape[0]
    if count < LEAST_EXAMPLES or targets.shape[0] != count or outputs.numel() > MOST_ELEMENTS:
        return []
    spread = (outputs - outputs[:1]).abs().max()
    return [{"op": op, "alike": (spread <= ALIKE * outputs.abs().max()) & (targets == targets[:1]).all()}]


def take_soft_targets(node: Any, op: str) -> list[Facts]:
    """Add up what each example's log-softmax is multiplied by: 1 in all for probabilities, more for several labels.

    Args:
        node: An operation under the loss.
        op: Its name.

    Returns:
        One fact, with ``sums`` unread ((3,): whether all are 0 or 1, the least and the largest sum), or none.
    """
    below = children(node)
    targets = saved_factor(node) if op == "Mul" else None
    if len(below) != 1 or targets is None or targets.numel() > MOST_ELEMENTS:
        return []
    made = through_views(below[0][0])[0]
    while op_of(made) == "Neg":
        made = through_views(children(made)[0][0])[0]
    shape = shape_of(made)
    dim = dim_of(made, len(shape)) if op_of(made) == "LogSoftmax" else None
    if dim is None or tuple(targets.shape) != tuple(shape) or shape[dim] < 2:
        return []
    sums = targets.sum(dim).double()
    whole = ((targets == 0) | (targets == 1)).all()
    return [{"op": op_of(made), "sums": torch.stack([whole.double(), sums.min(), sums.max()])}]


def take_shared_labels(node: Any, op: str) -> list[Facts]:
    """Add up the targets of each example of a binary cross entropy whose input is a softmax over the classes.

    Args:
        node: An operation of the loss.
        op: Its name.

    Returns:
        One fact, with ``sums`` unread as those of ``take_soft_targets``, or none.
    """
    below, targets = children(node), saved(node, "target")
    if op != "BinaryCrossEntropy" or not below or targets is None or targets.numel() > MOST_ELEMENTS:
        return []
    made = through_views(below[0][0])[0]
    shape = shape_of(made)
    dim = dim_of(made, len(shape)) if op_of(made) == "Softmax" else None
    if dim is None or tuple(targets.shape) != tuple(shape) or shape[dim] < 2:
        return []
    sums = targets.sum(dim).double()
    whole = ((targets == 0) | (targets == 1)).all()
    return [{"op": "Softmax", "sums": torch.stack([whole.double(), sums.min(), sums.max()])}]


def label_smoothing(node: Any, op: str) -> list[Facts]:
    """Look for a cross entropy with label smoothing: (1 - a) times the loss plus a / C times the sum over C classes.

    Args:
        node: An operation of the loss.
        op: Its name.

    Returns:
        One fact, or none.
    """
    parts = [child for child, _ in children(node)]
    if op != "Add" or len(parts) != 2 or any(op_of(part) != "Mul" for part in parts):
        return []
    left, spread = (getattr(part, "_saved_other", None) for part in parts)
    below = children(parts[0])
    if not (isinstance(left, float) and isinstance(spread, float) and len(below) == 1):
        return []
    loss = below[0][0]
    shape = shape_of(children(loss)[0][0]) if op_of(loss).startswith("NllLoss") and children(loss) else ()
    classes = shape[1] if len(shape) > 1 else 0
    return [{"share": 1 - left, "classes": classes}] if abs(1 - left - spread * classes) < ALIKE else []


class ClassCounts:
    """Weights of classes, and how many targets each class had in the passes read."""

    def __init__(self) -> None:
        self._found: dict[str, Facts] = {}

    def read(self, taken: Facts, step: int) -> None:
        """Count the targets that were taken; this waits for an accelerator.

        Args:
            taken: What ``take_class_weights`` returned.
            step: The step of the loss.
        """
        counted = count_classes(taken["weights"], taken["values"], taken["ignored"])
        if counted is None:
            return
        weights, counts = counted
        fact = {"op": taken["op"], "weights": weights, "counts": [0] * len(counts), "since": step}
        known = self._found.setdefault(repr((taken["op"], weights)), fact)
        known["counts"] = [a + b for a, b in zip(known["counts"], counts, strict=True)]

    def facts(self) -> list[Facts]:
        """Return a fact for each loss with other weights."""
        return list(self._found.values())


def read_soft_targets(taken: Facts) -> list[tuple[str, Facts]]:
    """Return targets of several labels, whose sums per example differ; this waits for an accelerator.

    Args:
        taken: What ``take_soft_targets`` returned.
    """
    whole, least, largest = taken["sums"].tolist()
    kind = "many_labels" if taken["op"] == "LogSoftmax" else "shared_labels"
    if not whole or (least == largest if kind == "many_labels" else largest <= 1):
        return []
    return [(kind, {"op": taken["op"], "least": least, "largest": largest})]
