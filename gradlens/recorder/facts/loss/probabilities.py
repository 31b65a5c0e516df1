"""Probabilities where a loss expects logarithms or logits, and ratios of probabilities."""

from __future__ import annotations

from typing import Any

from gradlens.recorder.facts.loss.graph_reading import (
    VIEWS,
    Facts,
    Shape,
    children,
    dim_of,
    op_of,
    shape_of,
    through_views,
)
from gradlens.recorder.facts.loss.loss_operations import (
    CTC,
    LOGITS,
    REDUCTIONS,
    SCALINGS,
)


def look_for_minimax(node: Any) -> list[Facts]:
    """Look for the mean of log(1 - sigmoid(x)), written by hand: the generator's loss in the minimax game.

    Args:
        node: The loss's node.

    Returns:
        One fact, or none: ``op``, ``behind`` (the module that makes x, or None).
    """
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


def look_for_ratio(node: Any, op: str) -> list[Facts]:
    """Look for exp(a - b), the ratio of two probabilities, in which both have a graph.

    Args:
        node: An operation between the model and the loss.
        op: Its name.

    Returns:
        One fact, or none: ``op``, ``shape``.
    """
    below = children(node)
    if op != "Exp" or len(below) != 1 or op_of(below[0][0]) != "Sub" or len(children(below[0][0])) != 2:
        return []
    return [{"op": "Exp", "shape": list(shape_of(node))}]


def probabilities_as_logs(node: Any, op: str) -> list[Facts]:
    """Look for a loss of log-probabilities that gets something else.

    Args:
        node: An operation of the loss.
        op: Its name.

    Returns:
        A fact for each input that is none: ``loss``, ``op`` (what made it), ``layer`` (the module, or None).
    """
    takes = [child for child, _ in children(node)] if op.startswith("NllLoss") or op in CTC else []
    return [fact for child in takes for fact in _no_logarithm(child, op)] + _look_for_divergence(node)


def _no_logarithm(child: Any, loss: str) -> list[Facts]:
    under, names = through_views(child)
    terms = {op_of(through_views(term)[0]) for term, _ in children(under)}
    if op_of(under) == "Add" and "AccumulateGrad" in terms and terms & {"Mm", "Bmm"}:
        under = next(term for term, _ in children(under) if op_of(term) != "AccumulateGrad")  # a linear layer
        under = through_views(under)[0]
    if op_of(under) in ("LogSoftmax", "Log", "LogSigmoid", "Logsumexp", "Add", "Sub", "Mul"):
        return []
    return [{"loss": loss, "op": op_of(under), "layer": names[0] if names else None}]


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


def softmax_twice(node: Any, op: str) -> list[Facts]:
    """Look for an activation directly under a loss that applies its own; scaling by a constant may lie between.

    Under a softmax it is another one over the same numbers.

    Args:
        node: The loss's node, or the softmax or log-softmax that it applies.
        op: Its name.

    Returns:
        A fact for each activation: ``loss``, ``op``, ``layer`` (its module, or None).
    """
    found: list[Facts] = []
    for child, _ in children(node):
        under, names = through_views(child)
        while op_of(under) in SCALINGS and len(children(under)) == 1:
            under, names = through_views(children(under)[0][0])
        if op_of(under) in ("Softmax", "Sigmoid", "LogSoftmax"):
            found.append({"loss": op, "op": op_of(under), "layer": names[0] if names else None})
            if op == "Softmax" and _runs_over(under) != _runs_over(node):
                found.pop()
    return found


def _runs_over(node: Any) -> tuple[str, Shape, int | None]:
    """Return an operation, its shape, and the dimension that a softmax runs over."""
    shape = shape_of(node)
    return op_of(node), shape, dim_of(node, len(shape))
