"""Slopes of depth profiles: planted slopes are found, and special values are treated as documented."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlens import read_run
from gradlens.analysis.bootstrap import Estimate
from gradlens.analysis.depth import DepthFit, fit_depth, over_seeds, theil_sen
from gradlens.charts.curves import layer_rows, make_curves, say_curve, slope_rows
from gradlens.errors import ConfigError
from gradlens.report.translator import translate
from tests.analysis.test_bootstrap import ar1, obvious_middle
from tests.report.english_words import english_in

METRIC = "activation_grad_norm"


def obvious_slope(row: np.ndarray) -> float:
    """Return the median over pairs, computed one by one."""
    pairs = itertools.combinations(range(len(row)), 2)
    with np.errstate(invalid="ignore"):
        return obvious_middle(np.array([(row[i] - row[j]) / (j - i) for i, j in pairs]))


@given(
    st.lists(
        st.one_of(st.floats(-40, 5), st.sampled_from([-math.inf, math.nan])), min_size=2, max_size=9
    )
)  # fmt: skip
def test_the_slope_is_the_median_of_all_pairs(values: list[float]) -> None:
    row = np.array(values)
    np.testing.assert_allclose(theil_sen(row[None])[0], obvious_slope(row), rtol=1e-12, atol=1e-12)


def test_many_rows_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = np.random.default_rng(0).normal(size=(50, 12))
    whole = theil_sen(grid)
    monkeypatch.setattr("gradlens.analysis.depth.CHUNK", 100)
    np.testing.assert_array_equal(theil_sen(grid), whole)


def test_a_zero_is_minus_infinity_decades_and_moves_the_slope_only_as_one_layer() -> None:
    straight = np.linspace(-3, 0, 11)
    one, most = straight.copy(), straight.copy()
    one[2] = -np.inf
    most[:8] = -np.inf
    slopes = theil_sen(np.array([straight, one, most, np.full(11, -np.inf), np.full(11, np.nan)]))
    assert slopes[0] == pytest.approx(-0.3)
    assert slopes[1] == pytest.approx(-0.3, abs=0.02)
    assert slopes[2] == -np.inf  # 24 pairs say so, 3 do not, 28 are not known
    assert np.isnan(slopes[3:]).all()


def fits(make_run, change=lambda grid: grid, **options) -> dict[str, DepthFit]:
    run = read_run(make_run(f"r{next(NUMBERS)}", change=change, **options))
    return {fit.section: fit for fit in fit_depth(run, METRIC)}


NUMBERS = itertools.count()


def test_a_planted_slope_is_found_over_all_and_by_stage(make_run) -> None:
    found = fits(make_run, decades=-4.0, layers=9)
    assert list(found) == ["all", "stage0", "stage1"]  # of stage2 only two layers are hidden
    for fit in found.values():
        assert fit.slope.value == pytest.approx(-0.5, abs=1e-5)
    assert found["all"].layers.tolist() == list(range(8))
    assert found["all"].decades.value == pytest.approx(-3.5, abs=1e-5)
    assert found["stage1"].decades.value == pytest.approx(-1.0, abs=1e-5)


@pytest.mark.parametrize("factor", [1e-20, 1.0, 1e20])
def test_scaling_all_gradients_leaves_the_slope(make_run, factor: float) -> None:
    rng = np.random.default_rng(0)
    noise = 10 ** (0.1 * rng.normal(size=(20, 6)))
    found = fits(make_run, change=lambda grid: grid * factor * noise)["all"]
    plain = fits(make_run, change=lambda grid: grid * noise)["all"]
    for a, b in ((found.slope, plain.slope), (found.decades, plain.decades)):
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-6)


def test_a_planted_slope_lies_in_its_interval_in_about_95_percent_of_cases() -> None:
    from gradlens.analysis.bootstrap import median_estimate

    rng = np.random.default_rng(3)
    depth = np.arange(10)
    covered = []
    for _ in range(150):
        noise = np.array([ar1(80, 0.6, rng) for _ in depth]).T
        found = median_estimate(theil_sen(-0.1 * depth[::-1] + 0.3 * noise))
        covered.append(found.low <= -0.1 <= found.high)
    assert 0.90 <= np.mean(covered) <= 0.99


def test_layers_with_special_values_are_counted(make_run) -> None:
    def odd(grid: np.ndarray) -> np.ndarray:
        grid[:, 0], grid[:, 1], grid[5:, 3] = 0, np.nan, np.inf
        return grid

    fit = fits(make_run, change=odd, layers=9)["all"]
    assert (fit.zeros, fit.left_out) == (1, 1)
    assert fit.decades.value == -np.inf
    assert math.isfinite(fit.slope.value)
    both = fits(make_run, change=lambda grid: np.where(np.isin(np.arange(9), [0, 7]), 0, grid), layers=9)["all"]
    assert both.decades.value == -np.inf  # the first layer is exactly 0, others are not
    last = fits(make_run, change=lambda grid: np.where(np.arange(9) == 7, 0, grid), layers=9)["all"]
    assert last.decades.value == np.inf


def test_only_rows_with_values_count_for_a_long_recording_interval(make_run) -> None:
    (fit, *_) = fit_depth(read_run(make_run()), "param_norm")
    assert fit.slope == Estimate(0.0, 0.0, 0.0, 2)


def test_the_rms_per_element_is_less_by_half_the_decades_of_the_sizes(make_run) -> None:
    run = read_run(make_run(decades=-3))
    (norm, *_), (rms, *_) = fit_depth(run, METRIC), fit_depth(run, METRIC, per_element=True)
    assert rms.decades.value - norm.decades.value == pytest.approx(np.log10(500 / 100) / 2, abs=1e-6)


def test_long_runs_are_read_in_chunks(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(make_run(steps=1000))
    exact, *_ = fit_depth(run, METRIC)
    monkeypatch.setattr("gradlens.analysis.profile.EXACT_NUMBERS", 100)
    monkeypatch.setattr("gradlens.analysis.profile.LONG_CHUNKS", 8)
    blocks, *_ = fit_depth(run, METRIC)
    assert blocks.slope.rows < 64
    assert blocks.slope.value == pytest.approx(exact.slope.value, abs=1e-6)


def test_small_models_and_shares_have_no_slope(make_run) -> None:
    assert fit_depth(read_run(make_run(layers=3)), METRIC) == []
    with pytest.raises(ConfigError, match="nonfinite_count is not a magnitude"):
        fit_depth(read_run(make_run("b")), "nonfinite_count")


@given(st.permutations(range(5)))
def test_the_order_of_seeds_is_irrelevant(order: list[int]) -> None:
    def fit(seed: int) -> list[DepthFit]:
        estimate = Estimate(0.1 * seed**2, math.nan, math.nan, 5)
        return [DepthFit("all", np.arange(3), (0, 2), estimate, estimate, 0, 0)]

    assert over_seeds([fit(seed) for seed in order]) == over_seeds([fit(seed) for seed in range(5)])


def test_seeds_are_grouped_with_a_band_and_single_runs_have_their_own_curve(make_run) -> None:
    for seed, decades in enumerate((-3.0, -3.2, -3.4)):
        make_run(f"net-s{seed}", seed=seed, decades=decades)
    make_run("other-s0", model="other")
    runs = [read_run(f"runs/{name}.h5") for name in ("net-s0", "net-s1", "net-s2", "other-s0")]
    grouped, single = make_curves(runs, METRIC)
    assert (grouped.label, len(grouped.runs), single.label) == ("net", 3, "other, seed 0")
    assert grouped.seeds[0].slope.mean == pytest.approx(-3.2 / 5, abs=1e-5)
    assert grouped.seeds[0].slope.n == 3
    assert (grouped.low[:-1] < grouped.centre[:-1]).all()
    rows = slope_rows([grouped, single])
    assert [row["run"] for row in rows if row["section"] == "all"] == ["net-s0", "net-s1", "net-s2", None, "other-s0"]
    said = say_curve(grouped, METRIC)
    assert said.startswith("net (3 seeds): the gradient shrinks toward the input; stage0.0 has about 1/")
    assert said.endswith("; each layer toward the input multiplies it by 0.229 [0.182, 0.288]")
    assert 10 ** grouped.seeds[0].slope.low == pytest.approx(0.182, abs=1e-3)
    assert not english_in(translate(f"{said}.", "id"))
    layers = layer_rows([grouped, single])
    assert len(layers) == 12
    assert "predicted_decades" not in layers[0]


def test_seeds_whose_first_layer_is_exactly_0_have_vanished_and_are_not_left_out(make_run) -> None:
    """Regression: plain34-nobn with PyTorch's default initialisation was reported as not recorded, at 10^+nan."""

    def cut(grid: np.ndarray) -> np.ndarray:
        grid[:, :4] = 0.0
        return grid

    for zeros, said in (
        (3, "exactly 0 at the first layer"),
        (2, "exactly 0 at the first layer"),
        (1, "vanishes toward"),
    ):
        paths = [
            make_run(f"z{zeros}-s{seed}", model=f"z{zeros}", seed=seed, decades=-6.0 - seed / 10,
                     **({"change": cut} if seed < zeros else {}))
            for seed in range(3)
        ]  # fmt: skip
        (curve,) = make_curves([read_run(path) for path in paths], METRIC)
        assert said in say_curve(curve, METRIC)
        assert "nan" not in say_curve(curve, METRIC)


def test_runs_without_the_requested_rows_or_metric_raise(make_run) -> None:
    with pytest.raises(ConfigError, match="at least one run"):
        make_curves([], METRIC)
    with pytest.raises(ConfigError, match="no row of activation_grad_norm has been recorded yet"):
        make_curves([read_run(make_run("empty", steps=0, epochs=0))], METRIC)
    with pytest.raises(ConfigError, match="has no row from step 900"):
        make_curves([read_run(make_run("short"))], METRIC, steps=(900, None))
