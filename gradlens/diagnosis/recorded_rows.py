"""A run as a diagnosis looks at it: metrics by rows, or by blocks of rows where it is long; no skipped steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradlens.analysis.bootstrap import resampled_medians
from gradlens.analysis.gradient_ratio import (
    GradientRatio,
    compare_layers,
    finite_rows,
    known_layers,
    late_windows,
)
from gradlens.analysis.profile import ACTIVATION_GRAD, is_long, long_chunks
from gradlens.analysis.stats import median
from gradlens.errors import ConfigError
from gradlens.run import FloatArray, Layer, Run

PARAM_GRAD, PARAM_NORM, UPDATE = "param_grad_norm", "param_norm", "update_ratio"
COUNT, RMS, ZEROS, COHERENCE = "nonfinite_count", "activation_rms", "zero_fraction", "grad_coherence"
LEAST_VALUES = 3
"""Weights have a coarse rhythm, so that a window may hold few values; two exact zeros may be a schedule's start and
end, three in a row are a state. smdebug's UnchangedTensor asks for 3 steps, too."""
MOST_CHUNKS = 64
"""Of a long run, so many blocks with values that are not finite are looked into."""


class Series:
    """A metric over rows; of a long run, over blocks of them.

    Args:
        values: (B, L), NaN where nothing is known.
        steps: (B,) the first optimizer step of each.
        rows: (B,) the index of the first row of each.
    """

    def __init__(self, values: FloatArray, steps: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        self.values, self.steps, self.rows = values, steps, rows

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def late(self) -> slice:
        """The later half, by which a state that lasts is judged."""
        return slice(len(self) // 2, None)

    @property
    def windows(self) -> list[tuple[slice, str]]:
        """The later half, and the last fifth where it has enough rows: by these a state that lasts is judged."""
        return late_windows(len(self))


class Recording:
    """What a run's rows hold, as far as it can be judged."""

    def __init__(self, run: Run) -> None:
        self.run = run
        skipped = np.asarray(run.scalars.get("skipped", np.zeros(len(run.steps))))
        self.skipped: NDArray[np.bool_] = skipped == 1
        self.long = is_long(run)
        self._kept: dict[str, Series] = {}

    @property
    def n_rows(self) -> int:
        """Rows that were not skipped by a GradScaler."""
        return int((~self.skipped).sum())

    @property
    def last_step(self) -> int:
        """The last optimizer step recorded."""
        return int(self.run.steps[-1]) if len(self.run.steps) else 0

    def has(self, name: str) -> bool:
        """Say whether a metric was recorded, with at least one value."""
        return name in self.run.metrics and len(self.series(name)) > 0

    def series(self, name: str) -> Series:
        """Return a metric's finite values; what is not finite is NaN here and is looked at on its own."""
        if name not in self._kept:
            self._kept[name] = self._read(name)
        return self._kept[name]

    def _read(self, name: str) -> Series:
        run = self.run
        if name not in run.metrics or not len(run.steps):
            return Series(np.empty((0, len(run.layers))), np.empty(0, np.int64), np.empty(0, np.int64))
        values, rows, _ = finite_rows(run, name)
        return Series(values, run.steps[rows], rows)

    def scalar(self, name: str) -> FloatArray:
        """Return a scalar over rows, NaN where it is not known or the step was skipped; empty where there is none."""
        values = np.asarray(self.run.scalars.get(name, np.empty(0)), dtype=np.float64)
        return np.where(self.skipped, np.nan, values) if len(values) else values

    @cached_property
    def gradient(self) -> str:
        """The metric by which the way back is judged: of activations where recorded, else of parameters; or ""."""
        return next((name for name in (ACTIVATION_GRAD, PARAM_GRAD) if self.has(name)), "")

    @cached_property
    def path(self) -> NDArray[np.int64]:
        """The main layers whose gradient is known in most rows, input first."""
        if not self.gradient:
            return np.empty(0, dtype=np.int64)
        return known_layers(self.run, self.series(self.gradient).values)

    @cached_property
    def ratio(self) -> GradientRatio | None:
        """The gradient of the layers on the path over that of the last hidden one; None of fewer than three layers."""
        if not self.gradient:
            return None
        series = self.series(self.gradient)
        return compare_layers(self.run, series.values, series.rows)

    def names(self, layers: Sequence[int] | NDArray[np.int64]) -> tuple[str, ...]:
        """Return the names of layers."""
        return tuple(self.run.layers[i].name for i in layers)

    def in_order(self, layers: NDArray[np.int64]) -> list[int]:
        """Sort layers by depth, input first."""
        return sorted((int(i) for i in layers), key=lambda i: self.run.layers[i].depth)

    def broken_rows(self, name: str) -> NDArray[np.int64]:
        """Return the rows with a value that is not finite, without those that a GradScaler skipped."""
        run = self.run
        if name not in run.metrics or not len(run.steps):
            return np.empty(0, dtype=np.int64)
        spans = [(0, len(run.steps))]
        if self.long:
            blocks = long_chunks(run, name)
            high = blocks.high > 0 if name == COUNT else np.isinf(blocks.high)
            found = np.flatnonzero(high.any(axis=1))[:MOST_CHUNKS]
            spans = [(int(blocks.edges[i]), int(blocks.edges[i + 1])) for i in found]
        rows = [np.flatnonzero(self.broken(name, *span).any(axis=1)) + span[0] for span in spans]
        return np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)

    def broken(self, name: str, start: int, stop: int) -> NDArray[np.bool_]:
        """Say which values of rows are not finite, (rows, L); none of a row that was skipped."""
        values = np.asarray(self.run.metric_rows(name, start, stop))
        found = values > 0 if name == COUNT else np.isinf(values)
        return np.asarray(found & ~self.skipped[start:stop, None])


def share_beyond(series: FloatArray, line: float, *, below: bool) -> float:
    """Return how sure it is that a series' median is beyond a line: the share of its resampled medians that are.

    Block bootstrap, as in ``resample``. Counted with one more on each side (as in Davison & Hinkley 1997, Bootstrap
    Methods and their Application, ch. 4), so that so many draws never say 0 or 1.
    """
    found = resampled_medians(series)
    found = found[~np.isnan(found)]
    beyond = int((found < line).sum() if below else (found > line).sum())
    return (beyond + 1) / (len(found) + 2)


def since(beyond: NDArray[np.bool_]) -> int:
    """Return from which place on something is so for good: the start of the last stretch with at least 9 in 10 so."""
    share = np.cumsum(beyond[::-1]) / np.arange(1, len(beyond) + 1)
    good = np.flatnonzero((share >= 0.9)[::-1] & beyond)
    return int(good[0]) if len(good) else len(beyond) - 1


def window_beyond(series: Series, line: float) -> tuple[slice, str, FloatArray]:
    """Return the window at the end in which a layer's median is beyond a line, its name, and the medians."""
    found = [(late, said, median(series.values[late], axis=0)) for late, said in series.windows]
    return next((item for item in found if (np.nan_to_num(item[2]) > line).any()), found[0])


def steps_beyond(rec: Recording, series: Series, layer: int, line: float) -> tuple[int, int]:
    """Return the steps over which a layer is beyond a line for good."""
    return int(series.steps[since(np.nan_to_num(series.values[:, layer]) > line)]), rec.last_step


def run_of_arrays(
    metrics: Mapping[str, ArrayLike],
    layers: Sequence[str | Layer] | None = None,
    scalars: Mapping[str, ArrayLike] | None = None,
    steps: ArrayLike | None = None,
    *,
    name: str = "arrays",
) -> Run:
    """Make a run of arrays.

    Args:
        metrics: Name to (T, L); columns are layers, input first.
        layers: Their names or descriptions; None for "layer1", "layer2", ...
        scalars: Name to (T,).
        steps: (T,) optimizer steps; None for 0, 1, ...
        name: What to call it.

    Raises:
        ConfigError: There is no metric, or the arrays' shapes do not fit.
    """
    grids = {key: np.asarray(value, dtype=np.float64) for key, value in metrics.items()}
    if not grids:
        raise ConfigError("there is no metric to diagnose; expected a mapping of names to (T, L) arrays")
    shape = next(iter(grids.values())).shape
    for key, grid in grids.items():
        if grid.ndim != 2 or grid.shape != shape:
            raise ConfigError(f"metric {key!r} has the shape {grid.shape}; expected (rows, layers) alike for all")
    rows, columns = shape
    named = layers if layers is not None else [f"layer{i + 1}" for i in range(columns)]
    made = tuple(
        item if isinstance(item, Layer) else Layer(str(item), "", "main", i + 1, 1, 1) for i, item in enumerate(named)
    )
    series = {key: np.asarray(value, dtype=np.float64) for key, value in (scalars or {}).items()}
    at = np.arange(rows) if steps is None else np.asarray(steps, dtype=np.int64)
    for what, found, expected in [
        ("layers", len(made), columns),
        ("steps", len(at), rows),
        *((key, len(value), rows) for key, value in series.items()),
    ]:
        if found != expected:
            raise ConfigError(f"{what}: {found} were given, the metrics have {expected}")
    nothing: dict[str, FloatArray] = {}
    return Run(name, Path(name), made, at, np.zeros(rows, np.int32), series, grids, nothing, "complete", {})
