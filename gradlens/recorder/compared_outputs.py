"""Losses that compare two outputs of one module with each other: they are smallest where all outputs are the same."""

from __future__ import annotations

from math import prod
from typing import Any

from gradlens.recorder.graph_reading import Facts, children, labels_of, op_of, shape_of
from gradlens.recorder.logit_range import is_cosine

DIFFERENCES = {"Sub", "MseLoss", "SmoothL1Loss", "HuberLoss", "L1Loss"}
MOST_NODES = 200
"""Nodes between a comparison and the modules whose outputs it compares."""


def compared_outputs(node: Any) -> list[Facts]:
    """Describe a comparison of two outputs that both have a graph and come from the same module.

    Args:
        node: A node of a loss.

    Returns:
        One fact, or none: ``op`` (the operation, or ``Cosine``) and ``layer``.
    """
    op = op_of(node)
    sides = [child for child, _ in children(node)]
    if is_cosine(node, op):
        op, sides = "Cosine", [child for child, _ in children(sides[0])] if op == "Sum" else sides
    elif op not in DIFFERENCES:
        return []
    if len(sides) != 2 or min(prod(shape_of(side)) for side in sides) < 2:
        return []
    one, two = map(_modules_under, sides)
    same = sorted(one & two)
    return [{"op": op, "layer": same[0]}] if same else []


def _modules_under(node: Any) -> set[str]:
    """Return the modules that are nearest under a node."""
    found: set[str] = set()
    stack, seen = [node], {node}
    while stack and len(seen) < MOST_NODES:
        each = stack.pop()
        if names := labels_of(each):
            found.add(names[0])
            continue
        below = [child for child, _ in children(each) if child not in seen]
        seen.update(below)
        stack += below
    return found
