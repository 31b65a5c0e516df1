"""A metric over layers and rows: values, profiles over depth, and matrices for heatmaps.

Shapes: T rows, L layers, C columns, B chunks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.parts import by_layers, by_rows, over_layers
from gradlens.analysis.stats import median, median_of_all
from gradlens.errors import ConfigError
from gradlens.metrics import METRICS_OF_PATHS, is_linear
from gradlens.row_chunks import LEVELS, RowChunks
from gradlens.run import FloatArray, Layer, Run

EXACT_NUMBERS = 4_000_000
"""If a metric has more values than this (20,000 rows of 200 layers), chunks of rows are read instead of rows."""
LONG_CHUNKS = 256
"""Minimum number of chunks; a run with fewer chunks is short enough to be read row by row."""
WIDE_NUMBERS = 16_000_000
"""A metric with more values than this (128 MB in float64) is read by chunks even where they are few."""
WIDE_CHUNKS = 32
"""The least number of chunks that such a metric has."""
WIDE = 2_000_000
"""Numbers of a metric beyond which they are kept in half the memory, as the file has them."""
ALL_ROWS = slice(None)


def rows_within(run: Run, first: int | None, last: int | None) -> slice:
    """Return the rows between two optimizer steps, both included.

    Args:
        run: The run.
        first: First optimizer step, or None for the beginning.
        last: Last optimizer step, or None for the end.

    Raises:
        ConfigError: No row was recorded between these steps.
    """
    start = 0 if first is None else int(np.searchsorted(run.steps, first))
    stop = len(run.steps) if last is None else int(np.searchsorted(run.steps, last, side="right"))
    if stop <= start and (first is not None or last is not None):
        held = f"steps {run.steps[0]} to {run.steps[-1]}" if len(run.steps) else "no rows"
        raise ConfigError(f"run {run.name} has no row from step {first or 0} to {last}; it holds {held}")
    return slice(start, stop)


def layer_values(run: Run, metric: str, rows: slice = ALL_ROWS, *, per_element: bool = False) -> FloatArray:
    """Return a metric over rows and layers.

    Args:
        run: The run.
        metric: The metric's name.
        rows: The rows to return.
        per_element: Divide an L2 norm by the square root of the number of elements: the root mean square per element.

    Returns:
        (T, L) float64, in the metric's unit; NaN where nothing was recorded, inf where a gradient was not finite.

    Raises:
        ConfigError: The run lacks the metric, or ``per_element`` is set and the metric is not a norm.
    """
    start, stop, _ = rows.indices(len(run.steps))
    values = np.array(run.metric_rows(metric, start, stop), dtype=np.float64)
    if per_element:
        values /= element_scale(run, metric)
    return values


def held_values(run: Run, metric: str, rows: slice = ALL_ROWS) -> FloatArray:
    """Return a metric over rows and layers in a new array: float64, or as the run holds it where it is ``WIDE``.

    Args:
        run: The run.
        metric: The metric's name.
        rows: The rows to return.

    Returns:
        (T, L), as in ``layer_values``; nothing is lost, as a file holds float32.

    Raises:
        ConfigError: The run lacks the metric.
    """
    start, stop, _ = rows.indices(len(run.steps))
    values = run.metric_rows(metric, start, stop)
    is_kept = values.size > WIDE and values.dtype == np.float32
    return values if is_kept else values.astype(np.float64, copy=False)


def element_scale(run: Run, metric: str) -> FloatArray:
    """Return the square root of each layer's number of elements, (L,).

    Args:
        run: The run.
        metric: A norm of activations or of parameters; it decides which elements count.

    Raises:
        ConfigError: The metric is not a norm, or it belongs to a residual block's input.
    """
    if not metric.endswith("_norm"):
        raise ConfigError(
            f"{metric} is not a norm: it has no root mean square per element", tip="leave out --per-element"
        )
    if metric in METRICS_OF_PATHS:
        raise ConfigError(
            f"{metric} is a norm at the input of a residual block, and a run does not record the size of that input",
            tip="leave out --per-element",
        )
    key = "out_numel" if metric.startswith("activation") else "param_numel"
    numel = np.array([getattr(layer, key) for layer in run.layers], dtype=np.float64)
    return np.sqrt(np.maximum(numel, 1))


def is_long(run: Run, rows: slice = ALL_ROWS, least: int | None = None) -> bool:
    """Return whether a run is so long that chunks of rows are read instead of rows.

    Args:
        run: The run.
        rows: The rows of interest.
        least: Minimum number of chunks; None for ``LONG_CHUNKS``, or ``WIDE_CHUNKS`` of a run that is very wide.
    """
    start, stop, _ = rows.indices(len(run.steps))
    whole, numbers = (stop - start) // LEVELS[0], (stop - start) * len(run.layers)
    if least is None:
        least = WIDE_CHUNKS if numbers > WIDE_NUMBERS else LONG_CHUNKS
    return numbers > EXACT_NUMBERS and whole >= least


def long_chunks(run: Run, metric: str, rows: slice = ALL_ROWS) -> RowChunks:
    """Return the chunks of rows by which a long run is judged.

    Args:
        run: The run.
        metric: The metric's name.
        rows: The rows of interest.
    """
    start, stop, _ = rows.indices(len(run.steps))
    least = min(LONG_CHUNKS, max((stop - start) // LEVELS[0], 1))
    return run.row_chunks(metric, least=least, start=start, stop=stop)


def typical_values(run: Run, metric: str, rows: slice = ALL_ROWS, *, per_element: bool = False) -> FloatArray:
    """Return a metric by rows; for a long run, by chunks of rows.

    Args:
        run: The run.
        metric: The metric's name.
        rows: The rows of interest.
        per_element: As in ``layer_values``.

    Returns:
        (T, L) float64, in the metric's unit; for a long run (B, L): the value drawn for each chunk
        (``RowChunks.shown``).

    Raises:
        ConfigError: As in ``layer_values``.
    """
    if not is_long(run, rows):
        return layer_values(run, metric, rows, per_element=per_element)
    scale = element_scale(run, metric) if per_element else 1.0
    return long_chunks(run, metric, rows).shown / scale


def typical_held(run: Run, metric: str, rows: slice = ALL_ROWS) -> FloatArray:
    """Return what ``typical_values`` returns, of a wide metric as ``held_values`` does, to be used a part at a time.

    Args:
        run: The run.
        metric: The metric's name.
        rows: The rows of interest.

    Returns:
        (T, L), or (B, L) for a long run.

    Raises:
        ConfigError: The run lacks the metric.
    """
    return long_chunks(run, metric, rows).shown if is_long(run, rows) else held_values(run, metric, rows)


def depth_profile(run: Run, metric: str, rows: slice = ALL_ROWS, *, per_element: bool = False) -> FloatArray:
    """Return the median of a metric over rows for each layer; for a long run, over the means of chunks of rows.

    Args:
        run: The run.
        metric: The metric's name.
        rows: The rows of interest.
        per_element: As in ``layer_values``.

    Returns:
        (L,) in the metric's unit; NaN where a layer has no value.

    Raises:
        ConfigError: As in ``layer_values``.
    """
    values = typical_held(run, metric, rows)
    if not per_element:
        return median(values, axis=0)
    scales = element_scale(run, metric)[None]
    return by_layers(lambda some, scale: median(some / scale, axis=0), values, scales)


@dataclass(frozen=True)
class Stage:
    """Consecutive layers of one stage: ``layers[start:stop]``."""

    name: str
    start: int
    stop: int


def find_stages(layers: tuple[Layer, ...]) -> list[Stage]:
    """Return the stages of layers, in the order of the layers."""
    stages: list[Stage] = []
    for i, layer in enumerate(layers):
        if stages and stages[-1].name == layer.stage:
            stages[-1] = Stage(layer.stage, stages[-1].start, i + 1)
        else:
            stages.append(Stage(layer.stage, i, i + 1))
    return stages


def say_layer(layer: Layer) -> str:
    """Return a layer's name for a sentence: ``layer '3'`` where the bare name looks like a number."""
    return f"layer {layer.name!r}" if layer.name.replace(".", "").isdigit() else layer.name


@dataclass(frozen=True)
class HeatMatrix:
    """A metric by layers and columns of rows, ready to be drawn.

    Args:
        values: (L, C) in the metric's unit; NaN where nothing was recorded, 0 for exact zeros, inf where a gradient
            was not finite.
        steps: (C + 1,) edges of the columns, in optimizer steps.
    """

    values: FloatArray
    steps: NDArray[np.float64]


def heat_matrix(
    run: Run, metric: str, *, columns: int, per_element: bool = False, rows: slice = ALL_ROWS
) -> HeatMatrix:
    """Arrange a metric by layers and columns, averaging neighbouring rows where there are more rows than columns.

    The average of a magnitude is the geometric mean of finite positive values, that of a linear metric the arithmetic
    mean. A chunk with a non-finite value is inf; a chunk with zeros but no positive value is 0. Where a metric has a
    longer recording interval, the rows between are left out: a column extends to the next row with values. A row
    without any value of a metric that most rows have is NaN.
    A column of a run that is very wide (``WIDE_NUMBERS``) has at least 64 rows.

    Args:
        run: The run.
        metric: The metric's name.
        columns: Maximum number of columns.
        per_element: As in ``layer_values``.
        rows: The rows of interest.

    Returns:
        The matrix, with no columns where there are no rows.

    Raises:
        ConfigError: As in ``layer_values``.
    """
    found = heat_rows(run, metric, columns=columns, per_element=per_element, rows=rows)
    values = over_layers(lambda part: found.of(part).T, len(run.layers), len(found.values))
    return HeatMatrix(values.T, found.steps)


@dataclass(frozen=True)
class HeatRows:
    """The rows of a metric from which a ``HeatMatrix`` is computed, a few layers at a time.

    Args:
        values: (T, L) rows, or chunks of rows, as ``held_values`` returns them.
        starts: (C,) the first row of each column; None where a row is a column.
        scale: (L,) what the values are divided by; None for 1.
        linear: Whether the arithmetic mean of rows is taken.
        steps: (C + 1,) edges of the columns, in optimizer steps.
    """

    values: FloatArray
    starts: NDArray[np.int64] | None
    scale: FloatArray | None
    linear: bool
    steps: NDArray[np.float64]

    def of(self, layers: slice | NDArray[np.int64]) -> FloatArray:
        """Return the part of ``HeatMatrix.values`` that belongs to some layers, (l, C) float64."""
        some = np.asarray(self.values[:, layers], dtype=np.float64)
        some = some if self.scale is None else some / self.scale[layers]
        return (some if self.starts is None else chunk_means(some, self.starts, linear=self.linear)).T


def heat_rows(run: Run, metric: str, *, columns: int, per_element: bool = False, rows: slice = ALL_ROWS) -> HeatRows:
    """Return what ``heat_matrix`` is computed from; the arguments are the same.

    Args:
        run: The run.
        metric: The metric's name.
        columns: Maximum number of columns.
        per_element: As in ``layer_values``.
        rows: The rows of interest.

    Returns:
        The rows, with no columns where there are none.

    Raises:
        ConfigError: As in ``layer_values``.
    """
    start, stop, _ = rows.indices(len(run.steps))
    scale, linear = element_scale(run, metric) if per_element else None, is_linear(metric)
    if stop <= start:
        return HeatRows(np.empty((0, len(run.layers))), None, scale, linear, np.zeros(1))
    steps = run.steps[start:stop].astype(np.float64)
    interval = median_of_all(np.diff(run.steps)) if len(run.steps) > 1 else 1.0
    least = -(-columns // 4)  # each level of chunks has four times the rows of the one before
    if (stop - start) * len(run.layers) > WIDE_NUMBERS:
        least = min(least, max((stop - start) // LEVELS[0], WIDE_CHUNKS))
    if is_long(run, rows, least):
        chunks = run.row_chunks(metric, least=least, start=start, stop=stop).merged(columns, linear=linear)
        edges = np.append(steps[chunks.edges[:-1] - start], steps[-1] + interval)
        return HeatRows(chunks.shown, None, scale, linear, edges)
    values = held_values(run, metric, rows)
    known: NDArray[np.bool_] = by_rows(lambda some: ~np.all(np.isnan(some), axis=1), values)
    end = steps[-1] + interval
    if known.any() and not _is_of_every_row(known):
        values, steps = values[known], steps[known]
    edges = np.append(steps, end)
    if len(steps) <= columns:
        return HeatRows(values, None, scale, linear, edges)
    starts = chunk_starts(len(steps), columns)
    return HeatRows(values, starts, scale, linear, np.append(edges[starts], edges[-1]))


def _is_of_every_row(known: NDArray[np.bool_]) -> bool:
    """Return whether a metric belongs to every row, so that a row without values is a gap in it."""
    return bool(known.all() or 2 * np.sum(np.diff(np.flatnonzero(known)) == 1) > known.sum())


def chunk_starts(count: int, chunks: int) -> NDArray[np.int64]:
    """Divide rows into chunks of about equal length.

    Args:
        count: Number of rows.
        chunks: Maximum number of chunks.

    Returns:
        (B,) index of the first row of each chunk.
    """
    return np.unique(np.linspace(0, count, chunks + 1).astype(np.int64))[:-1]


def chunk_means(values: FloatArray, starts: NDArray[np.int64], *, linear: bool = False) -> FloatArray:
    """Return the means of chunks of rows, treating zeros and non-finite values as ``heat_matrix`` does.

    Args:
        values: (T, L) values; NaN means "not recorded".
        starts: (B,) index of the first row of each chunk, ascending.
        linear: Take arithmetic means; otherwise geometric ones.

    Returns:
        (B, L) in the unit of the values.
    """
    if values.ndim == 2:
        return by_layers(lambda some: _chunk_means(some, starts, linear), values)
    return _chunk_means(values, starts, linear)


def _chunk_means(values: FloatArray, starts: NDArray[np.int64], linear: bool) -> FloatArray:
    positive = np.isfinite(values) & (linear | (values > 0))
    logs = np.where(positive, values, 0.0) if linear else np.log(np.where(positive, values, 1.0))
    counts = np.add.reduceat(positive.astype(np.int64), starts, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.add.reduceat(logs, starts, axis=0) / counts
        means = means if linear else np.exp(means)
    zero = np.add.reduceat((values == 0).astype(np.int64), starts, axis=0) > 0
    broken = np.add.reduceat(np.isinf(values).astype(np.int64), starts, axis=0) > 0
    means = np.where(counts > 0, means, np.where(zero, 0.0, np.nan))
    return np.where(broken, np.inf, means)


def epoch_starts(run: Run) -> NDArray[np.float64]:
    """Return the first recorded optimizer step of each epoch that has rows, (E,)."""
    if len(run.steps) == 0:
        return np.empty(0)
    new = np.flatnonzero(np.diff(run.epoch_of_step, prepend=run.epoch_of_step[0] - 1))
    return run.steps[new].astype(np.float64)
