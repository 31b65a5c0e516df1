"""Choose and check the destination of an export; it is written completely or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from gradlens import atomic
from gradlens.atomic import write_errors
from gradlens.errors import ConfigError, RunExistsError, RunFileError
from gradlens.export.tensorboard_events import EVENT_FILES
from gradlens.format import file_name
from gradlens.run import Run

EXPORTS = Path("exports")
ENDINGS = {"csv": ".csv", "parquet": ".parquet", "tensorboard": ""}
MAX_NAMES = 3


def default_place(form: str, runs: Mapping[str, Run], table: str = "metrics") -> Path:
    """Return the default file of an export: ``exports/plain34-s0.csv``, ``exports/plain34-s0-scalars.csv``.

    Args:
        form: The format: "csv", "parquet" or "tensorboard".
        runs: Name to run of the exported runs.
        table: The exported table.
    """
    names = list(runs)
    if len(names) > MAX_NAMES:
        models = dict.fromkeys(run.model or run.name for run in runs.values())
        names = [*list(models)[: MAX_NAMES + 1], f"{len(runs)}-runs"]
    names += [table] if table != "metrics" else []
    return EXPORTS / (file_name("-".join(names)) + ENDINGS[form])


@contextlib.contextmanager
def whole_file(path: Path, runs: Mapping[str, Run], *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary file name; it becomes the file after success, and is removed after an error.

    Args:
        path: The file to write.
        runs: The exported runs.
        overwrite: Replace an existing file.

    Yields:
        The temporary name to write to.

    Raises:
        ConfigError: The path is a run that is exported.
        RunExistsError: The file exists and may not be replaced.
        RunFileError: The file cannot be written.
    """
    if any(path.exists() and path.samefile(run.path) for run in runs.values()):
        raise ConfigError(f"{path} is the run itself; name another file")
    if path.is_dir():
        raise RunFileError(f"{path} is a folder; expected the name of a file")
    with write_errors(f"{path} cannot be written"):
        _refuse(path, path.exists() and not overwrite)
        with atomic.whole_file(path) as temporary:
            yield temporary
            _refuse(path, path.exists() and not overwrite)


@contextlib.contextmanager
def whole_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder; it becomes the folder after success, and is removed after an error.

    Args:
        path: The folder to write.
        overwrite: Replace an existing folder that holds only exported events.

    Yields:
        The temporary folder to write to.

    Raises:
        ConfigError: The path is the working folder or one of its parents.
        RunExistsError: The folder is not empty and may not be replaced, or holds files that are not exported events.
        RunFileError: The folder cannot be written.
    """
    if Path.cwd().is_relative_to(os.path.realpath(path)):
        raise ConfigError(f"{path} is the working folder or one of its parents; events need a folder of their own")
    if path.is_file():
        raise RunFileError(f"{path} is a file; expected the name of a folder")
    with write_errors(f"{path} cannot be written"):
        _refuse_folder(path, overwrite)
        with atomic.whole_folder(path) as temporary:
            yield temporary
            _refuse_folder(path, overwrite)


def _refuse_folder(path: Path, overwrite: bool) -> None:
    files = [found for found in path.rglob("*") if not found.is_dir()]
    _refuse(path, bool(files) and not overwrite)
    if not all(found.match(EVENT_FILES) for found in files):
        raise RunExistsError(f"{path} holds files that gradlens export did not write", tip="-o names another folder")


def _refuse(path: Path, there: bool) -> None:
    if there:
        raise RunExistsError(
            f"{path} already exists, and nothing is overwritten without --overwrite",
            tip="--overwrite replaces it, -o names another file or folder",
        )
