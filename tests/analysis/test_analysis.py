"""Judgements from numbers: known intervals, planted profiles, and properties that must hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradlens import read_run
from gradlens.analysis.compare import FINAL_ROWS, final_table, say_interval, say_unequal
from gradlens.analysis.gradient_ratio import gradient_ratio, say_fate
from gradlens.analysis.groups import group_runs, label_runs, repeated_runs
from gradlens.analysis.highlights import notable
from gradlens.analysis.profile import (
    depth_profile,
    epoch_starts,
    find_stages,
    heat_matrix,
    layer_values,
    say_layer,
)
from gradlens.analysis.stats import mean_interval, t_975
from gradlens.errors import ConfigError
from gradlens.run import Layer
from gradlens.study.published import PUBLISHED, REFERENCES
from tests.conftest import SAMPLE


def test_the_interval_of_known_numbers() -> None:
    # 1, 2, 3: mean 2, s 1, t(2) 4.302653, half width 4.302653 / sqrt(3).
    found = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert (found.mean, found.std, found.n) == (2.0, 1.0, 3)
    assert found.high - found.mean == pytest.approx(4.302653 / 3**0.5)
    assert found.mean - found.low == pytest.approx(4.302653 / 3**0.5)
    assert mean_interval(np.array([1.0, np.nan, np.inf])).n == 1
    assert np.isnan(mean_interval(np.array([1.0])).low)
    assert mean_interval(np.array([])).n == 0


@pytest.mark.parametrize("n", [3, 5, 40])
def test_the_interval_covers_the_truth_in_95_percent_of_cases(n: int) -> None:
    rng = np.random.default_rng(n)
    covered = [f.low <= 0 <= f.high for f in (mean_interval(rng.normal(size=n)) for _ in range(3000))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_quantiles_of_students_t() -> None:
    assert all(a > b for a, b in itertools.pairwise(t_975(degrees) for degrees in range(1, 31)))
    for degrees, value in ((1, 12.706), (10, 2.228), (30, 2.042), (40, 2.021), (60, 2.000), (120, 1.980)):
        assert t_975(degrees) == pytest.approx(value, abs=0.0006)


@given(hnp.arrays(np.float64, st.integers(2, 8), elements=st.floats(-100, 100)), st.randoms())
def test_the_order_of_seeds_is_irrelevant(values: np.ndarray, random) -> None:
    shuffled = values.copy()
    random.shuffle(shuffled)
    a, b = mean_interval(values), mean_interval(shuffled)
    assert (a.mean, a.low, a.high) == pytest.approx((b.mean, b.low, b.high), rel=1e-6, abs=1e-9)


def test_a_planted_profile_is_found(make_run) -> None:
    run = read_run(make_run(decades=-4.0, layers=9))
    profile = depth_profile(run, "activation_grad_norm")
    np.testing.assert_allclose(np.diff(np.log10(profile)), 0.5, atol=1e-5)
    way = gradient_ratio(run)
    assert way is not None
    assert (way.indices[0], way.indices[-2]) == (0, 7)
    assert way.typical() == pytest.approx(-3.5, abs=1e-5)
    rms = layer_values(run, "activation_grad_norm", per_element=True)
    np.testing.assert_allclose(rms[:, 3] * np.sqrt(400), layer_values(run, "activation_grad_norm")[:, 3])


@pytest.mark.parametrize("factor", [1e-20, 1.0, 1e20])
def test_scaling_all_gradients_leaves_the_ratio(make_run, factor: float) -> None:
    way = gradient_ratio(read_run(make_run(change=lambda grid: grid * factor)))
    assert way is not None
    assert way.typical() == pytest.approx(-2.4, abs=1e-4)


@pytest.mark.parametrize(
    ("decades", "said"),
    [
        (-np.inf, "exactly 0 at the first layer"), (-5, "vanishes toward the input"), (-2, "shrinks"),
        (0.3, "differ by less than ten times"), (2.4, "does not vanish: it grows toward the input"),
        (np.nan, "is not known"),
    ],
)  # fmt: skip
def test_the_sentence_for_a_ratio(decades: float, said: str) -> None:
    assert said in say_fate(decades)


def test_stages_and_epochs(make_run) -> None:
    run = read_run(make_run(steps=20, epochs=4))
    assert [(s.name, s.start, s.stop) for s in find_stages(run.layers)] == [("stage0", 0, 3), ("stage1", 3, 6)]
    assert epoch_starts(run).tolist() == [0, 5, 10, 15]


def test_a_matrix_keeps_zeros_gaps_and_non_finite_values(make_run) -> None:
    def change(grid: np.ndarray) -> np.ndarray:
        grid[:, 0] = 0
        grid[:, 1] = np.nan
        grid[7, 2] = np.inf
        return grid

    run = read_run(make_run(change=change, steps=20))
    for columns in (100, 5):
        matrix = heat_matrix(run, "activation_grad_norm", columns=columns)
        cells = min(columns, 20)
        assert matrix.values.shape == (6, cells)
        assert len(matrix.steps) == cells + 1
        assert (matrix.steps[0], matrix.steps[-1]) == (0, 20)
        assert (matrix.values[0] == 0).all()
        assert np.isnan(matrix.values[1]).all()
        assert np.isinf(matrix.values[2]).sum() == 1
        assert np.isfinite(matrix.values[3:]).all()


def test_chunks_are_geometric_means(make_run) -> None:
    run = read_run(make_run(steps=20))
    fine, coarse = (heat_matrix(run, "activation_grad_norm", columns=c).values for c in (20, 4))
    expected = np.exp(np.log(fine).reshape(6, 4, 5).mean(axis=2))
    np.testing.assert_allclose(coarse, expected, rtol=1e-6)


def test_a_long_recording_interval_is_drawn_without_gaps(make_run) -> None:
    matrix = heat_matrix(read_run(make_run(steps=30)), "update_ratio", columns=100)
    assert matrix.values.shape == (6, 3)
    assert matrix.steps.tolist() == [0, 10, 20, 30]


def test_rows_without_any_gradient_are_a_gap_of_a_metric_that_every_row_has(make_run) -> None:
    def change(grid: np.ndarray) -> np.ndarray:
        grid[5:9] = np.nan
        return grid

    matrix = heat_matrix(read_run(make_run(change=change, steps=20)), "activation_grad_norm", columns=100)
    assert np.flatnonzero(np.isnan(matrix.values).all(axis=0)).tolist() == [5, 6, 7, 8]
    assert matrix.steps.tolist() == list(range(21))


def test_seeds_are_grouped_and_settings_are_distinguished(make_run) -> None:
    for seed in (2, 0, 1):
        make_run(f"plain34-s{seed}", model="plain34", seed=seed, accuracy=0.5 + 0.1 * seed, config={"split": "group"})
    make_run("plain34-r", model="plain34", seed=0, accuracy=0.9, config={"split": "random"})
    make_run("resnet34-s0", model="resnet34", config={"split": "group"})
    names = ("plain34-s2", "plain34-s0", "plain34-s1", "plain34-r", "resnet34-s0")
    groups = group_runs([read_run(f"runs/{name}.h5") for name in names])
    assert [g.label for g in groups] == ["plain34, split=group", "plain34, split=random", "resnet34"]
    assert groups[0].seeds == [0, 1, 2]
    final = groups[0].final("train_accuracy")
    assert (final.mean, final.n) == (pytest.approx(0.6), 3)
    assert final.std == pytest.approx(0.1)
    table = final_table(groups, REFERENCES)
    assert [row["quantity"] for row in table] == list(FINAL_ROWS.values())
    assert table[1]["original study, resnet34"] == PUBLISHED["resnet34"]["val_accuracy"] == 0.6712
    assert say_interval(final) == "0.600 ± 0.100"


def test_curves_of_different_length(make_run) -> None:
    make_run("a", epochs=2, seed=0)
    make_run("b", epochs=4, seed=1)
    (group,) = group_runs([read_run("runs/a.h5"), read_run("runs/b.h5")])
    curve = group.curve("val_loss")
    assert curve.shape == (2, 4)
    assert np.isnan(curve[0, 2:]).all()


def test_the_notable_facts_of_a_run(make_run) -> None:
    numbers = itertools.count()

    def said(**options) -> str:
        return "\n".join(notable(read_run(make_run(f"r{next(numbers)}", **options))))

    assert "the gradient vanishes toward the input: stage0.0 has about 1/63,000 (10^-4.8)" in said(decades=-6.0)
    assert "does not vanish" in said(decades=2.0)
    assert "interrupted" in said(status="interrupted")
    assert "the run failed" in said(status="failed")

    def zeros(grid: np.ndarray) -> np.ndarray:
        grid[:, :2] = 0
        return grid

    assert "exactly 0 in more than half of the rows at 2 layers, nearest the input stage0.0" in said(change=zeros)
    assert "exactly 0 at the first layer: the gradient norm of stage0.0 is exactly 0" in said(change=zeros)

    def first_zero_in_most(grid: np.ndarray) -> np.ndarray:
        grid[5:, 0] = 0
        return grid

    def broken(grid: np.ndarray) -> np.ndarray:
        grid[5:, 1] = np.inf
        return grid

    assert "not finite in 15 rows, first at step 5" in said(change=broken)

    def missing(grid: np.ndarray) -> np.ndarray:
        grid[:, 2] = np.nan
        return grid

    assert "1 layer had no parameter gradient at any step: stage0.2" in said(change=missing)
    facts = {"data_facts": {"val_share_any_copy_in_train": 0.55}}
    assert "55% of the validation images have a copy in the training set" in said(config=facts)


def test_zero_and_broken_gradients_are_not_averaged_away(make_run) -> None:
    numbers = itertools.count()

    def way(change) -> tuple[float, str]:
        run = read_run(make_run(f"z{next(numbers)}", change=change))
        found = gradient_ratio(run)
        assert found is not None
        return found.typical(), "\n".join(notable(run))

    def all_zero(grid: np.ndarray) -> np.ndarray:
        return grid * 0

    def zero_in_most(grid: np.ndarray) -> np.ndarray:
        grid[5:] = 0
        return grid

    def first_zero_in_most(grid: np.ndarray) -> np.ndarray:
        grid[5:, 0] = 0
        return grid

    def broken(grid: np.ndarray) -> np.ndarray:
        grid[3:] = np.inf
        return grid

    decades, said = way(all_zero)
    assert np.isnan(decades)
    assert "all gradients are exactly 0 in all rows" in said
    decades, said = way(zero_in_most)
    assert decades == pytest.approx(-2.4, abs=1e-4)
    assert "all gradients are exactly 0 in 15 of 20 rows" in said
    decades, said = way(first_zero_in_most)
    assert decades == -np.inf
    assert "the gradient is exactly 0 at the first layer: the gradient norm of stage0.0 is exactly 0" in said
    decades, said = way(broken)
    assert decades == pytest.approx(-2.4, abs=1e-4)
    assert "median of 3 of 20 rows" in said
    assert "not finite in 17 rows, first at step 3" in said


def test_runs_without_a_seed_are_groups_of_one_and_repeats_count_once(make_run) -> None:
    for name, seed in (("a", -1), ("b", -1), ("c", 0), ("d", 0), ("e", 1)):
        make_run(name, seed=seed)
    runs = [read_run(f"runs/{name}.h5") for name in "abcde"]
    assert [(g.label, len(g.runs)) for g in group_runs(runs)] == [("a", 1), ("b", 1), ("net", 2)]
    assert [run.name for run in repeated_runs(runs)] == ["d"]


def test_runs_are_labelled_by_the_settings_that_differ(make_run) -> None:
    settings = {"a": {"init": "he", "augment": ["flip"]}, "b": {"init": "default", "augment": []}, "c": {"init": "he"}}
    for name, config in settings.items():
        make_run(name, model="x" if name != "c" else "y", config=config)
    runs = [read_run(f"runs/{name}.h5") for name in "abc"]
    assert label_runs(runs) == [
        "x, augment=flip, init=he, seed 0",
        "x, augment=none, init=default, seed 0",
        "y, seed 0",
    ]


def test_a_setting_that_is_written_only_where_it_is_used_is_not_unknown_elsewhere(make_run) -> None:
    for name, config in {"a": {}, "b": {"freeze": 0.34}, "c": {"rescale_to": "../b/y"}}.items():
        make_run(name, model="x", config={"recipe": "quick", **config})
    runs = [read_run(f"runs/{name}.h5") for name in "abc"]
    assert label_runs(runs) == [
        "x, freeze=0.0, rescale_to=none, seed 0",
        "x, freeze=0.34, rescale_to=none, seed 0",
        "x, freeze=0.0, rescale_to=../b/y, seed 0",
    ]
    said = " ".join(say_unequal(group_runs(runs)))
    assert "freeze 0 | 0.34" in said
    assert "rescale to none | ../b/y" in said


def test_a_diverged_seed_is_not_hidden(make_run) -> None:
    for seed, accuracy in ((0, 0.5), (1, 0.7), (2, np.nan)):
        make_run(f"s{seed}", seed=seed, accuracy=accuracy)
    (group,) = group_runs([read_run(f"runs/s{seed}.h5") for seed in range(3)])
    assert say_interval(group.final("train_accuracy")) == "0.600 ± 0.141 (2 of 3)"
    assert group.say_extent() == "3 seeds, 2 epochs"


def test_numbered_modules_are_one_stage_and_quoted() -> None:
    layers = tuple(Layer(str(i), "Linear", "main", i + 1, 4, 4) for i in range(5))
    assert [(s.start, s.stop) for s in find_stages(layers)] == [(0, 5)]
    assert say_layer(layers[0]) == "layer '0'"
    assert say_layer(Layer("conv1", "Conv2d", "main", 1, 1, 1)) == "conv1"


def test_only_norms_have_a_value_per_element(make_run) -> None:
    with pytest.raises(ConfigError, match="update_ratio is not a norm"):
        heat_matrix(read_run(make_run()), "update_ratio", columns=10, per_element=True)


def test_the_gradient_of_the_recorded_run_grows_toward_the_input() -> None:
    run = read_run(SAMPLE)
    way = gradient_ratio(run)
    assert way is not None
    assert (way.first.name, way.last.name) == ("conv1", "layer4.2.conv2")
    assert 1.5 < way.typical(slice(0, 10)) < 3.5  # SCIENCE: 10^2.4 with batch norm
    assert any("does not vanish: it grows toward the input" in sentence for sentence in notable(run))
