"""The terms of a loss, each with the sign with which it is in the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradlens.recorder.facts.loss.graph_reading import VIEWS, op_of, saved_factor

PASSED = VIEWS | {"Mean", "Sum", "Index", "Gather", "IndexSelect", "MaskedSelect", "Cat", "Stack"}
SIGNS = {"Add": (1, 1), "Sub": (1, -1), "Rsub": (-1, 1)}
"""Sums, and the signs of what they get."""
MOST_NODES = 64


def signed_terms(root: Any, is_end: Callable[[Any], bool]) -> tuple[list[tuple[Any, int]], bool]:
    """Walk from a loss through sums, averages, and factors of one sign.

    Args:
        root: The loss's node.
        is_end: Returns whether a node is a term that is looked for; what is under it is not walked through.

    Returns:
        These terms, each with 1 or -1; and whether the loss consists of them alone.
    """
    found: list[tuple[Any, int]] = []
    stack, whole, count = [(root, 1)], True, 0
    while stack and count < MOST_NODES:
        node, sign = stack.pop()
        count += 1
        op, below = op_of(node), node.next_functions
        if is_end(node):
            found.append((node, sign))
        elif op in SIGNS:
            stack += [(child, sign * each) for (child, _), each in zip(below, SIGNS[op], strict=False) if child]
        elif op == "Neg" or op in PASSED:
            stack += [(child, -sign if op == "Neg" else sign) for child, _ in below if child]
        elif op in ("Mul", "Div") and (factor := sign_of_factor(node)):
            stack += [(child, sign * factor) for child, _ in below if child]
        else:
            whole = False
    return found, whole and not stack


def sign_of_factor(node: Any) -> int:
    """Return 1 or -1 for a factor without a graph whose elements have no other sign; 0 where that is not known.

    Args:
        node: The node of the product or the quotient.
    """
    factor = saved_factor(node) if sum(child is not None for child, _ in node.next_functions) == 1 else None
    if factor is None or factor.device.type != "cpu":
        return 0
    return 1 if bool((factor >= 0).all()) else -1 if bool((factor <= 0).all()) else 0
