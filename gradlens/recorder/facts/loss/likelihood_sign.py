"""A loss that is plus a mean of log-probabilities: an optimizer makes it smaller, and what is right less likely."""

from __future__ import annotations

from typing import Any

from gradlens.recorder.facts.loss.graph_reading import VIEWS, Facts, children, labels_of, op_of
from gradlens.recorder.facts.loss.signed_terms import signed_terms

PROBABILITIES = {"Softmax", "Sigmoid"}
NEAR = VIEWS | {"Index", "Gather", "IndexSelect", "MaskedSelect", "Clamp", "ClampMin", "ClampMax", "Add"}
"""What may lie between a probability and its logarithm."""


def likelihood_sign(root: Any) -> list[Facts]:
    """Describe a loss that is a sum of log-probabilities, all with a positive sign.

    log(1 - p) alone is left out: the generator of the minimax game makes it smaller.

    Args:
        root: The loss's node.

    Returns:
        One fact, or none: ``op`` (``LogSoftmax``, ``LogSigmoid``, or ``Log``), ``layer`` (the module that made the
        probabilities or their logarithm, or None).
    """
    terms, whole = signed_terms(root, lambda node: _find_end(node, op_of(node)) is not None)
    if not whole or any(sign < 0 for _, sign in terms):
        return []
    found = [end for node, _ in terms if (end := _find_end(node, op_of(node)))]
    return [fact for fact in found if not fact.pop("rest")][:1]


def signed_error(root: Any) -> list[Facts]:
    """Describe a loss that is the mean or sum of a model's output minus something without a graph.

    Args:
        root: The loss's node.

    Returns:
        One fact, or none: ``layer`` (the module that made the output).
    """
    node, averaged, lessened = root, False, False
    while not (names := labels_of(node)):
        op, below = op_of(node), [child for child, _ in children(node)]
        if len(below) != 1 or op not in (*VIEWS, "Mean", "Sum", "Sub", "Rsub", "Add"):
            return []
        averaged |= op in ("Mean", "Sum")
        lessened |= averaged and op in ("Sub", "Rsub")
        node = below[0]
    return [{"layer": names[0]}] if lessened else []


def _find_end(node: Any, op: str) -> Facts | None:
    """Return what a logarithm of a probability is, and whether it is that of the rest, log(1 - p)."""
    below = [child for child, _ in children(node)]
    if op == "LogSoftmax":
        return {"op": op, "layer": _name(node), "rest": False}
    if op == "LogSigmoid" and below:
        return {"op": op, "layer": _name(node), "rest": op_of(below[0]) in ("Neg", "Rsub")}
    if op != "Log" or len(below) != 1:
        return None
    under, rest = below[0], False
    while op_of(under) in (*NEAR, "Rsub") and len(children(under)) == 1:
        rest |= op_of(under) == "Rsub"
        under = children(under)[0][0]
    return {"op": op, "layer": _name(under), "rest": rest} if op_of(under) in PROBABILITIES else None


def _name(node: Any) -> str | None:
    names = labels_of(node)
    return names[0] if names else None
