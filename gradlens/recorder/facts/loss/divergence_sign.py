"""A divergence from a standard normal distribution that a loss makes larger: minus an exponential, minus a square."""

from __future__ import annotations

from typing import Any

from gradlens.recorder.facts.loss.graph_reading import Facts, children, labels_of, op_of
from gradlens.recorder.facts.loss.signed_terms import signed_terms

GROWING = {"Exp", "Pow"}
FEW_NODES = 4
"""Operations between a layer's output and the exponential, such as a factor."""


def maximized_divergence(root: Any) -> list[Facts]:
    """Describe a loss that holds minus an exponential and minus a square, and neither with a plus.

    The divergence of a normal distribution from the standard one is a sum of both and of terms that grow more slowly
    (Kingma & Welling 2014, appendix B): with a minus it has no lower bound.

    Args:
        root: The loss's node.

    Returns:
        One fact, or none: ``layer`` (the module whose output the exponential gets, or None).
    """
    terms, _ = signed_terms(root, lambda node: op_of(node) in GROWING)
    signs = {op: {sign for node, sign in terms if _growth(node) == op} for op in GROWING}
    if any(found != {-1} for found in signs.values()):
        return []
    return [{"layer": _layer_under(next(node for node, _ in terms if _growth(node) == "Exp"))}]


def _growth(node: Any) -> str:
    """Return the operation; "Exp" for the square of an exponential, too, the variance of a logarithm of a deviation."""
    below = [op_of(child) for child, _ in children(node)]
    return "Exp" if op_of(node) == "Pow" and below == ["Exp"] else op_of(node)


def _layer_under(node: Any) -> str | None:
    for _ in range(FEW_NODES):
        below = [child for child, _ in children(node)]
        if len(below) != 1:
            return None
        node = below[0]
        if names := labels_of(node):
            return names[0]
    return None
