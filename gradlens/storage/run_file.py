"""Opening a run file for reading: finished, being written, or left by a writer that was killed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import h5py

from gradlens.errors import DamagedError, NoRunError, RunFileError
from gradlens.storage.contents import Contents
from gradlens.storage.damage import RECOVER, telling_damage
from gradlens.storage.locate import check_plain, tip_of_missing
from gradlens.storage.one_thread import alone
from gradlens.storage.schema import FORMAT, FORMAT_VERSION
from gradlens.storage.stored_file import StoredFile
from gradlens.storage.superblock import ClosedView, check_heaps

TRIES = 8
PAUSE_SECONDS = 0.02
"""A file that is being written may be opened between two writes: it is opened again, so often and after so long."""
T = TypeVar("T")


def reading(path: str | os.PathLike[str], use: Callable[[StoredFile], T], *, known: bool = False) -> T:
    """Open a run file, use it, and close it; again where it is being written and was opened between two writes.

    Args:
        path: The file.
        use: What to do with it.
        known: Whether it was read before, so that only what is read now is checked for lying in another file.

    Returns:
        What ``use`` returns.

    Raises:
        NoRunError: There is no such file.
        DamagedError: It is not as it was written.
        RunFileError: It is not an HDF5 file, not a gradlens run, of a newer format, or refers to another file.
    """
    path = Path(path)
    for _ in range(TRIES - 1):
        try:
            with open_run_file(path, known=known) as stored:
                return use(stored)
        except DamagedError:
            if not _may_be_written(path):
                raise
        time.sleep(PAUSE_SECONDS)
    with open_run_file(path, known=known) as stored:
        return use(stored)


@contextlib.contextmanager
def open_run_file(path: Path, *, salvage: bool = False, known: bool = False) -> Iterator[StoredFile]:
    """Open a run file, once, and close it.

    Args:
        path: The file.
        salvage: Read as much as can be read of a damaged file; see ``StoredFile``.
        known: As in ``reading``.

    Yields:
        The file, open for reading.

    Raises:
        NoRunError: As in ``reading``, and so are the others.
        RunFileError: The same.
    """
    try:
        if not path.exists():
            raise NoRunError(f"{path}: there is no such file", tip=tip_of_missing(path))
        if path.is_dir():
            raise RunFileError(f"{path} is a folder; expected a run file")
        check_plain(path)
    except PermissionError as error:
        raise RunFileError(f"{path} cannot be read: you may not look into its folder") from error
    with alone(), contextlib.ExitStack() as stack:
        with telling_damage(path):
            file, closed = _open_hdf5(path, stack)
            contents = Contents(path, file)
            _check_format(path, contents)
            try:
                stored = StoredFile(path, contents, closed, salvage=salvage, known=known)
            finally:
                # Not before the counts are read: of a file that is being written, datasets would be opened too short.
                if not known:
                    contents.check_all()
        yield stored


def _open_hdf5(path: Path, stack: contextlib.ExitStack) -> tuple[h5py.File, bool]:
    try:
        return stack.enter_context(h5py.File(path, "r", locking=False)), True
    except OSError as error:
        reason = error
    if isinstance(reason, PermissionError) or not os.access(path, os.R_OK):
        raise RunFileError(f"{path} cannot be read: you may not") from reason
    try:
        view = stack.enter_context(ClosedView(path))
    except ValueError:
        if not h5py.is_hdf5(path):
            raise RunFileError(f"{path} is not an HDF5 file; expected a gradlens run") from reason
        text = "it is truncated" if "truncated" in str(reason) else str(reason).splitlines()[0]
        raise DamagedError(f"{path} cannot be opened: {text}", tip=RECOVER) from reason
    return stack.enter_context(h5py.File(view, "r")), False


def _may_be_written(path: Path) -> bool:
    """Return whether a file changed so recently that a fault in it may be a write in progress."""
    with contextlib.suppress(OSError):
        return abs(time.time() - path.stat().st_mtime) < 30
    return False


def _check_format(path: Path, contents: Contents) -> None:
    if contents.attribute("header_json") is None:
        check_heaps(path)
        if contents.attribute("format") != FORMAT:
            raise RunFileError(f"{path} is an HDF5 file of another program; expected a gradlens run")
    version = int(contents.attribute("format_version", 0))
    if version > FORMAT_VERSION:
        raise RunFileError(
            f"{path} has format version {version}; this gradlens reads up to {FORMAT_VERSION}",
            tip="a newer gradlens reads it",
        )
