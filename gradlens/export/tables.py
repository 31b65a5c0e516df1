"""Make tidy tables of runs: typed columns, and rows in chunks.

A chunk is a dictionary of equally long arrays, one per column. A missing number is NaN, also in a column of whole
numbers. A text is an index into the column's ``texts``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradlens.errors import ConfigError
from gradlens.format import visible
from gradlens.metrics import METRICS
from gradlens.run import EPOCH_COLUMNS, FloatArray, Run

Chunk = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: The name of the column.
        kind: The type of its values; "float32" and "float64" as in the run file.
        texts: The texts of a text column, selected by index.
    """

    name: str
    kind: Literal["text", "int", "float32", "float64"]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Columns, and a function that yields non-empty chunks of about the given number of rows."""

    columns: tuple[Column, ...]
    chunks: Callable[[int], Iterator[Chunk]]


def make_table(kind: str, runs: Mapping[str, Run], metrics: Sequence[str] = ()) -> Table:
    """Make one table of several runs.

    Args:
        kind: One of ``EXPORT_TABLES``.
        runs: Name in the column ``run`` to run; see ``distinct``.
        metrics: The metrics that become columns of the table of metrics.

    Returns:
        The table; its rows are read chunk by chunk when they are asked for.
    """
    if kind == "metrics":
        return _metrics_table(runs, metrics)
    return {"scalars": _scalars_table, "epochs": _epochs_table, "layers": _layers_table}[kind](runs)


def distinct(runs: Iterable[Run]) -> dict[str, Run]:
    """Give each file a unique name: its own name, with as many parent folders as necessary."""
    files = {Path(os.path.abspath(run.path)).with_suffix(""): run for run in runs}
    parts = 1
    while len({path.parts[-parts:] for path in files}) < len(files):
        parts += 1
    names = ["/".join(path.parts[-parts:]) for path in files]
    shown = list(map(visible, names))
    return dict(zip(shown if len(set(shown)) == len(names) else names, files.values(), strict=True))


def held_metrics(runs: Iterable[Run], chosen: Sequence[str] = ()) -> list[str]:
    """List the metrics that at least one run holds, or check chosen ones.

    Args:
        runs: The runs.
        chosen: Metrics that the user chose; empty for all.

    Returns:
        The chosen metrics, or all.

    Raises:
        ConfigError: No run holds a chosen metric.
    """
    found = {name for run in runs for name in run.metrics}
    held = [*(name for name in METRICS if name in found), *sorted(found - set(METRICS))]
    for name in chosen:
        if name not in held:
            raise ConfigError(f"no run here holds a metric {name!r}; available: {', '.join(held) or 'none'}")
    return list(dict.fromkeys(chosen)) or held


def metric_rows(run: Run, name: str, start: int, stop: int) -> NDArray[np.float32]:
    """Return rows of a metric, (stop - start, L); NaN if the run does not hold the metric."""
    if name not in names_of(run):
        return np.full((stop - start, len(run.layers)), np.nan, np.float32)
    return np.asarray(run.metric_rows(name, start, stop), np.float32)


def names_of(run: Run) -> tuple[str, ...]:
    """List a run's metrics, because ``name in run.metrics`` would read the whole metric."""
    return tuple(run.metrics)


def spans(n_rows: int, width: int, cells: int) -> Iterator[tuple[int, int]]:
    """Split rows into chunks of about equal numbers of cells.

    Args:
        n_rows: Number of rows.
        width: Cells per row.
        cells: Cells per chunk.

    Yields:
        First row and end of each chunk.
    """
    height = max(cells // max(width, 1), 1)
    for start in range(0, n_rows, height):
        yield start, min(start + height, n_rows)


def epoch_numbers(run: Run) -> FloatArray:
    """Return the number of each row's epoch, (T,), as in the table of epochs.

    Rows after the last finished epoch get the following numbers; all are NaN if no epoch has a number.
    """
    numbers = np.asarray(run.epochs.get("epoch", ()), np.float64)
    if not len(numbers):
        return np.full(len(run.steps), np.nan)
    place = np.clip(run.epoch_of_step, 0, len(numbers) - 1)
    return np.asarray(numbers[place] + (run.epoch_of_step - place), np.float64)


def last_rows(run: Run) -> NDArray[np.int64]:
    """Return the last recorded row up to the end of each epoch, (E,); -1 if there is none."""
    ends = np.searchsorted(run.epoch_of_step, np.arange(len(_epochs_of(run))), side="right")
    return np.asarray(ends - 1, np.int64)


def epoch_columns(runs: Iterable[Run]) -> list[str]:
    """List the columns of the runs' tables of epochs, the standard columns first."""
    found = dict.fromkeys(name for run in runs for name in run.epochs)
    return [*(name for name in EPOCH_COLUMNS if name in found), *(n for n in found if n not in EPOCH_COLUMNS)]


def _epochs_of(run: Run) -> range:
    return range(max((len(values) for values in run.epochs.values()), default=0))


def _metrics_table(runs: Mapping[str, Run], metrics: Sequence[str]) -> Table:
    names, layer_codes = _coded([[layer.name for layer in run.layers] for run in runs.values()])
    roles, role_codes = _coded([[layer.role for layer in run.layers] for run in runs.values()])

    def chunks(size: int) -> Iterator[Chunk]:
        for code, run in enumerate(runs.values()):
            depths = np.array([layer.depth for layer in run.layers], np.int64)
            epochs = epoch_numbers(run)
            for start, stop in spans(len(run.steps), len(run.layers), size):
                grids = {name: metric_rows(run, name, start, stop) for name in metrics}
                held = ~np.isnan(list(grids.values())).all(axis=0) if grids else np.zeros((0, 0), bool)
                row, layer = np.nonzero(held)
                if len(row):
                    yield {
                        "run": np.full(len(row), code),
                        "step": run.steps[start:stop][row],
                        "epoch": epochs[start:stop][row],
                        "layer": layer_codes[code][layer],
                        "depth": depths[layer],
                        "role": role_codes[code][layer],
                        **{name: grid[row, layer] for name, grid in grids.items()},
                    }

    columns = (
        Column("run", "text", tuple(runs)),
        Column("step", "int"),
        Column("epoch", _epoch_kind(runs.values())),
        Column("layer", "text", names),
        Column("depth", "int"),
        Column("role", "text", roles),
        *(Column(name, "float32") for name in metrics),
    )
    return Table(columns, chunks)


def _scalars_table(runs: Mapping[str, Run]) -> Table:
    scalars = _free_names([name for run in runs.values() for name in run.scalars], ("run", "step", "epoch"), "scalar")

    def chunks(size: int) -> Iterator[Chunk]:
        for code, run in enumerate(runs.values()):
            epochs = epoch_numbers(run)
            for start, stop in spans(len(run.steps), 1, size):
                missing = np.full(stop - start, np.nan)
                yield {
                    "run": np.full(stop - start, code),
                    "step": run.steps[start:stop],
                    "epoch": epochs[start:stop],
                    **{
                        column: run.scalars[name][start:stop] if name in run.scalars else missing
                        for name, column in scalars.items()
                    },
                }

    columns = (
        Column("run", "text", tuple(runs)),
        Column("step", "int"),
        Column("epoch", _epoch_kind(runs.values())),
        *(Column(name, "float64") for name in scalars.values()),
    )
    return Table(columns, chunks)


def _epochs_table(runs: Mapping[str, Run]) -> Table:
    values = _free_names(epoch_columns(runs.values()), ("run",), "epoch")

    def chunks(_: int) -> Iterator[Chunk]:
        for code, run in enumerate(runs.values()):
            count = len(_epochs_of(run))
            missing = np.full(count, np.nan)
            if count:
                yield {
                    "run": np.full(count, code),
                    **{column: run.epochs.get(name, missing) for name, column in values.items()},
                }

    kind = _epoch_kind(runs.values())
    columns = (Column(column, kind if name == "epoch" else "float64") for name, column in values.items())
    return Table((Column("run", "text", tuple(runs)), *columns), chunks)


def _layers_table(runs: Mapping[str, Run]) -> Table:
    coded = {
        key: _coded([[getattr(layer, key) for layer in run.layers] for run in runs.values()])
        for key in ("name", "kind", "role")
    }
    numbers = ("depth", "out_numel", "param_numel", "calls")

    def chunks(_: int) -> Iterator[Chunk]:
        for code, run in enumerate(runs.values()):
            if run.layers:
                yield {
                    "run": np.full(len(run.layers), code),
                    **{key: codes[code] for key, (_, codes) in coded.items()},
                    **{key: np.array([getattr(layer, key) for layer in run.layers], np.int64) for key in numbers},
                }

    columns = (
        Column("run", "text", tuple(runs)),
        *(Column(key, "text", texts) for key, (texts, _) in coded.items()),
        *(Column(key, "int") for key in numbers),
    )
    return Table(columns, chunks)


def _coded(lists: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """Return the different texts, and each list as indices into them."""
    codes: dict[str, int] = {}
    coded = [np.array([codes.setdefault(text, len(codes)) for text in texts], np.int64) for texts in lists]
    return tuple(codes), coded


def _free_names(names: Iterable[str], taken: Sequence[str], prefix: str) -> dict[str, str]:
    """Give each name a free column name: ``scalar/step`` for a scalar named ``step``."""
    return {name: f"{prefix}/{name}" if name in taken else name for name in names}


def _epoch_kind(runs: Iterable[Run]) -> Literal["int", "float64"]:
    """Return "int" if all epochs have whole numbers, else "float64"."""
    numbers = np.concatenate([[0.0], *(np.asarray(run.epochs.get("epoch", ()), np.float64) for run in runs)])
    numbers = numbers[~np.isnan(numbers)]
    return "int" if (np.isfinite(numbers) & (numbers == np.rint(numbers))).all() else "float64"
