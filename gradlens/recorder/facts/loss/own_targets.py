"""Find targets of a loss that have a graph of their own module, and deviations that are logarithms.

Exact: read from the graph of the loss. A module's output is known by its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradlens.recorder.facts.loss.graph_reading import (
    VIEWS,
    WEIGHTED,
    Facts,
    children,
    labels_of,
    op_of,
    saved_factor,
    shape_of,
)

PICKS = {"Gather", "Index", "IndexSelect", "Max", "Amax", "Minimum", "MaskedSelect"}
"""Operations that choose among a module's outputs: the value of an action, the best one, the lower of two."""
BEST = {"Max", "Amax"}
CHOICES = VIEWS | PICKS
SHIFTED = {"Add", "Sub", "Rsub"}
SCALED = {"Mul", "Div", "Neg", "Clamp", "ClampMin", "ClampMax"}
"""Operations that scale a value."""
COMPARES = {"MseLoss", "SmoothL1Loss", "HuberLoss", "L1Loss", "Sub"}
MOST_STEPS = 40
"""Operations that are followed from a loss to a module."""


def own_target(node: Any, op: str) -> list[Facts]:
    """Look for an error whose target is made from the same module: a number plus a multiple of its next output.

    Args:
        node: An operation of the loss.
        op: Its name.

    Returns:
        One fact, or none.
    """
    below = children(node)
    if op not in COMPARES or len(below) != 2 or below[0][0] is below[1][0]:
        return []
    for mine, other in ((below[0][0], below[1][0]), (below[1][0], below[0][0])):
        found, target = _ends(mine), _ends(other)
        if found is None or target is None or not found[0] & target[0]:
            continue
        is_plain = not found[1] & (SHIFTED | SCALED)
        is_choice = (found[1] | target[1]) & PICKS
        if is_plain and is_choice and target[1] & SHIFTED and "Mul" in target[1] and _adds_a_number(other):
            return [{"op": op, "layer": sorted(found[0] & target[0])[0]}]
    return []


def only_target(node: Any, op: str) -> list[Facts]:
    """Look for an error of which only the target has a graph: a number plus a multiple of a module's best value.

    Args:
        node: An operation of the loss.
        op: Its name.

    Returns:
        One fact, or none.
    """
    below = children(node)
    if op not in COMPARES or len(below) != 1:
        return []
    target = _ends(below[0][0])
    if target is None or len(target[0]) != 1 or not target[1] & BEST or not target[1] & SHIFTED:
        return []
    if "Mul" not in target[1] or not _adds_a_number(below[0][0]):
        return []
    return [{"op": op, "layer": next(iter(target[0]))}]


def _adds_a_number(node: Any) -> bool:
    """Return whether the topmost sum under an operation adds something without a graph: a reward."""
    while op_of(node) in CHOICES | SCALED and len(children(node)) == 1 and not labels_of(node):
        node = children(node)[0][0]
    return op_of(node) in SHIFTED and len(children(node)) == 1


def _ends(node: Any) -> tuple[set[str], set[str]] | None:
    """Return the modules whose outputs a value is computed from, and the operations between.

    None where something else with a graph takes part.
    """
    stack, modules, ops, seen = [node], set[str](), set[str](), 0
    while stack:
        here = stack.pop()
        seen += 1
        names, op = labels_of(here), op_of(here)
        if names:
            modules.add(names[-1])
        elif op in CHOICES | SHIFTED | SCALED and seen < MOST_STEPS and children(here):
            ops.add(op)
            stack += [child for child, _ in children(here)]
        else:
            return None
    return modules, ops


def log_as_deviation(nodes: Sequence[Any]) -> list[Facts]:
    """Look for an output that noise is multiplied with, and of which the loss takes the exponential: a log variance.

    Args:
        nodes: All operations of the graph.

    Returns:
        A fact for each such output.
    """
    taken = {id(child) for node in nodes if op_of(node) == "Exp" for child, _ in children(node)}
    found = []
    for node in nodes:
        below = children(node)
        if op_of(node) != "Add" or len(below) != 2:
            continue
        for mean, noise in (below, below[::-1]):
            made, factors = noise[0], children(noise[0])
            if op_of(made) != "Mul" or len(factors) != 1 or id(factors[0][0]) not in taken:
                continue
            drawn, output = saved_factor(made), factors[0][0]
            if drawn is None or drawn.dim() < 1 or tuple(drawn.shape) != tuple(shape_of(output)):
                continue
            if all(op_of(each) in WEIGHTED and labels_of(each) for each in (output, mean[0])):
                found.append({"layer": labels_of(output)[0], "mean": labels_of(mean[0])[0]})
    return found
