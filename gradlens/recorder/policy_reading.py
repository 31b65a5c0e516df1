"""Read what a loss does with probabilities of classes or actions: which are picked, and the sign of their entropy."""

from __future__ import annotations

from typing import Any

from gradlens.recorder.graph_reading import Facts, children, dim_of, labels_of, op_of, shape_of, through_views
from gradlens.recorder.signed_terms import signed_terms

BETWEEN = {"Log", "Clamp", "ClampMin", "Add"}
"""Operations between a softmax and what picks one of its numbers."""


def look_for_picked(node: Any, op: str) -> list[Facts]:
    """Look for one number per row that is picked of a softmax which runs over the rows.

    Args:
        node: An operation between the model and the loss.
        op: Its name.

    Returns:
        One fact, or none.
    """
    below = children(node)
    if op != "Gather" or len(below) != 1:
        return []
    made, names = through_views(below[0][0])
    while op_of(made) in BETWEEN and len(children(made)) == 1:
        made, names = through_views(children(made)[0][0])
    shape = shape_of(made) if op_of(made) in ("Softmax", "LogSoftmax") else ()
    if len(shape) != 2 or min(shape) < 2 or dim_of(node, 2) != 1 or dim_of(made, 2) != 0:
        return []
    names = labels_of(made) or names
    return [{"op": op_of(made), "layer": names[0] if names else None, "shape": list(shape)}]


def entropy_signs(root: Any) -> list[Facts]:
    """Return the signs with which entropies are in a loss: 1 where it makes them smaller, -1 where larger.

    An entropy is minus the sum of p * log(p), where both have a graph (``torch.distributions.Categorical``).

    Args:
        root: The loss's node.

    Returns:
        A fact for each sign.
    """
    terms, _ = signed_terms(root, _is_entropy)
    return [{"sign": sign} for sign in sorted({-sign for _, sign in terms})]  # they are the sums of p * log(p)


def _is_entropy(node: Any) -> bool:
    """Return whether an operation is the sum of p * log(p)."""
    inner = children(node)
    if op_of(node) != "Sum" or len(inner) != 1 or op_of(inner[0][0]) != "Mul":
        return False
    factors = [through_views(child)[0] for child, _ in children(inner[0][0])]
    if len(factors) != 2 or not any(op_of(factor) == "Softmax" for factor in factors):
        return False
    other = next((factor for factor in factors if op_of(factor) != "Softmax"), None)
    while other is not None and op_of(other) in ("Clamp", "ClampMin") and children(other):
        other = through_views(children(other)[0][0])[0]
    if other is None:
        return False
    normed = op_of(other) == "Sub" and any(op_of(through_views(c)[0]) == "Logsumexp" for c, _ in children(other))
    return op_of(other) in ("LogSoftmax", "Log") or normed
