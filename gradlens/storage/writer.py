"""Write a run file row by row, so that other processes read it meanwhile and a kill loses only what was not flushed."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlens.atomic import whole_file
from gradlens.errors import ConfigError, RunFileError
from gradlens.run import EPOCH_COLUMNS, FloatArray, Header, Row, Status
from gradlens.sinks import row_of
from gradlens.storage.limits import MOST_COLUMNS, MOST_LAYERS, MOST_METRICS, MOST_NAME
from gradlens.storage.live_file import LiveFile
from gradlens.storage.one_thread import alone
from gradlens.storage.packing import pack
from gradlens.storage.place import Place
from gradlens.storage.publish import Publisher
from gradlens.storage.row_levels import RowChunk
from gradlens.storage.run_file import open_run_file
from gradlens.storage.schema import MISSING_SCALARS, SCALARS, as_float32
from gradlens.storage.stored_facts import encode_facts
from gradlens.storage.stored_file import StoredFile

FLUSH_ROWS = 256
FLUSH_SECONDS = 1.0
COPIED_ROWS = 4096
"""Rows that are copied at once when a file is laid out anew."""
NOTHING_SAID = math.nan, "", b""
"""Overhead, notes and facts of a run of which nothing was said yet."""


def _check_limits(header: Header) -> None:
    """Refuse what no reader would take from a file (``limits``), before anything is trained."""
    if len(header.layers) > MOST_LAYERS:
        raise ConfigError(
            f"the model has {len(header.layers):,} layers, and a run file holds at most {MOST_LAYERS:,}",
            tip="choose some of them: record(layers=...)",
        )
    if len(header.metrics) > MOST_METRICS:
        raise ConfigError(f"{len(header.metrics)} metrics are asked for, and a run file holds at most {MOST_METRICS}")
    long = next((layer.name for layer in header.layers if len(layer.name) > MOST_NAME), "")
    if long:
        raise ConfigError(
            f"the name of layer {long[:60]!r}... has {len(long):,} characters; a run file takes at most {MOST_NAME:,}"
        )


class FileSink:
    """Write rows to an HDF5 file that others can read meanwhile.

    The file appears under its name with the first flush, complete in layout; before that, and whenever it has to
    be laid out anew (a scalar that was not there before), it is built next to it under a temporary name. When the run
    ends it is packed (see ``schema``), likewise.

    Args:
        path: Where the run goes; its folder is made when the file is claimed. A relative one counts from the working
            directory of now, whatever that is later; messages show it as it was given.
        overwrite: Replace a file that is there.
        resume_at: (rows, epochs) to keep of the file that is there, and append to.
        flush_rows: Flush after so many rows,
        flush_seconds: or with the first row so long after the last flush.
        publisher: Sends copies of the file to another folder.

    Raises:
        RunExistsError: The file (or its copy) is there, and neither ``overwrite`` nor ``resume_at`` was given.
        RunFileError: The folder cannot be written to, or somebody else is writing the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        resume_at: tuple[int, int] | None = None,
        flush_rows: int = FLUSH_ROWS,
        flush_seconds: float = FLUSH_SECONDS,
        publisher: Publisher | None = None,
    ) -> None:
        self._place = Place(path)
        self._overwrite = overwrite
        self._resume_at = resume_at
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._publisher = publisher
        self._header: Header | None = None
        self._file: LiveFile | None = None
        self._lost: RunFileError | None = None
        """Why the file cannot be written any more."""
        self._rows: list[Row] = []
        self._epochs: list[dict[str, float]] = []
        self._last_flush = time.monotonic()
        self._state = self._state_written = NOTHING_SAID
        self._order: NDArray[np.int64] | None = None
        """(L,) place of each layer of the file in the rows that come, in a run that goes on."""
        self._place.check(overwrite=overwrite, resume=resume_at is not None)
        if publisher is not None:
            publisher.claim(self.path, onto=overwrite or resume_at is not None)

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self._place.path

    def claim(self) -> None:
        """Make sure that nobody else writes this file until it is closed.

        Raises:
            RunFileError: Somebody else is writing it, or its folder cannot be made.
        """
        self._place.claim()

    def open(self, header: Header) -> None:
        """Begin the run; the file itself is made with the first flush, when the scalars' names are known.

        Raises:
            RunFileError: The run to be resumed has other layers; or as in ``claim``.
            ConfigError: A run file cannot hold so many layers, or a layer's name.
        """
        _check_limits(header)
        self.claim()
        if self._resume_at is not None:
            with open_run_file(self.path) as source:
                stored = source.layers()
            if {layer.name for layer in stored} != {layer.name for layer in header.layers}:
                raise RunFileError(f"{self._place.shown} cannot be resumed: the model has other layers now")
            now = [layer.name for layer in header.layers]
            self._order = np.array([now.index(layer.name) for layer in stored], dtype=np.int64)
            header = replace(header, layers=stored)
        self._header = header

    def write_row(self, row: Row | Callable[[], Row]) -> None:
        """Keep one row; flushed after 256 rows, or one second after the last flush."""
        self._rows.append(row_of(row))
        due = time.monotonic() - self._last_flush >= self._flush_seconds
        if self._file is None or due or len(self._rows) >= self._flush_rows:
            self.flush()

    def amend_row(self, row: Row) -> None:
        """Replace the last row; one that is in the file already is replaced by laying the file out anew.

        Nothing is written over what is there: the file stays whole at every moment, and shows either row.
        """
        if self._rows:
            self._rows[-1] = row
            return
        self._flush(lambda: self._replace_last(row))

    def _replace_last(self, row: Row) -> None:
        assert self._file is not None
        held = self._file
        scalars, columns = (*held.scalars, *(set(row.scalars) - set(held.scalars))), held.epoch_columns
        self._lay_out(list(scalars), list(columns), instead=row)

    def write_epoch(self, values: Mapping[str, float]) -> None:
        """Keep one row of the table of epochs, and flush."""
        self._epochs.append(dict(values))
        self._flush(self._make_ready, epoch=True)

    def write_state(self, overhead: float, notes: Sequence[str]) -> None:
        """Keep overhead and notes; they go to the file with the next flush."""
        self._state = overhead, "\n".join(note.replace("\n", " ") for note in notes), self._state[2]

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Keep the facts; they go to the file with the next flush."""
        self._state = *self._state[:2], encode_facts(facts)

    def flush(self) -> None:
        """Write everything that waits, then the counts, then the heartbeat.

        Raises:
            RunFileError: It cannot be written. The file stays as it was after the last flush, and takes no more rows.
        """
        self._flush(self._make_ready)

    def _flush(self, make_ready: Callable[[], None], *, epoch: bool = False) -> None:
        self._place.check_process()
        if self._lost is not None:
            raise self._lost
        with alone(), self._place.errors():
            if self._file is not None:
                self._abandon_if(self._check_place)
            make_ready()
            self._abandon_if(self._write)
        self._last_flush = time.monotonic()
        if self._publisher is not None:
            self._publisher.offer(epoch=epoch)

    def _abandon_if(self, act: Callable[[], None]) -> None:
        """Do something with the file; after an error it is not written any more."""
        try:
            with self._place.errors():
                act()
        except RunFileError as error:
            self._lost = error
            assert self._file is not None
            self._file.abandon("failed")
            self._file = None
            raise

    def _check_place(self) -> None:
        """See whether the file is still there; one that was moved away gets what waits, and stays whole where it is."""
        assert self._file is not None
        try:
            self._file.check_place()
        except RunFileError:
            if self._file.is_whole:
                with contextlib.suppress(RuntimeError, OSError):
                    self._write()
            raise

    def _write(self) -> None:
        file = self._file
        assert file is not None
        if self._rows:
            file.append(self._block(self._rows, file))
            self._rows = []
        if self._epochs:
            file.append_epochs(self._epoch_block())
            self._epochs = []
        if self._state != self._state_written:
            file.write_state(*self._state)
            self._state_written = self._state
        file.commit()

    def close(self, status: Status) -> None:
        """Write what waits and the status, close and pack the file; where nothing was recorded, there is no file.

        In a forked process the run goes on without it.
        """
        if self._place.is_forked:
            return
        if self._header is None:
            self._place.release()
            return
        try:
            if self._lost is None and (self._file or self._rows or self._epochs or self._resume_at is not None):
                self.flush()
                assert self._file is not None
                with alone(), self._place.errors():
                    self._file.close(status)
                self._file = None
                self._pack()
        finally:
            file, self._file, self._header = self._file, None, None
            try:
                if file is not None:
                    with alone():
                        file.abandon(status)
                if self._publisher is not None:
                    self._publisher.finish()
            finally:
                self._place.release()

    def _pack(self) -> None:
        """Put the finished file in its compact form; where that cannot be done, it stays whole as it is."""
        try:
            with whole_file(self.path) as temporary, alone(), open_run_file(self.path) as source:
                pack(source, temporary)
        except RunFileError:
            raise
        except (OSError, RuntimeError):  # no room for both
            pass

    # --- the file -----------------------------------------------------------------------------------------

    def _make_ready(self) -> None:
        """Lay the file out, anew where a row or an epoch brings a name that it does not hold yet."""
        held = (self._file.scalars, self._file.epoch_columns) if self._file is not None else ((), ())
        scalars = dict.fromkeys((*SCALARS, *held[0], *(name for row in self._rows for name in row.scalars)))
        columns = dict.fromkeys((*EPOCH_COLUMNS, *held[1], *(name for row in self._epochs for name in row)))
        counts = min(len(scalars), MOST_COLUMNS), min(len(columns), MOST_COLUMNS)
        if self._file is None or counts[0] > len(held[0]) or counts[1] > len(held[1]):
            self._lay_out(list(scalars), list(columns))

    def _lay_out(self, scalars: list[str], columns: list[str], instead: Row | None = None) -> None:
        """Build the file next to the old one, with the rows that are to be kept, and move it into place.

        The file so far stays open and in place until then, so that a failure (a full disk) loses nothing.

        Args:
            scalars: Names of the scalars; those beyond what a reader takes are left out.
            columns: Names of the columns of the table of epochs, likewise.
            instead: What takes the place of the last row.
        """
        assert self._header is not None
        with contextlib.ExitStack() as stack:
            source, kept = self._kept(stack)
            created = None
            if source is not None:
                names = source.columns
                scalars = list(dict.fromkeys((*scalars, *_members(names, "scalar/"))))
                columns = list(dict.fromkeys((*columns, *_members(names, "epoch/"))))
                created = str(source.attributes["created"])
            held = scalars[:MOST_COLUMNS], columns[:MOST_COLUMNS]
            new = LiveFile(self.path, self._header, *held, created, self._place.shown)
            try:
                if source is not None:
                    copy_rows(source, new, (kept[0] - (instead is not None), kept[1]))
                    if instead is not None:
                        new.append(self._block([instead], new))
                    if self._state == self._state_written == NOTHING_SAID:
                        before = source.state()
                        self._state = before["overhead"], before["notes"], before["facts"]
                new.write_state(*self._state)
                new.publish(onto=self._overwrite or source is not None)
            except BaseException:
                new.abandon("failed")
                raise
        if self._file is not None:
            self._file.abandon(None)
        self._file, self._overwrite, self._state_written = new, True, self._state

    def _kept(self, stack: contextlib.ExitStack) -> tuple[StoredFile | None, tuple[int, int]]:
        """Open the file whose rows are to be kept, and say how many rows and epochs."""
        if self._file is not None:
            return stack.enter_context(open_run_file(self.path)), (self._file.n_steps, self._file.n_epochs)
        if self._resume_at is None:
            return None, (0, 0)
        source = stack.enter_context(open_run_file(self.path))
        rows, epochs = self._resume_at
        if source.n_steps < rows or source.n_epochs < epochs:
            raise RunFileError(
                f"{self._place.shown} holds {source.n_steps} rows and {source.n_epochs} epochs, fewer than the {rows} "
                f"and {epochs} to be kept"
            )
        return source, self._resume_at

    def _block(self, rows: Sequence[Row], file: LiveFile) -> RowChunk:
        """Return rows by column, as a file takes them."""
        assert self._header is not None
        missing = np.full(len(self._header.layers), np.nan)
        metrics = {}
        for name in file.metrics:
            values = np.array([row.metrics.get(name, missing) for row in rows])
            metrics[name] = as_float32(values if self._order is None else values[:, self._order])
        return RowChunk(
            np.array([row.step for row in rows], dtype=np.int64),
            np.array([row.epoch for row in rows], dtype=np.int32),
            {name: _column([row.scalars for row in rows], name) for name in file.scalars},
            metrics,
        )

    def _epoch_block(self) -> dict[str, FloatArray]:
        assert self._file is not None
        return {name: _column(self._epochs, name) for name in self._file.epoch_columns}


def copy_rows(source: StoredFile, target: LiveFile, counts: tuple[int, int]) -> None:
    """Append so many rows and epochs of one file to another; what else the other has is NaN.

    Raises:
        DamagedError: What is to be copied is damaged.
    """
    rows, epochs = counts
    columns = {name: source.column(name) for name in source.columns}
    added = [name for name in target.scalars if f"scalar/{name}" not in columns]
    missing = {name: np.full(rows, MISSING_SCALARS.get(name, np.nan)) for name in added}
    scalars = {name: missing.get(name, columns.get(f"scalar/{name}")) for name in target.scalars}
    for start in range(0, rows, COPIED_ROWS):
        part = slice(start, min(start + COPIED_ROWS, rows))
        target.append(
            RowChunk(
                columns["step"][part],
                columns["epoch_of_step"][part],
                {name: values[part] for name, values in scalars.items() if values is not None},
                {name: _rows_or_gap(source, name, part) for name in target.metrics},
            )
        )
    if epochs:
        gap = np.full(epochs, np.nan)
        target.append_epochs({name: columns.get(f"epoch/{name}", gap)[:epochs] for name in target.epoch_columns})


def _rows_or_gap(source: StoredFile, metric: str, part: slice) -> NDArray[np.float32]:
    """Return rows of a metric; NaN where the run was begun without it."""
    if metric in source.metrics:
        return source.rows(metric, part.start, part.stop)
    shape = (part.stop - part.start, len(source.layers()))
    return np.full(shape, np.nan, dtype=np.float32)


def _column(rows: Sequence[Mapping[str, float]], name: str) -> FloatArray:
    return np.array([row.get(name, MISSING_SCALARS.get(name, np.nan)) for row in rows], dtype=np.float64)


def _members(names: Sequence[str], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
