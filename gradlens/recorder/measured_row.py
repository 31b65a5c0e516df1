"""A row between the moment when it was measured and the moment when its numbers are on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradlens.recorder.norms import HostNorms, Numbers
from gradlens.recorder.ratios import adds, find_column, noise_scalars
from gradlens.run import FloatArray, Row

Indices = NDArray[np.int64]

UNCHANGED = 1e-6
"""A coefficient this near to 1 is rounding."""


@dataclass
class Part:
    """Numbers that belong to layers; several of one layer are combined.

    Args:
        layers: (n,) index of the layer that each belongs to, in the order of registration.
        values: (m,) float64, in numpy, or still on a device.
        take: (n,) which value each is; None where they stand in order.
        scale: What to divide by: the loss scale.
    """

    layers: Indices
    values: Numbers
    take: Indices | None = None
    scale: Tensor | float | None = None

    def unscaled(self) -> HostNorms:
        """Return the values (m,), divided by the scale; they must be on the host."""
        assert isinstance(self.values, np.ndarray)
        return self.values if self.scale is None else self.values / float(self.scale)

    def spread(self) -> HostNorms:
        """Return the values (n,), one for each of ``layers``."""
        values = self.unscaled()
        return values if self.take is None else values[self.take]


@dataclass
class MeasuredRow:
    """All that was measured for one row.

    Args:
        step: Index of the optimizer step.
        epoch: Index of the epoch in progress.
        due: The metrics that the row is to have.
        parts: Metric, or what it is a quotient of, to its numbers.
        scalars: Numbers, or tensors of one element that may still be on a device.
        before: The norms of the parameters' gradients at the end of the backward pass; empty where unknown.
        after: The same as the optimizer got them.
        index: Its place in the table.
        changes_seen: Whether something had changed gradients between backward pass and step by then.
    """

    step: int
    epoch: int
    due: Sequence[str]
    parts: dict[str, list[Part]]
    scalars: dict[str, float | Tensor] = field(default_factory=dict)
    before: list[Part] = field(default_factory=list)
    after: list[Part] = field(default_factory=list)
    index: int = 0
    changes_seen: bool = False
    _fetched: tuple[Tensor, torch.cuda.Event | None] | None = None

    @property
    def is_on_host(self) -> bool:
        """Whether all its numbers are there."""
        return not self._on_device()

    def start_fetch(self) -> None:
        """Begin to copy what lies on a device, all of it at once, without waiting."""
        tensors = [tensor.reshape(-1) for tensor in self._on_device()]
        if not tensors:
            return
        if len({tensor.device for tensor in tensors}) > 1 or tensors[0].device.type != "cuda":
            self._fetched = torch.cat([tensor.cpu().double() for tensor in tensors]), None
            return
        packed = torch.cat([tensor.double() for tensor in tensors])
        host = torch.empty(packed.shape, dtype=packed.dtype, device="cpu", pin_memory=True)
        host.copy_(packed, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(packed.device))
        self._fetched = host, event

    def _on_device(self) -> list[Tensor]:
        """List the tensors to fetch, in an order that ``_land`` knows."""
        parts = self._all_parts()
        found = [part.values for part in parts if isinstance(part.values, Tensor)]
        found += [part.scale for part in parts if isinstance(part.scale, Tensor)]
        return found + [value for value in self.scalars.values() if isinstance(value, Tensor)]

    def _all_parts(self) -> list[Part]:
        several = [*self.parts.values(), self.before, self.after]
        return list({id(part): part for parts in several for part in parts}.values())

    def land(self) -> None:
        """Wait for what ``start_fetch`` began, and put it in its place."""
        if self._fetched is None:
            self.start_fetch()
        if self._fetched is None:
            return
        host, event = self._fetched
        if event is not None:
            event.synchronize()
        numbers = iter(torch.split(host, [tensor.numel() for tensor in self._on_device()]))
        parts = self._all_parts()
        for part in parts:
            if isinstance(part.values, Tensor):
                part.values = next(numbers).numpy()
        for part in parts:
            if isinstance(part.scale, Tensor):
                part.scale = float(next(numbers))
        for name, value in self.scalars.items():
            if isinstance(value, Tensor):
                self.scalars[name] = float(next(numbers))
        self._fetched = None

    def columns(self, n_layers: int) -> dict[str, HostNorms]:
        """Combine the parts of every metric into (L,), NaN where a layer has none, inf where it held NaN or Inf."""
        self.land()
        return {metric: _combine(parts, n_layers, metric) for metric, parts in self.parts.items()}

    def totals(self) -> HostNorms:
        """Return the squared norms (2,) of all recorded gradients together, before and after the loop changed them."""
        self.land()
        if not self.before:
            return np.full(2, math.nan)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array([sum(float(np.square(p.unscaled()).sum()) for p in ps) for ps in (self.before, self.after)])


def make_row(measured: MeasuredRow, columns: Mapping[str, HostNorms], totals: HostNorms, order: Indices) -> Row:
    """Return the row as it is stored.

    Args:
        measured: What the columns came of.
        columns: Metric, or what it is a quotient of, to (L,), in the order of registration.
        totals: See ``MeasuredRow.totals``.
        order: (L,) the registered layer that stands at each place in the file.
    """
    metrics: dict[str, FloatArray] = {}
    for name in measured.due:
        column = find_column(name, columns, len(order))
        if column is not None:
            metrics[name] = column
    scalars = {name: float(value) for name, value in measured.scalars.items()}
    scalars.setdefault("clip_coefficient", clip_coefficient(totals))
    if math.isnan(scalars["clip_coefficient"]):
        del scalars["clip_coefficient"]
    scalars |= noise_scalars(columns)
    return Row(measured.step, measured.epoch, {name: column[order] for name, column in metrics.items()}, scalars)


def clip_coefficient(totals: HostNorms) -> float:
    """Return by how much the norm of all gradients changed between backward pass and step; NaN where unknown."""
    before, after = totals
    if not (np.isfinite(totals).all() and before > 0):
        return math.nan
    coefficient = math.sqrt(after / before)
    return 1.0 if abs(coefficient - 1) < UNCHANGED else coefficient


def _combine(parts: Sequence[Part], n_layers: int, metric: str) -> HostNorms:
    """Add up what belongs to each layer into (L,): counts as they are, norms by their squares."""
    layers = np.concatenate([part.layers for part in parts])
    values = np.concatenate([part.spread() for part in parts])
    values[np.isnan(values)] = np.inf
    column = np.full(n_layers, np.nan)
    if len(layers) == len(set(layers.tolist())):
        column[layers] = values
        return column
    column[layers] = 0
    if adds(metric):
        np.add.at(column, layers, values)
    else:
        np.hypot.at(column, layers, values)  # no square that could under- or overflow
    return column
