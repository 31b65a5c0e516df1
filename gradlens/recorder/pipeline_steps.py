"""What a pipeline's schedule does within a step, and what follows for the row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from gradlens.recorder.hooks.pipeline_scaling import PipelineWatch
from gradlens.recorder.measuring import Measuring
from gradlens.recorder.notes import Notes
from gradlens.recorder.passes import Passes
from gradlens.recorder.rows import Rows


class PipelineSteps:
    """Follows the pipelines that run a model: their division of gradients, their split passes, their trials.

    Args:
        model: The model, which is a stage or part of one.
        passes: The backward passes of the step in progress.
        measuring: What is measured.
        rows: The rows.
        notes: Collects the notes of the run.
        guard: Calls a function and handles its errors.
        is_on: Returns whether steps are followed.
    """

    def __init__(
        self,
        model: nn.Module,
        passes: Passes,
        measuring: Measuring,
        rows: Rows,
        notes: Notes,
        guard: Callable[[Callable[[], None]], None],
        is_on: Callable[[], bool],
    ) -> None:
        self._passes, self._measuring, self._rows, self._notes = passes, measuring, rows, notes
        self._guard, self._is_on = guard, is_on
        self._watch = PipelineWatch(model, self._divide, self._note_split, self._leave_out)

    def start(self) -> None:
        """Begin to observe, if the program uses pipelines."""
        self._watch.put()

    def remove(self) -> None:
        """Observe no more."""
        self._watch.remove()

    def _divide(self, number: float, modules: set[nn.Module] | None) -> None:
        """Divide what the passes of this step brought, as a pipeline's schedule has divided the gradients."""
        if self._is_on() and self._passes.state.wanted:
            with torch.no_grad():
                self._guard(lambda: self._passes.divide(number, modules))

    def _leave_out(self, begins: bool) -> None:
        """Record nothing while a stage of a pipeline tries out its model."""
        if not self._is_on():
            return
        state = self._passes.state
        if begins:
            self._guard(self._measuring.pause)
        elif state.wanted:
            self._guard(lambda: self._measuring.go_on(self._rows.due(state.index), self._passes.table.n_rows))

    def _note_split(self) -> None:
        if self._is_on() and not self._passes.are_split:
            self._passes.are_split = True
            self._notes.warn_of_split_passes()
