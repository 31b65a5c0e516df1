"""Observe a GradScaler from outside."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer


class ScalerWatch:
    """Observes the rounds of a GradScaler: scale, step, update.

    Args:
        scaler: The scaler, or None where none is in use.
        optimizers: The optimizers that it steps.
    """

    def __init__(self, scaler: GradScaler | None, optimizers: Sequence[Optimizer]) -> None:
        self._scaler = scaler
        self._optimizers = optimizers
        self._round: Mapping[int, Mapping[str, Any]] = {}

    def adopt(self, scaler: GradScaler) -> None:
        """Observe a scaler that was found later."""
        self._scaler = scaler

    @property
    def present(self) -> bool:
        """Whether there is a scaler that is enabled."""
        return self._scaler is not None and self._scaler.is_enabled()

    @property
    def scale(self) -> Tensor | None:
        """A copy of the loss scale, which a later ``update()`` does not change."""
        scale = getattr(self._scaler, "_scale", None) if self.present else None
        return None if scale is None else scale.detach().clone()

    def begin_round(self) -> None:
        """Remember the state of the round in progress; the scaler replaces it at every update."""
        self._round = getattr(self._scaler, "_per_optimizer_states", {})

    @property
    def skipped(self) -> bool:
        """Whether ``scaler.step`` was called for every optimizer in the remembered round.

        If an optimizer was not stepped nevertheless, its gradient held NaN or Inf.
        """
        states = [self._round.get(id(optimizer), {}) for optimizer in self._optimizers]
        return bool(states) and all(getattr(state.get("stage"), "name", "") == "STEPPED" for state in states)


MOST_FRAMES = 16
"""Callers of an optimizer's step that are looked at: wrappers and profilers lie between the scaler and the step."""


def find_stepping_scaler() -> GradScaler | None:
    """Return the enabled GradScaler whose ``step`` calls the optimizer at this moment, if there is one."""
    frame = sys._getframe(1)
    for _ in range(MOST_FRAMES):
        if frame.f_code.co_name == "step" and isinstance(caller := frame.f_locals.get("self"), GradScaler):
            return caller if caller.is_enabled() else None
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None
