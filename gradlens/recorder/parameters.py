"""The parameters of layers: their gradients as the optimizer gets them, their norms, and their updates."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlens.recorder.layers import spread_out
from gradlens.recorder.measured_row import Indices, Part
from gradlens.recorder.norms import Numbers, Reducer, count_nonfinite, list_norms, plain
from gradlens.recorder.ranks.tensor_layouts import ShardedGradients

EARLY_ROWS = 3
"""Number of first rows in which gradients are also read at the end of the backward pass, to detect clipping."""
EARLY_EVERY = 16
"""Interval, in rows, of this second reading after the first rows, until a change is detected."""
SAMPLES = 4
"""Parameters of each optimizer whose gradients are checked for changes in the other rows."""

THIN = 64
"""Elements of a sampled gradient that are compared, to tell clipping from other changes."""
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4}
"""By how much an element may grow by rounding; 1e-2 for other types."""

Signature = list[tuple[Tensor | None, int]]
"""The gradients of some parameters and the version counters of their contents."""


@dataclass
class Owners:
    """Parameters that are read together, each once, and the layers that own them.

    A parameter that several layers share counts in each of them.
    """

    parameters: list[nn.Parameter] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    take: list[int] = field(default_factory=list)

    def part(self, values: Numbers, there: Sequence[int] | None = None, scale: Tensor | None = None) -> Part:
        """Return these values as a part of a row.

        Args:
            values: (n,) one value for each parameter, or for each index in ``there``.
            there: Indices of the parameters that have a value; None for all.
            scale: See ``Part``.

        Returns:
            The part.
        """
        layers, take = self._arrays
        if there is not None and len(there) < len(self.parameters):
            place = np.full(len(self.parameters), -1)
            place[list(there)] = np.arange(len(there))
            take = place[take]
            layers, take = layers[take >= 0], take[take >= 0]
        return Part(layers, values, take, scale)

    @functools.cached_property
    def _arrays(self) -> tuple[Indices, Indices]:
        return np.array(self.layers, dtype=np.int64), np.array(self.take, dtype=np.int64)


def group_by_optimizer(parameters: Sequence[Sequence[nn.Parameter]], groups: Sequence[set[int]]) -> list[Owners]:
    """Group the parameters of layers by the optimizer that updates them.

    Args:
        parameters: For each layer, the parameters that it owns.
        groups: For each optimizer, the ``id`` of its parameters.

    Returns:
        One group for each optimizer, and a last one for parameters of no optimizer; what several optimizers hold is in
        each of their groups.
    """
    owners_of: dict[int, tuple[nn.Parameter, list[int]]] = {}
    for layer, own in enumerate(parameters):
        for parameter in own:
            owners_of.setdefault(id(parameter), (parameter, []))[1].append(layer)
    found = [Owners() for _ in range(len(groups) + 1)]
    for key, (parameter, layers) in owners_of.items():
        for group in [k for k, ids in enumerate(groups) if key in ids] or [len(groups)]:
            owners = found[group]
            owners.layers += layers
            owners.take += [len(owners.parameters)] * len(layers)
            owners.parameters.append(parameter)
    return found


@dataclass
class _Reading:
    """The reading of one optimizer's gradients."""

    part: Part
    counts: Part | None
    summed: tuple[Tensor, Tensor | None] | None = None
    """See ``ShardedGradients.pack``, and the loss scale."""


class ParameterGradients:
    """Reads gradients when the optimizer gets them.

    The row's values are always read at the optimizer step. In the first rows, and in a few later ones, gradients are
    also read at the end of the backward pass, so that the ratio of both readings gives the clip coefficient. Once a
    change between the two moments is detected, this is done in every row. The version counter of a tensor is not
    enough to detect changes: ``p.grad.data.clamp_()`` and the unscaling of a GradScaler do not increase it.

    Args:
        owners: See ``group_by_optimizer``.
        count_nonfinite: Whether NaN and Inf entries are counted.
        always_early: Whether every row is read at the end of the backward pass too.
        sharded: Makes of gradients what is added up over the ranks.
    """

    def __init__(
        self,
        owners: Sequence[Owners],
        *,
        count_nonfinite: bool,
        always_early: bool,
        sharded: ShardedGradients | None = None,
    ) -> None:
        self._owners, self._sharded = owners, sharded
        self._samples = [spread_out(each.parameters, SAMPLES) for each in owners]
        self.count_nonfinite = count_nonfinite
        self._reducer = Reducer()
        self._rows = 0
        self.some_missing = False
        """Whether some gradient of the last reading was not there, or was 0."""
        self.changes_seen = False
        """Whether a change of gradients between backward pass and step was detected in any row so far."""
        self._always_early = always_early
        self.clear()

    def set_owners(self, owners: Sequence[Owners]) -> None:
        """Replace the groups after an optimizer got other parameters.

        Args:
            owners: See ``group_by_optimizer``.
        """
        self._owners = owners
        self._samples = [spread_out(each.parameters, SAMPLES) for each in owners]
        self._reducer = Reducer()
        self.forget_early_reading()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters that are read, each once."""
        return list({id(parameter): parameter for owners in self._owners for parameter in owners.parameters}.values())

    def clear(self) -> None:
        """Forget the step in progress."""
        self._signatures: dict[int, Signature] = {}
        self._before: dict[int, _Reading] = {}
        self._after: dict[int, _Reading] = {}
        self._thin: dict[int, list[Tensor | None]] = {}
        self._shrunk: list[Tensor] = []

    @property
    def reads_early(self) -> bool:
        """Whether gradients are also read at the end of the backward pass in this row."""
        return self._always_early or self.changes_seen or self._rows < EARLY_ROWS or self._rows % EARLY_EVERY == 0

    def look(self, scale: Tensor | None, skip: Collection[int] = ()) -> None:
        """Check the gradients at the end of a backward pass, and read them in rows with an early reading.

        Args:
            scale: The loss scale that they carry.
            skip: Optimizers that have got their gradients in this round.
        """
        early = self.reads_early
        for k in range(len(self._owners)):
            if k in skip:
                continue
            self._signatures[k] = _sign(self._samples[k])
            if early:
                self._before[k], _ = self._read(k, scale)
            if self.changes_seen or early:
                self._thin[k] = [_thin_out(parameter.grad, scale) for parameter in self._samples[k]]

    def forget_early_reading(self) -> None:
        """Forget what ``look`` stored, because another backward pass has begun."""
        self._signatures.clear()
        self._before.clear()
        self._thin.clear()

    def read(self, k: int, scale: Tensor | None, others: Sequence[Tensor] = (), key: Hashable = None) -> Numbers:
        """Read one optimizer's gradients as the optimizer gets them.

        Args:
            k: Index of the optimizer; the number of optimizers stands for parameters of no optimizer.
            scale: The scale by which the optimizer itself will divide.
            others: (n,) other tensors whose norms are computed in the same call, which costs less than two calls.
            key: The same value for ``others`` that are expected to have the same shapes.

        Returns:
            The norms (n,) of ``others``.
        """
        seen = self._signatures.get(k)
        if seen is not None and not self.changes_seen:
            self.changes_seen = not _equal(_sign(self._samples[k]), seen)
        thin = self._thin.get(k, ()) if self.changes_seen else ()
        for parameter, before in zip(self._samples[k], thin, strict=False):
            after = _thin_out(parameter.grad, scale)
            if before is not None and after is not None and before.shape == after.shape:
                self._shrunk.append(_has_shrunk(before, after))
        self._after[k], norms = self._read(k, scale, others, key)
        return norms

    def read_others(self, scale: Tensor | None) -> None:
        """Read the gradients of parameters that belong to no optimizer.

        Args:
            scale: The loss scale that they carry.
        """
        if self._owners[-1].parameters:
            self.read(len(self._owners) - 1, scale)

    def set_scale(self, scale: Tensor | None) -> None:
        """Note that the early readings carry a loss scale, and read early from now on.

        Args:
            scale: The loss scale.
        """
        self._always_early = True
        self._thin.clear()
        for reading in self._before.values():
            reading.part.scale = scale

    def divide_early_reading(self, number: float) -> None:
        """Note that the gradients were divided by a number since the early reading, which is no clipping.

        Args:
            number: The number.
        """
        self._signatures.clear()
        self._thin.clear()
        for part in [reading.part for reading in self._before.values()]:
            part.scale = number if part.scale is None else part.scale * number

    @property
    def shrunk(self) -> Tensor | None:
        """0-d, whether no sampled element grew or changed its sign since the backward pass; None where unknown."""
        devices = {each.device for each in self._shrunk}
        return torch.stack(self._shrunk).all() if len(devices) == 1 else None

    def use_early_reading(self) -> None:
        """Use the reading at the end of the backward pass, because the step was skipped."""
        self._after = dict(self._before)

    def end_row(self) -> None:
        """Count a closed row."""
        self._rows += 1

    def _read(
        self, k: int, scale: Tensor | None, others: Sequence[Tensor] = (), key: Hashable = None
    ) -> tuple[_Reading, Numbers]:
        owners, n = self._owners[k], len(others)
        found: list[Any] = [*others, *[parameter.grad for parameter in owners.parameters]]
        there: list[int] | None = None
        values: Numbers | None = self._reducer.norms_as_before(found, (k, len(found), key))
        if values is None:
            there = [i for i, grad in enumerate(found[n:]) if grad is not None]
            found = [tensor for tensor in found if tensor is not None]
            values = list_norms(found, self._reducer, (k, len(found), key))
        mine = values[n:]
        self.some_missing = (there is not None and len(there) < len(owners.parameters)) or (
            isinstance(mine, np.ndarray) and not mine.all()
        )
        counts = _count(found[n:], mine) if self.count_nonfinite else None
        summed = None
        if self._sharded is not None and len(found) > n:
            read = owners.parameters if there is None else [owners.parameters[i] for i in there]
            mine = self._sharded.weigh(mine, read, found[n:], 2)
            counts = None if counts is None else self._sharded.weigh(counts, read, found[n:], 1)
            packed = self._sharded.pack(read, found[n:])
            summed = None if packed is None else (packed, scale)
        reading = _Reading(
            owners.part(mine, there, scale), None if counts is None else owners.part(counts, there), summed
        )
        return reading, values[:n]

    @property
    def parts(self) -> list[Part]:
        """The readings at the optimizer steps."""
        return [reading.part for reading in self._after.values()]

    @property
    def summed(self) -> list[tuple[Tensor, Tensor | None]]:
        """What the readings add to gradients that are added up over the ranks, and the loss scales."""
        return [reading.summed for reading in self._after.values() if reading.summed is not None]

    @property
    def count_parts(self) -> list[Part]:
        """The numbers of NaN and Inf entries."""
        return [reading.counts for reading in self._after.values() if reading.counts is not None]

    @property
    def parts_before(self) -> list[Part]:
        """The readings at the end of the backward pass; empty if one is missing for an optimizer that stepped."""
        idle = {k: reading for k, reading in self._after.items() if not self._owners[k].parameters}
        before = {**idle, **self._before}  # the parameters of an optimizer without any here are read by another rank
        return [before[k].part for k in self._after] if before.keys() >= self._after.keys() else []


def _sign(parameters: Sequence[nn.Parameter]) -> Signature:
    return [(grad, -1 if grad is None else grad._version) for grad in [parameter.grad for parameter in parameters]]


def _thin_out(grad: Tensor | None, scale: Tensor | None) -> Tensor | None:
    """Return at most about ``THIN`` elements of a gradient, evenly spaced, divided by the scale."""
    if grad is None or grad.is_meta:
        return None
    numbers = plain(grad).reshape(-1)
    thin = numbers[:: max(1, numbers.numel() // THIN)]
    return thin.clone() if scale is None else thin / scale.to(thin.device)


def _has_shrunk(before: Tensor, after: Tensor) -> Tensor:
    """Return (0-d) whether all elements kept their sign and none grew, as clipping leaves them."""
    grown = after.abs() > before.abs() * (1 + ROUNDING.get(before.dtype, 1e-2))
    return ~(grown | (before * after < 0)).any()


def _equal(now: Signature, then: Signature) -> bool:
    return all(a is b and v == w for (a, v), (b, w) in zip(now, then, strict=True))


def _count(grads: Sequence[Tensor], values: Numbers) -> Numbers:
    """Return the numbers of NaN and Inf entries; on the CPU they are counted only if the norm is not finite."""
    if isinstance(values, Tensor):
        counts_there = [count_nonfinite(grad) for grad in grads]
        return torch.stack(counts_there).to(values.dtype) if counts_there else values
    counts: Indices = np.zeros(len(grads), dtype=np.int64)
    for i in np.flatnonzero(~np.isfinite(values)):
        counts[i] = int(count_nonfinite(grads[int(i)]))
    return counts.astype(np.float64)
