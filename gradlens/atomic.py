"""Write files and folders atomically: completely, or not at all.

A file is written under a temporary name in the same folder, ``.NAME.PID.tmp``, synced to the disk, and renamed in one
step. Until then the old file stays; after a failure the temporary file is removed. ``stale_names`` lists the temporary
files that a killed process left.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from gradlens.errors import RunFileError

HDF5 = b"\x89HDF\r\n\x1a\n"
"""The first bytes of a run file."""


def temporary_name(path: Path) -> Path:
    """Return the temporary name under which this process writes a file: hidden, in the same folder."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def stale_names(path: Path, *, of_the_dead: bool = False) -> list[Path]:
    """List the existing temporary files of a file.

    Args:
        path: The file.
        of_the_dead: Leave out those of processes that are still running. Without it, the caller must know that no
            other process is writing.

    Returns:
        The temporary files.
    """
    ours = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.tmp")
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:
        return []
    found = [(path.with_name(name), int(match[1])) for name in names if (match := ours.fullmatch(name))]
    return [other for other, process in found if not (of_the_dead and _runs(process))]


def _runs(process: int) -> bool:
    """Return whether another process with this id may be running."""
    if process == os.getpid():
        return False
    if os.name != "posix":  # on Windows, os.kill with signal 0 would end the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def replaceable(path: Path) -> Path:
    """Return the place that a new file or folder is renamed to: the target of a link, because the link stays.

    Args:
        path: The file or folder; it need not exist.

    Raises:
        RunFileError: A device, a pipe or a socket is there: renaming would remove it, for all programs of the system.
            Or it is a link that leads to itself.
    """
    there = Path(os.path.realpath(path)) if path.is_symlink() else path
    if there.is_symlink():
        raise RunFileError(f"{path} cannot be written: it is a link that leads to itself", tip="name another file")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise RunFileError(
            f"{path} cannot be written: it is a device or a pipe, not a plain file", tip="name a file in a folder"
        )
    return there


@contextlib.contextmanager
def whole_file(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """Yield a temporary name to write to; it is renamed to the file on success and removed on failure.

    Args:
        path: The file; its folder is created.
        keep: A new name for an existing file; None replaces it.

    Yields:
        The temporary name.

    Raises:
        OSError: The file cannot be written; an existing file is unchanged.
        RunFileError: What is there is no plain file; or it is a run file, and what was written is none.
    """
    shown, path = path, replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        if _is_hdf5(path) and not _is_hdf5(temporary):
            raise RunFileError(f"{shown} cannot be written: it is a run file", tip="name another file")
        _sync(temporary)
        if keep is None:
            os.replace(temporary, path)
        else:
            _exchange(temporary, path, keep)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to; it is renamed to the folder on success and removed on failure.

    An existing folder is removed with its content.

    Args:
        path: The folder; its parent is created.

    Yields:
        The temporary folder.

    Raises:
        OSError: The folder cannot be written; an existing folder is unchanged.
        RunFileError: What is there is no plain file and no folder.
    """
    path = replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            _exchange(temporary, path, old)
        else:
            os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def _is_hdf5(path: Path) -> bool:
    """Return whether a file is there and begins as a run file does; what is no plain file is not opened."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(HDF5)) == HDF5


def _exchange(new: Path, path: Path, old: Path) -> None:
    """Rename ``path`` to ``old`` and ``new`` to ``path``; if the latter fails, undo the former."""
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, with the line ends of Unix on every system.

    Args:
        path: The file.
        text: The text.

    Raises:
        OSError: The file cannot be written; an existing file is unchanged.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _sync(path: Path) -> None:
    """Sync a file to the disk, so that it survives a power cut; raises if the disk reports an error."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Sync new names in a folder to the disk, if the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def write_errors(failure: str, *, tip: str | None = None, also: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Turn errors of writing into a RunFileError with one line of text.

    Args:
        failure: What failed, with the name of the file, as in "a.csv cannot be written".
        tip: What to try.
        also: Another exception that a library raises when it cannot write.

    Yields:
        Nothing.

    Raises:
        RunFileError: The writing failed.
    """
    try:
        yield
    except RunFileError:
        raise
    except OSError as error:
        raise RunFileError(f"{failure}: {reason(error)}", tip=tip) from error
    except also as error:
        raise RunFileError(f"{failure}: {reason(error)}", tip=tip) from error


def reason(error: BaseException) -> str:
    """Return the message of the system for an error or its causes; HDF5 has it in the middle of a longer text."""
    found: BaseException | None = error
    while found is not None:
        if "error message = '" in str(found):
            return str(found).split("error message = '", 1)[1].split("'", 1)[0]
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
