"""Find run files by what a user names: files, folders, or nothing at all."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from gradlens.errors import NoRunError, RunFileError

RUNS = Path("runs")
FIRST_RUN = "gradlens run plain34 makes one"
LIST = "gradlens ls shows the runs that there are"
MOST_LIKE = 3


def find_runs(folder: Path = RUNS, *, deep: bool = True) -> list[Path]:
    """List the run files in a folder and in the folders below it, at every depth, by name.

    Args:
        folder: The folder.
        deep: Whether to look below the folder, too.

    Returns:
        The paths of the run files.

    Raises:
        NoRunError: There is no such folder.
    """
    if folder.is_file():
        raise NoRunError(f"{folder} is a file; expected a folder", tip=f"gradlens summary {folder} shows it")
    if not folder.is_dir():
        raise NoRunError(f"there is no folder {folder}", tip=LIST if folder != RUNS and RUNS.is_dir() else FIRST_RUN)
    return _shown(folder, folder.rglob("*.h5") if deep else folder.glob("*.h5"))


def _shown(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Return plain files in order, without hidden ones and those in hidden folders."""
    open_to_view = (path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(path for path in open_to_view if path.is_file())


def check_plain(path: Path) -> None:
    """Check that a file that is there is a plain one: opening a pipe waits for its writer, a device has no end.

    Raises:
        RunFileError: It is a pipe, a socket or a device.
    """
    if not path.is_file():
        raise RunFileError(f"{path} is a pipe, a socket or a device; expected a run file")


def tip_of_missing(path: Path) -> str:
    """Return the tip for a file that is not there: the run that has this name under ``runs/``, or how to list runs."""
    named = RUNS / path.with_name(f"{path.name.removesuffix('.h5')}.h5")
    return f"the run of this name is {named}" if named.is_file() else LIST


def newest_run(folder: Path = RUNS) -> Path:
    """Return the run file that was written last.

    Raises:
        NoRunError: The folder is not there or holds no run.
    """
    paths = find_runs(folder)
    if not paths:
        raise NoRunError(f"there is no run in {folder}", tip=FIRST_RUN)
    return max(paths, key=lambda path: path.stat().st_mtime)


def resolve_runs(arguments: Sequence[str | Path], *, default: str, deep: bool = True) -> list[Path]:
    """Turn the RUN arguments of a command into files.

    Args:
        arguments: Files and folders, also by their names under ``runs/``; a folder stands for all runs in it and below.
        default: What no argument means: "newest" or "all" runs under ``runs/``.
        deep: Whether a folder stands for the runs in the folders below it, too.

    Returns:
        The paths of the run files.

    Raises:
        NoRunError: A file or folder is not there, or a folder holds no run.
    """
    if not arguments:
        if default == "newest":
            return [newest_run()]
        arguments = [RUNS]
    found: list[Path] = []
    for argument in map(Path, arguments):
        folder = folder_named(argument)
        if folder is not None or argument == RUNS:
            paths = find_runs(folder or argument, deep=deep)
            if not paths:
                raise NoRunError(f"there is no run in {argument}", tip=FIRST_RUN)
            found += paths
        else:
            found.append(_find_file(argument))
    return list(dict.fromkeys(found))


def _find_file(argument: Path) -> Path:
    """Return the file of that name, with or without its ending, here or under ``runs/``."""
    path = _file_named(argument)
    if path is not None:
        return path
    raise NoRunError(f"{argument}: there is no such run", tip=_tip(argument))


def _tip(argument: Path) -> str:
    """Say by which names runs are found that end like the one that was not."""
    wanted = argument.as_posix().removesuffix(".h5")
    names = [name_below(path, RUNS) for path in find_runs()] if RUNS.is_dir() else []
    like = [name for name in names if name.endswith(f"/{wanted}")]
    if not like:
        near = difflib.get_close_matches(argument.stem if argument.suffix else wanted, names, 1)
        return f"did you mean {near[0]}? {LIST}" if near else LIST if names else FIRST_RUN
    more = f" and {len(like) - MOST_LIKE} more" if len(like) > MOST_LIKE else ""
    return f"in folders below {RUNS} there {'is' if len(like) == 1 else 'are'} {', '.join(like[:MOST_LIKE])}{more}"


def name_below(path: Path, folder: Path) -> str:
    """Return the name by which a run in a folder, or in one below it, is asked for: ``norm/plain34-s0``."""
    return path.relative_to(folder).as_posix().removesuffix(".h5")


def folder_named(argument: Path) -> Path | None:
    """Return the folder of that name, here or under ``runs/``; None where a file has the name, or nothing."""
    if argument.is_dir():
        return argument
    return RUNS / argument if _file_named(argument) is None and (RUNS / argument).is_dir() else None


def free_name(path: Path) -> Path:
    """Return the first name behind that of a file that is there which is free: ``runs/a-2.h5`` behind ``runs/a.h5``."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return next(name for name in names if not name.exists())


def _file_named(argument: Path) -> Path | None:
    named = Path(f"{argument}.h5")
    return next((path for path in (argument, named, RUNS / argument, RUNS / named) if path.is_file()), None)


def awaited_run(argument: str | Path | None) -> Path | None:
    """Return the file of a run that may not be there yet; None where it is not.

    Args:
        argument: A file, a name under ``runs/``, or a folder, of which it is the newest run; None: the newest run under
            ``runs/``.
    """
    folder = RUNS if argument is None else folder_named(Path(argument))
    if folder is None:
        return _file_named(Path(str(argument)))
    paths = find_runs(folder) if folder.is_dir() else []
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)
