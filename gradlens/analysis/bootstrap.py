"""The median of a series of dependent numbers, with a confidence interval by block bootstrap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.stats import median, t_975
from gradlens.run import FloatArray

RESAMPLES = 500
LEAST_INDEPENDENT = 5.0
"""A series whose effective number of independent values is smaller gets no interval."""
LONGER = 2.0
"""Factor on the block length of the rule. With it, in simulations of AR(1) series of 20 to 600 rows, the 95 % intervals
of medians contained the true median in 91 % to 97 % of the cases (``tests/analysis/test_bootstrap.py``)."""


@dataclass(frozen=True)
class Estimate:
    """A median over rows with its 95 % interval.

    Args:
        value: The median; may be -inf or inf; NaN where no value is known.
        low: Lower end of the interval; NaN where the rows are too few or too correlated for an interval.
        high: Upper end of the interval.
        rows: Number of rows, or chunks of rows, in the median.
    """

    value: float
    low: float
    high: float
    rows: int


def median_estimate(series: FloatArray) -> Estimate:
    """Return the median of a series with a 95 % interval that allows for correlated neighbours.

    A moving-block bootstrap resamples blocks of neighbouring values, which preserves their dependence. The interval is
    the median -+ Student's t times the standard deviation of the resampled medians, with one degree of freedom fewer
    than there are blocks. Where resampled medians are infinite, the interval consists of their 2.5 % and 97.5 %
    quantiles instead. The random generator is seeded: the same series gives the same interval. The interval is valid
    for series without a trend; a trend makes it wide.

    Args:
        series: (T,) values in order of rows; NaN is left out.

    Returns:
        The median and its interval, in the unit of the series.

    Source: Künsch 1989, The Jackknife and the Bootstrap for General Stationary Observations; Liu & Singh 1992.
    """
    series = np.asarray(series, dtype=np.float64)
    series = series[~np.isnan(series)]
    n = len(series)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = float(median(series))
    if n > 1 and (series == series[0]).all():
        return Estimate(value, value, value, n)
    correlation = neighbour_correlation(series)
    if n * (1 - correlation) / (1 + correlation) < LEAST_INDEPENDENT:
        return Estimate(value, math.nan, math.nan, n)
    length = block_length(n, correlation)
    blocks = -(-n // length)
    medians = median(series[_resample_blocks(n, length, blocks)])
    if np.isfinite(medians).all() and math.isfinite(value):
        half = t_975(blocks - 1) * float(medians.std(ddof=1)) * math.sqrt(blocks / (blocks - 1))
        return Estimate(value, value - half, value + half, n)
    ordered = np.sort(medians[~np.isnan(medians)])
    if not len(ordered):
        return Estimate(value, math.nan, math.nan, n)
    low, high = (float(ordered[round(q * (len(ordered) - 1))]) for q in (0.025, 0.975))
    return Estimate(value, low, high, n)


def resampled_medians(series: FloatArray) -> FloatArray:
    """Return the medians of block resamples of a series, made as in ``median_estimate``.

    Args:
        series: (T,) values in order of rows; NaN is left out.

    Returns:
        (RESAMPLES,) medians, in the unit of the series; empty where no value is known.
    """
    series = np.asarray(series, dtype=np.float64)
    series = series[~np.isnan(series)]
    n = len(series)
    if n == 0:
        return np.empty(0)
    length = block_length(n, neighbour_correlation(series))
    return median(series[_resample_blocks(n, length, -(-n // length))])


def _resample_blocks(n: int, length: int, blocks: int) -> NDArray[np.int64]:
    """Return (RESAMPLES, n) indices: blocks of neighbours, sampled with replacement."""
    starts = np.random.default_rng(0).integers(0, n - length + 1, (RESAMPLES, blocks))
    return (starts[..., None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :n]


def neighbour_correlation(series: FloatArray) -> float:
    """Return the correlation r of neighbouring values, from 0 to 0.99.

    The plain estimate is too low by (1 + 4 r) / n on average; the result is corrected for this bias.

    Args:
        series: (T,) values without NaN; infinities count as the largest or smallest finite value.

    Source: Kendall 1954, Note on Bias in the Estimation of Autocorrelation.
    """
    finite = series[np.isfinite(series)]
    if len(finite) < 2:
        return 0.0
    centred = np.clip(series, finite.min(), finite.max())
    centred = centred - centred.mean()
    square = float(centred @ centred)
    found = float(centred[1:] @ centred[:-1]) / square if square > 0 else 0.0
    return min(max(found + (1 + 4 * found) / len(series), 0.0), 0.99)


def block_length(n: int, correlation: float) -> int:
    """Return the length of bootstrap blocks, from 1 to a quarter of the series.

    It is (3/2 n)^(1/3) (2 r / (1 - r^2))^(2/3) for an AR(1) series whose neighbours have the correlation r, times
    ``LONGER``.

    Args:
        n: Number of values in the series.
        correlation: Correlation r of neighbouring values.

    Source: Carlstein 1986, The Use of Subseries Values for Estimating the Variance; Künsch 1989 for the factor 3/2.
    """
    rule = (1.5 * n) ** (1 / 3) * (2 * correlation / (1 - correlation**2)) ** (2 / 3)
    return int(min(max(round(LONGER * rule), 1), max(n // 4, 1)))
