"""A loss that is plus the overlap of outputs and targets (Dice, intersection over union)."""

from __future__ import annotations

from typing import Any

from gradlens.recorder.facts.loss.graph_reading import VIEWS, Facts, children, labels_of, op_of, saved_factor, shape_of
from gradlens.recorder.facts.loss.signed_terms import signed_terms

PASSED = VIEWS | {"Add", "Sub", "Mul", "Sum", "Mean"}
"""What may lie between an overlap and its product."""
MOST_NODES = 32


def overlap_sign(root: Any) -> list[Facts]:
    """Describe a loss that consists of overlaps, all with a positive sign.

    An overlap is sum(output * target) / (sum(output) + ...), where the target has no graph.

    Args:
        root: The loss's node.

    Returns:
        One fact, or none: ``layer`` (the module that made the output, or None).
    """
    terms, whole = signed_terms(root, lambda node: _output_of_overlap(node) is not None)
    if not terms or not whole or any(sign < 0 for _, sign in terms):
        return []
    output = _output_of_overlap(terms[0][0])
    names = labels_of(output) if output is not None else []
    return [{"layer": names[0] if names else None}]


def _output_of_overlap(node: Any) -> Any | None:
    """Return the node of what overlaps with the target; None for another operation."""
    below = [child for child, _ in children(node)]
    if op_of(node) != "Div" or len(below) != 2:
        return None
    products = [each for each in _reached(below[0]) if op_of(each) == "Mul" and _is_product(each)]
    if len(products) != 1 or not any(op_of(each) == "Sum" for each in _reached(below[1])):
        return None
    output = _under(children(products[0])[0][0])
    return output if any(_under(each) is output for each in _reached(below[1])) else None


def _is_product(node: Any) -> bool:
    """Return whether an output is multiplied by a target: element by element, in front of the sum."""
    factor = saved_factor(node)
    return len(children(node)) == 1 and factor is not None and factor.shape == shape_of(node) and factor.numel() > 1


def _reached(start: Any) -> list[Any]:
    """Return the operations toward the input, through sums and factors."""
    found, stack = [start], [start]
    while stack and len(found) < MOST_NODES:
        node = stack.pop()
        if op_of(node) in PASSED and not labels_of(node):
            below = [child for child, _ in children(node)]
            found += below
            stack += below
    return found


def _under(node: Any) -> Any:
    while op_of(node) in VIEWS and len(children(node)) == 1 and not labels_of(node):
        node = children(node)[0][0]
    return node
