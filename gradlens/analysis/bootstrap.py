"""The median of a series of dependent numbers, with an interval by block bootstrap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.stats import median, t_975
from gradlens.run import FloatArray

RESAMPLES = 500
LEAST_INDEPENDENT = 5.0
"""A series that is worth fewer independent numbers than this gets no interval."""
LONGER = 2.0
"""Blocks are so many times longer than the rule says: in simulations of AR(1) series of 20 to 600 rows, the 95 %
intervals of medians then held the truth in 91 to 97 of 100 cases (``tests/analysis/test_bootstrap.py``)."""


@dataclass(frozen=True)
class Estimate:
    """A median over rows with its 95 % interval.

    Args:
        value: May be -inf or inf; NaN where nothing is known.
        low: Lower end; NaN where the rows are too few or too much alike to tell.
        high: Upper end.
        rows: The number of rows, or groups of rows, it is of.
    """

    value: float
    low: float
    high: float
    rows: int


def median_estimate(series: FloatArray) -> Estimate:
    """Return the median of a series with a 95 % interval that knows that neighbours are alike.

    Moving-block bootstrap: blocks of neighbouring values are drawn anew, so that their dependence stays (Künsch 1989,
    The Jackknife and the Bootstrap for General Stationary Observations; Liu & Singh 1992). The interval is the median
    -+ Student's t, with as many degrees of freedom as there are blocks less one, times the standard deviation of the
    resampled medians. Where infinities get into these, it is their 2.5 and 97.5 % quantiles instead. The same series
    gives the same interval: the draws are seeded. Valid for series without a trend; with one, it is wide.

    Args:
        series: (T,) in order; NaN is left out.
    """
    series = np.asarray(series, dtype=np.float64)
    series = series[~np.isnan(series)]
    n = len(series)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = float(median(series))
    if n > 1 and (series == series[0]).all():
        return Estimate(value, value, value, n)
    likeness = neighbour_correlation(series)
    if n * (1 - likeness) / (1 + likeness) < LEAST_INDEPENDENT:
        return Estimate(value, math.nan, math.nan, n)
    length = block_length(n, likeness)
    blocks = -(-n // length)
    medians = median(series[_draw_blocks(n, length, blocks)])
    if np.isfinite(medians).all() and math.isfinite(value):
        half = t_975(blocks - 1) * float(medians.std(ddof=1)) * math.sqrt(blocks / (blocks - 1))
        return Estimate(value, value - half, value + half, n)
    ordered = np.sort(medians[~np.isnan(medians)])
    if not len(ordered):
        return Estimate(value, math.nan, math.nan, n)
    low, high = (float(ordered[round(q * (len(ordered) - 1))]) for q in (0.025, 0.975))
    return Estimate(value, low, high, n)


def resampled_medians(series: FloatArray) -> FloatArray:
    """Return medians of the series drawn anew in blocks, as ``median_estimate`` does; empty where nothing is known."""
    series = np.asarray(series, dtype=np.float64)
    series = series[~np.isnan(series)]
    n = len(series)
    if n == 0:
        return np.empty(0)
    length = block_length(n, neighbour_correlation(series))
    return median(series[_draw_blocks(n, length, -(-n // length))])


def _draw_blocks(n: int, length: int, blocks: int) -> NDArray[np.int64]:
    """Return (RESAMPLES, n) indices: blocks of neighbours, drawn with replacement."""
    starts = np.random.default_rng(0).integers(0, n - length + 1, (RESAMPLES, blocks))
    return (starts[..., None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :n]


def neighbour_correlation(series: FloatArray) -> float:
    """Return the correlation of neighbours, at least 0 and below 1; infinities count as the largest finite values.

    The estimate is low by (1 + 4 r) / n on average (Kendall 1954, Note on Bias in the Estimation of Autocorrelation),
    which is put right.
    """
    finite = series[np.isfinite(series)]
    if len(finite) < 2:
        return 0.0
    centred = np.clip(series, finite.min(), finite.max())
    centred = centred - centred.mean()
    square = float(centred @ centred)
    found = float(centred[1:] @ centred[:-1]) / square if square > 0 else 0.0
    return min(max(found + (1 + 4 * found) / len(series), 0.0), 0.99)


def block_length(n: int, likeness: float) -> int:
    """Return how long blocks should be: at least 1, at most a quarter of the series.

    (3/2 n)^(1/3) (2 r / (1 - r^2))^(2/3) for an AR(1) series with the neighbours' correlation r, times ``LONGER``.
    Source: Carlstein 1986, The Use of Subseries Values for Estimating the Variance; Künsch 1989 for the factor 3/2.
    """
    rule = (1.5 * n) ** (1 / 3) * (2 * likeness / (1 - likeness**2)) ** (2 / 3)
    return int(min(max(round(LONGER * rule), 1), max(n // 4, 1)))
