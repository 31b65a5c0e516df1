"""The run file: one HDF5 file per run, written row by row and readable at any moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradlens.lazy import loader

_HOME = {
    "BackgroundSink": "gradlens.storage.background_writer",
    "FileSink": "gradlens.storage.writer",
    "Follower": "gradlens.storage.follow",
    "NewRows": "gradlens.storage.follow",
    "Recovery": "gradlens.storage.recover",
    "awaited_run": "gradlens.storage.locate",
    "find_runs": "gradlens.storage.locate",
    "follow_run": "gradlens.storage.follow",
    "newest_run": "gradlens.storage.locate",
    "read_card": "gradlens.storage.listing_card",
    "read_run": "gradlens.storage.reader",
    "read_runs": "gradlens.storage.reader",
    "recover_run": "gradlens.storage.recover",
    "resolve_runs": "gradlens.storage.locate",
}

__all__ = [
    "BackgroundSink",
    "FileSink",
    "Follower",
    "NewRows",
    "Recovery",
    "awaited_run",
    "find_runs",
    "follow_run",
    "newest_run",
    "read_card",
    "read_run",
    "read_runs",
    "recover_run",
    "resolve_runs",
]

if TYPE_CHECKING:
    from gradlens.storage.background_writer import BackgroundSink
    from gradlens.storage.follow import Follower, NewRows, follow_run
    from gradlens.storage.listing_card import read_card
    from gradlens.storage.locate import awaited_run, find_runs, newest_run, resolve_runs
    from gradlens.storage.reader import read_run, read_runs
    from gradlens.storage.recover import Recovery, recover_run
    from gradlens.storage.writer import FileSink


__getattr__ = loader(__name__, _HOME)
