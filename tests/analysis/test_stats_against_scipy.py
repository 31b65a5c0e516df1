"""Each statistic against an independent result: scipy, a closed form, or a slow and simple reference."""

from __future__ import annotations

import importlib.util
import itertools
import math
import statistics
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import integrate, special
from scipy import stats as scipy_stats

from gradlens.analysis.bootstrap import (
    LONGER,
    RESAMPLES,
    block_length,
    median_estimate,
    neighbour_correlation,
    resampled_medians,
)
from gradlens.analysis.depth import theil_sen
from gradlens.analysis.profile import chunk_means
from gradlens.analysis.stats import difference_interval, gauss_legendre, mean_interval, median, t_975
from gradlens.charts.curves import make_curves
from gradlens.charts.heatmap import quiet_end
from gradlens.diagnosis.recorded_rows import run_of_arrays, share_beyond
from gradlens.row_chunks import STATISTICS, combine, summarise
from gradlens.study.measures import fieller, paired, slope_over
from gradlens.theory.laws import LogNormal
from gradlens.theory.mean_field import normalised, relu_product

EXACT = 1e-9
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SIZES = [2, 3, 4, 5, 7, 10, 20, 50]
NUMBERS = st.floats(-1000, 1000).map(lambda value: round(value, 6))


def sample(n: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng([n, seed]).normal(0.3, scale, size=n)


def arrays(least: int, most: int = 12) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float64, st.integers(least, most), elements=NUMBERS)


def experiment_file(*names: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"experiment_{names[-1]}", EXPERIMENTS.joinpath(*names))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


# --- Student's t ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0.1, 0.5, 1, 1.0001, 1.5, 1.999, 2, 3.7, 10, 30, 31, 49, 100.5, 1e4, 1e8, 1e15])
def test_quantiles_of_t(degrees: float) -> None:
    assert t_975(degrees) == pytest.approx(scipy_stats.t.ppf(0.975, degrees), rel=EXACT)


@given(st.floats(0.5, 200))
def test_quantiles_of_t_for_real_degrees(degrees: float) -> None:
    found = t_975(degrees)
    assert found == pytest.approx(scipy_stats.t.ppf(0.975, degrees), rel=EXACT)
    assert scipy_stats.t.cdf(found, degrees) == pytest.approx(0.975, abs=1e-12)


def test_quantiles_of_t_in_closed_form() -> None:
    # One degree is Cauchy's distribution; for two and four the distribution function can be solved for t.
    assert t_975(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)
    assert t_975(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-12)
    left = 4 * 0.975 * 0.025
    q = math.cos(math.acos(math.sqrt(left)) / 3) / math.sqrt(left)
    assert t_975(4) == pytest.approx(2 * math.sqrt(q - 1), rel=1e-12)
    assert t_975(1e14) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), rel=1e-12)


def test_no_degrees_of_freedom_have_no_quantile() -> None:
    assert all(math.isnan(t_975(degrees)) for degrees in (0, -1, math.nan, math.inf))


# --- Intervals of means -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_the_interval_of_a_mean(n: int, scale: float) -> None:
    values = sample(n, scale=scale)
    found = mean_interval(values)
    truth = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high), rel=EXACT, abs=0)
    assert found.std == pytest.approx(statistics.stdev(values.tolist()), rel=EXACT)
    assert found.mean == pytest.approx(statistics.fmean(values), rel=EXACT)


@given(arrays(2))
def test_the_interval_of_any_mean(values: np.ndarray) -> None:
    found = mean_interval(values)
    error = scipy_stats.sem(values)
    assume(error > 1e-6)  # of equal values only rounding is left
    low, high = scipy_stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=error)
    assert (found.low, found.high) == pytest.approx((low, high), rel=EXACT, abs=EXACT)


def test_equal_values_one_value_and_none() -> None:
    same = mean_interval(np.full(7, 2.5))
    assert (same.low, same.mean, same.high, same.std) == (2.5, 2.5, 2.5, 0.0)
    one = mean_interval(np.array([2.5]))
    assert one.mean == 2.5
    assert np.isnan([one.std, one.low, one.high]).all()
    none = mean_interval(np.array([math.nan, math.inf]))
    assert np.isnan([none.mean, none.low, none.high]).all()
    assert (none.n, none.left_out) == (0, 2)


@pytest.mark.parametrize("n", SIZES)
def test_values_that_are_not_finite_are_left_out(n: int) -> None:
    values = sample(n)
    gaps = np.insert(values, [0, 1, n], [math.nan, math.inf, -math.inf])
    a, b = mean_interval(values), mean_interval(gaps)
    assert (a.low, a.high, a.n, b.left_out) == (b.low, b.high, b.n, 3)


# --- Welch ------------------------------------------------------------------------------------------------------


def welch(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    truth = scipy_stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    return float(truth.low), float(truth.high)


@pytest.mark.parametrize("ratio", [0.01, 0.5, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("n", SIZES)
def test_welchs_interval(n: int, m: int, ratio: float) -> None:
    first, second = sample(n), sample(m, 1, ratio)
    found = difference_interval(first, second)
    assert (found.low, found.high) == pytest.approx(welch(first, second), rel=EXACT)
    turned = difference_interval(second, first)
    assert (-turned.high, -turned.low) == pytest.approx((found.low, found.high), rel=EXACT)


@given(arrays(2), arrays(2))
def test_welchs_interval_of_any_values(first: np.ndarray, second: np.ndarray) -> None:
    assume(min(first.std(), second.std()) > 1e-5)
    found = difference_interval(first, second)
    assert (found.low, found.high) == pytest.approx(welch(first, second), rel=EXACT, abs=EXACT)


def test_degrees_of_freedom_between_two_whole_numbers_are_not_rounded() -> None:
    # Variances 2.5 and 10 of five values each: 2.5^2 / (0.5^2 / 4 + 2^2 / 4) = 100 / 17 = 5.88 degrees.
    found = difference_interval(np.arange(1.0, 6.0), np.arange(2.0, 12.0, 2.0))
    half = math.sqrt(2.5) * scipy_stats.t.ppf(0.975, 100 / 17)
    assert (found.low, found.high) == pytest.approx((-3 - half, -3 + half), rel=EXACT)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 3), (20, 50)])
def test_welch_is_student_in_the_two_limits(n: int, m: int) -> None:
    # One side that does not vary leaves the other's degrees of freedom; two alike have those of both together.
    steady, varied = np.full(m, 1.25), sample(n)
    one = mean_interval(varied)
    apart = difference_interval(varied, steady)
    assert (apart.low, apart.high) == pytest.approx((one.low - 1.25, one.high - 1.25), rel=EXACT)
    alike = difference_interval(varied, varied + 1)
    pooled = scipy_stats.ttest_ind(varied, varied + 1).confidence_interval(0.95)
    assert (alike.low, alike.high) == pytest.approx((pooled.low, pooled.high), rel=EXACT)


def test_welchs_interval_of_tiny_variances() -> None:
    # The square of a variance of 1e-170 is 0 in float64.
    first, second = sample(4), sample(6, 1)
    near, far = difference_interval(first * 1e-85, second * 1e-85), difference_interval(first, second)
    assert (near.low, near.high) == pytest.approx((far.low * 1e-85, far.high * 1e-85), rel=EXACT, abs=0)
    assert far.high - far.low > 0.1


@pytest.mark.parametrize(("n", "m", "ratio"), [(2, 2, 1.0), (3, 3, 5.0), (2, 5, 1.0), (5, 5, 2.0), (10, 3, 5.0)])
def test_welchs_interval_contains_the_true_difference(n: int, m: int, ratio: float) -> None:
    rng = np.random.default_rng(0)
    found = [difference_interval(rng.normal(size=n), rng.normal(0, ratio, size=m)) for _ in range(1500)]
    assert 0.92 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.985


# --- Fieller ----------------------------------------------------------------------------------------------------


def ratio_of(n: int, seed: int, noise: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([n, seed])
    whole = rng.normal(1.0, noise, size=n)
    return rng.uniform(-1, 1) * whole + rng.normal(0, noise, size=n), whole


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", SIZES)
def test_at_fiellers_ends_students_test_is_at_5_percent(n: int, seed: int) -> None:
    part, whole = ratio_of(n, seed, 0.02 if n < 4 else 0.2)
    found = fieller(part, whole)
    assert math.isfinite(found.low)
    assert found.low < found.mean < found.high
    for ratio in (found.low, found.high):
        assert scipy_stats.ttest_1samp(part - ratio * whole, 0.0).pvalue == pytest.approx(0.05, abs=EXACT)


@pytest.mark.parametrize("n", SIZES)
def test_fieller_of_a_whole_that_does_not_vary_is_student(n: int) -> None:
    part = sample(n)
    found, plain = fieller(part, np.full(n, 4.0)), mean_interval(part / 4)
    assert (found.mean, found.low, found.high) == pytest.approx((plain.mean, plain.low, plain.high), rel=EXACT)


@given(st.integers(0, 10**6), st.integers(2, 30))
def test_fieller_is_infinite_where_the_whole_may_be_0(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    part, whole = rng.normal(size=n), rng.normal(0.3, 1.0, size=n)
    found = fieller(part, whole)
    p = scipy_stats.ttest_1samp(whole, 0.0).pvalue
    assume(abs(p - 0.05) > EXACT)
    assert math.isfinite(found.low) == math.isfinite(found.high) == (p < 0.05)


def test_fieller_at_its_edges() -> None:
    exact = fieller(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]) * 1e3)
    assert math.isinf(exact.low)  # 4000 -+ 4969: the whole may be 0
    exact = fieller(np.array([1.0, 1.1, 0.9]) / 4, np.array([1.0, 1.1, 0.9]))
    assert (exact.low, exact.mean, exact.high) == pytest.approx((0.25, 0.25, 0.25), abs=1e-7)  # root of a rounding
    one = fieller(np.array([1.0, math.nan]), np.array([2.0, 3.0]))
    assert (one.mean, one.n, one.left_out) == (0.5, 1, 1)
    assert np.isnan([one.low, one.high]).all()
    assert math.isnan(fieller(np.empty(0), np.empty(0)).mean)


@pytest.mark.parametrize("n", SIZES)
def test_paired_differences(n: int) -> None:
    first, second = sample(n), sample(n, 1)
    found = paired({**dict(enumerate(first)), -1: 9.0}, {**dict(enumerate(second)), -2: 9.0})
    truth = scipy_stats.ttest_rel(second, first).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high), rel=EXACT)


# --- Slopes -----------------------------------------------------------------------------------------------------


@given(arrays(2, 15))
def test_theil_and_sens_slope(values: np.ndarray) -> None:
    truth = scipy_stats.theilslopes(values).slope  # towards the output
    assert theil_sen(values[None])[0] == pytest.approx(-truth, rel=EXACT, abs=EXACT)


@pytest.mark.parametrize("n", SIZES)
def test_theil_and_sens_slope_with_layers_left_out(n: int) -> None:
    values = np.stack([sample(n + 2, seed) for seed in range(20)])
    for row, gap in zip(values, np.random.default_rng(0).integers(0, n + 2, 20), strict=True):
        row[gap] = math.nan
    known = ~np.isnan(values)
    truth = [
        -scipy_stats.theilslopes(row[kept], np.flatnonzero(kept)).slope for row, kept in zip(values, known, strict=True)
    ]
    np.testing.assert_allclose(theil_sen(values), truth, rtol=EXACT)


def test_theil_and_sens_slope_at_its_edges() -> None:
    assert math.isnan(theil_sen(np.array([[1.0]]))[0])
    assert math.isnan(theil_sen(np.array([[math.nan, 1.0]]))[0])
    assert theil_sen(np.full((1, 6), 2.0))[0] == 0
    assert theil_sen(np.array([[-math.inf, -math.inf, 1.0, 2.0]]))[0] == -math.inf  # four of the five pairs known
    assert theil_sen(np.array([[-math.inf, 1.0, 2.0, 3.0]]))[0] == -1.0  # three of six, and the others agree
    np.testing.assert_allclose(theil_sen(-0.5 * np.arange(9.0)[None]), [0.5], rtol=EXACT)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=8, unique=True), st.data())
def test_the_least_squares_slope_over_depths(depths: list[int], data: st.DataObject) -> None:
    values = data.draw(hnp.arrays(np.float64, len(depths), elements=NUMBERS))
    truth = scipy_stats.linregress(np.array(depths) / 10, values).slope
    assert slope_over(np.array(depths), values) == pytest.approx(truth, rel=1e-7, abs=1e-7)


# --- Medians and quantiles --------------------------------------------------------------------------------------


@given(st.lists(NUMBERS, min_size=1, max_size=30), st.integers(0, 3))
def test_medians(values: list[float], gaps: int) -> None:
    row = np.array(values + [math.nan] * gaps)
    row = np.random.default_rng(0).permutation(row)
    assert median(row) == pytest.approx(statistics.median(values), rel=1e-15)
    assert median(row[:, None], axis=0)[0] == pytest.approx(statistics.median(values), rel=1e-15)


@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 21, 50, 101])
def test_the_band_of_a_profile_over_rows(n: int, gap: bool) -> None:
    # Of a magnitude: the least value that so many of the rows are at most at, since zeros, at -inf, allow no mean.
    values = np.exp(sample(n, scale=3.0))
    values[: n // 5] = 0.0
    rows = np.append(values, math.nan) if gap else values
    run = run_of_arrays(
        {"param_grad_norm": rows[:, None] * [1.0, 10.0], "path_cosine": np.tanh(rows)[:, None] * [1, 1]}
    )
    curve = make_curves([run], "param_grad_norm")[0]
    with np.errstate(divide="ignore"):
        ordered = np.sort(np.log10(values))
    at = scipy_stats.randint(0, n).ppf([0.1, 0.5, 0.9]).astype(int)
    found = np.array([curve.low, curve.centre, curve.high])
    np.testing.assert_allclose(found, ordered[at][:, None] + [0, 1], rtol=EXACT, atol=1e-12)
    assert curve.centre[0] == pytest.approx(statistics.median_low(ordered), abs=1e-12)
    linear = make_curves([run], "path_cosine")[0]
    if n > 1:
        deciles = statistics.quantiles(np.tanh(values), n=10, method="inclusive")
        truth = (deciles[0], statistics.median(np.tanh(values)), deciles[8])
        assert (linear.low[0], linear.centre[0], linear.high[0]) == pytest.approx(truth, rel=EXACT, abs=1e-12)


@pytest.mark.parametrize("n", SIZES)
def test_the_power_of_ten_that_nine_in_ten_exceed(n: int) -> None:
    sizes = np.exp(sample(n, scale=2.0))
    decile = statistics.quantiles(sizes, n=10, method="inclusive")[0]
    assert quiet_end(np.concatenate([-sizes[::2], sizes[1::2], [0.0, math.nan]])) == 10.0 ** math.floor(
        math.log10(decile)
    )


# --- Bootstrap --------------------------------------------------------------------------------------------------


def related(n: int, phi: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng([n, seed])
    series = rng.normal(size=n)
    for i in range(1, n):
        series[i] = phi * series[i - 1] + math.sqrt(1 - phi**2) * series[i]
    return series


def unrelated(n: int, seed: int) -> np.ndarray:
    """Return a series whose blocks are single values."""
    rng = np.random.default_rng([n, seed])
    found = rng.normal(size=n)
    while block_length(n, neighbour_correlation(found)) > 1:
        found = rng.permutation(found)
    return found


def obvious_correlation(series: list[float]) -> float:
    mean = sum(series) / len(series)
    over = sum((a - mean) * (b - mean) for a, b in itertools.pairwise(series))
    found = over / sum((a - mean) ** 2 for a in series)
    return min(max(found + (1 + 4 * found) / len(series), 0.0), 0.99)


def obvious_length(n: int, likeness: float) -> int:
    """Carlstein's best length for an AR(1) series, times (3/2)^(1/3) as blocks overlap, and doubled."""
    rule = (2 * likeness / (1 - likeness**2)) ** (2 / 3) * n ** (1 / 3) * 1.5 ** (1 / 3)
    return min(max(round(LONGER * rule), 1), max(n // 4, 1))


def obvious_medians(series: list[float], length: int) -> list[float]:
    """Resample the blocks one by one."""
    n = len(series)
    blocks = math.ceil(n / length)
    starts = np.random.default_rng(0).integers(0, n - length + 1, (RESAMPLES, blocks))
    found = []
    for row in starts:
        drawn: list[float] = []
        for start in row:
            for i in range(start, start + length):
                if len(drawn) < n:
                    drawn.append(series[i])
        found.append(statistics.median(drawn))
    return found


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("n", [5, 20, 50, 201])
def test_the_moving_block_bootstrap(n: int, phi: float) -> None:
    series = related(n, phi, 0)
    values = series.tolist()
    likeness = obvious_correlation(values)
    assert neighbour_correlation(series) == pytest.approx(likeness, rel=EXACT, abs=EXACT)
    length = obvious_length(n, likeness)
    assert block_length(n, neighbour_correlation(series)) == length
    drawn = obvious_medians(values, length)
    np.testing.assert_allclose(resampled_medians(np.insert(series, 1, math.nan)), drawn, rtol=1e-15)
    found = median_estimate(series)
    assert found.value == pytest.approx(statistics.median(values), rel=1e-15)
    if n * (1 - likeness) / (1 + likeness) < 5:
        assert math.isnan(found.low)
        return
    blocks = math.ceil(n / length)
    half = scipy_stats.t.ppf(0.975, blocks - 1) * statistics.stdev(drawn) * math.sqrt(blocks / (blocks - 1))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=EXACT)


def exact_bootstrap(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the possible medians of an odd number of resampled values, and their probabilities.

    It is at most the k-th smallest where more than half of the draws are. Source: Efron 1982, The Jackknife, the
    Bootstrap and Other Resampling Plans, sec. 10.3.
    """
    n = len(values)
    at_most = scipy_stats.binom.sf((n - 1) // 2, n, np.arange(n + 1) / n)
    return np.sort(values), np.diff(at_most)


@pytest.mark.parametrize("n", [5, 11, 25, 51, 101])
def test_the_bootstrap_of_single_values_is_efrons(n: int) -> None:
    values = unrelated(n, 1)
    places, chances = exact_bootstrap(values)
    drawn = resampled_medians(values)
    mean = float(places @ chances)
    std = math.sqrt(float((places - mean) ** 2 @ chances))
    assert drawn.mean() == pytest.approx(mean, abs=4 * std / math.sqrt(RESAMPLES))
    assert drawn.std() == pytest.approx(std, rel=0.15)
    # The largest gap between the two distribution functions, as Kolmogorov has it (at 1 in 1000).
    counted = (drawn[:, None] <= places).mean(axis=0)
    assert np.abs(counted - np.cumsum(chances)).max() < 1.95 / math.sqrt(RESAMPLES)
    theirs = scipy_stats.bootstrap((values,), np.median, n_resamples=4000, method="percentile", random_state=0)
    assert drawn.std(ddof=1) == pytest.approx(theirs.standard_error, rel=0.15)


@pytest.mark.parametrize("n", [25, 51, 101])
@pytest.mark.parametrize("below", [True, False])
def test_how_sure_a_median_is_beyond_a_line(n: int, below: bool) -> None:
    values = unrelated(n, 2)
    places, chances = exact_bootstrap(values)
    line = places[round((0.57 if below else 0.43) * n)]  # a median on the line is not beyond it
    truth = float(chances[places < line].sum() if below else chances[places > line].sum())
    assert 0.55 < truth < 0.99
    found = share_beyond(values, line, below=below)
    assert found == pytest.approx(truth, abs=4 * math.sqrt(truth * (1 - truth) / RESAMPLES) + 1 / RESAMPLES)
    # Laplace's rule of succession is the mean of a share of which nothing was known before.
    hits = int((resampled_medians(values) < line).sum() if below else (resampled_medians(values) > line).sum())
    assert found == pytest.approx(scipy_stats.beta(1 + hits, 1 + RESAMPLES - hits).mean(), rel=EXACT)


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_the_correlation_of_neighbours_is_not_biased(phi: float) -> None:
    # Cut at 0 it would be; so the mean is taken where it is hardly ever cut, and at 0 over both signs.
    n, count = 40, 3000
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(count, n + 50))
    series = np.zeros((count, n + 50))
    for i in range(1, n + 50):
        series[:, i] = phi * series[:, i - 1] + noise[:, i]
    found = np.array([neighbour_correlation(row) for row in series[:, 50:]])
    if phi:
        assert found.mean() == pytest.approx(phi, abs=0.02)
    else:
        assert np.median(found) == pytest.approx(0.0, abs=0.02)
        assert np.mean(found > 0) == pytest.approx(0.5, abs=0.05)


# --- Densities --------------------------------------------------------------------------------------------------


# --- Geometric means --------------------------------------------------------------------------------------------


@given(hnp.arrays(np.float64, st.integers(1, 20), elements=st.sampled_from([0.0, math.nan]) | st.floats(1e-30, 1e30)))
def test_geometric_means(values: np.ndarray) -> None:
    positive = values[values > 0]
    truth = scipy_stats.gmean(positive) if len(positive) else 0.0 if (values == 0).any() else math.nan
    start = np.zeros(1, dtype=np.int64)
    assert chunk_means(values[:, None], start)[0, 0] == pytest.approx(truth, rel=EXACT, nan_ok=True)
    whole = summarise(values, start)[0]
    parts = combine(summarise(values, np.unique([0, len(values) // 2])), start)[0]
    for found in (whole, parts):
        named = dict(zip(STATISTICS, found, strict=True))
        assert (named["count"], named["zeros"]) == (len(positive), (values == 0).sum())
        if len(positive):
            assert named["mean"] == pytest.approx(truth, rel=EXACT)


@pytest.mark.parametrize("variance", [0.01, 0.5, 3.0])
def test_the_law_of_a_squared_norm_is_lognormal(variance: float) -> None:
    law, truth = LogNormal(variance), scipy_stats.lognorm(s=math.sqrt(variance), scale=math.exp(-variance / 2))
    assert truth.mean() == pytest.approx(1.0, rel=EXACT)  # the squared norm's own
    assert law.spread_decades == pytest.approx(math.sqrt(variance) / 2 / math.log(10), rel=EXACT)


# --- Expectations in closed form, and by quadrature ---------------------------------------------------------------


@pytest.mark.parametrize("points", [1, 2, 64, 200])
def test_the_nodes_of_gauss_and_legendre(points: int) -> None:
    for found, truth in zip(gauss_legendre(points), special.roots_legendre(points), strict=True):
        np.testing.assert_allclose(found, truth, rtol=EXACT, atol=1e-14)


@pytest.mark.parametrize("correlation", [-1.0, -0.9, -0.3, 0.0, 0.5, 0.99, 1.0])
def test_the_product_of_two_relus(correlation: float) -> None:
    left = math.sqrt(1 - correlation**2)

    def given_one(a: float) -> float:  # E[relu(b) | a], b ~ Normal(correlation a, left^2)
        if left == 0:
            return max(correlation * a, 0.0)
        z = correlation * a / left
        return correlation * a * special.ndtr(z) + left * scipy_stats.norm.pdf(z)

    truth, _ = integrate.quad(lambda a: a * scipy_stats.norm.pdf(a) * given_one(a), 0, 40, epsabs=1e-12, limit=200)
    assert relu_product(correlation) == pytest.approx(truth, abs=1e-9)


@pytest.mark.parametrize("spectrum", [[(1.0, 4.0)], [(1.0, 3.0), (0.2, 7.0)], [(2.0, 31.0), (0.5, 1.0), (0.1, 50.0)]])
def test_what_is_left_of_a_spectrum_when_it_is_divided_by_its_length(spectrum: list[tuple[float, float]]) -> None:
    def moments(s: float) -> float:  # E[exp(-s X)]
        return math.prod((1 + 2 * s * weight) ** (-degrees / 2) for weight, degrees in spectrum)

    shares, inverse = normalised(np.array(spectrum))
    truth, _ = integrate.quad(moments, 0, math.inf, epsabs=1e-13, limit=500)
    assert inverse == pytest.approx(truth, rel=1e-7)
    for share, (weight, degrees) in zip(shares, spectrum, strict=True):
        part = integrate.quad(
            lambda s, w=weight, d=degrees: moments(s) * w * d / (1 + 2 * s * w), 0, math.inf, epsabs=1e-13, limit=500
        )[0]
        assert share == pytest.approx(part, rel=1e-7)
    if len(spectrum) == 1:
        assert inverse == pytest.approx(1 / (spectrum[0][1] - 2) / spectrum[0][0], rel=EXACT)
    assert shares.sum() == pytest.approx(1.0, rel=1e-7)


# --- Experiments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [1, 2, 10, 93, 500])
def test_wilsons_interval_of_a_share(of: int) -> None:
    wilson = experiment_file("scorecard", "score.py").wilson
    for hits in {0, 1, of // 2, of - 1, of}:
        truth = scipy_stats.binomtest(hits, of).proportion_ci(0.95, method="wilson")
        exact = wilson(hits, of, statistics.NormalDist().inv_cdf(0.975))
        assert exact == pytest.approx((truth.low, truth.high), rel=EXACT, abs=1e-12)
        assert wilson(hits, of) == pytest.approx((truth.low, truth.high), abs=1e-5)  # z rounded to 1.96
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_bootstrap_of_ratios_of_step_times() -> None:
    compare = experiment_file("overhead", "stats.py").compare
    rng = np.random.default_rng(0)
    bare = rng.gamma(50, 0.02, size=30)
    seconds = bare * rng.normal(1.1, 0.05, size=30)
    found = compare(seconds, bare)
    quartiles = statistics.quantiles(seconds / bare, method="inclusive")
    assert (found["low"], found["median"], found["high"]) == pytest.approx(tuple(quartiles), rel=EXACT)

    def ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return a.sum(axis=axis) / b.sum(axis=axis)

    truth = scipy_stats.bootstrap(
        (seconds, bare), ratio, paired=True, confidence_level=0.9, n_resamples=9999, method="percentile", random_state=0
    )
    interval, error = truth.confidence_interval, truth.standard_error
    assert found["sums"] == pytest.approx(seconds.sum() / bare.sum(), rel=EXACT)
    assert found["sums_low"] == pytest.approx(interval.low, abs=0.15 * error)
    assert found["sums_high"] == pytest.approx(interval.high, abs=0.15 * error)
