"""Write a run file row by row, so that other processes read it meanwhile and a kill loses only what was not flushed."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gradlens.errors import NoRunError, RunExistsError, RunFileError
from gradlens.run import EPOCH_COLUMNS, FloatArray, Header, Row, Status, row_of
from gradlens.storage.reader import metric_names, open_run_file, read_run
from gradlens.storage.schema import NOTES_BYTES, SCALARS, create_layout

FLUSH_ROWS = 64
FLUSH_SECONDS = 1.0


class FileSink:
    """Write rows to an HDF5 file in SWMR mode.

    The file appears under its name with the first flush, complete in layout; before that, and whenever it has to
    be laid out anew (a scalar that was not there before), it is built beside under a temporary name.

    Args:
        path: Where the run goes; its folder is made with the first row.
        overwrite: Replace a file that is there.
        resume_at: (rows, epochs) to keep of the file that is there, and append to.

    Raises:
        RunExistsError: The file is there, and neither ``overwrite`` nor ``resume_at`` was given.
        RunFileError: The folder cannot be written to.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        resume_at: tuple[int, int] | None = None,
    ) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        self._resume_at = resume_at
        self._header: Header | None = None
        self._file: h5py.File | None = None
        self._rows: list[Row] = []
        self._epochs: list[dict[str, float]] = []
        self._scalars: list[str] = list(SCALARS)
        self._epoch_columns: list[str] = list(EPOCH_COLUMNS)
        self._n_steps = self._n_epochs = 0
        self._last_flush = time.monotonic()
        self._state = self._state_written = math.nan, ""
        self._datasets: dict[str, h5py.Dataset] = {}
        self._order: NDArray[np.int64] | None = None
        """(L,) place of each layer of the file in the rows that come, in a run that goes on."""
        self._check_place()

    def _check_place(self) -> None:
        if self.path.is_dir():
            raise RunFileError(f"{self.path} is a folder; expected the name of a file", tip=f"{self.path / 'run.h5'}")
        if self._resume_at is not None:
            if not self.path.exists():
                raise NoRunError(f"{self.path} is not there, so nothing can be resumed")
        elif self.path.exists() and not self._overwrite:
            raise RunExistsError(
                f"{self.path} is there already, and nothing is overwritten unasked",
                tip="another name, or overwrite=True (--overwrite)",
            )
        there = next(folder for folder in self.path.absolute().parents if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise RunFileError(f"{self.path} cannot be written: {there.name} is no folder that you may write to")

    def open(self, header: Header) -> None:
        """Begin the run; the file itself is made with the first flush, when the scalars' names are known.

        Raises:
            RunFileError: The run to be resumed has other layers.
        """
        if self._resume_at is not None:
            stored = read_run(self.path).layers
            if {layer.name for layer in stored} != {layer.name for layer in header.layers}:
                raise RunFileError(f"{self.path} cannot be resumed: the model has other layers now")
            now = [layer.name for layer in header.layers]
            self._order = np.array([now.index(layer.name) for layer in stored], dtype=np.int64)
            header = replace(header, layers=stored)
        self._header = header

    def write_row(self, row: Row | Callable[[], Row]) -> None:
        """Keep one row; flushed after 64 rows, or one second after the last flush."""
        self._rows.append(row_of(row))
        due = time.monotonic() - self._last_flush >= FLUSH_SECONDS
        if self._file is None or due or len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def write_epoch(self, values: Mapping[str, float]) -> None:
        """Keep one row of the table of epochs, and flush."""
        self._epochs.append(dict(values))
        self.flush()

    def write_state(self, overhead: float, notes: Sequence[str]) -> None:
        """Keep overhead and notes; they go to the file with the next flush."""
        self._state = overhead, "\n".join(note.replace("\n", " ") for note in notes)

    def flush(self) -> None:
        """Write everything that waits, then the counts, then the heartbeat."""
        with _file_errors(self.path):
            file = self._ready_file()
            self._append_rows(file)
            self._append_epochs(file)
            if self._state != self._state_written:
                self._dataset("state/overhead")[()] = self._state[0]
                self._dataset("state/notes")[()] = np.bytes_(self._state[1].encode()[:NOTES_BYTES])
                self._state_written = self._state
            self._dataset("state/heartbeat")[()] = time.time()
            file.flush()
        self._last_flush = time.monotonic()

    def close(self, status: Status) -> None:
        """Write what waits and the status, and close the file; where nothing was ever recorded, there is no file."""
        if self._header is None:
            return
        try:
            if self._file is not None or self._rows or self._epochs or self._resume_at is not None:
                self.flush()
                assert self._file is not None
                self._file["state/status"][()] = np.bytes_(status)
        finally:
            if self._file is not None:
                self._file.close()
            self._datasets.clear()
            self._file = None
            self._header = None

    # --- the file -----------------------------------------------------------------------------------------

    def _ready_file(self) -> h5py.File:
        """Return the file, laid out anew where a row or an epoch brings a name that it does not hold yet."""
        scalars = dict.fromkeys((*self._scalars, *(name for row in self._rows for name in row.scalars)))
        columns = dict.fromkeys((*self._epoch_columns, *(name for row in self._epochs for name in row)))
        if self._file is None or len(scalars) > len(self._scalars) or len(columns) > len(self._epoch_columns):
            self._lay_out(list(scalars), list(columns))
        assert self._file is not None
        return self._file

    def _lay_out(self, scalars: list[str], columns: list[str]) -> None:
        """Build the file beside, with the rows that are to be kept, and move it into place.

        The file so far stays open and in place until then, so that a failure (a full disk) loses nothing.
        """
        assert self._header is not None
        kept, (rows, epochs) = self._read_kept()
        scalars = list(dict.fromkeys((*scalars, *_members(kept, "scalar/"))))
        columns = list(dict.fromkeys((*columns, *_members(kept, "epoch/"))))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        file = h5py.File(temporary, "w", libver="latest", locking=False)
        try:
            create_layout(file, self._header, scalars, columns, kept.pop("created", None))
            for name, block in kept.items():
                _write(file[name], 0, block)
            file["state/n_steps"][()], file["state/n_epochs"][()] = rows, epochs
            file.swmr_mode = True
            file.flush()
            _move(temporary, self.path, onto=self._overwrite or bool(kept))
        except BaseException:
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        if self._file is not None:
            self._file.close()
        self._datasets.clear()
        self._state_written = math.nan, ""
        self._file, self._n_steps, self._n_epochs = file, rows, epochs
        self._scalars, self._epoch_columns = scalars, columns

    def _read_kept(self) -> tuple[dict[str, Any], tuple[int, int]]:
        """Read what the file holds so far, as far as it is to be kept: by dataset, and the numbers of rows."""
        if self._file is not None:
            counts = self._n_steps, self._n_epochs
            return self._read_columns(self._file, *counts), counts
        if self._resume_at is None:
            return {}, (0, 0)
        with open_run_file(self.path) as file:
            return self._read_columns(file, *self._resume_at), self._resume_at

    def _read_columns(self, file: h5py.File, rows: int, epochs: int) -> dict[str, Any]:
        held = int(file["state/n_steps"][()]), int(file["state/n_epochs"][()])
        if held[0] < rows or held[1] < epochs:
            raise RunFileError(
                f"{self.path} holds {held[0]} rows and {held[1]} epochs, fewer than the {rows} and {epochs} to be kept"
            )
        kept: dict[str, Any] = {name: file[name][:rows] for name in ("step", "epoch_of_step")}
        kept |= {f"scalar/{name}": file["scalar"][name][:rows] for name in file["scalar"]}
        kept |= {f"metric/{name}": file["metric"][name][:rows] for name in metric_names(file)}
        kept |= {f"epoch/{name}": file["epoch"][name][:epochs] for name in file["epoch"]}
        return {**kept, "created": str(file.attrs["created"])}

    def _dataset(self, name: str) -> h5py.Dataset:
        """Return a dataset of the file; to look one up costs as much as to write a row."""
        if name not in self._datasets:
            assert self._file is not None
            self._datasets[name] = self._file[name]
        return self._datasets[name]

    def _append_rows(self, file: h5py.File) -> None:
        assert self._header is not None
        rows, n_layers = self._rows, len(self._header.layers)
        if not rows:
            return
        start, missing = self._n_steps, np.full(n_layers, np.nan)
        _write(self._dataset("step"), start, np.array([row.step for row in rows], dtype=np.int64))
        _write(self._dataset("epoch_of_step"), start, np.array([row.epoch for row in rows], dtype=np.int32))
        for name in self._scalars:
            _write(self._dataset(f"scalar/{name}"), start, np.array([row.scalars.get(name, np.nan) for row in rows]))
        for name in self._header.metrics:
            block = np.array([row.metrics.get(name, missing) for row in rows])
            if self._order is not None:
                block = block[:, self._order]
            _write(self._dataset(f"metric/{name}"), start, as_float32(block))
        file.flush()
        self._dataset("state/n_steps")[()] = start + len(rows)
        self._n_steps, self._rows = start + len(rows), []

    def _append_epochs(self, file: h5py.File) -> None:
        if not self._epochs:
            return
        start, epochs = self._n_epochs, self._epochs
        for name in self._epoch_columns:
            _write(self._dataset(f"epoch/{name}"), start, np.array([row.get(name, np.nan) for row in epochs]))
        file.flush()
        self._dataset("state/n_epochs")[()] = start + len(epochs)
        self._n_epochs, self._epochs = start + len(epochs), []


def as_float32(values: FloatArray) -> NDArray[np.float32]:
    """Round to float32 without turning a nonzero value into 0 or a finite one into infinity."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = values.astype(np.float32)
    limits = np.finfo(np.float32)
    vanished = (rounded == 0) & (values != 0)
    rounded[vanished] = np.copysign(limits.smallest_subnormal, values[vanished])
    overflowed = np.isinf(rounded) & np.isfinite(values)
    rounded[overflowed] = np.copysign(limits.max, values[overflowed])
    return rounded


def _members(kept: dict[str, Any], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in kept if name.startswith(prefix)]


def _write(dataset: h5py.Dataset, start: int, block: NDArray[Any]) -> None:
    """Write rows from ``start`` on; a write that was broken off before is simply written again."""
    dataset.resize(start + len(block), axis=0)
    dataset[start:] = block


def _move(temporary: Path, path: Path, *, onto: bool) -> None:
    """Give the file its name; without ``onto``, never onto another."""
    if onto:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise RunExistsError(f"{path} was made by somebody else meanwhile", tip="another name") from None
    except OSError:  # a file system without hard links
        os.rename(temporary, path)
        return
    temporary.unlink()


@contextlib.contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Turn what the system says into a line that names the file."""
    try:
        yield
    except RunFileError:
        raise
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise RunFileError(
            f"{path} cannot be written: {reason}", tip="is there room, and may you write there?"
        ) from error
