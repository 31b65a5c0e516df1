"""A run as the rules of a diagnosis read it: metrics by rows, or by chunks in a long run, without skipped steps.

Shapes: T rows, L layers, B rows or chunks of rows with a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

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
from gradlens.analysis.parts import by_layers, by_rows, parts_of
from gradlens.analysis.profile import ALL_ROWS, is_long, long_chunks
from gradlens.analysis.stats import median
from gradlens.diagnosis.recorded_setup import Setup
from gradlens.errors import ConfigError
from gradlens.metrics import (
    ACTIVATION_GRAD_NORM,
    ACTIVATION_RMS,
    BATCH_COHERENCE,
    GRAD_COHERENCE,
    NONFINITE_COUNT,
    PARAM_GRAD_NORM,
    UPDATE_RATIO,
    ZERO_FRACTION,
)
from gradlens.run import FloatArray, Layer, Run

PARAM_GRAD, UPDATE = PARAM_GRAD_NORM, UPDATE_RATIO
COUNT, RMS, ZEROS, COHERENCE = NONFINITE_COUNT, ACTIVATION_RMS, ZERO_FRACTION, GRAD_COHERENCE
BATCHES = BATCH_COHERENCE
UNSEEN_DATA = {"val", "valid", "validation", "test", "eval", "dev"}
"""Words in the name of a loss that is not the one of the training."""
LEAST_VALUES = 3
"""Metrics of weights have a long recording interval, so that a window may contain few values. Two exact zeros may be
the start and the end of a schedule; three in succession are a state. smdebug's UnchangedTensor requires 3 steps too."""
MOST_CHUNKS = 64
"""In a long run, at most so many chunks with non-finite values are read row by row."""


class Series:
    """A metric over rows; in a long run, over chunks of rows.

    Args:
        values: (B, L) in the metric's unit, NaN where unknown; float64, or float32 of a wide metric. Rules do not copy
            it: they take some layers of it (``of``), its median, or what ``by_layers`` and ``by_rows`` find in parts.
        steps: (B,) first optimizer step of each row or chunk.
        rows: (B,) index of the row, or of the chunk's first row.
    """

    def __init__(self, values: FloatArray, steps: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        self.values, self.steps, self.rows = values, steps, rows

    def of(self, layers: int | Sequence[int] | NDArray[np.int64], window: slice = ALL_ROWS) -> NDArray[np.float64]:
        """Return the values of a layer, (B,), or of some layers, (B, l), in a window."""
        return np.asarray(self.values[window][:, layers], dtype=np.float64)

    def at(self, rows: int | Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        """Return all layers in a few rows."""
        return np.asarray(self.values[rows], dtype=np.float64)

    def median(self, window: slice = ALL_ROWS) -> FloatArray:
        """Return the median of each layer in a window, (L,)."""
        return median(self.values[window], axis=0)

    def by_layers(self, function: Callable[[FloatArray], Any], window: slice = ALL_ROWS) -> NDArray[Any]:
        """Apply a function to (B, l) values in a window, a few layers at a time; see ``gradlens.analysis.parts``."""
        return by_layers(function, self.values[window])

    def by_rows(self, function: Callable[[FloatArray], Any]) -> NDArray[Any]:
        """Apply a function to (b, L) values, a few rows at a time."""
        return by_rows(function, self.values)

    def without(self, hidden: NDArray[np.bool_]) -> Series:
        """Return the series with NaN where ``hidden``, (B, L), is set."""
        if not hidden.any():
            return self
        values = self.values.copy()
        values[hidden] = np.nan
        return Series(values, self.steps, self.rows)

    @cached_property
    def typical(self) -> FloatArray:
        """(L,) the median of each layer over all rows."""
        return self.median()

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """(L,) which layers have a value in any row."""
        return self.by_layers(lambda values: (~np.isnan(values)).any(axis=0))

    @cached_property
    def positive(self) -> NDArray[np.bool_]:
        """(L,) which layers have a value above 0 in any row."""
        return self.by_layers(lambda values: (values > 0).any(axis=0))

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def late(self) -> slice:
        """The later half, by which a lasting state is judged."""
        return slice(len(self) // 2, None)

    @property
    def windows(self) -> list[tuple[slice, str]]:
        """The windows by which a lasting state is judged: the later half, and the last fifth if it has enough rows."""
        return late_windows(len(self))


def words_of(name: str) -> set[str]:
    """Return the words in a scalar's name, with and without digits behind them: "val/top1" has val, top1 and top."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return {*words, *(word.rstrip("0123456789") for word in words)}


class Recording:
    """The rows of a run, as the rules read them.

    Args:
        run: The run. Series are read on first use and kept.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        skipped = np.asarray(run.scalars.get("skipped", np.zeros(len(run.steps))))
        self.skipped: NDArray[np.bool_] = skipped == 1
        self.long = is_long(run)
        self.setup = Setup(run.facts)
        self._kept: dict[str, Series] = {}
        self._broken: dict[str, NDArray[np.int64]] = {}

    @property
    def n_rows(self) -> int:
        """The number of rows that a GradScaler did not skip."""
        return int((~self.skipped).sum())

    @property
    def last_step(self) -> int:
        """The last recorded optimizer step."""
        return int(self.run.steps[-1]) if len(self.run.steps) else 0

    def has(self, name: str) -> bool:
        """Return whether a metric was recorded, with at least one value."""
        return name in self.run.metrics and len(self.series(name)) > 0

    def series(self, name: str) -> Series:
        """Return a metric's finite values; non-finite ones are NaN here and are found by ``broken_rows``."""
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
        """Return a scalar over rows, (T,), NaN where unknown or skipped; empty where the run lacks it.

        Where nothing was logged as "loss", it is the only scalar whose name has that word ("train_loss").
        """
        name = self._loss if name == "loss" else name
        values = np.asarray(self.run.scalars.get(name, np.empty(0)), dtype=np.float64)
        return np.where(self.skipped, np.nan, values) if len(values) else values

    def logged(self, name: str) -> FloatArray:
        """Return the finite values of what was logged under a name: of the table of epochs, else of rows."""
        values = np.asarray(self.run.epochs[name] if name in self.run.epochs else self.scalar(name), dtype=np.float64)
        return values[np.isfinite(values)]

    @cached_property
    def _loss(self) -> str:
        known = [name for name, values in self.run.scalars.items() if not np.isnan(values).all()]
        words = {name: words_of(name) for name in known}
        named = [name for name in known if "loss" in words[name] and not words[name] & UNSEEN_DATA]
        return named[0] if len(named) == 1 else "loss"

    @cached_property
    def gradient(self) -> str:
        """The gradient metric that is judged: of activations where recorded, else of parameters, else ""."""
        return next((name for name in (ACTIVATION_GRAD_NORM, PARAM_GRAD) if self.has(name)), "")

    @cached_property
    def path(self) -> NDArray[np.int64]:
        """The indices of the main layers whose gradient is known in most rows, input first."""
        if not self.gradient:
            return np.empty(0, dtype=np.int64)
        return known_layers(self.run, self.series(self.gradient).values)

    @cached_property
    def ratio(self) -> GradientRatio | None:
        """The gradients of these layers over that of the last hidden layer; None for fewer than three layers."""
        if not self.gradient:
            return None
        series = self.series(self.gradient)
        return compare_layers(self.run, series.values, series.rows)

    @cached_property
    def norms(self) -> tuple[str, ...]:
        """The names of norm layers: recorded ones, and modules with parameters of their own that are no recorded layer.

        A recorder leaves out norms by default, and hardly anything else that has parameters; modules that contain
        others are not counted.
        """
        names = dict.fromkeys(name for item in self.setup.entries("parameters") for name in item.texts("layers"))
        recorded = {layer.name: layer.role for layer in self.run.layers}
        others = [name for name in names if name not in recorded and not name.startswith("(")]
        single = [name for name in others if not any(other.startswith(f"{name}.") for other in (*names, *recorded))]
        return (*(name for name, role in recorded.items() if role == "norm"), *single)

    @cached_property
    def mixes_batch(self) -> bool:
        """Whether batch norm mixes the halves of one batch: each layer ran once."""
        layers = self.run.layers
        kinds = [layer.kind for layer in layers if layer.role == "norm"]
        kinds += [kind for item in self.setup.entries("modes") for kind in item.texts("kinds")]
        once = max((layer.calls for layer in layers if layer.role == "main"), default=1) <= 1
        return once and any("BatchNorm" in kind for kind in kinds)

    @property
    def combines_by_hand(self) -> bool:
        """Whether most steps got gradients that the program made itself, perhaps of passes that it cleared."""
        return 2 * self.setup.whole("rows_changed") > len(self.run.steps)

    @cached_property
    def coherence(self) -> str:
        """The metric by which gradients agree or not, "" where none is sound.

        Between the parts of a batch; between two batches where batch norm mixes these parts, or where it is the only
        one recorded.
        """
        if self.has(BATCHES) and (self.mixes_batch or not self.has(COHERENCE)):
            return BATCHES
        return COHERENCE if self.has(COHERENCE) and not self.mixes_batch else ""

    @property
    def compared_gradients(self) -> str:
        """What ``coherence`` compares, in words."""
        return "batches in succession" if self.coherence == BATCHES else "parts of the batch"

    def is_behind_norm(self, layer: int) -> bool:
        """Return whether a norm follows a layer directly: scaling its weights or inputs then changes nothing."""
        place = self.run.layers[layer]
        return place.depth in self._norm_depths or place.name in self._before_norms

    @cached_property
    def _norm_depths(self) -> frozenset[int]:
        """The depths that norms have."""
        return frozenset(layer.depth for layer in self.run.layers if layer.role == "norm")

    @cached_property
    def _before_norms(self) -> frozenset[str]:
        """The modules whose parameters come directly before those of a norm."""
        orders = [item.texts("layers") for item in self.setup.entries("parameters")]
        return frozenset(order[i] for order in orders for i in range(len(order) - 1) if order[i + 1] in self.norms)

    def names(self, layers: Sequence[int] | NDArray[np.int64]) -> tuple[str, ...]:
        """Return the names of layers."""
        return tuple(self.run.layers[i].name for i in layers)

    def in_order(self, layers: NDArray[np.int64]) -> list[int]:
        """Return indices of layers sorted by depth, input first."""
        return sorted((int(i) for i in layers), key=lambda i: self.run.layers[i].depth)

    def broken_rows(self, name: str) -> NDArray[np.int64]:
        """Return the indices of rows with a non-finite value, without those that a GradScaler skipped."""
        if name not in self._broken:
            self._broken[name] = self._find_broken(name)
        return self._broken[name]

    def _find_broken(self, name: str) -> NDArray[np.int64]:
        run = self.run
        if name not in run.metrics or not len(run.steps):
            return np.empty(0, dtype=np.int64)
        spans = [(part.start, part.stop) for part in parts_of(len(run.steps), len(run.layers))]
        if self.long:
            chunks = long_chunks(run, name)
            high = chunks.high > 0 if name == COUNT else np.isinf(chunks.high)
            found = np.flatnonzero(high.any(axis=1))[:MOST_CHUNKS]
            spans = [(int(chunks.edges[i]), int(chunks.edges[i + 1])) for i in found]
        return np.concatenate([np.empty(0, dtype=np.int64), *(self._broken_within(name, *span) for span in spans)])

    def _broken_within(self, name: str, start: int, stop: int) -> NDArray[np.int64]:
        values = self.run.metric_rows(name, start, stop)
        found = by_rows(lambda some: (some > 0 if name == COUNT else np.isinf(some)).any(axis=1), values)
        return np.flatnonzero(found & ~self.skipped[start:stop]) + start

    def broken(self, name: str, start: int, stop: int) -> NDArray[np.bool_]:
        """Return which values of rows are not finite, (stop - start, L); False in skipped rows."""
        values = np.asarray(self.run.metric_rows(name, start, stop))
        found = values > 0 if name == COUNT else np.isinf(values)
        return np.asarray(found & ~self.skipped[start:stop, None])


def share_beyond(series: FloatArray, line: float, *, below: bool) -> float:
    """Return the confidence that the median of a series is beyond a threshold: the share of resampled medians.

    One is added to the counts on both sides, so that the result is never exactly 0 or 1.

    Args:
        series: (B,) values in order of rows; NaN is left out.
        line: The threshold.
        below: Whether "beyond" means below the threshold; otherwise above.

    Source: block bootstrap as in ``resampled_medians``; Davison & Hinkley 1997, Bootstrap Methods and their
    Application, ch. 4, for the counts.
    """
    found = resampled_medians(series)
    found = found[~np.isnan(found)]
    beyond = int((found < line).sum() if below else (found > line).sum())
    return (beyond + 1) / (len(found) + 2)


def since(beyond: NDArray[np.bool_]) -> int:
    """Return the position at which a lasting state begins: from there on, it holds in at least 9 of 10 rows.

    Args:
        beyond: (B,) whether the state holds in each row.
    """
    share = np.cumsum(beyond[::-1]) / np.arange(1, len(beyond) + 1)
    good = np.flatnonzero((share >= 0.9)[::-1] & beyond)
    return int(good[0]) if len(good) else len(beyond) - 1


def window_beyond(series: Series, line: float) -> tuple[slice, str, FloatArray]:
    """Return the first window in which a layer's median is above a threshold, else the later half.

    Args:
        series: A metric.
        line: The threshold.

    Returns:
        The window, its name, and (L,) the medians of the layers in the window.
    """
    found = [(late, name, series.median(late)) for late, name in series.windows]
    return next((item for item in found if (np.nan_to_num(item[2]) > line).any()), found[0])


def steps_beyond(rec: Recording, series: Series, layer: int, line: float) -> tuple[int, int]:
    """Return the first and the last optimizer step between which a layer stays above a threshold.

    Args:
        rec: The recording.
        series: A metric of it.
        layer: Index of the layer.
        line: The threshold.
    """
    return int(series.steps[since(np.nan_to_num(series.of(layer)) > line)]), rec.last_step


def run_of_arrays(
    metrics: Mapping[str, ArrayLike],
    layers: Sequence[str | Layer] | None = None,
    scalars: Mapping[str, ArrayLike] | None = None,
    steps: ArrayLike | None = None,
    *,
    name: str = "arrays",
    facts: Mapping[str, Any] | None = None,
) -> Run:
    """Make a run from arrays.

    Args:
        metrics: Name to (T, L) values; columns are layers, input first.
        layers: (L,) names or descriptions of the layers; None for "layer1", "layer2", ...
        scalars: Name to (T,) values.
        steps: (T,) optimizer steps; None for 0, 1, ...
        name: Name of the run.
        facts: Facts of the set-up, as in docs/facts.md.

    Returns:
        The run; it exists in memory only.

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
    return Run(
        name, Path(name), made, at, np.zeros(rows, np.int32), series, grids, nothing, "complete", {}, facts or {}
    )
