"""The sign with which the loss has a number whose exponential it has, too: a log-determinant, a log variance.

exp(k s) falls with k s. A loss in which k s has a plus beside it falls with it as well, without bound: in densities
(change of variables, a normal distribution with its deviation), in a divergence and in weights of several losses, the
two have opposite signs.
"""

from __future__ import annotations

from typing import Any

from gradlens.recorder.graph_reading import VIEWS, Facts, children, labels_of, op_of
from gradlens.recorder.signed_terms import sign_of_factor, signed_terms

MOST_EXPONENTIALS = 64
MOST_TERMS = 4096
SEVERAL = {"Split", "SplitWithSizes", "Unbind"}
"""Operations with several results, which their node does not tell apart."""
PARTS = SEVERAL | {"Slice", "Select", "Narrow", "AsStrided"}
"""Views of a part of what they get."""


def exponent_signs(root: Any, nodes: list[Any]) -> list[Facts]:
    """Describe numbers that a loss has with the sign of their exponential, and those that some layers leave out.

    Args:
        root: The loss's node.
        nodes: All operations of its graph.

    Returns:
        Facts: ``layer`` (the nearest module toward the input), ``sign`` (1: the same sign, -1: the opposite one, 0: the
        loss does not have it, beside others).
    """
    exponents: dict[Any, set[int]] = {}
    for node in nodes:
        if op_of(node) == "Exp" and len(exponents) < MOST_EXPONENTIALS and (found := _exponent(node)):
            exponents.setdefault(found[0], set()).add(found[1])
    if not exponents:
        return []
    linear: dict[Any, set[int]] = {}
    for node, sign in signed_terms(root, lambda node: node in exponents, MOST_TERMS)[0]:
        linear.setdefault(node, set()).add(sign)
    facts = []
    for node, signs in exponents.items():
        layer = _layer_under(node)
        if layer is None or len(signs) != 1 or len(linear.get(node, set())) > 1:
            continue
        sign = next(iter(signs)) * next(iter(linear[node])) if node in linear else 0
        facts.append({"layer": layer, "sign": sign})
    return facts if linear else []


def _exponent(node: Any) -> tuple[Any, int] | None:
    """Return what an exponential is of, without factors, and the sign of these; None where that is not known."""
    below, sign = children(node), 1
    while len(below) == 1:
        node = below[0][0]
        op = op_of(node)
        if labels_of(node) or op not in (VIEWS - PARTS) | {"Neg", "Mul", "Div"}:
            return (node, sign) if op != "AccumulateGrad" and op not in SEVERAL else None
        if op == "Neg":
            sign = -sign
        elif op in ("Mul", "Div"):
            factor = sign_of_factor(node) if len(children(node)) == 1 else 0
            if not factor:
                return (node, sign) if len(children(node)) == 2 else None
            sign *= factor
        below = children(node)
    return None


def _layer_under(node: Any) -> str | None:
    """Return the module whose output is nearest under a chain of operations with one input each."""
    while True:
        if names := labels_of(node):
            return names[-1]
        below = children(node)
        if len(below) != 1:
            return None
        node = below[0][0]
