"""The run file: one HDF5 file per run, written row by row and readable at any moment."""

from gradlens.storage.background import BackgroundSink
from gradlens.storage.find import find_runs, newest_run, resolve_runs
from gradlens.storage.follow import NewRows, follow_run
from gradlens.storage.reader import read_card, read_run
from gradlens.storage.recover import Recovery, recover_run
from gradlens.storage.writer import FileSink

__all__ = [
    "BackgroundSink",
    "FileSink",
    "NewRows",
    "Recovery",
    "find_runs",
    "follow_run",
    "newest_run",
    "read_card",
    "read_run",
    "recover_run",
    "resolve_runs",
]
