"""Means with intervals over seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gradlens.run import FloatArray

# 0.975 quantiles of Student's t for 1 to 30 degrees of freedom.
# Source: Abramowitz & Stegun 1964, Handbook of Mathematical Functions, table 26.10.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
Z_975 = 1.960


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its spread.

    Args:
        mean: Over the finite values; NaN if there are none.
        std: Standard deviation between seeds (n - 1); NaN for fewer than two.
        low: Lower end of the 95 % interval of the mean; NaN for fewer than two.
        high: Its upper end.
        n: Number of finite values.
        left_out: Number of values that were not finite.
    """

    mean: float
    std: float
    low: float
    high: float
    n: int
    left_out: int = 0


def t_975(degrees: int) -> float:
    """Return the 0.975 quantile of Student's t.

    Beyond 30 degrees of freedom: z + (z^3 + z) / (4 df) + (5 z^5 + 16 z^3 + 3 z) / (96 df^2), an asymptotic expansion
    (Abramowitz & Stegun 1964, 26.7.5) that is right to three decimals there.
    """
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    z = Z_975
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def mean_interval(values: FloatArray) -> Interval:
    """Return the mean of independent values with Student's 95 % interval.

    Args:
        values: (S,) one per seed; values that are not finite are left out.

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
    """Return the difference between the means of independent values with Welch's 95 % interval.

    Args:
        first: (S,) one per seed; values that are not finite are left out.
        second: What is taken away.

    Source: Welch 1947, The generalization of Student's problem when several different population variances are
    involved; degrees of freedom by Satterthwaite 1946, rounded down.
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
    terms = [part**2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True)]
    half = t_975(max(int(sum(parts) ** 2 / sum(terms)), 1)) * error
    return Interval(mean, error, mean - half, mean + half, n, left_out)


def median(values: ArrayLike, axis: int = -1) -> FloatArray:
    """Return the median along an axis, over what is not NaN; infinities are values.

    Where the two middle values are finite it is their mean; where one is infinite, the other; where they are opposite
    infinities, NaN; where nothing is known, NaN.

    Args:
        values: An array of any shape.
        axis: The axis that goes.
    """
    ordered = np.sort(np.moveaxis(np.asarray(values, dtype=np.float64), axis, -1), axis=-1)  # NaN goes to the end
    if not ordered.shape[-1]:
        return np.full(ordered.shape[:-1], np.nan)
    count = (~np.isnan(ordered)).sum(axis=-1)
    low, high = (
        np.take_along_axis(ordered, np.maximum(place, 0)[..., None], axis=-1)[..., 0]
        for place in ((count - 1) // 2, np.minimum(count // 2, ordered.shape[-1] - 1))
    )
    with np.errstate(invalid="ignore"):
        mean = low / 2 + high / 2
    mixed = np.isinf(low) != np.isinf(high)
    found = np.where(mixed, np.where(np.isinf(low), high, low), mean)
    return np.asarray(np.where(count > 0, found, np.nan))
