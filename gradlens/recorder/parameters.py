"""The parameters that layers own: their gradients as the optimizer gets them, their size, their update."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlens.recorder.layers import spread_out
from gradlens.recorder.measured_row import Indices, Part
from gradlens.recorder.norms import Numbers, Reducer, count_nonfinite, list_norms, local_part

EARLY_ROWS = 3
"""First rows in which gradients are read at the end of the backward pass too, to learn whether the loop clips them."""
EARLY_EVERY = 16
"""After them, one row in so many in which they are, as long as nothing changes them."""
SAMPLES = 4
"""Parameters of each optimizer whose gradients are looked at in the other rows, for whether something changed them."""

Signature = list[tuple[Tensor | None, int]]
"""Some parameters' gradients and the version of their contents."""


@dataclass
class Owners:
    """Parameters that are read together, each once, and the layers that own them.

    A parameter that several layers share counts in each.
    """

    parameters: list[nn.Parameter] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    take: list[int] = field(default_factory=list)

    def part(self, values: Numbers, there: Sequence[int] | None = None, scale: Tensor | None = None) -> Part:
        """Return the part of a row that these values are.

        Args:
            values: One for each parameter, or for each of ``there``.
            there: Which parameters have a value; None for all.
            scale: See ``Part``.
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


def share_out(parameters: Sequence[Sequence[nn.Parameter]], groups: Sequence[set[int]]) -> list[Owners]:
    """Share the parameters of layers out among optimizers.

    Args:
        parameters: For each layer, those that it owns.
        groups: The ``id`` of every parameter of each optimizer.

    Returns:
        One for each optimizer, and a last one for parameters of none.
    """
    owners_of: dict[int, tuple[nn.Parameter, list[int]]] = {}
    for layer, own in enumerate(parameters):
        for parameter in own:
            owners_of.setdefault(id(parameter), (parameter, []))[1].append(layer)
    found = [Owners() for _ in range(len(groups) + 1)]
    for key, (parameter, layers) in owners_of.items():
        group = next((k for k, ids in enumerate(groups) if key in ids), len(groups))
        owners = found[group]
        owners.layers += layers
        owners.take += [len(owners.parameters)] * len(layers)
        owners.parameters.append(parameter)
    return found


@dataclass
class _Reading:
    """What was read of one optimizer's gradients."""

    part: Part
    counts: Part | None


class ParameterGradients:
    """Reads gradients when the optimizer gets them.

    In the first rows, in a few later ones, and in all of them as soon as something was seen to change the gradients
    between backward pass and step, they are read at the end of the backward pass too, so that the row knows by how much
    clipping changed them. What the row holds is always read at the step: an unchanged version of a tensor does not
    prove unchanged contents (``p.grad.data.clamp_()``, and the unscaling of a GradScaler, leave it as it is).

    Args:
        owners: See ``share_out``.
        count_nonfinite: Whether NaN and Inf entries are counted.
        always_early: Whether the gradients are read at the end of the backward pass in every row.
    """

    def __init__(self, owners: Sequence[Owners], *, count_nonfinite: bool, always_early: bool) -> None:
        self._owners = owners
        self._samples = [spread_out(each.parameters, SAMPLES) for each in owners]
        self._count_nonfinite = count_nonfinite
        self._reducer = Reducer()
        self._rows = 0
        self.changes_seen = False
        """Whether something changed the gradients between backward pass and step in any row so far."""
        self._always_early = always_early
        self.clear()

    def share_anew(self, owners: Sequence[Owners]) -> None:
        """Follow a change of the optimizers' parameters.

        Args:
            owners: As at first.
        """
        self._owners = owners
        self._samples = [spread_out(each.parameters, SAMPLES) for each in owners]
        self._reducer = Reducer()
        self.forget_look()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters that are read, each once."""
        return [parameter for owners in self._owners for parameter in owners.parameters]

    def clear(self) -> None:
        """Forget the step in progress."""
        self._signatures: dict[int, Signature] = {}
        self._before: dict[int, _Reading] = {}
        self._after: dict[int, _Reading] = {}

    @property
    def looks_closely(self) -> bool:
        """Whether gradients are read at the end of the backward pass too in this row."""
        return self._always_early or self.changes_seen or self._rows < EARLY_ROWS or self._rows % EARLY_EVERY == 0

    def look(self, scale: Tensor | None) -> None:
        """Look at all gradients at the end of a backward pass.

        Args:
            scale: The loss scale that they carry.
        """
        early = self.looks_closely
        for k in range(len(self._owners)):
            self._signatures[k] = _sign(self._samples[k])
            if early:
                self._before[k], _ = self._read(k, scale)

    def forget_look(self) -> None:
        """Forget what was seen: another backward pass has begun."""
        self._signatures.clear()
        self._before.clear()

    def read(self, k: int, scale: Tensor | None, beside: Sequence[Tensor] = (), key: Hashable = None) -> Numbers:
        """Read one optimizer's gradients, as it gets them.

        Args:
            k: The optimizer's index; that of no optimizer is their number.
            scale: What the optimizer itself will divide by.
            beside: (n,) other tensors whose norms are taken along: one list costs less than two.
            key: The same for others that are expected to have the same shapes.

        Returns:
            The norms (n,) of the others.
        """
        seen = self._signatures.get(k)
        if seen is not None and not self.changes_seen:
            self.changes_seen = not _equal(_sign(self._samples[k]), seen)
        self._after[k], norms = self._read(k, scale, beside, key)
        return norms

    def read_others(self, scale: Tensor | None) -> None:
        """Read the gradients of parameters that belong to no optimizer.

        Args:
            scale: The loss scale that they carry.
        """
        if self._owners[-1].parameters:
            self.read(len(self._owners) - 1, scale)

    def take_as_they_were(self) -> None:
        """Take what stood at the end of the backward pass: the step was skipped."""
        self._after = dict(self._before)

    def end_row(self) -> None:
        """Count a row."""
        self._rows += 1

    def _read(
        self, k: int, scale: Tensor | None, beside: Sequence[Tensor] = (), key: Hashable = None
    ) -> tuple[_Reading, Numbers]:
        owners, n = self._owners[k], len(beside)
        found: list[Any] = [*beside, *[parameter.grad for parameter in owners.parameters]]
        there: list[int] | None = None
        values: Numbers | None = self._reducer.norms_as_before(found, (k, len(found), key))
        if values is None:
            there = [i for i, grad in enumerate(found[n:]) if grad is not None]
            found = [tensor for tensor in found if tensor is not None]
            values = list_norms(found, self._reducer, (k, len(found), key))
        mine = values[n:]
        counts = owners.part(_count(found[n:], mine), there) if self._count_nonfinite else None
        return _Reading(owners.part(mine, there, scale), counts), values[:n]

    @property
    def parts(self) -> list[Part]:
        """What was read as the optimizers got it."""
        return [reading.part for reading in self._after.values()]

    @property
    def count_parts(self) -> list[Part]:
        """The numbers of NaN and Inf entries."""
        return [reading.counts for reading in self._after.values() if reading.counts is not None]

    @property
    def parts_before(self) -> list[Part]:
        """What was read before; empty where that is not known of every optimizer that stepped."""
        idle = {k: reading for k, reading in self._after.items() if not self._owners[k].parameters}
        before = {**idle, **self._before}  # another rank reads all of what is idle here
        return [before[k].part for k in self._after] if before.keys() >= self._after.keys() else []


class Weights:
    """Reads weights around a step.

    Args:
        owners: The parameters of all layers.
    """

    def __init__(self, owners: Owners) -> None:
        self._owners = owners
        self._reducer = Reducer()
        self.clear()

    def clear(self) -> None:
        """Forget the step in progress."""
        self.norms: Part | None = None
        self.changes: Part | None = None
        self._copies: list[Tensor] = []

    @property
    def has_copies(self) -> bool:
        """Whether the update of this step can be read."""
        return bool(self._copies)

    @property
    def was_read(self) -> bool:
        """Whether the weights before this step are known."""
        return self.norms is not None

    def read(self, *, keep_copies: bool) -> None:
        """Take their norms before the step, and a copy where their update is wanted."""
        locals_ = [local_part(parameter).detach() for parameter in self._owners.parameters]
        self.norms = self._owners.part(list_norms(locals_, self._reducer, "weights"))
        if keep_copies:
            self._copies = [weight.clone() for weight in locals_]

    def read_update(self) -> None:
        """Take the norm of what the step changed since copies were kept."""
        copies, self._copies = self._copies, []
        torch._foreach_sub_(copies, [local_part(parameter).detach() for parameter in self._owners.parameters])
        self.changes = self._owners.part(list_norms(copies, self._reducer, "changes"))


def _sign(parameters: Sequence[nn.Parameter]) -> Signature:
    return [(grad, -1 if grad is None else grad._version) for grad in [parameter.grad for parameter in parameters]]


def _equal(now: Signature, then: Signature) -> bool:
    return all(a is b and v == w for (a, v), (b, w) in zip(now, then, strict=True))


def _count(grads: Sequence[Tensor], values: Numbers) -> Numbers:
    """Count NaN and Inf entries; on the CPU only where the norm shows that there are some."""
    if isinstance(values, Tensor):
        counts_there = [count_nonfinite(grad) for grad in grads]
        return torch.stack(counts_there).to(values.dtype) if counts_there else values
    counts: Indices = np.zeros(len(grads), dtype=np.int64)
    for i in np.flatnonzero(~np.isfinite(values)):
        counts[i] = int(count_nonfinite(grads[int(i)]))
    return counts.astype(np.float64)
