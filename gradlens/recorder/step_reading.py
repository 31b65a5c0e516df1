"""What is read just before an optimizer's step: gradients, learning rate, and the GradScaler that calls it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradlens.errors import RecorderError
from gradlens.recorder.hooks.grad_scaler import ScalerWatch, find_stepping_scaler
from gradlens.recorder.measuring import Measuring
from gradlens.recorder.notes import Notes
from gradlens.recorder.passes import Passes
from gradlens.recorder.rows import Rows
from gradlens.recorder.scalars import to_number

SCALER_ROWS = 3
"""Number of first rows in which a GradScaler that was not given is looked for."""


class StepReader:
    """Reads the gradients that an optimizer is about to use, in a step that is recorded.

    Args:
        optimizers: Those that are followed.
        measuring: What is measured.
        passes: The backward passes of the step in progress.
        rows: The rows.
        scaler: Observes the GradScaler.
        notes: Collects the notes of the run.
        alone: Whether this is the only process.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        measuring: Measuring,
        passes: Passes,
        rows: Rows,
        scaler: ScalerWatch,
        notes: Notes,
        *,
        alone: bool,
    ) -> None:
        self._optimizers, self._measuring, self._passes, self._rows = optimizers, measuring, passes, rows
        self._scaler, self._notes, self._alone = scaler, notes, alone

    def read(self, k: int, grad_scale: Tensor | None, *, first: bool) -> None:
        """Find what was cleared, and read the gradients of an optimizer's parameters, its rate and due weights.

        Args:
            k: Index of the optimizer.
            grad_scale: The scale of its gradients, if it divides by that itself.
            first: Whether no step has ended yet.
        """
        measuring, passes, state, rows = self._measuring, self._passes, self._passes.state, self._rows
        measuring.follow_groups()
        passes.before_step()
        groups = measuring.states.groups
        if first and self._optimizers and not any(groups[:-1]):
            self._warn_of_strangers()
        group = groups[k] | (frozenset() if state.read else groups[-1])
        passes.prepare(group)
        if passes.table.n_rows_here < SCALER_ROWS and not self._scaler.present and self._optimizers:
            self._look_for_scaler()
        passes.read(k, grad_scale, group, others=not state.read and bool(self._optimizers))
        if not state.read:
            due, row = rows.due(state.index), passes.table.n_rows
            for measurer in measuring.measurers:
                measurer.before_step(due, row)
        state.read.add(k)
        if self._optimizers:
            self._note_optimizer(k)

    def _warn_of_strangers(self) -> None:
        """Warn if passes reach the model while the optimizers hold none of its parameters."""
        state = self._passes.state
        if any(each.touched for each in state.passes):
            self._notes.warn_of_strangers(self._optimizers)
        elif state.inner and self._measuring.takes_gradients:
            self._notes.warn_of_copies(self._optimizers)

    def _note_optimizer(self, k: int) -> None:
        """Note the learning rate, and whether a fused optimizer skips its step."""
        optimizer, state = self._optimizers[k], self._passes.state
        name = "lr" if k == 0 else f"lr_{k + 1}"
        with contextlib.suppress(RecorderError):  # some choose their rate themselves, and hold None
            rate: Any = optimizer.param_groups[0].get("lr")
            state.lrs[name] = to_number(name, rate)
        found_inf = getattr(optimizer, "found_inf", None)
        state.found_inf = found_inf.detach().clone() if isinstance(found_inf, Tensor) else None

    def _look_for_scaler(self) -> None:
        """Follow the GradScaler that calls the optimizer, if there is one."""
        scaler = find_stepping_scaler()
        if scaler is None:
            return
        self._scaler.adopt(scaler)
        self._notes.note_found_scaler()
        self._passes.set_scale(self._scaler.scale)
        if self._passes.table.n_rows_here == 0 and self._alone:
            self._measuring.count_nonfinite()
