"""The sign with which the loss has a number whose exponential it has, too: a log-determinant, a log variance.

exp(k s) falls with k s. A loss in which k s has a plus beside it falls with it as well, without bound: in densities
(change of variables, a normal distribution with its deviation), in a divergence and in weights of several losses, the
two have opposite signs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from gradlens.recorder.facts.loss.graph_reading import VIEWS, Facts, children, labels_of, op_of
from gradlens.recorder.facts.loss.signed_terms import PASSED, SIGNS, sign_of_factor

MOST_EXPONENTIALS = 64
MOST_TERMS = 4096
SEVERAL = {"Split", "SplitWithSizes", "Unbind"}
"""Operations with several results."""
PARTS = SEVERAL | {"Slice", "Select", "Narrow", "AsStrided"}
"""Views of a part of what they get."""

Result = tuple[Any, int]
"""A node and the number of its result."""


def exponent_signs(nodes: Sequence[Any]) -> list[Facts]:
    """Describe numbers that a loss has with the sign of their exponential, and those that some layers leave out.

    Args:
        nodes: All operations of the loss's graph, inputs first.

    Returns:
        Facts: ``layer`` (the nearest module toward the input), ``sign`` (1: the same sign, -1: the opposite one, 0: the
        loss does not have it, beside others).
    """
    exponents: dict[Result, set[int]] = {}
    for node in nodes:
        if op_of(node) == "Exp" and len(exponents) < MOST_EXPONENTIALS and (found := _exponent(node)):
            exponents.setdefault(found[0], set()).add(found[1])
    linear = _linear(nodes[-1], exponents) if exponents else {}
    facts = []
    for result, signs in exponents.items():
        layer, there = _layer_under(result[0]), linear.get(result, set())
        if layer is None or len(signs) != 1 or len(there) > 1:
            continue
        facts.append({"layer": layer, "sign": next(iter(signs)) * next(iter(there), 0)})
    return facts if linear else []


def _linear(root: Any, wanted: Collection[Result]) -> dict[Result, set[int]]:
    """Return the signs with which a loss adds up certain results: through sums, averages and factors of one sign."""
    found: dict[Result, set[int]] = {}
    stack: list[tuple[Result, int]] = [((root, 0), 1)]
    for _ in range(MOST_TERMS):
        if not stack:
            break
        (node, index), sign = stack.pop()
        op, below = op_of(node), [edge if edge[0] is not None else None for edge in node.next_functions]
        if (node, index) in wanted:
            found.setdefault((node, index), set()).add(sign)
        elif op in SIGNS:
            stack += [(edge, sign * each) for edge, each in zip(below, SIGNS[op], strict=False) if edge]
        elif op == "Neg" or op in PASSED:
            stack += [(edge, -sign if op == "Neg" else sign) for edge in below if edge]
        elif op in ("Mul", "Div") and (factor := sign_of_factor(node)):
            stack += [(edge, sign * factor) for edge in below if edge]
    return found


def _exponent(node: Any) -> tuple[Result, int] | None:
    """Return what an exponential is of, without factors, and the sign of these; None where that is not known."""
    below, sign = children(node), 1
    while len(below) == 1:
        node, index = below[0]
        op = op_of(node)
        if labels_of(node) or op not in (VIEWS - PARTS) | {"Neg", "Mul", "Div"}:
            return ((node, index), sign) if op != "AccumulateGrad" else None
        if op == "Neg":
            sign = -sign
        elif op in ("Mul", "Div"):
            factor = sign_of_factor(node) if len(children(node)) == 1 else 0
            if not factor:
                return ((node, index), sign) if len(children(node)) == 2 else None
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
