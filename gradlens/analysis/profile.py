"""Depth profiles: a metric over the layers, and what it says in a sentence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.stats import median
from gradlens.errors import ConfigError
from gradlens.metrics import METRICS_OF_PATHS, is_linear
from gradlens.row_chunks import LEVELS, RowChunks
from gradlens.run import FloatArray, Layer, Run

ACTIVATION_GRAD = "activation_grad_norm"


EXACT_NUMBERS = 4_000_000
"""Of a run with more numbers than this in a metric (20,000 rows of 200 layers), blocks of rows are read instead."""
LONG_CHUNKS = 256
"""At least so many of them; a run that has fewer is short enough to be read."""
ALL_ROWS = slice(None)


def rows_within(run: Run, first: int | None, last: int | None) -> slice:
    """Return the rows from one optimizer step to another, both included.

    Args:
        run: The run.
        first: Index of a step, or None for the beginning.
        last: Index of a step, or None for the end.

    Raises:
        ConfigError: No row was recorded there.
    """
    start = 0 if first is None else int(np.searchsorted(run.steps, first))
    stop = len(run.steps) if last is None else int(np.searchsorted(run.steps, last, side="right"))
    if stop <= start and (first is not None or last is not None):
        held = f"steps {run.steps[0]} to {run.steps[-1]}" if len(run.steps) else "no rows"
        raise ConfigError(f"run {run.name} has no row from step {first or 0} to {last}; it holds {held}")
    return slice(start, stop)


def layer_values(run: Run, metric: str, rows: slice = ALL_ROWS, *, per_element: bool = False) -> FloatArray:
    """Return a metric over steps and layers, (T, L) float64.

    Args:
        run: The run.
        metric: Its name.
        rows: Which rows.
        per_element: Divide an L2 norm over activations by sqrt(out_numel): the root mean square per element.

    Raises:
        ConfigError: The run lacks the metric, or it is no norm, so that there is nothing to divide.
    """
    scale = element_scale(run, metric) if per_element else 1.0
    start, stop, _ = rows.indices(len(run.steps))
    return np.asarray(run.metric_rows(metric, start, stop), dtype=np.float64) / scale


def element_scale(run: Run, metric: str) -> FloatArray:
    """Return the square root of each layer's number of elements, (L,)."""
    if not metric.endswith("_norm"):
        raise ConfigError(f"{metric} is no norm: there is no root mean square of it", tip="leave --per-element out")
    if metric in METRICS_OF_PATHS:
        raise ConfigError(f"{metric} is of a block's input, whose size no layer tells", tip="leave --per-element out")
    key = "out_numel" if metric.startswith("activation") else "param_numel"
    numel = np.array([getattr(layer, key) for layer in run.layers], dtype=np.float64)
    return np.sqrt(np.maximum(numel, 1))


def is_long(run: Run, rows: slice = ALL_ROWS, least: int | None = None) -> bool:
    """Say whether so many rows are looked at block by block, at least so many (``LONG_CHUNKS``) of them."""
    start, stop, _ = rows.indices(len(run.steps))
    whole = (stop - start) // LEVELS[0]
    return (stop - start) * len(run.layers) > EXACT_NUMBERS and whole >= (LONG_CHUNKS if least is None else least)


def long_chunks(run: Run, metric: str, rows: slice = ALL_ROWS) -> RowChunks:
    """Return the blocks by which a long run is judged."""
    start, stop, _ = rows.indices(len(run.steps))
    return run.row_chunks(metric, least=LONG_CHUNKS, start=start, stop=stop)


def typical_values(run: Run, metric: str, rows: slice = ALL_ROWS, *, per_element: bool = False) -> FloatArray:
    """Return a metric's rows, (T, L) float64; of a long run what stands for blocks of rows, (B, L)."""
    if not is_long(run, rows):
        return layer_values(run, metric, rows, per_element=per_element)
    scale = element_scale(run, metric) if per_element else 1.0
    return long_chunks(run, metric, rows).shown / scale


def depth_profile(run: Run, metric: str, rows: slice = ALL_ROWS, *, per_element: bool = False) -> FloatArray:
    """Return the median of a metric over rows, for each layer, (L,); NaN where a layer has no value.

    Of a long run it is the median of the means of blocks of rows.
    """
    values = typical_values(run, metric, rows, per_element=per_element)
    return median(values, axis=0)


@dataclass(frozen=True)
class Stage:
    """Neighbouring layers of one stage: ``layers[start:stop]``."""

    name: str
    start: int
    stop: int


def find_stages(layers: tuple[Layer, ...]) -> list[Stage]:
    """Cut layers, in their order, into stages."""
    stages: list[Stage] = []
    for i, layer in enumerate(layers):
        if stages and stages[-1].name == layer.stage:
            stages[-1] = Stage(layer.stage, stages[-1].start, i + 1)
        else:
            stages.append(Stage(layer.stage, i, i + 1))
    return stages


def say_layer(layer: Layer) -> str:
    """Write a layer's name so that it cannot be taken for a number."""
    return f"layer {layer.name!r}" if layer.name.replace(".", "").isdigit() else layer.name


@dataclass(frozen=True)
class HeatMatrix:
    """A metric as layers by steps, ready to be drawn.

    Args:
        values: (L, C); NaN where nothing was recorded, exact zeros kept, inf where a gradient was not finite.
        steps: (C + 1,) edges of the columns, in optimizer steps.
    """

    values: FloatArray
    steps: NDArray[np.float64]


def heat_matrix(
    run: Run, metric: str, *, columns: int, per_element: bool = False, rows: slice = ALL_ROWS
) -> HeatMatrix:
    """Arrange a metric as layers by steps, averaging neighbouring rows where there are more than columns.

    Rows are averaged geometrically, over what is finite and positive; a block holding any non-finite value shows that,
    and a block without a positive value but with a zero shows zero. Linear metrics are averaged as they are. Rows
    without a value, as a coarser rhythm leaves them, are left out: a column reaches to the next row that has one.
    """
    start, stop, _ = rows.indices(len(run.steps))
    if stop <= start:
        return HeatMatrix(np.empty((len(run.layers), 0)), np.zeros(1))
    steps = run.steps[start:stop].astype(np.float64)
    rhythm = float(np.median(np.diff(run.steps))) if len(run.steps) > 1 else 1.0
    least = -(-columns // 4)  # blocks come in sizes four times apart
    if is_long(run, rows, least):
        blocks = run.row_chunks(metric, least=least, start=start, stop=stop).merged(columns, linear=is_linear(metric))
        scale = element_scale(run, metric) if per_element else 1.0
        edges = np.append(steps[blocks.edges[:-1] - start], steps[-1] + rhythm)
        return HeatMatrix((blocks.shown / scale).T, edges)
    values = layer_values(run, metric, rows, per_element=per_element)
    known = ~np.isnan(values).all(axis=1)
    end = steps[-1] + rhythm
    if known.any() and not known.all():
        values, steps = values[known], steps[known]
    edges = np.append(steps, end)
    if len(steps) <= columns:
        return HeatMatrix(values.T, edges)
    starts = chunk_starts(len(steps), columns)
    means = chunk_means(values, starts, linear=is_linear(metric))
    return HeatMatrix(means.T, np.append(edges[starts], edges[-1]))


def chunk_starts(count: int, blocks: int) -> NDArray[np.int64]:
    """Cut so many rows into at most so many blocks of about equal length; return where each begins."""
    return np.unique(np.linspace(0, count, blocks + 1).astype(np.int64))[:-1]


def chunk_means(values: FloatArray, starts: NDArray[np.int64], *, linear: bool = False) -> FloatArray:
    """Return the geometric means of blocks of rows, (blocks, L), treating odd values as ``heat_matrix`` says.

    Linear ones get their arithmetic means.
    """
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
    """Return the optimizer step at which each epoch begins, as far as rows were recorded."""
    if len(run.steps) == 0:
        return np.empty(0)
    new = np.flatnonzero(np.diff(run.epoch_of_step, prepend=run.epoch_of_step[0] - 1))
    return run.steps[new].astype(np.float64)
