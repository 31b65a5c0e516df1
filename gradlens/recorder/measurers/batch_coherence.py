"""Cosine between the parameter gradients of two batches in succession, layer by layer.

A whole batch has a backward pass of its own, so that the cosine is sound under batch norm, which ties the halves of one
batch together. In a row in which the metric is due by its interval the gradients are copied, right before the
optimizer's step, and in the next row they are compared with that row's. So the value is in the row after, and the two
batches are in succession where every step is recorded; with an interval between rows they are that many steps apart.
Between the two gradients the weights take that step: the cosine is of the loss before and after it.

=====================  ==============================================================================================
Row                    What happens
=====================  ==============================================================================================
Due by its interval    The gradients are copied before the optimizer's step.
The next one           They are compared with the gradients before that step, and released. (It may be due, too.)
A skipped step         Nothing is copied, and copies are released: the metric is NaN.
Any other              Nothing.
=====================  ==============================================================================================

Copies take at most ``MOST_COPIED`` bytes, or those of one layer more: where all gradients take more, groups of layers
are copied in turn.

Source: Fort et al. 2019, Stiffness: A New Perspective on Generalization in Neural Networks (the cosine, there of two
examples); Sankararaman et al. 2020, The Impact of Neural Network Overparameterization on Gradient
Confusion and Stochastic Gradient Descent (negative inner products between the gradients of batches).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradlens.metrics import BATCH_COHERENCE
from gradlens.recorder.measured_row import Part
from gradlens.recorder.measurer import Context, Measurer
from gradlens.recorder.measurers.weights import group_by_size
from gradlens.recorder.norms import NO_FLOAT64, plain
from gradlens.recorder.parameters import Owners, group_by_optimizer
from gradlens.recorder.ratios import BATCH_NORM, BATCH_PRODUCT, NEXT_BATCH_NORM

CHUNK = 1 << 20
"""Elements that are converted to float64 at a time."""


class BatchCoherence(Measurer):
    """Copies gradients in one row and compares them with those of the next row.

    Args:
        context: What is measured.
    """

    reads_parameters = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._groups: list[Owners] = []
        self._turn = 0
        self._due_at = self._copied_at = self._compared_at = -1
        """Rows: the last one that was due by the interval, the last one with copies, the last one with values."""
        self._release()
        self.clear()

    def clear(self) -> None:
        """Forget the values of the step in progress; the copies are for the next one."""
        self._parts: dict[str, list[Part]] = {}

    def stop(self) -> None:
        """Release the copies."""
        self._release()

    def _release(self) -> None:
        self._copies: list[Tensor | None] = []
        self._owners = Owners()

    @property
    def groups(self) -> list[Owners]:
        """The parameters of groups of layers that are copied together."""
        if not self._groups:
            own = self.context.own
            group_of = group_by_size(own)
            for each in range(int(group_of.max(initial=0)) + 1):
                mine = [one if g == each else () for one, g in zip(own, group_of, strict=True)]
                self._groups.append(group_by_optimizer(mine, ())[0])
        return self._groups

    def choose(self, due: Sequence[str], row: int) -> list[str]:
        """Return the metrics that a row is to have: this one in the row after that in which it is due."""
        if BATCH_COHERENCE in due:
            self._due_at = row
        has_value = self._compared_at == row or (self._copied_at == row - 1 >= 0)
        return [name for name in due if name != BATCH_COHERENCE] + ([BATCH_COHERENCE] if has_value else [])

    @property
    def spread_over_rows(self) -> list[str]:
        """The metric, where gradients are copied in turn."""
        return [BATCH_COHERENCE] if len(self.groups) > 1 else []

    def before_step(self, due: Sequence[str], row: int) -> None:
        """Compare with the copies of the row before, if there are any; copy the gradients if the metric is due."""
        if self._copied_at == row - 1 and self._copies:
            self._compare()
            self._compared_at = row
        self._release()
        if self._due_at == row:
            self._owners = self.groups[self._turn % len(self.groups)]
            self._turn += 1
            self._copies = [_numbers(parameter.grad, copy=True) for parameter in self._owners.parameters]
            self._copied_at = row

    def skip_step(self, due: Sequence[str], row: int) -> None:
        """Release the copies: a step was skipped."""
        self._release()

    def _compare(self) -> None:
        now = [_numbers(parameter.grad) for parameter in self._owners.parameters]
        there = [i for i, (a, b) in enumerate(zip(self._copies, now, strict=True)) if _are_alike(a, b)]
        pairs: list[tuple[Any, Any]] = [(self._copies[i], now[i]) for i in there]
        if not pairs:
            return
        columns = zip(*(_products(a, b) for a, b in pairs), strict=True)
        names = (BATCH_PRODUCT, BATCH_NORM, NEXT_BATCH_NORM)
        for name, column in zip(names, columns, strict=True):
            stacked = torch.stack([value.to(column[0].device) for value in column])
            values: Any = stacked.double().numpy() if stacked.is_cpu else stacked
            self._parts[name] = [self._owners.part(values, there)]

    def parts(self, scale: Tensor | float | None) -> dict[str, list[Part]]:
        """Return the inner products, and the norms of both gradients."""
        return self._parts


def _numbers(grad: Tensor | None, *, copy: bool = False) -> Tensor | None:
    """Return the dense numbers of a gradient as a vector; None where there are none, or where it is sparse."""
    if grad is None or grad.layout != torch.strided or grad.is_meta:
        return None
    numbers = plain(grad).reshape(-1)
    return numbers.clone() if copy else numbers


def _are_alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and one.device == other.device


def _products(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return inner product and both norms of two vectors, 0-d, accumulated in float64 where the device has it."""
    dtype = torch.float32 if one.device.type in NO_FLOAT64 else torch.float64
    sums = torch.zeros(3, dtype=dtype, device=one.device)
    for start in range(0, len(one), CHUNK):
        x, y = (each[start : start + CHUNK].to(dtype) for each in (one, other))
        sums += torch.stack([torch.dot(x, y), torch.dot(x, x), torch.dot(y, y)])
    product, first, second = sums.unbind()
    return product, first.sqrt(), second.sqrt()


MEASURER = BatchCoherence
