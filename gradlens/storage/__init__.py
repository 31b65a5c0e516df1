"""The run file: one HDF5 file per run, written row by row and readable at any moment."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "BackgroundSink": "background",
    "FileSink": "writer",
    "NewRows": "follow",
    "Recovery": "recover",
    "find_runs": "find",
    "follow_run": "follow",
    "newest_run": "find",
    "read_card": "cards",
    "read_run": "reader",
    "recover_run": "recover",
    "resolve_runs": "find",
}

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

if TYPE_CHECKING:
    from gradlens.storage.background import BackgroundSink
    from gradlens.storage.cards import read_card
    from gradlens.storage.find import find_runs, newest_run, resolve_runs
    from gradlens.storage.follow import NewRows, follow_run
    from gradlens.storage.reader import read_run
    from gradlens.storage.recover import Recovery, recover_run
    from gradlens.storage.writer import FileSink


def __getattr__(name: str) -> Any:
    """Load a name from its module on first use: a listing needs neither HDF5 nor numpy."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
