"""To which row a logged value belongs."""

from __future__ import annotations

from collections.abc import Mapping

from gradlens.recorder.notes import Notes
from gradlens.recorder.passes import Passes
from gradlens.recorder.scalars import Scalar
from gradlens.recorder.step_state import add_logged


class LoggedValues:
    """Gives logged values to the backward pass that they follow, or to the row just closed.

    Args:
        passes: The backward passes of the step in progress.
        notes: Warns of values that belong to no row.
    """

    def __init__(self, passes: Passes, notes: Notes) -> None:
        self._passes, self._notes = passes, notes

    def add(self, values: Mapping[str, Scalar], *, first: bool) -> None:
        """Add scalars.

        Args:
            values: Name to number.
            first: Whether no step has ended yet.
        """
        state, table = self._passes.state, self._passes.table
        if self._passes.has_begun or self._passes.state.stepped:
            passes = [*state.passes, *state.inner]
            add_logged(passes[-1].logged if passes else state.logged, values)
        elif table.last_step == state.index - 1 >= 0:
            if not table.add_scalars(values):
                self._notes.warn_of_late_log()
        elif first and state.wanted:
            self._notes.warn_of_early_log()
            add_logged(state.logged, values)
