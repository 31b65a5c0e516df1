"""The run file: one HDF5 file per run, written row by row and readable at any moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradlens.lazy import loader

_HOME = {
    "BackgroundSink": "gradlens.storage.background_writer",
    "FileSink": "gradlens.storage.writer",
    "Follower": "gradlens.storage.follow",
    "NewRows": "gradlens.storage.follow",
    "Publisher": "gradlens.storage.publish",
    "Recovery": "gradlens.storage.recover",
    "awaited_run": "gradlens.storage.locate",
    "finish_abandoned": "gradlens.storage.background_writer",
    "find_runs": "gradlens.storage.locate",
    "follow_run": "gradlens.storage.follow",
    "lock_path": "gradlens.storage.lock",
    "newest_run": "gradlens.storage.locate",
    "read_card": "gradlens.storage.listing_card",
    "read_run": "gradlens.storage.reader",
    "read_runs": "gradlens.storage.reader",
    "recover_run": "gradlens.storage.recover",
    "resolve_runs": "gradlens.storage.locate",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from gradlens.storage.background_writer import BackgroundSink as BackgroundSink
    from gradlens.storage.background_writer import finish_abandoned as finish_abandoned
    from gradlens.storage.follow import Follower as Follower
    from gradlens.storage.follow import NewRows as NewRows
    from gradlens.storage.follow import follow_run as follow_run
    from gradlens.storage.listing_card import read_card as read_card
    from gradlens.storage.locate import awaited_run as awaited_run
    from gradlens.storage.locate import find_runs as find_runs
    from gradlens.storage.locate import newest_run as newest_run
    from gradlens.storage.locate import resolve_runs as resolve_runs
    from gradlens.storage.lock import lock_path as lock_path
    from gradlens.storage.publish import Publisher as Publisher
    from gradlens.storage.reader import read_run as read_run
    from gradlens.storage.reader import read_runs as read_runs
    from gradlens.storage.recover import Recovery as Recovery
    from gradlens.storage.recover import recover_run as recover_run
    from gradlens.storage.writer import FileSink as FileSink


__getattr__ = loader(__name__, _HOME)
