"""The gradient ratio: against a slow second implementation, on special rows, in sentences, and in every view."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradlens.analysis.gradient_ratio import (
    FATES,
    GradientRatio,
    compare_layers,
    fate_of,
    gradient_ratio,
    over_seeds,
    say_ratio,
    say_times,
)
from gradlens.errors import ConfigError
from gradlens.run import Layer, Run
from gradlens.storage import read_run
from tests.conftest import make_layers

NORMS = st.sampled_from([0.0, math.nan, 1e-30, 1e-3, 1.0, 2.0, 1e8])


def run_of(layers: int) -> Run:
    nothing: dict = {}
    return Run(
        "r", "r", make_layers(layers), np.arange(0), np.arange(0), nothing, nothing, nothing, "complete", nothing
    )  # type: ignore[arg-type]


def obvious_ratio(values: np.ndarray) -> tuple[list[int], list[float]]:
    """Choose the layers and compare the ends, number by number."""
    held = [row for row in values if not all(map(math.isnan, row))]
    often = [i for i in range(values.shape[1]) if 2 * sum(not math.isnan(row[i]) for row in held) > len(held)]
    if len(often) < 3:
        return [], []
    decades = []
    for row in values:
        first, last = row[often[0]], row[often[-2]]
        others = [row[i] for i in often if not math.isnan(row[i])]
        if math.isnan(first) or not any(other > 0 for other in others) or (math.isnan(last) and first > 0):
            decades.append(math.nan)
        elif first == 0:
            decades.append(-math.inf)
        else:
            decades.append(math.inf if last == 0 else math.log10(first) - math.log10(last))
    return often, decades


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 6)), elements=NORMS))
def test_it_agrees_with_the_slow_implementation(values: np.ndarray) -> None:
    layers, decades = obvious_ratio(values)
    ratio = compare_layers(run_of(values.shape[1]), values)
    assert (ratio is None) == (not layers)
    if ratio is None:
        return
    assert ratio.indices.tolist() == layers
    np.testing.assert_allclose(ratio.decades[:, 0], decades, atol=1e-12)
    known = sorted(value for value in decades if not math.isnan(value))
    assert ratio.rows_known == len(known)
    ends = known[(len(known) - 1) // 2 : len(known) // 2 + 1] if known else []
    typical = ratio.typical()
    if not known:
        assert math.isnan(typical)
    elif len(set(map(math.isfinite, ends))) == 2:
        assert typical == next(filter(math.isfinite, ends))
    elif ends[0] == -math.inf and ends[-1] == math.inf:
        assert math.isnan(typical)
    else:
        assert typical == pytest.approx(statistics.median(known))


def test_skipped_steps_and_rows_that_are_not_finite_are_left_out(make_run) -> None:
    def change(grid: np.ndarray) -> np.ndarray:
        grid[3:6] = np.inf
        grid[10:, 0] *= 1e-9
        return grid

    run = read_run(make_run(change=change, decades=-2.0))
    ratio = gradient_ratio(run)
    assert ratio is not None
    assert (len(ratio.decades), ratio.rows_known) == (17, 17)
    assert set(ratio.rows.tolist()) == set(range(20)) - {3, 4, 5}
    skipped = Run(**{**vars_of(run), "scalars": {"skipped": np.r_[np.zeros(10), np.ones(10)]}})
    kept = gradient_ratio(skipped)
    assert kept is not None
    assert kept.typical() == pytest.approx(-1.6, abs=1e-5)
    assert kept.rows_known == 7


def vars_of(run: Run) -> dict:
    return {name: getattr(run, name) for name in Run.__dataclass_fields__}


def test_per_element_and_metrics_that_are_not_norms(make_run) -> None:
    run = read_run(make_run(decades=-3.0))
    norm, rms = gradient_ratio(run), gradient_ratio(run, per_element=True)
    assert norm is not None
    assert rms is not None
    assert rms.typical() - norm.typical() == pytest.approx(np.log10(500 / 100) / 2, abs=1e-6)
    with pytest.raises(ConfigError, match="update_ratio is not a norm"):
        gradient_ratio(run, "update_ratio", per_element=True)
    assert gradient_ratio(run, "nothing") is None
    assert gradient_ratio(read_run(make_run("two", layers=2))) is None


@pytest.mark.parametrize(
    ("decades", "said"),
    [
        (2.1, "a has about 126 times (10^2.1) the gradient norm of b"),
        (0.3, "a has about 2 times (10^0.3) the gradient norm of b"),
        (-0.6, "a has about 0.25 times (10^-0.6) the gradient norm of b"),
        (-3.3, "a has about 1/2,000 (10^-3.3) of the gradient norm of b"),
        (5.9, "a has about 794,000 times (10^5.9) the gradient norm of b"),
        (-7.2, "a has 10^-7.2 times the gradient norm of b"),
        (-math.inf, "the gradient norm of a is exactly 0"),
        (math.inf, "the gradient norm of b is exactly 0, that of a is not"),
    ],
)
def test_a_ratio_is_a_number_for_people_and_then_the_power(decades: float, said: str) -> None:
    assert say_ratio("a", "b", decades) == said


@given(st.floats(-20, 20))
def test_the_number_for_people_is_the_ratio(decades: float) -> None:
    said = say_ratio("a", "b", decades)
    if "about" in said:
        number = float(said.split("about ")[1].split()[0].removeprefix("1/").replace(",", ""))
        assert (1 / number if "1/" in said else number) == pytest.approx(10**decades, rel=0.06)
    else:
        assert abs(decades) >= 6


def test_fates_change_at_their_thresholds_and_all_have_sentences() -> None:
    found = [fate_of(d) for d in (-math.inf, -3.01, -3.0, -1.01, -1.0, 1.0, 1.01, math.inf, math.nan)]
    assert found == ["zero", "vanishes", "shrinks", "shrinks", "similar", "similar", "grows", "grows", "unknown"]
    assert set(found) == FATES.keys()


def test_seeds_are_averaged_unless_one_is_exactly_0() -> None:
    assert over_seeds([-1.0, -2.0, -6.0, math.nan]) == pytest.approx(-3.0)
    assert over_seeds([-1.0, -math.inf, -2.0]) == -2.0
    assert over_seeds([-math.inf, -1.0, -math.inf]) == -math.inf
    assert math.isnan(over_seeds([math.nan]))


def test_a_window_at_the_end_is_compared_with_all_rows() -> None:
    decades = np.r_[np.zeros(40), np.full(20, -5.0)]
    values = np.stack([10.0**decades, np.ones(60), np.ones(60)], axis=1)
    ratio = compare_layers(run_of(3), values)
    assert isinstance(ratio, GradientRatio)
    assert ratio.typical() == 0.0
    assert [value for value, _ in ratio.late()] == [-5.0, -5.0]
    assert [name for _, name in ratio.late()] == ["the later half of the rows", "the last fifth of the rows"]
    assert isinstance(ratio.first, Layer)


@pytest.mark.parametrize(
    ("decades", "text"),
    [
        (2.1, "about 126 times (10^2.1)"), (-0.6, "about 0.25 times (10^-0.6)"),
        (-3.3, "about 1/2,000 times (10^-3.3)"),
        (8.0, "10^8.0 times"), (-math.inf, "0 times"),
    ],
)  # fmt: skip
def test_a_factor_is_a_number_for_people_and_then_the_power(decades: float, text: str) -> None:
    assert say_times(decades) == text
