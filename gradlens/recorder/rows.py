"""The rows of a recording: which metrics each has, and what goes into it when its step is over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gradlens.metrics import ACTIVATION_GRAD_NORM, NONFINITE_COUNT, PARAM_GRAD_NORM
from gradlens.recorder.measured_row import SHRUNK, MeasuredRow, Part
from gradlens.recorder.measuring import Measuring
from gradlens.recorder.notes import Notes
from gradlens.recorder.pending_rows import Table
from gradlens.recorder.ranks.distributed import Ranks
from gradlens.recorder.ratios import addends
from gradlens.recorder.scalars import Scalar, to_number
from gradlens.recorder.step_state import StepState
from gradlens.run import Status

MANY_ROWS = 64
"""Rows from one write of notes and overhead to the next, in runs that log no epochs."""


class Rows:
    """Closes the row of each recorded step, and combines it with those of other ranks.

    Args:
        measuring: What has measured the step.
        notes: Collects the notes of the run.
        ranks: The processes that record together.
        guard: Calls a function and handles its errors.
    """

    def __init__(
        self, measuring: Measuring, notes: Notes, ranks: Ranks | None, guard: Callable[[Callable[[], None]], None]
    ) -> None:
        self.epoch = 0
        """Epochs done."""
        self.local_error: Exception | None = None
        """An error on this rank in the step in progress; all ranks end recording when its row is closed."""
        self._measuring, self._notes, self._ranks, self._guard = measuring, notes, ranks, guard

    def open(self, table: Table, on_many_rows: Callable[[], None]) -> None:
        """Begin.

        Args:
            table: Takes the rows.
            on_many_rows: Called after every ``MANY_ROWS`` rows.
        """
        self.table, self._on_many_rows = table, on_many_rows

    def due(self, index: int) -> list[str]:
        """Return the metrics that the row in progress will have.

        Args:
            index: Index of its step.
        """
        row = self.table.n_rows
        due = self._measuring.intervals.due(row, index)
        for measurer in self._measuring.measurers:
            due = measurer.choose(due, row)
        return due

    @property
    def spread_metrics(self) -> list[str]:
        """Metrics of which each row has only some layers, in turn."""
        return [name for measurer in self._measuring.measurers for name in measurer.spread_over_rows]

    def run_part(self, act: Callable[[], None]) -> None:
        """Run a part of closing a row; with several ranks, keep an error, so that this rank joins the collective."""
        if self._ranks is None:
            act()
        else:
            self._guard(act)

    def close(self, state: StepState, outputs: list[Part], scalars: dict[str, Scalar]) -> None:
        """Close the row of a step.

        Args:
            state: The step.
            outputs: Norms of the gradients of outputs.
            scalars: Name to number; what else is known is added.
        """
        gradients = self._measuring.gradients
        self._measuring.find_replaced(self.table.n_rows_here)
        kept = self._measuring.unchanged
        parts: dict[str, list[Part]] = {
            ACTIVATION_GRAD_NORM: outputs,
            PARAM_GRAD_NORM: _only(gradients.parts, kept),
            NONFINITE_COUNT: _only(gradients.count_parts, kept),
        }
        for measurer in self._measuring.measurers:
            found = measurer.parts(self._measuring.scaler.scale)
            parts |= {k: _only(v, kept) for k, v in found.items()} if measurer.reads_parameters else found
        if state.clip is not None:
            scalars["clip_coefficient"] = state.clip
        if state.discarded or self._notes.discarded_seen:
            scalars["discarded_passes"] = float(state.discarded)
        if gradients.shrunk is not None:
            scalars[SHRUNK] = to_number(SHRUNK, gradients.shrunk)
        due = self.due(state.index)
        wanted = addends(due)
        measured = MeasuredRow(
            state.index,
            self.epoch,
            due,
            {name: values for name, values in parts.items() if values and name in wanted},
            scalars,
            gradients.parts_before,
            gradients.parts if gradients.parts_before else [],
            summed=gradients.summed,
        )
        gradients.end_row()
        self.table.close_row(measured)
        for values in state.logged_here(one_optimizer=self._measuring.n_optimizers < 2):
            self.table.add_lists(values)
            values.clear()
        if self.table.n_rows % MANY_ROWS == 0:
            self._on_many_rows()

    def combine_ranks(self) -> None:
        """Combine the row just closed with those of the other ranks, if there are any."""
        if self._ranks is None:
            return
        error, self.local_error = self.local_error, None
        try:
            self.table.combine_ranks(error)
        except Exception as failure:
            if self.table.ended:
                raise
            self.local_error = failure

    def end_with_others(self, status: Status) -> None:
        """Combine the rows that wait for other ranks, if the run is complete on all of them.

        Args:
            status: How the run ended on this rank.

        Raises:
            Exception: The error on this rank; a RecorderError if it was on another.
        """
        self.table.hand_over()
        if status == "complete":
            self.table.combine_ranks_at_end(self.local_error)
        if self.local_error is not None:
            raise self.local_error


def _only(parts: list[Part], kept: NDArray[np.bool_] | None) -> list[Part]:
    return parts if kept is None else [part.only(kept) for part in parts]
