"""A run's rows, from the moment when they are measured until the sink has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from gradlens.errors import RecorderError
from gradlens.recorder.layers import Learned
from gradlens.recorder.norms import HostNorms
from gradlens.recorder.parameters import ParameterGradients
from gradlens.recorder.ranks import Ranks
from gradlens.recorder.rhythm import AutoEvery
from gradlens.recorder.row import MeasuredRow, make_row
from gradlens.run import Header, Layer, Row, Sink

GRADIENTS = ("activation_grad_norm", "param_grad_norm")


class Table:
    """Keeps the last row open for scalars, and gives the rows before it to the sink.

    Their numbers may still be on a device: the sink asks for a row when it comes to it, in a thread of its own. Only
    where several ranks record together are the rows made at once.

    Args:
        sink: Where rows go.
        learned: Describes the layers.
        n_layers: L.
        make_header: Makes the run's header out of its layers.
        gradients: Is told where clipping shows.
        ranks: Those that record together.
        auto: The rule that all ranks must follow alike.
        n_rows: Rows that are in the table already.
    """

    def __init__(
        self,
        sink: Sink,
        learned: Learned,
        n_layers: int,
        make_header: Callable[[tuple[Layer, ...]], Header],
        gradients: ParameterGradients,
        ranks: Ranks | None,
        auto: AutoEvery | None,
        n_rows: int,
    ) -> None:
        self.sink = sink
        self.layers: tuple[Layer, ...] = ()
        self.n_rows = n_rows
        self.last_step = -1
        """Index of the last row's optimizer step."""
        self.last_met = {name: np.full(n_layers, -1) for name in GRADIENTS}
        """Metric to (L,): the last row in which each layer had a value; -1 for none."""
        self._learned = learned
        self._n_layers = n_layers
        self._make_header = make_header
        self._gradients = gradients
        self._ranks = ranks
        self._auto = auto
        self._order = np.arange(n_layers)
        self._measured: MeasuredRow | None = None
        self._last_row: Row | None = None

    def open(self) -> None:
        """Open the sink, once the order of the layers is known."""
        if self.layers:
            return
        self.layers = self._learned.describe()
        self._learned.open = False
        self._order = self._learned.places([layer.name for layer in self.layers])
        self.sink.open(self._make_header(self.layers))

    def close_row(self, measured: MeasuredRow, error: Exception | None) -> None:
        """Add a row; scalars can be added to it until the next one is closed.

        Args:
            measured: The row.
            error: What went wrong on this rank; where several record together, all of them must come here.
        """
        self.open()
        measured.index, self.last_step = self.n_rows, measured.step
        if self._ranks is None:
            self._measured = measured
        else:
            self._last_row = self._finish_together(self._ranks, measured, error)
        self.n_rows += 1

    def add_scalars(self, numbers: Mapping[str, float | Tensor]) -> None:
        """Add scalars to the last row, if it is still open."""
        if self._measured is not None:
            self._measured.scalars.update(numbers)
        elif self._last_row is not None:
            self._last_row.scalars.update({name: float(value) for name, value in numbers.items()})

    def hand_over(self) -> None:
        """Give the last row to the sink, now that no scalar can be added any more."""
        measured, row = self._measured, self._last_row
        self._measured = self._last_row = None
        if measured is not None:
            measured.start_fetch()
            self.sink.write_row(lambda: self._finish(measured))
        elif row is not None:
            self.sink.write_row(row)

    def drop(self) -> None:
        """Forget the last row."""
        self._measured = self._last_row = None

    @property
    def last_row(self) -> Row | None:
        """The row that was closed last; waits for the device where its numbers are still there."""
        if self._measured is not None:
            self._last_row = self._finish(self._measured)
            self._measured = None
        return self._last_row

    def _finish(self, measured: MeasuredRow) -> Row:
        """Return the row with all its numbers on the host; may run in the sink's thread."""
        return self._make_row(measured, measured.columns(self._n_layers), measured.totals())

    def _make_row(self, measured: MeasuredRow, columns: Mapping[str, HostNorms], totals: HostNorms) -> Row:
        for name, last in self.last_met.items():
            if name in columns:
                last[~np.isnan(columns[name])] = measured.index
        said = "clip_coefficient" in measured.scalars
        row = make_row(measured, columns, totals, self._order)
        if said:
            return row
        if row.scalars.get("clip_coefficient", 1.0) != 1:
            self._gradients.changes_seen = True
        elif not self._gradients.changes_seen:
            row.scalars.pop("clip_coefficient", None)
        return row

    def _finish_together(self, ranks: Ranks, measured: MeasuredRow, error: Exception | None) -> Row:
        """Return the row that all ranks measured.

        Raises:
            RecorderError: Something went wrong on any of them.
        """
        if self._auto is not None:
            self._auto.note_row(measured.step)
        next_step = self._auto.next if self._auto is not None and ranks.rank == 0 else 0
        extra = np.array([*measured.totals(), error is not None, next_step])
        columns, sums = ranks.combine(measured.due, measured.columns(self._n_layers), self._n_layers, extra)
        if self._auto is not None:
            self._auto.set_next(int(sums[3]))
        if sums[2] > 0:
            raise error or RecorderError("recording failed on another rank")
        return self._make_row(measured, columns, sums[:2])
