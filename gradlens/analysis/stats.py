"""Means over seeds with confidence intervals, and medians."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradlens.analysis.parts import parts_of
from gradlens.run import FloatArray

LEAST_DEGREES = 0.1
"""Far below this the quantile exceeds the range of float64; intervals have at least 1 degree of freedom."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its standard deviation and confidence interval.

    Args:
        mean: Mean of the finite values; NaN if there are none.
        std: Standard deviation between seeds (n - 1); NaN for fewer than two.
        low: Lower end of the 95 % interval of the mean; NaN for fewer than two.
        high: Upper end of the interval.
        n: Number of finite values.
        left_out: Number of values that were not finite.
    """

    mean: float
    std: float
    low: float
    high: float
    n: int
    left_out: int = 0


@cache
def gauss_legendre(points: int) -> tuple[FloatArray, FloatArray]:
    """Return the (points,) nodes and weights of Gauss-Legendre quadrature on [-1, 1]; results are cached."""
    return np.polynomial.legendre.leggauss(points)


@cache
def t_975(degrees: float) -> float:
    """Return the 0.975 quantile of Student's t.

    With t = sqrt(degrees) sinh(x / sqrt(degrees)) the density (Abramowitz & Stegun 1964, 26.7.1) becomes proportional
    to cosh(x / sqrt(degrees))^-degrees, an even and smooth curve. The trapezoidal rule gives the area under the whole
    curve (Trefethen & Weideman 2014, The Exponentially Convergent Trapezoidal Rule), Gauss-Legendre quadrature the area
    up to x. Newton's method finds the x for which 95 % of the area lies between -x and x. Because the curve
    decreases, Newton's method approaches x from below and never overshoots it.

    Args:
        degrees: Degrees of freedom, a real number; at least ``LEAST_DEGREES``.

    Returns:
        The quantile, with a relative error below 1e-12; NaN for fewer degrees of freedom, or infinitely many.

    Source: Abramowitz & Stegun 1964, 26.7.1.
    """
    if not LEAST_DEGREES <= degrees < math.inf:
        return math.nan
    root = math.sqrt(degrees)

    def curve(x: FloatArray | float) -> FloatArray:
        return np.asarray(np.exp(-degrees * np.log1p(2 * np.sinh(x / (2 * root)) ** 2)))

    step = 0.05
    half = step * (float(curve(np.arange(0, 10 + 40 / root, step)).sum()) - 0.5)
    nodes, weights = gauss_legendre(64)
    x = 0.0
    for _ in range(20):
        area = x / 2 * float(weights @ curve(x / 2 * (nodes + 1)))
        x += (0.95 * half - area) / float(curve(x))
    return root * math.sinh(x / root)


def mean_interval(values: FloatArray) -> Interval:
    """Return the mean of independent values with Student's 95 % interval.

    Args:
        values: (S,) one per seed; values that are not finite are left out.

    Returns:
        The mean and its interval, in the unit of the values.

    Source: Student 1908, The Probable Error of a Mean.
    """
    values = np.asarray(values, dtype=np.float64)
    total = len(values)
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, np.nan, 0, total)
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, np.nan, np.nan, np.nan, 1, total - 1)
    std = float(values.std(ddof=1))
    half = t_975(n - 1) * std / np.sqrt(n)
    return Interval(mean, std, mean - half, mean + half, n, total - n)


def difference_interval(first: FloatArray, second: FloatArray) -> Interval:
    """Return the difference between two means of independent values with Welch's 95 % interval.

    The degrees of freedom are a real number and are not rounded.

    Args:
        first: (S,) one per seed; values that are not finite are left out.
        second: (S',) the values whose mean is subtracted.

    Returns:
        First mean minus second, in the unit of the values; ``std`` is the standard error of the difference, ``n`` the
        smaller number of values.

    Source: Welch 1947, The generalization of Student's problem when several different population variances are
    involved; degrees of freedom by Satterthwaite 1946, An Approximate Distribution of Estimates of Variance Components.
    """
    one, other = (np.asarray(values, dtype=np.float64) for values in (first, second))
    left_out = int((~np.isfinite(one)).sum() + (~np.isfinite(other)).sum())
    one, other = one[np.isfinite(one)], other[np.isfinite(other)]
    n = min(len(one), len(other))
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, np.nan, 0, left_out)
    mean = float(one.mean() - other.mean())
    if n == 1:
        return Interval(mean, np.nan, np.nan, np.nan, 1, left_out)
    parts = [float(values.var(ddof=1)) / len(values) for values in (one, other)]
    error = float(np.sqrt(sum(parts)))
    if error == 0:
        return Interval(mean, 0.0, mean, mean, n, left_out)
    shares = [part / sum(parts) for part in parts]
    degrees = 1 / sum(share**2 / (len(values) - 1) for share, values in zip(shares, (one, other), strict=True))
    half = t_975(degrees) * error
    return Interval(mean, error, mean - half, mean + half, n, left_out)


POWER_Z = 1.9600 + 0.8416
"""Normal quantiles of 97.5 % and 80 %: a two-sided test at 5 % with a power of 0.8."""


def seeds_for_power(std: float, distance: float) -> float:
    """Return how many independent values give a test a power of 0.8, for a mean so far from a threshold.

    The normal approximation, and 2 more for Student's t; two-sided at 5 %.

    Args:
        std: The standard deviation of a value.
        distance: The distance of the mean from the threshold.

    Returns:
        The number, at least 3; infinite without a distance, NaN where the standard deviation is not known.

    Source: Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, section 2.4.
    """
    if math.isnan(std) or math.isnan(distance):
        return math.nan
    return math.inf if distance == 0 else max(3.0, math.ceil((POWER_Z * std / distance) ** 2) + 2.0)


def median(values: ArrayLike, axis: int = -1) -> FloatArray:
    """Return the median along an axis; NaN is left out, and infinities count as values.

    The median is the mean of the two middle values where both are finite. If only one is infinite, it is the finite
    one; opposite infinities give NaN.

    Args:
        values: An array of any shape.
        axis: The axis to reduce.

    Returns:
        An array without that axis, in the unit of the values; NaN where no value is known.
    """
    values = np.moveaxis(np.asarray(values), axis, -1)
    if values.ndim == 2:
        return np.concatenate([_median(values[part]) for part in parts_of(*values.shape)])
    return _median(values)


def _median(values: NDArray[Any]) -> FloatArray:
    """Return the median along the last axis, float64."""
    ordered = np.sort(values, axis=-1)  # NaN is sorted last
    if not ordered.shape[-1]:
        return np.full(ordered.shape[:-1], np.nan)
    count = (~np.isnan(ordered)).sum(axis=-1)
    low, high = (
        np.take_along_axis(ordered, np.maximum(place, 0)[..., None], axis=-1)[..., 0].astype(np.float64)
        for place in ((count - 1) // 2, np.minimum(count // 2, ordered.shape[-1] - 1))
    )
    with np.errstate(invalid="ignore"):
        mean = low / 2 + high / 2
    mixed = np.isinf(low) != np.isinf(high)
    found = np.where(mixed, np.where(np.isinf(low), high, low), mean)
    return np.asarray(np.where(count > 0, found, np.nan))


def median_of_all(values: ArrayLike) -> float:
    """Return the median of all values of an array, as ``median`` defines it; NaN where none is known.

    Args:
        values: An array of any shape.

    Returns:
        One number, in the unit of the values.
    """
    return float(median(np.ravel(values)))
