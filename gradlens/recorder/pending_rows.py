"""The rows of a run, from the moment they are measured until the sink receives them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from gradlens.recorder.layers import Learned
from gradlens.recorder.measured_row import MeasuredRow, clip_coefficient, make_row
from gradlens.recorder.norms import HostNorms
from gradlens.recorder.parameters import ParameterGradients
from gradlens.recorder.ranks.row_collective import RowCollective
from gradlens.recorder.row_totals import RowTotals
from gradlens.run import Header, Layer, Row
from gradlens.sinks import Sink
from gradlens.storage import BackgroundSink

HOLD_S = 0.25
"""Time that a row waits for values that are logged after the step, unless the next step ends before."""


class Table:
    """Keeps the last row open for scalars, and hands earlier rows to the sink.

    The numbers of a row may be on a device when it is handed over: the sink fetches them later, in its own thread.
    A row whose numbers are on the host is taken by the sink's thread, ``HOLD_S`` after it was closed, if the training
    takes longer for its next step: it is then on the disk within a second. A value that is logged after that replaces
    the row in the file, and from then on rows wait longer, so that this happens to few of them.

    With several ranks, a row is finished when an optimizer has stepped. All ranks run one collective there, and only
    there, even if recording failed on one of them. The row of a skipped step waits for the next such collective,
    because the ranks detect the skip at different moments.

    Args:
        sink: Receives the rows.
        learned: Describes the layers.
        n_layers: L.
        make_header: Returns the run's header for its layers.
        gradients: Its ``changes_seen`` is set when clipping is detected.
        collective: Adds up rows over the ranks; None for one process.
        n_rows: Rows already in the file.
    """

    def __init__(
        self,
        sink: Sink,
        learned: Learned,
        n_layers: int,
        make_header: Callable[[tuple[Layer, ...]], Header],
        gradients: ParameterGradients,
        collective: RowCollective | None,
        n_rows: int,
    ) -> None:
        self.sink = sink
        self.layers: tuple[Layer, ...] = ()
        self.n_rows = n_rows
        self.last_step = -1
        """Index of the last row's optimizer step."""
        self.totals = RowTotals(n_layers)
        """Counts over the rows."""
        self._learned = learned
        self._n_layers = n_layers
        self._make_header = make_header
        self._gradients = gradients
        self._collective = collective
        self._order = np.arange(n_layers)
        self._measured: MeasuredRow | None = None
        self._last_row: Row | None = None
        self._waiting: list[MeasuredRow] = []
        self._out_numel = np.zeros(n_layers)
        self._is_open = False
        self._rows_before = n_rows
        self._sums: dict[str, tuple[float | Tensor, int]] = {}
        self._lock = threading.Lock()
        """Held where the last row changes or is handed over, which the sink's thread does too."""
        self._closed_at = 0.0
        self._hold_s = HOLD_S
        self._offered: Row | None = None
        """The last row, after the sink's thread has taken it."""

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
        if self._collective is not None:  # until the first collective, assume equal parts of the batch
            self._out_numel[self._order] = [layer.out_numel for layer in self.layers]
            self._set_out_numel(self._out_numel * self._collective.world)

    def _set_out_numel(self, sizes: HostNorms) -> None:
        pairs = zip(self.layers, sizes[self._order], strict=True)
        self.layers = tuple(replace(layer, out_numel=round(size)) for layer, size in pairs)

    @property
    def n_rows_here(self) -> int:
        """Rows closed by this recorder."""
        return self.n_rows - self._rows_before

    def close_row(self, measured: MeasuredRow) -> None:
        """Add a row; scalars can be added to it until the next one is closed.

        With several ranks, the row holds this rank's numbers until ``combine_ranks``.

        Args:
            measured: The row.
        """
        measured.index, self.last_step = self.n_rows, measured.step
        self.n_rows += 1
        self._measured, self._offered = measured, None
        self._sums, self._closed_at = {}, time.monotonic()
        if self._collective is None:
            self.open()
            self._look_for_changes(measured)
        else:
            self._describe()

    def _look_for_changes(self, measured: MeasuredRow) -> None:
        """Detect clipping at once if the numbers are on the host: later rows are then read twice."""
        if measured.before and not self._gradients.changes_seen and measured.is_on_host:
            self._gradients.changes_seen = abs(clip_coefficient(measured.totals()) - 1) > 0
        measured.changes_seen = self._gradients.changes_seen

    def add_scalars(self, numbers: Mapping[str, float | Tensor]) -> bool:
        """Add scalars to the last row; several values of one name are averaged.

        Returns:
            Whether the row was still open.
        """
        with self._lock:
            means = {name: self._add(name, value) for name, value in numbers.items()}
            if self._measured is not None:
                self._measured.scalars.update(means)
            elif self._last_row is not None:
                self._last_row.scalars.update({name: float(mean) for name, mean in means.items()})
            elif self._offered is not None:
                self._amend({name: float(mean) for name, mean in means.items()})
            else:
                return False
        return True

    def _add(self, name: str, value: float | Tensor) -> float | Tensor:
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total, count = (total + value if count else value), count + 1
        return total / count if count > 1 else total

    def _amend(self, scalars: Mapping[str, float]) -> None:
        """Replace the row that the sink's thread has taken by one with these scalars too."""
        assert self._offered is not None
        self._offered = replace(self._offered, scalars={**self._offered.scalars, **scalars})
        self._hold_s = max(self._hold_s, 2 * (time.monotonic() - self._closed_at))
        self.sink.amend_row(self._offered)

    def offer_row(self, sink: BackgroundSink) -> None:
        """Give the last row to the sink, if it has waited long enough; called in the sink's thread.

        Args:
            sink: The sink.
        """
        if self._collective is not None or not self._lock.acquire(blocking=False):
            return
        try:
            measured, row = self._measured, self._last_row
            if (measured is None and row is None) or time.monotonic() - self._closed_at < self._hold_s:
                return
            if measured is not None and not measured.is_on_host:
                return  # fetching would take its place among the training's work on the device
            self._offered = self._finish(measured) if measured is not None else row
            self._measured = self._last_row = None
            assert self._offered is not None
            sink.offer(self._offered)
        finally:
            self._lock.release()

    def leave(self, overhead: float, notes: Sequence[str]) -> None:
        """Hand the last row over, and the state, without waiting for anything; before ``BackgroundSink.abandon``."""
        assert isinstance(self.sink, BackgroundSink)
        measured, row = self._measured, self._last_row
        calls: list[Callable[[Sink], None]] = []
        if measured is not None and measured.is_on_host and self._collective is None:
            calls.append(lambda sink: sink.write_row(lambda: self._finish(measured)))
        elif row is not None:
            calls.append(lambda sink: sink.write_row(row))
        self.sink.leave(*calls, lambda sink: sink.write_state(overhead, notes))

    def add_lists(self, values: Mapping[str, Sequence[float | Tensor]]) -> None:
        """Add scalars that were logged several times; see ``add_scalars``."""
        for name, each in values.items():
            for value in each:
                self.add_scalars({name: value})

    def add_missing_scalars(self, values: Mapping[str, Sequence[float | Tensor]]) -> None:
        """Add only the scalars that the last row does not have yet."""
        self.add_lists({name: each for name, each in values.items() if name not in self._sums})

    def hand_over(self) -> None:
        """Hand the last row to the sink; no scalar can be added to it from then on."""
        with self._lock:
            measured, row = self._measured, self._last_row
            self._measured = self._last_row = self._offered = None
        if measured is not None and self._collective is not None:
            self._waiting.append(measured)
        elif measured is not None:
            measured.start_fetch()
            self.sink.write_row(lambda: self._finish(measured))
        elif row is not None:
            self.sink.write_row(row)

    def drop(self) -> None:
        """Drop the last row and the rows that wait for other ranks."""
        with self._lock:
            self._measured = self._last_row = self._offered = None
        self._waiting.clear()

    @property
    def last_row(self) -> Row | None:
        """The row that was closed last; reading it waits for the device if its numbers are still there."""
        with self._lock:
            if self._measured is not None and self._collective is None:
                self._last_row = self._finish(self._measured)
                self._measured = None
            return self._last_row or self._offered

    def _finish(self, measured: MeasuredRow) -> Row:
        """Return the row with all numbers on the host; may run in the sink's thread."""
        return self._make_row(measured, measured.columns(self._n_layers), measured.totals())

    def _make_row(self, measured: MeasuredRow, columns: Mapping[str, HostNorms], totals: HostNorms) -> Row:
        self.totals.count_row(measured, columns, totals)
        reported = "clip_coefficient" in measured.scalars  # by the user
        row = make_row(measured, columns, totals, self._order)
        if reported:
            return row
        factor = row.scalars.get("clip_coefficient", 1.0)
        if factor != 1:
            self._gradients.changes_seen = True
            self.totals.count_factor(factor)
        elif not (measured.changes_seen if self._collective is None else self._gradients.changes_seen):
            row.scalars.pop("clip_coefficient", None)
        return row

    # --- several ranks --------------------------------------------------------------------------------------

    def combine_ranks(self, error: Exception | None) -> None:
        """Combine the row just closed, and the rows that wait, over all ranks.

        An optimizer has stepped. Every rank calls this, including a rank with an error.

        Args:
            error: The error on this rank, if any.

        Raises:
            Exception: The error; a RecorderError if it was on another rank.
        """
        newest, self._measured = self._measured, None
        self._finish_together(newest, error)

    def combine_ranks_at_end(self, error: Exception | None) -> None:
        """Combine the rows that wait, if there are any, at the end of a run that is complete on all ranks.

        Args:
            error: As in ``combine_ranks``.

        Raises:
            Exception: As in ``combine_ranks``.
        """
        if self._waiting:
            newest = self._waiting.pop()
            self._finish_together(newest, error)

    @property
    def ended(self) -> bool:
        """Whether the ranks have ended the recording together, or a collective failed."""
        return self._collective is not None and self._collective.ended

    def _finish_together(self, newest: MeasuredRow | None, error: Exception | None) -> None:
        added = self._add_up(newest, error, compare=True)
        waiting, self._waiting = self._waiting, []
        rows = [self._make_row(measured, *self._add_up(measured, None)) for measured in waiting]
        if newest is not None:
            self._last_row = self._make_row(newest, *added)
        self.open()
        for row in rows:
            self.sink.write_row(row)

    def _add_up(
        self, measured: MeasuredRow | None, error: Exception | None, *, compare: bool = False
    ) -> tuple[dict[str, HostNorms], HostNorms]:
        """Return the columns and the totals of a row over all ranks."""
        assert self._collective is not None
        columns, totals, sizes = self._collective.combine(
            measured, error, self._out_numel, self.last_step, compare=compare
        )
        if len(sizes) and not self._is_open:
            self._set_out_numel(sizes)
        return columns, totals
