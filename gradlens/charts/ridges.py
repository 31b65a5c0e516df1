"""Distributions of a metric over rows, layer by layer, and profiles along the training: what ridges and films show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.compare import label_runs
from gradlens.analysis.derived_metrics import check_metric
from gradlens.analysis.profile import rows_within, typical_values
from gradlens.charts.curves import Steps
from gradlens.charts.heatmap import View, decades, make_panel
from gradlens.errors import ConfigError
from gradlens.metrics import is_linear
from gradlens.run import FloatArray, Layer, Run

POINTS = 200
COLUMNS = 2000
"""A film is made of so many averages of neighbouring rows at most."""
LEAST_WIDTH = 0.008
"""No bandwidth is less than this share of the range: a narrower curve would fall between the points."""


@dataclass(frozen=True)
class Ridges:
    """The distributions of one run.

    Args:
        label: What the run is called.
        run: The run.
        layers: (M,) its main layers, input first.
        values: (T, M) log10 of a magnitude, else the metric; NaN where not known or exactly 0.
        zeros: (M,) the share of rows in which a magnitude is exactly 0.
    """

    label: str
    run: Run
    layers: tuple[Layer, ...]
    values: FloatArray
    zeros: FloatArray

    def density(self, layer: int, grid: FloatArray) -> FloatArray:
        """Return the density of a layer's values on a grid, (G,); zeros where nothing is known."""
        values = self.values[:, layer]
        return kernel_density(values[np.isfinite(values)], grid)


def kernel_density(values: FloatArray, grid: FloatArray) -> FloatArray:
    """Estimate a density with Gaussian kernels.

    The bandwidth is 0.9 min(standard deviation, interquartile range / 1.34) n^(-1/5), and at least 0.8 % of the grid.
    Source: Silverman 1986, Density Estimation for Statistics and Data Analysis, equation 3.31.

    Args:
        values: (T,) finite.
        grid: (G,) ascending.

    Returns:
        (G,) that integrates to about 1; zeros without values.
    """
    if not len(values):
        return np.zeros(len(grid))
    quartiles = np.quantile(values, [0.25, 0.75])
    spread = min(float(values.std()), float(quartiles[1] - quartiles[0]) / 1.34)
    width = max(0.9 * spread * len(values) ** -0.2, LEAST_WIDTH * float(grid[-1] - grid[0]))
    away = (grid[:, None] - values[None]) / width
    return np.asarray(np.exp(-0.5 * away**2).sum(axis=1) / (len(values) * width * math.sqrt(2 * math.pi)))


def make_ridges(
    runs: Sequence[Run], metric: str, *, per_element: bool = False, steps: Steps = (None, None)
) -> list[Ridges]:
    """Take the distributions of a metric over rows, run by run.

    Args:
        runs: The runs.
        metric: A metric that each of them holds.
        per_element: The root mean square per element instead of the L2 norm.
        steps: First and last optimizer step; None is the beginning, or the end.

    Raises:
        ConfigError: There is no run; or one lacks the metric, or has no value of it in the span.
    """
    if not runs:
        raise ConfigError("ridges need at least one run")
    found = []
    for run, label in zip(runs, label_runs(list(runs)), strict=True):
        check_metric(run, metric)
        main = run.main_layers()
        values = typical_values(run, metric, rows_within(run, *steps), per_element=per_element)[:, main]
        values = values[~np.isnan(values).all(axis=1)]
        if not np.isfinite(values).any():
            raise ConfigError(f"no row of {metric} has been recorded yet in {run.name}")
        known = ~np.isnan(values).all(axis=0)
        main, values = main[known], values[:, known]
        zeros = np.zeros(len(main)) if is_linear(metric) else np.mean(values == 0, axis=0)
        drawn = values if is_linear(metric) else decades(values)
        drawn = np.where(np.isfinite(drawn), drawn, np.nan)
        found.append(Ridges(label, run, tuple(run.layers[i] for i in main), drawn, zeros))
    return found


def common_grid(ridges: Sequence[Ridges]) -> FloatArray:
    """Return points that all values lie between, with some room at both ends."""
    parts = [one.values[np.isfinite(one.values)] for one in ridges]
    values = np.concatenate(parts) if parts else np.empty(0)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    room = 0.06 * (high - low) or 0.5
    return np.linspace(low - room, high + room, POINTS)


@dataclass(frozen=True)
class Film:
    """Profiles along the training.

    Args:
        labels: (R,) what the runs are called.
        runs: (R,) the runs.
        layers: Per run its main layers, input first.
        frames: (F, 2) first and last step of each frame.
        values: Per run (F, M): log10 of a magnitude, or the metric: the median over the frame's rows; NaN where not
            known, -inf at exact zeros. A run that has ended keeps its last frame.
        over: Per run the frame in which it ended.
    """

    labels: tuple[str, ...]
    runs: tuple[Run, ...]
    layers: tuple[tuple[Layer, ...], ...]
    frames: NDArray[np.int64]
    values: tuple[FloatArray, ...]
    over: tuple[int, ...]


def make_film(
    runs: Sequence[Run],
    metric: str,
    *,
    frames: int,
    per_element: bool = False,
    steps: Steps = (None, None),
) -> Film:
    """Cut the training into stretches of equal length, and profile each.

    Args:
        runs: The runs.
        metric: A metric that each of them holds.
        frames: How many stretches, at most; fewer where there are fewer rows.
        per_element: The root mean square per element instead of the L2 norm.
        steps: First and last optimizer step; None is the beginning, or the end.

    Raises:
        ConfigError: As in ``make_ridges``.
    """
    if not runs:
        raise ConfigError("a film needs at least one run")
    view = View(metric, per_element, steps=steps)
    taken, all_layers = [], []
    for run in runs:
        panel = make_panel(run, view, columns=COLUMNS)
        kept = [
            i for i, layer in enumerate(panel.layers) if layer.role == "main" and not np.isnan(panel.drawn[i]).all()
        ]
        if not kept:
            raise ConfigError(f"no row of {metric} has been recorded yet in {run.name}")
        kept.sort(key=lambda i: panel.layers[i].depth)
        taken.append((panel.edges[:-1].astype(np.int64), panel.drawn[kept].T))
        all_layers.append(tuple(panel.layers[i] for i in kept))
    first = min(int(at[0]) for at, _ in taken)
    last = max(int(at[-1]) for at, _ in taken)
    count = max(1, min(frames, max(len(at) for at, _ in taken)))
    edges = np.linspace(first, last + 1, count + 1)
    shown = [_frames(at, drawn, edges) for at, drawn in taken]
    over = tuple(int(np.searchsorted(edges, at[-1], side="right")) - 1 for at, _ in taken)
    spans = np.stack([np.ceil(edges[:-1]), np.ceil(edges[1:]) - 1], axis=1).astype(np.int64)
    return Film(tuple(label_runs(list(runs))), tuple(runs), tuple(all_layers), spans, tuple(shown), over)


def _frames(steps: NDArray[np.int64], drawn: FloatArray, edges: FloatArray) -> FloatArray:
    """Return the median of each stretch, (F, M); a stretch without a row repeats the one before."""
    found = np.full((len(edges) - 1, drawn.shape[1]), np.nan)
    for k in range(len(found)):
        inside = drawn[(steps >= edges[k]) & (steps < edges[k + 1])]
        if len(inside):
            found[k] = _median(inside)
        elif k:
            found[k] = found[k - 1]
    return found


def _median(rows: FloatArray) -> FloatArray:
    """Return the (lower) median of each column, (M,), leaving out what is not known or not finite above."""
    ordered = np.sort(np.where(np.isposinf(rows), np.nan, rows), axis=0)  # NaN comes last
    counts = (~np.isnan(ordered)).sum(axis=0)
    middle = np.take_along_axis(ordered, np.maximum(counts - 1, 0)[None] // 2, axis=0)[0]
    return np.where(counts > 0, middle, np.nan)
