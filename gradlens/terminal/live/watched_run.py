"""A run that is being watched: the content of its file at the last look, ready to be drawn, at a bounded cost."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradlens.charts.live_columns import MOST, Columns, Recent, known_rows
from gradlens.diagnosis.diagnose import diagnose
from gradlens.diagnosis.findings import Diagnosis
from gradlens.errors import GradlensError, NoRunError
from gradlens.metrics import is_linear
from gradlens.row_chunks import STATISTICS, RowChunks, choose_level
from gradlens.run import FloatArray, Run
from gradlens.storage import Follower, NewRows, read_run
from gradlens.storage.lock import seconds_silent

LONG = 16_384
"""Most rows that are read one by one at the start; a longer run is read in chunks."""
WIDE = 16_000_000
"""Most numbers of a metric whose rows are read one by one at the start."""
COLUMNS = 128
"""Least columns of a run that is read in chunks."""
RECENT = 2048
"""Newest rows that are kept."""
NUMBERS = 4_000_000
"""Most numbers that are kept per metric: a model with very many layers keeps fewer rows."""
COLUMN_BYTES = 100_000_000
"""Most bytes of the columns of all metrics. A model with more has those columns only that are shown, read when they are
asked for."""
PIECE = 1_000_000
"""Numbers of such columns that are read at once."""
AT_ONCE_S = 0.2
"""Longest time of a look; the next look reads the rest."""
SILENT_S = 30.0
"""A writer without a heartbeat for this long may be dead."""
RATE_S = 8.0
"""Seconds over which the rate of rows is measured."""
SURE_S = 5.0
"""A file that seems unchanged is read all the same after this time."""
SPANS = ("all", "epoch")
"""The spans whose columns are kept: all rows, and the epoch in progress."""
Steps = NDArray[np.int64]


class Watched:
    """The content of a run file; ``look`` keeps it up to date.

    Args:
        path: The file.

    Attributes:
        run: The run as it was when the file was first read: layers, configuration.
        rows: The number of rows.
        wide: Whether columns are made only when they are asked for, as there are very many layers.
        recent: The newest rows by metric, (T, L) each.
        epochs: The table of epochs.

    Raises:
        GradlensError: The file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heartbeat, self._beat = 0.0, time.monotonic()
        self._begin()

    def _begin(self) -> None:
        self._place = self._identity(), time.monotonic()
        run = read_run(self.path)
        self.run, self.status, self.rows = run, run.status, len(run.steps)
        self.scalar_names = tuple(run.scalars)
        self.epochs: dict[str, FloatArray] = {name: np.asarray(values) for name, values in run.epochs.items()}
        self.every: Mapping[str, int] = run.info.get("every", {})
        if (heartbeat := float(run.info["heartbeat"])) != self.heartbeat:
            self.heartbeat, self._beat = heartbeat, time.monotonic()
        self.step = int(run.steps[-1]) if self.rows else -1
        self.epoch_index = int(run.epoch_of_step[-1]) if self.rows else 0
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), self.rows)], maxlen=64)
        widths = {name: len(run.layers) for name in run.metrics} | {"scalars": len(self.scalar_names)}
        numbers = len(run.layers) * len(run.metrics) * MOST * len(STATISTICS)
        self.wide = 8 * len(SPANS) * numbers > COLUMN_BYTES
        at_once = ["scalars"] if self.wide else widths
        self._columns = {
            (name, span): Columns(widths[name], linear=self.linear(name)) for name in at_once for span in SPANS
        }
        self._epoch_begin = 0
        keep = {name: max(min(RECENT, NUMBERS // max(width, 1)), 64) for name, width in widths.items()}
        self.recent = {name: Recent(width, keep[name]) for name, width in widths.items()}
        self._latest = Recent(0, RECENT)
        if self.rows <= LONG and self.rows * len(run.layers) <= WIDE:
            self._follower = Follower(self.path)
            self.rows, self.step, self.epoch_index, self.epochs = 0, -1, 0, {}
            self._read_new(beginning=True)
        else:
            self._read_long(run)
            self._follower = Follower(self.path, start=self.rows, epochs=len(self.epochs.get("epoch", ())))

    def linear(self, name: str) -> bool:
        """Return whether values of a metric, or the scalars, are averaged as they are, not their logarithms."""
        return name == "scalars" or is_linear(name)

    @property
    def total_epochs(self) -> int:
        """The number of epochs that the training was started with; 0 if unknown."""
        asked = self.run.config.get("epochs", 0)
        return int(asked) if isinstance(asked, (int, float)) else 0

    @property
    def silence(self) -> float:
        """Seconds since the last heartbeat of the writer; 0 if the run has ended.

        Where the writer's clock is ahead of this one, seconds since a heartbeat was seen to change.
        """
        if self.status != "running":
            return 0.0
        ago, unchanged = seconds_silent(self.heartbeat), time.monotonic() - self._beat
        return unchanged + (SILENT_S if ago == math.inf else 0.0) if ago in (0.0, math.inf) else ago

    @property
    def lost(self) -> bool:
        """Whether the last heartbeat of the writer is so long ago that it may be dead."""
        return self.silence > SILENT_S

    @property
    def rate(self) -> float:
        """Rows per second over the last few seconds; NaN if it is not known yet."""
        (begin, before), (end, now) = self._seen[0], self._seen[-1]
        return (now - before) / (end - begin) if end - begin > 1.0 and self.status == "running" else math.nan

    def scalar(self, columns: FloatArray, name: str) -> FloatArray:
        """Return one scalar, (N,), of (N, scalars) columns."""
        return columns[:, self.scalar_names.index(name)]

    def columns(self, name: str, span: str) -> Columns:
        """Return the columns of a metric, or of the scalars, over a span.

        Args:
            name: The metric, or "scalars".
            span: "all", "epoch" (the one in progress), or a number of newest rows.

        Returns:
            The columns.
        """
        if span not in SPANS:
            dtype = np.float32 if self.wide else np.float64
            return self.recent[name].columns(self.step_before(int(span)), linear=self.linear(name), dtype=dtype)
        if (name, span) not in self._columns:
            for other in [key for key in self._columns if key[0] != "scalars"]:
                del self._columns[other]
            try:
                self._columns[name, span] = self._read_columns(name, 0 if span == "all" else self._epoch_begin)
            except GradlensError:  # the next look says why, or finds another run
                return Columns(len(self.run.layers), linear=self.linear(name))
        return self._columns[name, span]

    def step_before(self, rows: int) -> int:
        """Return the step of the first of this many newest rows."""
        steps = self._latest.steps
        return int(steps[-min(rows, len(steps))]) if len(steps) else 0

    # --- reading ------------------------------------------------------------------------------------------

    def _read_long(self, run: Run) -> None:
        """Read chunks of rows, and the newest rows."""
        begin = self._epoch_begin = int(np.searchsorted(run.epoch_of_step, self.epoch_index))
        for span, start in zip(SPANS, (0, begin), strict=True):
            for name in () if self.wide else run.metrics:
                chunks = run.row_chunks(name, least=COLUMNS, start=start, stop=self.rows)
                self._columns[name, span].add_chunks(run.steps[chunks.edges[:-1]], chunks)
        self._read_scalars(run.steps, begin)
        self._latest.add(run.steps[-RECENT:], np.empty((min(RECENT, self.rows), 0)))
        for name in run.metrics:
            start = self.rows - self.recent[name].keep
            rows = run.metric_rows(name, start, self.rows)
            self.recent[name].add(*self._known(name, run.steps[start:], rows))

    def _read_scalars(self, steps: Steps, begin: int) -> None:
        """Read the logged numbers, in pieces and from a run of their own, which is forgotten with all that it keeps.

        Args:
            steps: (T,) the steps of all rows.
            begin: The first row of the epoch in progress.
        """
        if not self.scalar_names:
            return
        run, rows, at_once = read_run(self.path), self.rows, max(PIECE // len(self.scalar_names), 1)

        def values(start: int, stop: int) -> FloatArray:
            return np.stack([run.scalars[name][start:stop] for name in self.scalar_names], axis=1)

        for span, first in zip(SPANS, (0, begin), strict=True):
            for start in range(first, rows, at_once):
                part = slice(start, min(start + at_once, rows))
                self._columns["scalars", span].add(steps[part], values(part.start, part.stop))
        newest = max(rows - RECENT, 0)
        self.recent["scalars"].add(steps[newest:rows], values(newest, rows))

    def _read_columns(self, name: str, start: int) -> Columns:
        """Read the columns of a metric from a row on, in pieces, so that memory stays bounded."""
        width = len(self.run.layers)
        found = Columns(width, linear=self.linear(name), dtype=np.float32)
        run, size = read_run(self.path), choose_level(self.rows - start, COLUMNS)
        edges, values, begin = [np.empty(0, dtype=np.int64)], [found.values], start
        while begin < self.rows:
            numbers = width * (1 if size == 1 else len(STATISTICS))
            stop = begin - begin % size + max(PIECE // max(numbers, 1), 2) * size
            if self.rows - stop < size:
                stop = self.rows
            if size > 1:
                chunks = run.row_chunks(name, least=max((stop - begin) // size, 1), start=begin, stop=stop)
                if len(chunks.values) > (stop - begin) // size + 2:  # a file without chunks, of an early version
                    size = 1
                    continue
                edges.append(chunks.edges[:-1])
                values.append(chunks.values.astype(np.float32))
            else:
                found.add(*self._known(name, run.steps[begin:stop], run.metric_rows(name, begin, stop)))
            begin = stop
        if len(values) > 1:
            at = np.concatenate(edges)
            found.add_chunks(run.steps[at], RowChunks(np.append(at, self.rows), np.concatenate(values)))
        return found

    def _known(self, name: str, steps: Steps, rows: FloatArray) -> tuple[Steps, FloatArray]:
        return known_rows(steps, rows) if self.every.get(name, 1) > 1 else (steps, rows)

    def look(self) -> bool:
        """Read new rows.

        Returns:
            Whether anything has changed.

        Raises:
            NoRunError: The file was removed.
            GradlensError: The file can no longer be read.
        """
        now = self._identity(), time.monotonic()
        if now[0] == self._place[0] and now[1] - self._place[1] < SURE_S:
            return False
        same, self._place = now[0][0] == self._place[0][0], now
        try:
            if same:
                return self._read_new()
            self._begin()
            return True
        except NoRunError:
            raise
        except GradlensError:  # fewer rows than before: the run was resumed, or started again
            self._begin()
            return True

    def _identity(self) -> tuple[int, int, int]:
        """Return inode, size and time of the file, which tell whether it was replaced or has changed."""
        try:
            there = os.stat(self.path)
        except OSError:
            raise NoRunError(f"{self.path} was removed", tip="gradlens ls lists the runs") from None
        return there.st_ino, there.st_size, there.st_mtime_ns

    def _read_new(self, *, beginning: bool = False) -> bool:
        begin, changed = time.monotonic(), False
        while True:
            new = self._follower.look()
            if not beginning and self._is_another(new):
                self._begin()
                return True
            changed |= bool(len(new.steps)) or any(map(len, new.epochs.values())) or new.status != self.status
            self._add(new)
            if not new.more or time.monotonic() - begin > AT_ONCE_S:
                break
        self._seen.append((time.monotonic(), self.rows))
        while len(self._seen) > 2 and self._seen[-1][0] - self._seen[0][0] > RATE_S:
            self._seen.popleft()
        return changed

    def _is_another(self, new: NewRows) -> bool:
        """Return whether the file has another layout than before, or holds another run."""
        same = tuple(new.scalars) == self.scalar_names and set(new.metrics) == set(self.run.metrics)
        same &= all(rows.shape[1] == len(self.run.layers) for rows in new.metrics.values())
        return not same or bool(len(new.steps) and new.steps[0] <= self.step)

    def _add(self, new: NewRows) -> None:
        self.status = new.status
        if new.heartbeat != self.heartbeat:
            self.heartbeat, self._beat = new.heartbeat, time.monotonic()
        for name, values in new.epochs.items():
            self.epochs[name] = np.concatenate([self.epochs.get(name, values[:0]), values])
        if not len(new.steps):
            return
        scalars = [new.scalars[name] for name in self.scalar_names]
        parts = dict(new.metrics)
        parts["scalars"] = np.stack(scalars, axis=1) if scalars else np.empty((len(new.steps), 0))
        begin = 0
        if int(new.epoch_of_step[-1]) != self.epoch_index:
            self.epoch_index = int(new.epoch_of_step[-1])
            begin = int(np.searchsorted(new.epoch_of_step, self.epoch_index))
            self._epoch_begin = self.rows + begin
            for name, span in list(self._columns):
                if span == "epoch":
                    dtype = np.float32 if self.wide and name != "scalars" else np.float64
                    self._columns[name, span] = Columns(parts[name].shape[1], linear=self.linear(name), dtype=dtype)
        for (name, span), columns in self._columns.items():
            if not parts[name].shape[1]:
                continue
            first = begin if span == "epoch" else 0
            columns.add(*self._known(name, new.steps[first:], parts[name][first:]))
        for name, rows in parts.items():
            if rows.shape[1]:
                self.recent[name].add(*self._known(name, new.steps, rows))
        self._latest.add(new.steps, np.empty((len(new.steps), 0)))
        self.rows += len(new.steps)
        self.step = int(new.steps[-1])


class Judge:
    """Diagnoses a run repeatedly in a thread, at intervals that keep it to a small share of a core.

    Attributes:
        diagnosis: The newest diagnosis; None before the first.
        rows: The number of rows that it covers.
        step: The last step among them.
    """

    SHARE, LEAST_S = 0.01, 3.0

    def __init__(self, path: Path) -> None:
        self.path = path
        self.diagnosis: Diagnosis | None = None
        self.rows = self.step = -1
        self.failed = ""
        self.took = 0.0
        self._next = 0.0
        self._of: tuple[int, str] = (-1, "")
        self._thread: threading.Thread | None = None

    def consider(self, rows: int, status: str) -> None:
        """Start a diagnosis if there are new rows and the interval has passed; at the end of a run at once.

        Args:
            rows: The number of rows of the run.
            status: The status of the run.
        """
        busy = self._thread is not None and self._thread.is_alive()
        if busy or (rows, status) == self._of or (status == "running" and time.monotonic() < self._next):
            return
        self._of = rows, status
        self._thread = threading.Thread(target=self._judge, name="diagnosis")
        self._thread.start()

    def hurry(self) -> None:
        """Start the next diagnosis as soon as there are new rows."""
        self._next = 0.0

    def _judge(self) -> None:
        began = time.thread_time()
        try:
            run = read_run(self.path)
            self.diagnosis, self.failed = diagnose(run), ""
            self.rows, self.step = len(run.steps), int(run.steps[-1]) if len(run.steps) else -1
        except Exception as error:  # an error here must not end the view, nor print over it
            self.failed = f"the diagnosis failed: {error}"
        took = time.thread_time() - began
        self.took += took
        self._next = time.monotonic() + max(took / self.SHARE, self.LEAST_S)

    def wait(self) -> None:
        """Wait for the diagnosis in progress."""
        if self._thread is not None:
            self._thread.join()
