"""The weights of layers: their norms before a step, and the norms of their updates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradlens.metrics import PARAM_NORM, UPDATE_RATIO
from gradlens.recorder.measured_row import Part
from gradlens.recorder.measurer import Context, Measurer
from gradlens.recorder.norms import Reducer, list_norms, local_part
from gradlens.recorder.parameters import Owners, group_by_optimizer
from gradlens.recorder.ratios import CHANGE

MOST_COPIED = 64 << 20
"""Bytes of weights that are copied at once, unless one layer has more."""


class Weights(Measurer):
    """Reads weights before and after a step.

    Copies of the weights take at most ``MOST_COPIED`` bytes, or those of one layer more: where all weights take more,
    groups of layers are copied in turn, in one row after the other.

    Args:
        context: What is measured.
    """

    reads_parameters = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._all = group_by_optimizer(context.own, ())[0]
        self._groups: list[Owners] = []
        self._reducer = Reducer()
        self.clear()

    def clear(self) -> None:
        """Forget the step in progress."""
        self._norms: Part | None = None
        self._changes: Part | None = None
        self._copied, self._group = self._all, 0
        self._copies: list[Tensor] = []

    @property
    def groups(self) -> list[Owners]:
        """The parameters of groups of layers that are copied together."""
        if not self._groups:
            group_of = group_by_size(self.context.own)
            for each in range(int(group_of.max(initial=0)) + 1):
                mine = [own if g == each else () for own, g in zip(self.context.own, group_of, strict=True)]
                self._groups.append(group_by_optimizer(mine, ())[0])
        return self._groups

    def choose(self, due: Sequence[str], row: int) -> list[str]:
        """Return the metrics that a row is to have: where weights are copied in turn, updates are in more rows."""
        if not self.in_turn:
            return list(due)
        updates = [UPDATE_RATIO] if self._group_of(row) < len(self.groups) else []
        return [name for name in due if name != UPDATE_RATIO] + updates

    @property
    def in_turn(self) -> bool:
        """Whether the weights are too large to be copied at once, so that ``update_ratio`` is spread over rows."""
        return UPDATE_RATIO in self.context.intervals and len(self.groups) > 1

    @property
    def spread_over_rows(self) -> list[str]:
        """The update ratio, where weights are copied in turn."""
        return [UPDATE_RATIO] if self.in_turn else []

    def _group_of(self, row: int) -> int:
        """Return the group of layers whose update is read in a row; there may be no group of this number."""
        return row % max(self.context.intervals.get(UPDATE_RATIO, 1), len(self.groups))

    def before_step(self, due: Sequence[str], row: int) -> None:
        """Read the norms that are due, and copy the weights whose update is read after the step."""
        copies = UPDATE_RATIO in due
        if not (copies or PARAM_NORM in due):
            return
        self._group = self._group_of(row) if self.in_turn else 0
        self._copied = self.groups[self._group] if copies else self._all
        self._read_norms(self._all if PARAM_NORM in due else self._copied)
        if copies:
            self._copies = [local_part(parameter).detach().clone() for parameter in self._copied.parameters]

    def skip_step(self, due: Sequence[str], row: int) -> None:
        """Read the norms if they are due; there is no update."""
        if PARAM_NORM in due:
            self._read_norms(self._all)

    def _read_norms(self, read: Owners) -> None:
        weights = [local_part(parameter).detach() for parameter in read.parameters]
        key = ("weights", -1 if read is self._all else self._group)
        self._norms = read.part(list_norms(weights, self._reducer, key))

    def after_step(self) -> None:
        """Read the norms of the updates since the copies were made."""
        if not self._copies:
            return
        copies, self._copies = self._copies, []
        torch._foreach_sub_(copies, [local_part(parameter).detach() for parameter in self._copied.parameters])
        self._changes = self._copied.part(list_norms(copies, self._reducer, ("changes", self._group)))

    def parts(self, scale: Tensor | float | None) -> dict[str, list[Part]]:
        """Return the norms that were read, and those of updates."""
        found = {PARAM_NORM: self._norms, CHANGE: self._changes}
        return {name: [part] for name, part in found.items() if part is not None}


def group_by_size(own: Sequence[Sequence[nn.Parameter]]) -> NDArray[np.int64]:
    """Return the group of each layer (L,), so that the parameters of a group take at most ``MOST_COPIED`` bytes.

    Args:
        own: (L,) the parameters of each layer; a layer with more is a group of its own.
    """
    group_of = np.zeros(len(own), dtype=np.int64)
    held = group = 0
    for layer, size in enumerate(sum(map(_bytes, each)) for each in own):
        if held and held + size > MOST_COPIED:
            held, group = 0, group + 1
        held, group_of[layer] = held + size, group
    return group_of


def _bytes(parameter: nn.Parameter) -> int:
    if isinstance(parameter, nn.UninitializedParameter):
        return MOST_COPIED
    local = local_part(parameter)
    return local.numel() * local.element_size()


MEASURER = Weights
