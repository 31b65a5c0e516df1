"""How steep a depth profile is: decades per layer and from end to end, with intervals over steps and over seeds.

Decades are log10 of the metric; both numbers are counted towards the input, so that below 0 the metric shrinks on its
way back. The output layer is left out, as its gradient is the loss's own. What is no magnitude counts so:

* a layer without a value (NaN) or with one that is not finite in a row is left out of that row;
* a layer that is exactly 0 is at -inf decades. Between it and a layer nearer the output that is not 0, the slope is
  -inf; nearer the input, inf; between two zeros it is not known and left out. The slope is the median of all pairs, so
  a few zeros hardly move it, and it is -inf where most pairs say so;
* from end to end of the whole it is as ``gradlens.analysis.gradient_ratio`` says; of a stage -inf where the first layer
  is 0, inf where the last is, and not known where both are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.bootstrap import Estimate, median_estimate
from gradlens.analysis.gradient_ratio import GradientRatio, gradient_ratio
from gradlens.analysis.profile import ALL_ROWS, chunk_means, chunk_starts, find_stages, typical_values
from gradlens.analysis.stats import Interval, mean_interval, median
from gradlens.errors import ConfigError
from gradlens.metrics import is_linear
from gradlens.run import FloatArray, Run

WHOLE = "all"
LEAST_LAYERS = 3
MOST_ROWS = 1024
"""Of more rows, neighbours are put together first, by their geometric mean."""
MOST_PAIRS = 20_000_000
"""Rows times pairs of layers that are compared; deeper nets are followed by fewer, longer groups of rows."""
CHUNK = 1_000_000


@dataclass(frozen=True)
class DepthFit:
    """The steepness of one section of a run's profile.

    Args:
        section: "all", or a stage's name.
        layers: Indices of its layers, input first.
        ends: Indices of the two layers that ``decades`` compares: of the whole, as ``gradient_ratio`` chooses them.
        slope: Decades per layer towards the input (Theil-Sen), median over rows.
        decades: log10 of the first layer over the last, median over rows.
        zeros: Layers that are exactly 0 in more than half of the rows with a value.
        left_out: Layers without any finite value.
    """

    section: str
    layers: NDArray[np.int64]
    ends: tuple[int, int]
    slope: Estimate
    decades: Estimate
    zeros: int
    left_out: int


def theil_sen(decades: FloatArray) -> FloatArray:
    """Return the slope of each row: the median over all pairs of layers of their difference per layer between.

    Up to 29 % of the layers may be anything without moving it far.
    Source: Theil 1950; Sen 1968, Estimates of the Regression Coefficient Based on Kendall's Tau.

    Args:
        decades: (T, L) input first; -inf at exact zeros, NaN where not known.

    Returns:
        (T,) decades per layer towards the input; NaN where no pair is known.
    """
    first, last = np.triu_indices(decades.shape[1], 1)
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


def hidden_layers(run: Run) -> NDArray[np.int64]:
    """Return the indices of the main layers that ran, input first, without the output layer."""
    main = run.main_layers()
    ran = np.array([run.layers[i].out_numel > 0 for i in main], dtype=bool)
    return np.asarray(main[ran][:-1])


def fit_depth(run: Run, metric: str, rows: slice = ALL_ROWS, *, per_element: bool = False) -> list[DepthFit]:
    """Fit a run's profile as a whole, and stage by stage.

    Args:
        run: The run; a long one is followed by blocks of rows.
        metric: A metric that is a magnitude.
        rows: Which rows.
        per_element: The root mean square per element instead of the L2 norm.

    Returns:
        The whole first; then each stage of at least three layers, where there are several stages. Nothing where the
        run has fewer than three hidden layers.

    Raises:
        ConfigError: The run lacks the metric, or it is no magnitude (or, per element, no norm).
    """
    if is_linear(metric):
        raise ConfigError(f"{metric} is no magnitude: it has no slope in decades")
    hidden = hidden_layers(run)
    values = _grouped(typical_values(run, metric, rows, per_element=per_element)[:, hidden])
    if len(hidden) < LEAST_LAYERS:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.log10(np.where(np.isfinite(values), values, np.nan))
    stages = find_stages(tuple(run.layers[i] for i in hidden))
    long_stages = [stage for stage in stages if stage.stop - stage.start >= LEAST_LAYERS and len(stages) > 1]
    sections = [(WHOLE, slice(None)), *((stage.name, slice(stage.start, stage.stop)) for stage in long_stages)]
    fits = [_fit(name, hidden[part], decades[:, part]) for name, part in sections]
    ratio = gradient_ratio(run, metric, rows, per_element=per_element)
    return [_end_to_end(fits[0], ratio), *fits[1:]] if ratio is not None else fits


def _end_to_end(whole: DepthFit, ratio: GradientRatio) -> DepthFit:
    """Take the ratio from end to end from its one source; the interval is that of groups of rows, and holds it."""
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


def _grouped(values: FloatArray) -> FloatArray:
    """Leave out rows without any value, and put neighbours together where there are many."""
    values = values[~np.isnan(values).all(axis=1)]
    pairs = max(values.shape[1] * (values.shape[1] - 1) // 2, 1)
    most = min(MOST_ROWS, max(MOST_PAIRS // pairs, 16))
    return chunk_means(values, chunk_starts(len(values), most)) if len(values) > most else values


@dataclass(frozen=True)
class SeedFit:
    """The steepness over seeds: means with Student's 95 % interval; what is not finite is left out and counted."""

    section: str
    slope: Interval
    decades: Interval


def over_seeds(runs: Sequence[Sequence[DepthFit]]) -> list[SeedFit]:
    """Put the fits of several seeds together; the order of the seeds is irrelevant.

    Args:
        runs: The fits of each run, as ``fit_depth`` returns them; sections that not all have are left out.
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
