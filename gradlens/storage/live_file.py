"""A run file that is being written: rows are appended, and readable by others as soon as they are committed."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import math
import os
import time
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gradlens.atomic import replaceable, temporary_name
from gradlens.errors import RunExistsError, RunFileError
from gradlens.run import Header, Status
from gradlens.storage.checksums import Slot, crc, seal, state_crc
from gradlens.storage.row_levels import Growth, RowChunk
from gradlens.storage.schema import LIBVER, column_names, create_layout, metric_names, notes_bytes
from gradlens.storage.stored_facts import FACTS_BYTES

STATUS_BYTES = 16


class LiveFile:
    """An HDF5 file in SWMR mode under a temporary name, until ``publish`` gives it its own.

    Rows that are appended count once they are committed. What is broken off in between, by an exception or a kill,
    leaves the file as it was after the last ``commit``, and can be repeated.

    Args:
        path: Its name in the end.
        header: The run's.
        scalars: Names of the scalars.
        epoch_columns: Names of the columns of the table of epochs.
        created: When the run began, of one that goes on.
        shown: Its name in messages, where that is another.

    Raises:
        OSError: The file cannot be made.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        scalars: Iterable[str],
        epoch_columns: Iterable[str],
        created: str | None = None,
        shown: Path | None = None,
    ) -> None:
        self.path = path
        self._shown = shown or path
        self._temporary: Path | None = temporary_name(path)
        self._file = _new_file(self._temporary, header, scalars, epoch_columns, created)
        self._handle = int(self._file.id.get_vfd_handle())
        self._identity = _identity(os.fstat(self._handle))
        _live.add(self)
        # All are held open: HDF5 writes a dataset out when it is let go, and ends the process if that fails.
        self._datasets: dict[str, h5py.Dataset] = {}
        self._status_place = self._size = 0
        try:
            self._columns = column_names(self._file["scalar"], self._file["epoch"])
            self.metrics = metric_names({name: held.ndim for name, held in self._file["metric"].items()})
            self._datasets = _open_datasets(self._file)
            self._status_place = int(self._datasets["state/status"].id.get_offset() or 0)
        except BaseException:
            self.abandon("failed")
            raise
        self.n_steps = self.n_epochs = 0
        self._committed = -1, -1
        self._committed_in_a = False
        # What overhead and notes may be in the file: one of each, but for a write that was broken off.
        self._overheads, self._notes = [math.nan], [b""]
        self._facts: bytes | None = None
        self._states = self._possible_states()
        self._crcs = dict.fromkeys(self._columns, 0)
        self._growth = Growth(self.metrics)
        self._records = 0

    @property
    def scalars(self) -> tuple[str, ...]:
        """The names of the scalars."""
        return tuple(name.removeprefix("scalar/") for name in self._columns if name.startswith("scalar/"))

    @property
    def epoch_columns(self) -> tuple[str, ...]:
        """The names of the columns of the table of epochs."""
        return tuple(name.removeprefix("epoch/") for name in self._columns if name.startswith("epoch/"))

    def append(self, block: RowChunk) -> None:
        """Write rows behind those that are there."""
        start = self.n_steps
        columns: dict[str, NDArray[Any]] = {"step": block.steps, "epoch_of_step": block.epochs}
        columns |= {f"scalar/{name}": values for name, values in block.scalars.items()}
        for name, values in columns.items():
            self._write(name, start, values)
        for name in self.metrics:
            self._write(f"metric/{name}", start, block.metrics[name])
        growth = self._growth.copy()
        grown, records = growth.add(block)
        for part in grown:
            begin = growth.levels[part.level].count - len(part.values)
            self._write(f"level/{part.level}", begin, part.values)
            self._write(f"level/first_{part.level}", begin, part.first)
        if len(records):
            self._write("check/block", self._records, records)
        crcs = {name: crc(values, self._crcs[name]) for name, values in columns.items()}
        self._growth, self._records = growth, self._records + len(records)
        self._crcs |= crcs
        self.n_steps = start + len(block)

    def append_epochs(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Write rows behind those of the table of epochs."""
        count = len(columns["epoch"])
        for name, values in columns.items():
            self._write(f"epoch/{name}", self.n_epochs, values)
        self._crcs |= {f"epoch/{name}": crc(values, self._crcs[f"epoch/{name}"]) for name, values in columns.items()}
        self.n_epochs += count

    def _write(self, name: str, start: int, values: NDArray[Any]) -> None:
        dataset = self._datasets[name]
        dataset.resize(start + len(values), axis=0)
        if len(values):
            dataset[start:] = values

    def write_state(self, overhead: float, notes: str, facts: bytes = b"") -> None:
        """Keep what takes the place of what was said before with the next ``commit``."""
        self._overheads.append(overhead)
        self._notes.append(bytes(notes_bytes(notes)))
        self._facts = facts

    def _possible_states(self) -> tuple[int, ...]:
        return tuple({state_crc(*pair): None for pair in itertools.product(self._overheads, self._notes)})

    def commit(self) -> None:
        """Let everything so far count, and show a sign of life."""
        counts = self.n_steps, self.n_epochs
        states = self._possible_states()
        new = counts != self._committed or states != self._states
        if self._facts is not None:  # they have a checksum of their own
            self._write("state/facts_json", 0, np.array([self._facts] if self._facts else [], dtype=f"S{FACTS_BYTES}"))
            self._facts = None
        if new:
            self._file.flush()
            # Never over the slot that guards what is in the file: the other one, each time.
            slot = self._datasets["state/check_b" if self._committed_in_a else "state/check_a"]
            slot[()] = np.bytes_(self._slot(states).encode())
            slot.flush()
            self._datasets["state/n_steps"][()] = self.n_steps
            self._datasets["state/n_epochs"][()] = self.n_epochs
            self._datasets["state/overhead"][()] = self._overheads[-1]
            self._datasets["state/notes"][()] = np.bytes_(self._notes[-1])
        self._datasets["state/heartbeat"][()] = seal(time.time())
        self._file.flush()
        del self._overheads[:-1], self._notes[:-1]
        self._states = self._possible_states()
        if new:
            self._committed, self._committed_in_a = counts, not self._committed_in_a
        self._size = os.fstat(self._handle).st_size

    def _slot(self, states: tuple[int, ...]) -> Slot:
        crcs = (*(self._crcs[name] for name in self._columns), *self._growth.rest_crcs())
        return Slot(self.n_steps, self.n_epochs, self._records, states, crcs)

    def publish(self, *, onto: bool) -> None:
        """Give the file its name, readable by others from then on; without ``onto``, never onto another file."""
        assert self._temporary is not None
        self._file.flush()  # where that fails, HDF5 survives it; in the next line it would not
        self._file.swmr_mode = True
        self.commit()
        move(self._temporary, self.path, onto=onto, shown=self._shown)
        self._temporary = None

    def check_place(self) -> None:
        """See whether the file is still there, as it was left.

        Raises:
            RunFileError: It was removed, replaced or cut off by somebody else.
        """
        if self._temporary is not None:
            return
        here = os.fstat(self._handle)
        said = ""
        try:
            if _identity(os.stat(self.path)) != self._identity:
                said = "was replaced by another file"
        except FileNotFoundError:
            said = "was removed"
        if not said and here.st_size < self._size:
            said = f"was cut off at {here.st_size} of {self._size} bytes"
        if said:
            raise RunFileError(
                f"{self._shown} {said} while it was being written",
                tip="leave a run's file alone until the run has ended",
            )

    @property
    def is_whole(self) -> bool:
        """Whether the file, wherever it is, is as long as it was left."""
        return os.fstat(self._handle).st_size >= self._size

    def disown(self) -> None:
        """Let nothing that is written from now on come into the file."""
        _write_to_null(self._handle, self._identity)

    def close(self, status: Status) -> None:
        """Write the status and close the file; everything must be committed."""
        self._datasets["state/status"][()] = np.bytes_(status)
        self._file.flush()
        with contextlib.suppress(OSError):
            os.fsync(self._handle)
        self._datasets.clear()
        self._file.close()

    def abandon(self, status: Status | None) -> None:
        """Close a file that cannot or need not be written any more, as it was after the last commit.

        Args:
            status: What to write as its status, in its place, past HDF5; None leaves that as it is.
        """
        if self._temporary is None and status is not None and self._status_place:
            with contextlib.suppress(OSError):
                if _identity(os.fstat(self._handle)) == self._identity and self.is_whole:
                    os.lseek(self._handle, self._status_place, os.SEEK_SET)  # HDF5 writes no more through it
                    os.write(self._handle, status.encode().ljust(STATUS_BYTES, b"\0"))
        close_unwritten(self._file, self._datasets, self._handle, self._identity)
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


def _new_file(
    temporary: Path, header: Header, scalars: Iterable[str], epoch_columns: Iterable[str], created: str | None
) -> h5py.File:
    """Lay a file out in memory, write it, and open it: for HDF5's own writes see ``close_unwritten``."""
    image = io.BytesIO()  # HDF5 1.14's own images of files that are open have a wrong checksum
    with h5py.File(image, "w", libver=LIBVER) as file:
        create_layout(file, header, scalars, epoch_columns, created)
    try:
        temporary.write_bytes(image.getbuffer())
        return h5py.File(temporary, "r+", libver=LIBVER, locking=False)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class KeptFile(h5py.File):  # type: ignore[misc]
    """An HDF5 file that holds all its new datasets open, for ``abandon``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.kept: list[h5py.Dataset] = []
        super().__init__(*arguments, **options)
        self.handle = int(self.id.get_vfd_handle())
        self.identity = _identity(os.fstat(self.handle))

    def abandon(self) -> None:
        """Close it without writing what is left of it."""
        close_unwritten(self, self.kept, self.handle, self.identity)

    def create_dataset(self, *arguments: Any, **options: Any) -> h5py.Dataset:
        """Make a dataset."""
        dataset = super().create_dataset(*arguments, **options)
        self.kept.append(dataset)
        return dataset


def close_unwritten(
    file: h5py.File,
    datasets: dict[str, h5py.Dataset] | list[h5py.Dataset],
    handle: int,
    identity: tuple[int, int],
) -> None:
    """Close a file without writing what is left of it.

    HDF5 would try again and again to write it, and end the process in a segmentation fault when that cannot be done
    (seen with HDF5 2.0 on a full disk): it is given the null device to write to instead.

    Args:
        file: The file.
        datasets: Those that are held open; they are let go.
        handle: The number of the open file.
        identity: What file that is; where HDF5 failed to close it, the number may be that of another by now.
    """
    _write_to_null(handle, identity)
    datasets.clear()
    with contextlib.suppress(OSError, RuntimeError):
        file.close()


def _write_to_null(handle: int, identity: tuple[int, int]) -> None:
    with contextlib.suppress(OSError):
        if _identity(os.fstat(handle)) == identity:
            null = os.open(os.devnull, os.O_RDWR)
            try:
                os.dup2(null, handle)
            finally:
                os.close(null)


_live: weakref.WeakSet[LiveFile] = weakref.WeakSet()


def _disown() -> None:
    """Keep a forked process from writing, as it ends, what HDF5 had not yet written when it was forked."""
    for file in list(_live):
        file.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _open_datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    file.visititems(keep)
    return found


def move(temporary: Path, path: Path, *, onto: bool, shown: Path) -> None:
    """Give a file its name, which messages show in another form; without ``onto``, never onto another file.

    Raises:
        OSError: The disk is full.
        RunExistsError: There is one already.
        RunFileError: A device or a pipe is there.
    """
    if onto:
        replaceable(path)
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise RunExistsError(f"{shown} was made by somebody else meanwhile", tip="another name") from None
    except OSError as error:  # a file system without hard links
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.rename(temporary, path)
        return
    temporary.unlink()
