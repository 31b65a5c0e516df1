"""Find softmaxes inside a model that give all places the same weight: what they get tells the places not apart.

Exact: compared are the results that torch keeps for the backward pass. Places with a weight of 0 are hidden by a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gradlens.recorder.facts.layer_inputs import MOST_ELEMENTS
from gradlens.recorder.facts.loss.graph_reading import Facts, children, dim_of, labels_of, op_of, saved

MOST_SOFTMAXES = 4
MOST_WEIGHTS = 16 * MOST_ELEMENTS
"""Larger tables are not looked at."""
PRODUCTS = {"Bmm", "Mm", "Baddbmm", "Addmm", "Addbmm", "Sum"}
"""Operations that make scores of queries and keys."""
MOST_STEPS = 12


@torch.no_grad()
def even_softmaxes(nodes: Sequence[Any]) -> list[Facts]:
    """Take from attention-like softmaxes whether each row has one weight for all places that it sees, unread.

    Args:
        nodes: All operations of the graph, inputs first.

    Returns:
        A fact for each: ``place`` (its number), ``layer`` (the nearest module behind whose output it gets, or None),
        ``even`` (a tensor: whether all rows are so, and one of them sees two places or more).
    """
    found: list[Facts] = []
    for node in nodes:
        if op_of(node) != "Softmax" or len(found) == MOST_SOFTMAXES:
            continue
        weights = saved(node, "result")
        if weights is None or weights.dim() < 3 or weights.numel() > MOST_WEIGHTS or not _of_products(node):
            continue
        dim = dim_of(node, weights.dim())
        if dim is None or weights.shape[dim] < 2:
            continue
        seen = weights > 0
        largest = weights.amax(dim, keepdim=True)
        even = ((weights == largest) | ~seen).all() & (seen.sum(dim) > 1).any()
        found.append({"place": len(found), "layer": _layer_under(node), "even": even})
    return found


def _of_products(node: Any) -> bool:
    """Return whether a softmax gets sums of products that both have a graph, with masks and scalings between."""
    for _ in range(MOST_STEPS):
        below = [child for child, _ in children(node)]
        if not below:
            return False
        node = below[0]
        if op_of(node) in PRODUCTS:
            return len(children(node)) > 1 or (op_of(node) == "Sum" and len(children(children(node)[0][0])) > 1)
    return False


def _layer_under(node: Any) -> str | None:
    """Return the module whose output is nearest under an operation."""
    stack = [node]
    for _ in range(64):
        if not stack:
            return None
        here = stack.pop(0)
        if here is not node and (names := labels_of(here)):
            return names[-1]
        stack += [child for child, _ in children(here)]
    return None
