"""Losses of nothing but comparisons of a module's outputs with each other: smallest where all outputs are the same."""

from __future__ import annotations

from math import prod
from typing import Any

from gradlens.recorder.facts.loss.graph_reading import VIEWS, Facts, children, labels_of, op_of, shape_of
from gradlens.recorder.facts.loss.logit_range import is_cosine, number_in

DIFFERENCES = {"Sub", "MseLoss", "SmoothL1Loss", "HuberLoss", "L1Loss"}
KEEPS = VIEWS | {"Mean", "Sum", "Neg", "Rsub", "Pow", "Abs", "Sqrt", "LinalgVectorNorm", "Norm"}
"""Operations after which a comparison is still smallest, or largest, where both sides are the same."""
SIZES = {"Pow", "Abs", "LinalgVectorNorm", "Norm"}
"""Operations that make a difference smallest where it is 0; one with its sign has no such place."""
MOST_TERMS, MOST_NODES = 64, 200
"""Nodes of the loss above its comparisons, and nodes between a comparison and the modules whose outputs it compares."""


def compared_outputs(root: Any) -> list[Facts]:
    """Describe a loss that consists of comparisons of outputs of one module, both with a graph, and of nothing else.

    Another term, a margin, or labels that choose pairs may keep outputs apart.

    Args:
        root: The loss's node.

    Returns:
        One fact, or none: ``op`` (of a comparison, or ``Cosine``) and ``layer``.
    """
    found: list[Facts] = []
    stack, steps = [(root, False)], 0
    while stack:
        (node, is_size), steps = stack.pop(), steps + 1
        op, below = op_of(node), [child for child, _ in children(node)]
        if (is_size or op != "Sub") and (fact := _comparison(node, op, below)):
            found.append(fact)
        elif steps > MOST_TERMS or not below or labels_of(node):
            return []
        elif (
            op == "Add"
            or (op in KEEPS | {"Sub"} and len(below) == 1)
            or (op in ("Mul", "Div") and len(below) == 1 and number_in(node))
        ):
            stack += [(child, is_size or op in SIZES) for child in below]
        else:
            return []
    return found[:1]


def _comparison(node: Any, op: str, sides: list[Any]) -> Facts | None:
    if is_cosine(node, op):
        op, sides = "Cosine", [child for child, _ in children(sides[0])] if op == "Sum" else sides
    elif op not in DIFFERENCES:
        return None
    if len(sides) != 2 or min(prod(shape_of(side)) for side in sides) < 2:
        return None
    one, two = map(_modules_under, sides)
    same = sorted(one & two)
    return {"op": op, "layer": same[0]} if same else None


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
