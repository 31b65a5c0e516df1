"""Read a run file: finished, still being written, or left by a writer that was killed."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gradlens.format import visible
from gradlens.metrics import is_linear
from gradlens.row_chunks import LEVELS, STATISTICS, RowChunks, choose_level, combine, summarise
from gradlens.run import FloatArray, Run, Status
from gradlens.storage.damage import telling_damage
from gradlens.storage.locate import resolve_runs
from gradlens.storage.lock import stopped_without_closing
from gradlens.storage.run_file import reading
from gradlens.storage.shown import shown_names, visible_layers, visible_settings
from gradlens.storage.stored_file import StoredFile

AT_ONCE = 50_000
"""Scalars of runs with up to so many rows are read with the rest."""
NUMBERS_AT_ONCE = 1_000_000
"""Numbers of a metric that are summarised at once; each takes about 80 bytes meanwhile."""


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a run file.

    Metrics are read when they are asked for; everything is cut to the rows that were completely written when
    this function was called.

    Args:
        path: The file.

    Returns:
        The run, as numpy arrays.

    Raises:
        NoRunError: There is no such file.
        RunFileError: It is not an HDF5 file, not a gradlens run, of a newer format, damaged, or refers to another file.

    Example::

        run = gradlens.read_run("runs/plain34-s0.h5")
        run.metric("param_grad_norm").shape       # (T, L)
    """
    return reading(path, _read)


def read_runs(*places: str | os.PathLike[str], deep: bool = True) -> list[Run]:
    """Read several run files.

    Args:
        places: Files, names under ``runs/``, or folders, each for all runs in it; left out, all runs under ``runs/``.
        deep: Whether a folder also stands for the runs in the folders below it.

    Returns:
        The runs, those of a folder by name.

    Raises:
        NoRunError: A file or folder is not there, or a folder holds no run.
        RunFileError: As in ``read_run``.
    """
    paths = resolve_runs([Path(place) for place in places], default="all", deep=deep)
    return [read_run(path) for path in paths]


def _read(stored: StoredFile) -> Run:
    with telling_damage(stored.path):
        return _make_run(stored)


def _make_run(stored: StoredFile) -> Run:
    path, state, attributes = stored.path, stored.state(), stored.attributes
    info: dict[str, Any] = {
        key: visible(attributes[key]) if isinstance(attributes[key], str) else attributes[key]
        for key in ("model", "seed", "created", "gradlens_version", "format_version")
        if key in attributes
    }
    info["config"] = visible_settings(stored.attribute_json("config_json"))
    info["environment"] = visible_settings(stored.attribute_json("environment_json"))
    info["heartbeat"], info["overhead"] = state["heartbeat"], state["overhead"]
    info["notes"] = [visible(note) for note in state["notes"].splitlines() if note]
    info["every"] = stored.every()
    shown = shown_names(stored.columns)
    late = [name for name in stored.columns if name.startswith("scalar/") and stored.n_steps > AT_ONCE]
    columns = {shown[name]: stored.column(name) for name in stored.columns if name not in late}
    return Run(
        name=visible(path.stem),
        path=path,
        layers=visible_layers(stored.layers()),
        steps=columns["step"],
        epoch_of_step=columns["epoch_of_step"],
        scalars=StoredScalars(path, {shown[name].removeprefix("scalar/"): name for name in late}, stored.n_steps)
        if late
        else _group(columns, "scalar/"),
        metrics=StoredMetrics(path, {name: name for name in stored.metrics}, stored.n_steps),
        epochs=_group(columns, "epoch/"),
        status=_status(path, state),
        info=info,
        facts=visible_settings(stored.facts()),
    )


def _status(path: Path, state: Mapping[str, Any]) -> Status:
    """Return how a run ended; one that was never closed, as its writer was killed, was interrupted."""
    if state["status"] == "running" and stopped_without_closing(path, float(state["heartbeat"])):
        return "interrupted"
    return cast(Status, state["status"])


def _group(columns: Mapping[str, FloatArray], prefix: str) -> dict[str, FloatArray]:
    return {name.removeprefix(prefix): values for name, values in columns.items() if name.startswith(prefix)}


class _Stored(Mapping[str, FloatArray]):
    """Columns of a file, each read when it is asked for and then kept."""

    def __init__(self, path: Path, names: Mapping[str, str], n_steps: int) -> None:
        self._path = path
        self._names = names
        self._n_steps = n_steps
        self._cache: dict[str, FloatArray] = {}

    @abstractmethod
    def _read(self, stored: StoredFile, name: str) -> FloatArray:
        """Return a column's rows, as many as the run had when it was opened."""

    def __getitem__(self, name: str) -> FloatArray:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._cache:
            self._cache[name] = reading(self._path, lambda stored: self._read(stored, self._names[name]), known=True)
        return self._cache[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the mixin's would read it

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class StoredScalars(_Stored):
    """The scalars of a long run."""

    def _read(self, stored: StoredFile, name: str) -> FloatArray:
        return stored.column(name)[: self._n_steps]


class StoredMetrics(_Stored):
    """The metrics of a file: whole, some rows, or chunks of rows."""

    def _read(self, stored: StoredFile, name: str) -> FloatArray:
        return stored.rows(name, 0, self._n_steps)

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Return some rows of a metric, (stop - start, L), in a new array."""
        if name in self._cache:
            return self._cache[name][start:stop].copy()
        stop = min(stop, self._n_steps)
        return reading(self._path, lambda stored: stored.rows(name, start, stop), known=True)

    def read_chunks(self, name: str, start: int, stop: int, least: int) -> RowChunks:
        """Return statistics of chunks of rows, at least so many where there are as many rows."""
        stop = min(stop, self._n_steps)
        start = min(max(start, 0), stop)
        size = choose_level(stop - start, least)
        return reading(self._path, lambda stored: _read_chunks(stored, name, start, stop, size), known=True)


def _read_chunks(stored: StoredFile, name: str, start: int, stop: int, size: int) -> RowChunks:
    """Read blocks of one level, and what they do not cover at both ends out of finer ones, at last out of rows."""
    linear = is_linear(name)
    if start == stop:
        return RowChunks(np.array([start]), np.empty((0, stored.n_layers, len(STATISTICS))))
    if size == 1 or stop - start < size:
        edges = np.arange(start, stop + 1)
        return RowChunks(edges, _summarise_rows(stored, name, edges, linear))
    first, last = -(-start // size), stop // size
    parts = []
    if last > first:
        edges = np.arange(first, last + 1) * size
        held = stored.has_levels
        middle = stored.level(size, name, first, last) if held else _summarise_rows(stored, name, edges, linear)
        parts.append(RowChunks(edges, middle))
    begin, end = (first * size, last * size) if last > first else (stop, stop)
    finer = LEVELS[LEVELS.index(size) - 1] if size > LEVELS[0] else 1
    if begin > start:
        parts.insert(0, _as_one(_read_chunks(stored, name, start, begin, finer), size, linear))
    if stop > end:
        parts.append(_as_one(_read_chunks(stored, name, end, stop, finer), size, linear))
    edges = np.concatenate([*(part.edges[:-1] for part in parts), [stop]])
    return RowChunks(edges, np.concatenate([part.values for part in parts]))


def _summarise_rows(stored: StoredFile, name: str, edges: NDArray[np.int64], linear: bool) -> FloatArray:
    """Compute the statistics of chunks between these rows from the rows themselves, few of which are read at once."""
    at_once = max(NUMBERS_AT_ONCE // max(stored.n_layers, 1), 1)
    found = np.empty((len(edges) - 1, stored.n_layers, len(STATISTICS)))
    first = 0
    while first < len(found):
        last = max(int(np.searchsorted(edges, edges[first] + at_once, side="right")) - 1, first + 1)
        values = stored.rows(name, int(edges[first]), int(edges[last]))
        found[first:last] = summarise(values, edges[first:last] - edges[first], linear=linear)
        first = last
    return found


def _as_one(blocks: RowChunks, size: int, linear: bool) -> RowChunks:
    """Join what is less than one block of a level, or two, into one each."""
    rows = int(blocks.edges[-1] - blocks.edges[0])
    if rows > size or not len(blocks.values):
        return blocks
    return RowChunks(blocks.edges[[0, -1]], combine(blocks.values, np.zeros(1, dtype=np.int64), linear=linear))
