"""Where a loss may have no value: a logarithm outside its range, and an average over as many as a mask leaves."""

from __future__ import annotations

import math
from math import prod
from typing import Any

import torch
from torch import Tensor

from gradlens.recorder.facts.loss.graph_reading import Facts, children, labels_of, op_of, saved, shape_of, through_views

LOGARITHMS = {"Log", "Log2", "Log10"}
SELECTIONS = {"Index", "MaskedSelect"}
"""Operations whose result may have no element."""
MEAN = 1
"""The number with which torch saves ``reduction="mean"``."""


@torch.no_grad()
def look_for_logarithm(node: Any, op: str) -> list[Facts]:
    """Take the least number that a logarithm in the loss gets, unread.

    Args:
        node: An operation between the model and the loss.
        op: Its name.

    Returns:
        One fact, or none: ``op``, ``of`` (the operation that made what it gets), ``layer`` (its module, or None),
        ``factors`` (how many numbers it multiplied, for a product, else 1), ``least`` (a tensor).
    """
    values = saved(node, "self") if op in LOGARITHMS else None
    below = children(node)
    if values is None or len(below) != 1 or not values.is_floating_point():
        return []
    made, names = through_views(below[0][0])
    under = children(made)
    factors = prod(shape_of(*under[0])) // max(prod(shape_of(made)), 1) if op_of(made) == "Prod" and under else 1
    fact = {"op": op, "of": op_of(made), "layer": names[0] if names else None, "factors": factors}
    return [fact | {"least": values.min()}]


def look_for_count(node: Any, op: str) -> list[Facts]:
    """Take the number that a sum is divided by, unread, or the number of elements that an average is taken over.

    Args:
        node: An operation between the model and the loss.
        op: Its name.

    Returns:
        One fact, or none: ``op`` and ``count`` (a tensor, or a number where an average is over what a mask selects).
    """
    below = children(node)
    if op == "Div" and len(below) == 1:
        count = saved(node, "other")
        if count is not None and count.numel() == 1 and not labels_of(node) and count.dtype != torch.float64:
            return [{"op": op, "count": count.clone()}]  # a number of Python is one of 64 bits
    elif below and (op == "Mean" or getattr(node, "_saved_reduction", None) == MEAN):
        under, _ = through_views(below[0][0])
        while op_of(under) in ("LogSoftmax", "Pow", "Abs", "Sub") and len(children(under)) == 1:
            under, _ = through_views(children(under)[0][0])
        if op_of(under) in SELECTIONS:
            return [{"op": op, "count": (shape_of(under) or (1,))[0]}]
    return []


def whole_number(count: Tensor | int) -> int | None:
    """Return a count as a number, or None where it is no whole number; this waits for an accelerator.

    Args:
        count: What ``look_for_count`` took.
    """
    value = float(count)
    return int(value) if value >= 0 and value == int(value) else None


@torch.no_grad()
def look_for_clamp(node: Any, op: str) -> list[Facts]:
    """Take whether a clamp in the loss lets anything of every example through, unread.

    Args:
        node: An operation between the model and the loss.
        op: Its name.

    Returns:
        One fact, or none: ``op``, ``all_off`` (a tensor: whether a part of each example lies outside its range).
    """
    values = saved(node, "self") if op in ("Clamp", "ClampMin") else None
    least, most = getattr(node, "_saved_min", None), getattr(node, "_saved_max", None)
    if values is None or not values.dim() or isinstance(least, Tensor) or isinstance(most, Tensor):
        return []
    outside = torch.zeros_like(values, dtype=torch.bool)
    if least is not None:
        outside = outside | (values <= least)
    if most is not None:
        outside = outside | (values >= most)
    return [{"op": op, "all_off": outside.reshape(len(outside), -1).any(1).all()}]


class LeastNumbers:
    """The least number that each logarithm in a loss got, step by step."""

    def __init__(self) -> None:
        self._found: dict[str, Facts] = {}

    def read(self, taken: Facts, step: int) -> None:
        """Read the least number that was taken; this waits for an accelerator.

        Args:
            taken: What ``look_for_logarithm`` returned.
            step: The step of the loss.
        """
        key = repr({name: value for name, value in taken.items() if name != "least"})
        known = self._found.setdefault(key, taken | {"least": []})
        if math.isfinite(least := float(taken["least"])):  # NaN comes from further below
            known["least"].append([step, least])

    def facts(self) -> list[Facts]:
        """Return a fact for each logarithm."""
        return list(self._found.values())


class CountedElements:
    """Over how many elements each average in a loss is taken, step by step."""

    def __init__(self) -> None:
        self._found: dict[str, Facts] = {}
        self._step, self._number = -1, 0
        """The step read last, and how many averages were read of it."""

    def read(self, taken: Facts, step: int) -> None:
        """Read the count that was taken; this waits for an accelerator.

        Args:
            taken: What ``look_for_count`` returned.
            step: The step of the loss.
        """
        self._number = self._number + 1 if step == self._step else 0
        self._step = step
        if (count := whole_number(taken["count"])) is not None:
            fact = {"op": taken["op"], "counts": []}
            self._found.setdefault(f"{taken['op']} {self._number}", fact)["counts"].append([step, count])

    def facts(self) -> list[Facts]:
        """Return a fact for each average."""
        return list(self._found.values())
