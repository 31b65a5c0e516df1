"""A run's rows, from the moment when they are measured until the sink has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from gradlens.errors import RecorderError
from gradlens.recorder.distributed import Ranks
from gradlens.recorder.layers import Learned
from gradlens.recorder.measured_row import MeasuredRow, clip_coefficient, make_row
from gradlens.recorder.norms import HostNorms
from gradlens.recorder.parameters import ParameterGradients
from gradlens.recorder.schedule import AutoEvery
from gradlens.run import Header, Layer, Row
from gradlens.sinks import Sink

GRADIENTS = ("activation_grad_norm", "param_grad_norm")


class Table:
    """Keeps the last row open for scalars, and gives the rows before it to the sink.

    Their numbers may still be on a device: the sink asks for a row when it comes to it, in a thread of its own. Only
    where several ranks record together are the rows made at once, when an optimizer has stepped: there, and nowhere
    else, all ranks meet, also where recording failed on one of them. The row of a skipped step waits until then, since
    the ranks see at different moments that it was skipped.

    Args:
        sink: Where rows go.
        metrics: All metrics of the run.
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
        metrics: Sequence[str],
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
        self.ended = False
        """Whether the ranks have ended the recording together, or cannot meet any more."""
        self._metrics = metrics
        self.gaps = np.zeros(n_layers, dtype=np.int64)
        """(L,) rows in which a layer's parameters had a gradient, and its output had none."""
        self._learned = learned
        self._n_layers = n_layers
        self._make_header = make_header
        self._gradients = gradients
        self._ranks = ranks
        self._auto = auto
        self._order = np.arange(n_layers)
        self._measured: MeasuredRow | None = None
        self._last_row: Row | None = None
        self._waiting: list[MeasuredRow] = []
        self._out_numel = np.zeros(n_layers)
        self._is_open = self._have_met = False

    def open(self) -> None:
        """Open the sink, once the order of the layers is known."""
        self._describe()
        if not self._is_open:
            self._is_open = True
            self.sink.open(self._make_header(self.layers))

    def _describe(self) -> None:
        if self.layers:
            return
        self.layers = self._learned.describe()
        self._learned.open = False
        self._order = self._learned.places([layer.name for layer in self.layers])
        if self._ranks is not None:  # until they have met, the parts of the batch pass for equal
            self._out_numel[self._order] = [layer.out_numel for layer in self.layers]
            self._set_out_numel(self._out_numel * self._ranks.world)

    def _set_out_numel(self, sizes: HostNorms) -> None:
        pairs = zip(self.layers, sizes[self._order], strict=True)
        self.layers = tuple(replace(layer, out_numel=round(size)) for layer, size in pairs)

    def close_row(self, measured: MeasuredRow) -> None:
        """Add a row; scalars can be added to it until the next one is closed.

        Where several ranks record, the row is this rank's alone until they meet.

        Args:
            measured: The row.
        """
        measured.index, self.last_step = self.n_rows, measured.step
        self.n_rows += 1
        self._measured = measured
        if self._ranks is None:
            self.open()
            self._look_for_changes(measured)
        else:
            self._describe()

    def _look_for_changes(self, measured: MeasuredRow) -> None:
        """See at once, where the numbers are there, whether something clips: it decides what the next rows hold."""
        if measured.before and not self._gradients.changes_seen and measured.is_on_host:
            self._gradients.changes_seen = abs(clip_coefficient(measured.totals()) - 1) > 0
        measured.changes_seen = self._gradients.changes_seen

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
        if measured is not None and self._ranks is not None:
            self._waiting.append(measured)
        elif measured is not None:
            measured.start_fetch()
            self.sink.write_row(lambda: self._finish(measured))
        elif row is not None:
            self.sink.write_row(row)

    def drop(self) -> None:
        """Forget the last row, and those that wait for other ranks."""
        self._measured = self._last_row = None
        self._waiting.clear()

    @property
    def last_row(self) -> Row | None:
        """The row that was closed last; waits for the device where its numbers are still there."""
        if self._measured is not None and self._ranks is None:
            self._last_row = self._finish(self._measured)
            self._measured = None
        return self._last_row

    def _finish(self, measured: MeasuredRow) -> Row:
        """Return the row with all its numbers on the host; may run in the sink's thread."""
        return self._make_row(measured, measured.columns(self._n_layers), measured.totals())

    def _make_row(self, measured: MeasuredRow, columns: Mapping[str, HostNorms], totals: HostNorms) -> Row:
        for name, last in self.last_met.items():
            if name in columns:
                there = ~np.isnan(columns[name])
                last[there] = np.maximum(last[there], measured.index)  # rows may be finished out of order
        outputs, parameters = (columns.get(name) for name in GRADIENTS)
        if parameters is not None and GRADIENTS[0] in measured.due:
            self.gaps += ~np.isnan(parameters) & (True if outputs is None else np.isnan(outputs))
        said = "clip_coefficient" in measured.scalars
        row = make_row(measured, columns, totals, self._order)
        if said:
            return row
        if row.scalars.get("clip_coefficient", 1.0) != 1:
            self._gradients.changes_seen = True
        elif not (measured.changes_seen if self._ranks is None else self._gradients.changes_seen):
            row.scalars.pop("clip_coefficient", None)
        return row

    # --- several ranks --------------------------------------------------------------------------------------

    def meet(self, error: Exception | None) -> None:
        """Add up what all ranks measured in the row just closed, and then in those that wait.

        An optimizer has stepped, and all ranks come here, whatever happened to them.

        Args:
            error: What went wrong on this rank.

        Raises:
            Exception: The error; or where it happened on another rank, a RecorderError.
        """
        newest, self._measured = self._measured, None
        self._finish_together(newest, error)

    def meet_at_the_end(self, error: Exception | None) -> None:
        """Add up what all ranks measured in the rows that wait, if any do: the run is complete on all of them.

        Args:
            error: As in ``meet``.

        Raises:
            Exception: As in ``meet``.
        """
        if self._waiting:
            newest = self._waiting.pop()
            self._finish_together(newest, error)

    def _finish_together(self, newest: MeasuredRow | None, error: Exception | None) -> None:
        added = self._add_up(newest, error)
        waiting, self._waiting = self._waiting, []
        rows = [self._make_row(measured, *self._add_up(measured, None)) for measured in waiting]
        if newest is not None:
            self._last_row = self._make_row(newest, *added)
        self.open()
        for row in rows:
            self.sink.write_row(row)

    def _add_up(self, measured: MeasuredRow | None, error: Exception | None) -> tuple[dict[str, HostNorms], HostNorms]:
        """Return the columns and the totals of a row over all ranks: one collective."""
        assert self._ranks is not None
        columns, totals = {}, np.full(2, math.nan)
        try:
            if measured is not None:
                columns, totals = measured.columns(self._n_layers), measured.totals()
        except Exception as failure:
            error = error or failure
        if self._auto is not None:
            self._auto.note_row(self.last_step)
        next_step = self._auto.next if self._auto is not None and self._ranks.rank == 0 else 0
        said = [error is not None, self._gradients.changes_seen, next_step]
        extra = np.array([*totals, *said, *([] if self._have_met else self._out_numel)])
        self.ended = True  # unless the others are met
        columns, sums = self._ranks.combine(self._metrics, columns, self._n_layers, extra)
        self.ended = bool(sums[2] > 0)
        if self.ended:
            raise error or RecorderError("recording failed on another rank")
        if not self._have_met and not self._is_open:
            self._set_out_numel(sums[5:])
        self._have_met = True
        self._gradients.changes_seen = bool(sums[3] > 0)
        if self._auto is not None:
            self._auto.set_next(int(sums[4]))
        return columns, sums[:2]
