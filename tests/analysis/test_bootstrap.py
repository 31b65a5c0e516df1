"""Medians of dependent series: the intervals contain the true median in about 95 % of cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradlens.analysis.bootstrap import block_length, median_estimate, neighbour_correlation
from gradlens.analysis.stats import median


def ar1(n: int, phi: float, rng: np.random.Generator) -> np.ndarray:
    """Return a series of standard deviation 1 whose neighbours have the correlation phi."""
    noise = rng.normal(size=n) * math.sqrt(1 - phi**2)
    series = np.empty(n)
    series[0] = rng.normal()
    for i in range(1, n):
        series[i] = phi * series[i - 1] + noise[i]
    return series


def obvious_middle(row: np.ndarray) -> float:
    known = sorted(v for v in row if not math.isnan(v))
    if not known:
        return math.nan
    low, high = known[(len(known) - 1) // 2], known[len(known) // 2]
    if math.isinf(low) and math.isinf(high):
        return low if low == high else math.nan
    if math.isinf(low) or math.isinf(high):
        return high if math.isinf(low) else low
    return low / 2 + high / 2


VALUES = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf, 0.0]))


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 7)), elements=VALUES))
def test_the_median_with_infinities_and_gaps(values: np.ndarray) -> None:
    np.testing.assert_array_equal(median(values), [obvious_middle(row) for row in values])


@pytest.mark.parametrize(("n", "phi"), [(60, 0.0), (60, 0.5), (200, 0.8)])
def test_intervals_contain_the_true_median_in_about_95_percent_of_cases(n: int, phi: float) -> None:
    rng = np.random.default_rng(n)
    found = [median_estimate(ar1(n, phi, rng)) for _ in range(150)]
    covered = np.mean([e.low <= 0 <= e.high for e in found if not math.isnan(e.low)])
    assert 0.90 <= covered <= 0.99
    assert sum(math.isnan(e.low) for e in found) < 15


def test_the_same_series_gives_the_same_interval() -> None:
    series = ar1(80, 0.5, np.random.default_rng(1))
    assert median_estimate(series) == median_estimate(series.copy())


def test_the_interval_shifts_and_scales_with_the_series() -> None:
    series = ar1(80, 0.5, np.random.default_rng(1))
    a, b = median_estimate(series), median_estimate(3 + 2 * series)
    assert (b.value, b.low, b.high) == pytest.approx((3 + 2 * a.value, 3 + 2 * a.low, 3 + 2 * a.high))


def test_few_or_slowly_changing_rows_have_no_interval() -> None:
    assert math.isnan(median_estimate(np.array([])).value)
    assert math.isnan(median_estimate(np.array([1.0, 2.0])).low)
    assert math.isnan(median_estimate(np.arange(30.0)).low)
    steady = median_estimate(np.full(20, 0.3))
    assert (steady.low, steady.value, steady.high) == (0.3, 0.3, 0.3)


def test_infinities_count_as_values() -> None:
    series = np.where(np.random.default_rng(0).random(60) < 0.5, -np.inf, 0.0)
    found = median_estimate(series)
    assert found.low == -np.inf
    assert found.high in (0.0, -np.inf)
    assert found.rows == 60
    assert median_estimate(np.full(20, -np.inf)).value == -np.inf


def test_blocks_grow_with_correlation() -> None:
    rng = np.random.default_rng(0)
    likeness = [neighbour_correlation(ar1(2000, phi, rng)) for phi in (0.0, 0.5, 0.9)]
    np.testing.assert_allclose(likeness, [0.0, 0.5, 0.9], atol=0.05)
    lengths = [block_length(2000, r) for r in (0.0, 0.5, 0.9)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 1
    assert block_length(10, 0.9) == 2
