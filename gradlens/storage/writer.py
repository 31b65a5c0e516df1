"""Write a run file row by row, so that other processes read it meanwhile and a kill loses only what was not flushed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gradlens.errors import NoRunError, RunExistsError, RunFileError
from gradlens.run import FloatArray, Header, Row, Status
from gradlens.storage.reader import read_run
from gradlens.storage.schema import EPOCH_COLUMNS, SCALARS, create_layout

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
        """Begin the run; the file itself is made with the first flush, when the scalars' names are known."""
        self._header = header

    def write_row(self, row: Row) -> None:
        """Keep one row; flushed after 64 rows, or one second after the last flush."""
        self._rows.append(row)
        due = time.monotonic() - self._last_flush >= FLUSH_SECONDS
        if self._file is None or due or len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def write_epoch(self, values: Mapping[str, float]) -> None:
        """Keep one row of the table of epochs, and flush."""
        self._epochs.append(dict(values))
        self.flush()

    def flush(self) -> None:
        """Write everything that waits, then the counts, then the heartbeat."""
        with _file_errors(self.path):
            file = self._ready_file()
            self._append_rows(file)
            self._append_epochs(file)
            file["state/heartbeat"][()] = time.time()
            file.flush()
        self._last_flush = time.monotonic()

    def close(self, status: Status) -> None:
        """Write what waits and the status, and close the file."""
        if self._header is None:
            return
        try:
            self.flush()
            assert self._file is not None
            self._file["state/status"][()] = np.bytes_(status)
        finally:
            if self._file is not None:
                self._file.close()
            self._file = None
            self._header = None

    # --- the file -----------------------------------------------------------------------------------------

    def _ready_file(self) -> h5py.File:
        new_scalars = [k for row in self._rows for k in row.scalars if k not in self._scalars]
        new_columns = [k for row in self._epochs for k in row if k not in self._epoch_columns]
        if self._file is not None and not new_scalars and not new_columns:
            return self._file
        self._scalars += dict.fromkeys(new_scalars)
        self._epoch_columns += dict.fromkeys(new_columns)
        self._lay_out()
        assert self._file is not None
        return self._file

    def _lay_out(self) -> None:
        """Build the file beside, with the rows that it holds already, and move it into place."""
        assert self._header is not None
        old = self._close_and_read()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        file = h5py.File(temporary, "w", libver="latest", locking=False)
        try:
            created = old["created"] if old else None
            create_layout(file, self._header, self._scalars, self._epoch_columns, created)
            if old:
                for name, block in old["columns"].items():
                    _write(file[name], 0, block)
                file["state/n_steps"][()] = self._n_steps
                file["state/n_epochs"][()] = self._n_epochs
            file.swmr_mode = True
            file.flush()
            _move(temporary, self.path, replace=self._overwrite or old is not None)
        except BaseException:
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        self._file = file

    def _close_and_read(self) -> dict[str, Any] | None:
        """Read what the file holds so far, if it is to be kept."""
        if self._file is not None:
            self._file.close()
            self._file = None
        elif self._resume_at is not None:
            self._n_steps, self._n_epochs = self._resume_at
        else:
            return None
        run = read_run(self.path)
        rows, epochs = self._n_steps, self._n_epochs
        if len(run.steps) < rows or min((len(v) for v in run.epochs.values()), default=0) < epochs:
            raise RunFileError(f"{self.path} holds {len(run.steps)} rows, fewer than the {rows} to be kept")
        self._scalars += [name for name in run.scalars if name not in self._scalars]
        self._epoch_columns += [name for name in run.epochs if name not in self._epoch_columns]
        columns: dict[str, NDArray[Any]] = {
            "step": run.steps[:rows],
            "epoch_of_step": run.epoch_of_step[:rows],
        }
        missing = np.full(rows, np.nan)
        missing_epochs = np.full(epochs, np.nan)
        columns |= {f"scalar/{k}": run.scalars.get(k, missing)[:rows] for k in self._scalars}
        columns |= {f"metric/{k}": run.metrics[k][:rows] for k in run.metrics}
        columns |= {f"epoch/{k}": run.epochs.get(k, missing_epochs)[:epochs] for k in self._epoch_columns}
        return {"created": run.info["created"], "columns": columns}

    def _append_rows(self, file: h5py.File) -> None:
        assert self._header is not None
        rows, n_layers = self._rows, len(self._header.layers)
        if not rows:
            return
        start, missing = self._n_steps, np.full(n_layers, np.nan)
        _write(file["step"], start, np.array([row.step for row in rows], dtype=np.int64))
        _write(file["epoch_of_step"], start, np.array([row.epoch for row in rows], dtype=np.int32))
        for name in self._scalars:
            _write(file[f"scalar/{name}"], start, np.array([row.scalars.get(name, np.nan) for row in rows]))
        for name in self._header.metrics:
            block = np.array([row.metrics.get(name, missing) for row in rows])
            _write(file[f"metric/{name}"], start, as_float32(block))
        file.flush()
        file["state/n_steps"][()] = start + len(rows)
        self._n_steps, self._rows = start + len(rows), []

    def _append_epochs(self, file: h5py.File) -> None:
        if not self._epochs:
            return
        start, epochs = self._n_epochs, self._epochs
        for name in self._epoch_columns:
            _write(file[f"epoch/{name}"], start, np.array([row.get(name, np.nan) for row in epochs]))
        file.flush()
        file["state/n_epochs"][()] = start + len(epochs)
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


def _write(dataset: h5py.Dataset, start: int, block: NDArray[Any]) -> None:
    """Write rows from ``start`` on; a write that was broken off before is simply written again."""
    dataset.resize(start + len(block), axis=0)
    dataset[start:] = block


def _move(temporary: Path, path: Path, *, replace: bool) -> None:
    """Give the file its name; without ``replace``, never onto another."""
    if replace:
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
