"""The steepness of a depth profile: decades per layer and in total, with intervals over rows and over seeds.

Decades are log10 of the metric. Both numbers are counted toward the input: below 0, the metric shrinks toward the
input. The output layer is left out, because its gradient depends on the loss alone. Special values:

* A layer whose value is missing or not finite in a row is left out of that row.
* A layer that is exactly 0 is at -inf decades. The slope between it and a nonzero layer nearer the output is -inf,
  between it and a nonzero layer nearer the input inf; the slope between two zeros is unknown and left out. The slope
  of a section is the median over all pairs: a few zeros hardly change it, and it is -inf where most pairs are.
* For all layers, the total is that of ``gradlens.analysis.gradient_ratio``. For a stage it is -inf where the first
  layer is 0, inf where the last one is, and unknown where both are.

Shapes: T rows, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.bootstrap import Estimate, median_estimate
from gradlens.analysis.gradient_ratio import GradientRatio, gradient_ratio
from gradlens.analysis.parts import by_rows, over_layers
from gradlens.analysis.paths import LEAST_LAYERS, hidden_layers
from gradlens.analysis.profile import ALL_ROWS, chunk_means, chunk_starts, element_scale, find_stages, typical_held
from gradlens.analysis.stats import Interval, mean_interval, median
from gradlens.errors import ConfigError
from gradlens.metrics import is_linear
from gradlens.run import FloatArray, Run

WHOLE = "all"
MOST_ROWS = 1024
"""Where there are more rows, neighbours are first averaged by their geometric mean."""
MOST_PAIRS = 20_000_000
"""Maximum number of rows times pairs of layers; the rows of a deeper network are averaged in fewer, longer chunks."""
MOST_LAYERS = 1_500
"""Layers whose pairs give a slope."""
CHUNK = 1_000_000
"""Slopes that are computed at once; it limits memory."""


@dataclass(frozen=True)
class DepthFit:
    """The steepness of one section of a run's profile.

    Args:
        section: "all", or a stage's name.
        layers: Indices of its layers, input first.
        ends: Indices of the two layers that ``decades`` compares; for "all", those of ``gradient_ratio``.
        slope: Decades per layer toward the input (Theil-Sen), median over rows.
        decades: log10 of the first layer over the last, median over rows.
        zeros: Number of layers that are exactly 0 in more than half of the rows with a value.
        left_out: Number of layers without any finite value.
    """

    section: str
    layers: NDArray[np.int64]
    ends: tuple[int, int]
    slope: Estimate
    decades: Estimate
    zeros: int
    left_out: int


def theil_sen(decades: FloatArray) -> FloatArray:
    """Return the Theil-Sen slope of each row: the median slope over all pairs of layers.

    It is robust: up to 29 % of the layers may have arbitrary values. Where there are more
    than 1,500 layers, 1,500 evenly spaced ones are taken, since the number of pairs grows with the square.

    Args:
        decades: (T, L) input first; -inf at exact zeros, NaN where unknown.

    Returns:
        (T,) decades per layer toward the input; NaN where no pair is known.

    Source: Theil 1950; Sen 1968, Estimates of the Regression Coefficient Based on Kendall's Tau.
    """
    count = decades.shape[1]
    places = (
        np.arange(count) if count <= MOST_LAYERS else np.linspace(0, count - 1, MOST_LAYERS).round().astype(np.int64)
    )
    first, last = (places[ends] for ends in np.triu_indices(len(places), 1))
    if not len(first):
        return np.full(len(decades), np.nan)
    apart = (last - first).astype(np.float64)
    found = np.empty(len(decades))
    step = max(CHUNK // len(first), 1)
    for start in range(0, len(decades), step):
        rows = decades[start : start + step]
        with np.errstate(invalid="ignore"):
            found[start : start + step] = median((rows[:, first] - rows[:, last]) / apart)
    return found


def fit_depth(
    run: Run,
    metric: str,
    rows: slice = ALL_ROWS,
    *,
    per_element: bool = False,
    layers: NDArray[np.int64] | None = None,
) -> list[DepthFit]:
    """Fit a run's profile over all hidden layers, and stage by stage.

    Args:
        run: The run; a long one is read in chunks of rows.
        metric: A metric that is a magnitude.
        rows: The rows of interest.
        per_element: Use the root mean square per element instead of the L2 norm.
        layers: (L,) indices of the layers, input first; None for the hidden layers of the main path.

    Returns:
        All layers first; then each stage of at least three layers, where there are several stages. The list is empty
        where the run has fewer than three hidden layers.

    Raises:
        ConfigError: The run lacks the metric, the metric is not a magnitude, or ``per_element`` is set and it is not a
            norm.
    """
    if is_linear(metric):
        raise ConfigError(f"{metric} is not a magnitude: it has no slope in decades")
    hidden = hidden_layers(run) if layers is None else layers
    scale = element_scale(run, metric) if per_element else np.ones(len(run.layers))
    values = _grouped(typical_held(run, metric, rows), hidden, scale)
    if len(hidden) < LEAST_LAYERS:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.log10(np.where(np.isfinite(values), values, np.nan))
    stages = find_stages(tuple(run.layers[i] for i in hidden))
    long_stages = [stage for stage in stages if stage.stop - stage.start >= LEAST_LAYERS and len(stages) > 1]
    sections = [(WHOLE, slice(None)), *((stage.name, slice(stage.start, stage.stop)) for stage in long_stages)]
    fits = [_fit(name, hidden[part], decades[:, part]) for name, part in sections]
    ratio = gradient_ratio(run, metric, rows, per_element=per_element) if layers is None else None
    return [_end_to_end(fits[0], ratio), *fits[1:]] if ratio is not None else fits


def _end_to_end(whole: DepthFit, ratio: GradientRatio) -> DepthFit:
    """Replace the total by that of ``gradient_ratio``, and widen the interval until it contains it."""
    typical, decades = ratio.typical(), whole.decades
    low, high = np.fmin(decades.low, typical), np.fmax(decades.high, typical)
    if math.isnan(decades.low) or math.isnan(typical):
        low = high = math.nan
    ends = (int(ratio.indices[0]), int(ratio.indices[-2]))
    return replace(whole, ends=ends, decades=replace(decades, value=typical, low=float(low), high=float(high)))


def _fit(name: str, layers: NDArray[np.int64], decades: FloatArray) -> DepthFit:
    known = (~np.isnan(decades)).sum(axis=0)
    zeros = int((np.isneginf(decades).sum(axis=0) * 2 > np.maximum(known, 1)).sum())
    with np.errstate(invalid="ignore"):
        ends = decades[:, 0] - decades[:, -1]
    slope, total = median_estimate(theil_sen(decades)), median_estimate(ends)
    return DepthFit(name, layers, (int(layers[0]), int(layers[-1])), slope, total, zeros, int((known == 0).sum()))


def _grouped(values: FloatArray, layers: NDArray[np.int64], scale: FloatArray) -> FloatArray:
    """Return some layers without the rows that have no value of them; neighbours are averaged where rows are many."""
    known = np.flatnonzero(by_rows(lambda some: ~np.isnan(some[:, layers]).all(axis=1), values))
    pairs = max(len(layers) * (len(layers) - 1) // 2, 1)
    most = min(MOST_ROWS, max(MOST_PAIRS // pairs, 16))
    starts = chunk_starts(len(known), most) if len(known) > most else None

    def grouped(part: slice) -> FloatArray:
        some = values[:, layers[part]][known].astype(np.float64) / scale[layers[part]]
        return some if starts is None else chunk_means(some, starts)

    return over_layers(grouped, len(layers), len(values))


@dataclass(frozen=True)
class SeedFit:
    """The steepness over seeds: means with Student's 95 % interval; non-finite values are left out and counted."""

    section: str
    slope: Interval
    decades: Interval


def over_seeds(runs: Sequence[Sequence[DepthFit]]) -> list[SeedFit]:
    """Average the fits of several seeds; the order of the seeds is irrelevant.

    Args:
        runs: The fits of each run, as ``fit_depth`` returns them.

    Returns:
        One entry for each section that all runs have.
    """
    named = [{fit.section: fit for fit in fits} for fits in runs]
    common = [name for name in (named[0] if named else {}) if all(name in fits for fits in named)]
    return [
        SeedFit(
            name,
            mean_interval(np.sort([fits[name].slope.value for fits in named])),
            mean_interval(np.sort([fits[name].decades.value for fits in named])),
        )
        for name in common
    ]
