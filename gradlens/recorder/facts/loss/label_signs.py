"""Losses of pairs and of margins take labels of -1 and 1: the share of examples that labels of 0 leave out."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from gradlens.recorder.facts.loss.graph_reading import (
    VIEWS,
    Facts,
    children,
    labels_of,
    op_of,
    saved,
    saved_factor,
    shape_of,
)
from gradlens.recorder.facts.loss.signed_terms import signed_terms

HINGES = {"Clamp", "ClampMin", "Relu", "Threshold"}
AFFINE = VIEWS | {"Add", "Sub", "Rsub", "Neg"}
DISTANCES = "hinge_embedding_loss"
"""A loss that takes distances."""
LEAST_EXAMPLES = 4
"""Labels that are no chance."""


@torch.no_grad()
def hinge_labels(root: Any) -> list[Facts]:
    """Take the labels of hinge losses, max(0, margin - label * output), unread.

    Args:
        root: The loss's node.

    Returns:
        A fact for each hinge: ``op``, ``zeros`` (a tensor: the share of labels that are 0, or NaN where the labels are
        not 0 and one other number).
    """
    terms, _ = signed_terms(root, lambda node: _labels_of_hinge(node) is not None)
    found = []
    for node, sign in terms:
        labels = _labels_of_hinge(node)
        if labels is not None and sign > 0:
            least, most = labels.min(), labels.max()
            other = torch.where(most > 0, most, least)
            known = ((labels == 0) | (labels == other)).all() & (other != 0)
            found.append({"op": "hinge", "zeros": torch.where(known, (labels == 0).float().mean(), torch.nan)})
    return found


def _labels_of_hinge(node: Any) -> Tensor | None:
    """Return what the output is multiplied by in max(0, a - label * output); None for another operation."""
    if op_of(node) not in HINGES or getattr(node, "_saved_min", 0) not in (0, None):
        return None
    below = children(node)
    while len(below) == 1 and op_of(below[0][0]) in AFFINE and not labels_of(below[0][0]):
        below = children(below[0][0])
    if len(below) != 1 or op_of(below[0][0]) != "Mul" or labels_of(below[0][0]):
        return None
    factor, shape = saved_factor(below[0][0]), shape_of(*below[0])
    if factor is None or len(children(below[0][0])) != 1 or not shape or shape[0] < LEAST_EXAMPLES:
        return None
    return factor if factor.numel() == prod(shape) == shape[0] else None  # one label per example


@torch.no_grad()
def pair_labels(root: Any) -> list[Facts]:
    """Take which side of a loss of pairs each example goes into, unread.

    ``F.cosine_embedding_loss`` and ``F.hinge_embedding_loss`` add one side for a label of 1 and another one for -1.

    Args:
        root: The loss's node.

    Returns:
        A fact for each such loss: ``op`` (``cosine_embedding_loss`` or ``hinge_embedding_loss``), ``zeros`` (a tensor:
        the share of examples with another label).
    """
    terms, _ = signed_terms(root, lambda node: _sides(node) is not None)
    found = []
    for node, _ in terms:
        sides = _sides(node)
        if sides is not None:
            op, one, other = sides
            found.append({"op": op, "zeros": (one == other).float().mean()})
    return found


def _sides(node: Any) -> tuple[str, Tensor, Tensor] | None:
    """Return the loss of pairs that adds up two choices, and the conditions of both; None for another operation."""
    below = [child for child, _ in children(node)]
    if op_of(node) != "Add" or len(below) != 2 or any(op_of(child) != "Where" for child in below):
        return None
    chosen = [[under for under, _ in children(child)] for child in below]
    conditions = [saved(child, "condition") for child in below]
    one, other = conditions
    if one is None or other is None or any(len(under) != 1 for under in chosen) or one.shape != other.shape:
        return None
    ops = [op_of(under[0]) for under in chosen]
    if one.dim() != 1 or one.numel() < LEAST_EXAMPLES:
        return None
    if ops[0] in ("Sub", "Rsub") and ops[1] == "ClampMin":
        return "cosine_embedding_loss", one, other
    return (DISTANCES, one, other) if ops[0] == "ClampMin" and ops[1] != "ClampMin" else None


def label_signs(root: Any) -> list[Facts]:
    """Take the labels of losses of margins and pairs, unread; ``root`` is the loss's node."""
    return [*hinge_labels(root), *pair_labels(root)]


def read_label_signs(taken: Facts) -> list[tuple[str, Facts]]:
    """Return losses some of whose labels they do not take, and losses of distances; this waits for an accelerator.

    Args:
        taken: What ``label_signs`` returned.
    """
    found: list[tuple[str, Facts]] = [("pairs", {"op": DISTANCES})] if taken["op"] == DISTANCES else []
    if 0 < (zeros := float(taken["zeros"])) <= 1:  # NaN for other labels
        found.append(("label_signs", taken | {"zeros": zeros}))
    return found
