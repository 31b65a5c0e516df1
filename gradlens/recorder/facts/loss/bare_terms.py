"""Terms of a loss that are numbers to the model: what is added to it and has no graph."""

from __future__ import annotations

from typing import Any

from gradlens.recorder.facts.loss.graph_reading import VIEWS, children, labels_of, op_of, shape_of

SUMS = {"Add", "Sub", "Rsub"}
SCALED = {"Mul", "Div", "Neg"}
MOST_TERMS = 64


def has_bare_term(root: Any) -> bool:
    """Return whether something without a graph is added to a loss, which may be a number.

    Args:
        root: The loss's node.
    """
    stack, count = [root], 0
    while stack and count < MOST_TERMS:
        node = stack.pop()
        count += 1
        if shape_of(node) != () or op_of(node) not in SUMS | SCALED:
            continue
        below = [child for child, _ in children(node)]
        if op_of(node) in SUMS and len(below) == 1:
            return True
        stack += below
    return False


def is_output(node: Any) -> bool:
    """Return whether what a node makes is a module's output, or the sum or mean of one.

    Args:
        node: The node.
    """
    while not labels_of(node):
        below = children(node)
        if op_of(node) not in (*VIEWS, "Sum", "Mean") or len(below) != 1:
            return False
        node = below[0][0]
    return True
