"""Write a file or a folder whole or not at all.

Everything is written under a temporary name beside its own, ``.NAME.PID.tmp``, synced to the disk, and gets its name in
one step. Until then what was there stays; after any failure the temporary one is removed. What a killed process could
not remove, ``stale_names`` lists.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from gradlens.errors import RunFileError


def temporary_name(path: Path) -> Path:
    """Return where this process builds a file before it gets its name: beside it, hidden."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def stale_names(path: Path, *, of_the_dead: bool = False) -> list[Path]:
    """List the temporary files of a file that are there now.

    Args:
        path: The file.
        of_the_dead: Leave out those of processes that are still running; without it, the caller knows that nobody
            else is writing.

    Returns:
        Their paths, in no order.
    """
    ours = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.tmp")
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:
        return []
    found = [(path.with_name(name), int(match[1])) for name in names if (match := ours.fullmatch(name))]
    return [other for other, process in found if not (of_the_dead and _runs(process))]


def _runs(process: int) -> bool:
    """Return whether another process of this number may be running."""
    if process == os.getpid():
        return False
    if os.name != "posix":  # there, to ask is to end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def whole_file(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """Yield a temporary name to write to; it becomes the file when all went well, and is removed when not.

    Args:
        path: The file; its folder is made.
        keep: The name that a file which is there gets instead of being replaced.

    Raises:
        OSError: It cannot be written; what was there is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
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
    """Yield a temporary folder to write to; it becomes the folder when all went well, and is removed when not.

    A folder that is there is removed, with all that is in it.

    Args:
        path: The folder; the one above it is made.

    Raises:
        OSError: It cannot be written; what was there is still there.
    """
    path = path.resolve()  # the place behind a link, which stays
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


def _exchange(new: Path, path: Path, old: Path) -> None:
    """Let one take the place of another, which gets the name ``old``; where that fails, it gets its own name back."""
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, with plain line ends on every system.

    Raises:
        OSError: It cannot be written; what was there is still there.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _sync(path: Path) -> None:
    """Make what was written last through a power cut, and see that the disk took it."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make new names in a folder last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def write_errors(said: str, *, tip: str | None = None, also: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Turn what the system says into one line.

    Args:
        said: What failed, with the name of the file, as in "a.csv cannot be written".
        tip: What to try.
        also: An error besides OSError by which a library says that it could not write.

    Raises:
        RunFileError: It failed.
    """
    try:
        yield
    except RunFileError:
        raise
    except OSError as error:
        raise RunFileError(f"{said}: {reason(error)}", tip=tip) from error
    except also as error:
        raise RunFileError(f"{said}: {reason(error)}", tip=tip) from error


def reason(error: BaseException) -> str:
    """Return what the system said, of an error or of those that it came from; HDF5 hides it in the middle of a text."""
    found: BaseException | None = error
    while found is not None:
        if "error message = '" in str(found):
            return str(found).split("error message = '", 1)[1].split("'", 1)[0]
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
