"""A measured row whose numbers may still be on a device."""

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
"""Clip coefficients that differ from 1 by less are rounding."""
GROWTH = 1e-5
"""By how much the norm of a parameter's gradient may grow in clipping, by rounding."""
SHRUNK = "(shrunk)"
"""Scalar of a measured row, not stored: 0 if sampled gradients changed in a way that clipping does not."""


@dataclass
class Part:
    """Values of layers; several values of one layer are combined.

    Args:
        layers: (n,) index of the layer of each value, in the order of registration.
        values: (m,) float64, in numpy or on a device.
        take: (n,) index of each value in ``values``; None if they are in order.
        scale: The loss scale, by which values are divided.
    """

    layers: Indices
    values: Numbers
    take: Indices | None = None
    scale: Tensor | float | None = None

    def unscaled(self) -> HostNorms:
        """Return the values (m,) divided by the scale; they must be on the host."""
        assert isinstance(self.values, np.ndarray)
        return self.values if self.scale is None else self.values / float(self.scale)

    def only(self, mask: NDArray[np.bool_] | None) -> Part:
        """Return the values of some layers.

        Args:
            mask: (L,) whether a layer is one of them; None for all.
        """
        if mask is None or mask[self.layers].all():
            return self
        kept = mask[self.layers]
        take = np.arange(len(self.layers)) if self.take is None else self.take
        return Part(self.layers[kept], self.values, take[kept], self.scale)

    def spread(self) -> HostNorms:
        """Return the values (n,), one for each entry of ``layers``."""
        values = self.unscaled()
        return values if self.take is None else values[self.take]


@dataclass
class MeasuredRow:
    """Everything measured for one row.

    Args:
        step: Index of the optimizer step.
        epoch: Index of the epoch in progress.
        due: The metrics that the row will have.
        parts: Metric or addend to its values.
        scalars: Numbers, or tensors of one element that may be on a device.
        before: Norms of the parameters' gradients at the end of the backward pass; empty where unknown.
        after: The same norms at the optimizer step.
        index: Index of the row in the run.
        changes_seen: Whether a change of gradients between backward pass and step was detected by then.
        summed: This rank's addends of gradients that are added up over the ranks, each with its loss scale.
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
    summed: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    _fetched: tuple[Tensor, torch.cuda.Event | None] | None = None

    @property
    def is_on_host(self) -> bool:
        """Whether all numbers are on the host."""
        return not self._on_device()

    def start_fetch(self) -> None:
        """Start one copy of all numbers on the device to the host, without waiting."""
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
        """Return the tensors to fetch, in the order that ``finish_fetch`` expects."""
        parts = self._all_parts()
        found = [part.values for part in parts if isinstance(part.values, Tensor)]
        found += [part.scale for part in parts if isinstance(part.scale, Tensor)]
        return found + [value for value in self.scalars.values() if isinstance(value, Tensor)]

    def _all_parts(self) -> list[Part]:
        several = [*self.parts.values(), self.before, self.after]
        return list({id(part): part for parts in several for part in parts}.values())

    def finish_fetch(self) -> None:
        """Wait for the copy of ``start_fetch``, and replace the tensors by its numbers."""
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
        """Return each metric or addend as (L,): NaN where a layer has none, inf where it held NaN or Inf."""
        self.finish_fetch()
        return {metric: _combine(parts, n_layers, metric) for metric, parts in self.parts.items()}

    def totals(self) -> HostNorms:
        """Return the squared norms (2,) of all gradients together: after the backward pass, and at the step.

        NaN where unknown, and where gradients changed in a way that clipping does not: none may grow.
        """
        self.finish_fetch()
        if not self.before or not float(self.scalars.get(SHRUNK, 1.0)) or not self._norms_shrank:
            return np.full(2, math.nan)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array([sum(float(np.square(p.unscaled()).sum()) for p in ps) for ps in (self.before, self.after)])

    @property
    def _norms_shrank(self) -> bool:
        """Whether the norm of no parameter's gradient grew."""
        pairs = [(before.unscaled(), after.unscaled()) for before, after in zip(self.before, self.after, strict=True)]
        with np.errstate(invalid="ignore"):
            return all(
                len(before) == len(after) and not (after > before * (1 + GROWTH)).any() for before, after in pairs
            )

    def began_finite(self) -> bool:
        """Return whether every gradient was finite after the backward pass: clipping by norm makes NaN of others."""
        self.finish_fetch()
        return all(bool(np.isfinite(part.unscaled()).all()) for part in self.before)


def make_row(measured: MeasuredRow, columns: Mapping[str, HostNorms], totals: HostNorms, order: Indices) -> Row:
    """Return the row as it is stored.

    Args:
        measured: The measured row.
        columns: Metric or addend to (L,), in the order of registration.
        totals: See ``MeasuredRow.totals``.
        order: (L,) index, in the order of registration, of each layer in the file.
    """
    metrics: dict[str, FloatArray] = {}
    for name in measured.due:
        column = find_column(name, columns, len(order))
        if column is not None:
            metrics[name] = column
    scalars = {name: float(value) for name, value in measured.scalars.items() if name != SHRUNK}
    scalars.setdefault("clip_coefficient", clip_coefficient(totals))
    if math.isnan(scalars["clip_coefficient"]):
        del scalars["clip_coefficient"]
    scalars |= noise_scalars(columns)
    return Row(measured.step, measured.epoch, {name: column[order] for name, column in metrics.items()}, scalars)


def clip_coefficient(totals: HostNorms) -> float:
    """Return the norm of all gradients at the step divided by that after the backward pass; NaN where unknown."""
    before, after = totals
    if not (np.isfinite(totals).all() and before > 0):
        return math.nan
    coefficient = math.sqrt(after / before)
    return 1.0 if abs(coefficient - 1) < UNCHANGED else coefficient


def _combine(parts: Sequence[Part], n_layers: int, metric: str) -> HostNorms:
    """Combine values by layer into (L,): sum counts, and sum norms by their squares."""
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
        np.hypot.at(column, layers, values)  # hypot forms no square that could underflow or overflow
    return column
