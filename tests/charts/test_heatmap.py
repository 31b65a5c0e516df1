"""Data for heatmaps and profiles: derived metrics, signed scales, differences and ratios, on analytic cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradlens.analysis.derived_metrics import check_metric, say_caution, with_derived
from gradlens.analysis.profile import chunk_means
from gradlens.charts.curves import layer_rows, make_curves, say_curve
from gradlens.charts.heatmap import Scale, View, common_scale, make_panel, merge_layers, quiet_end
from gradlens.charts.marks import find_marks, learning_rate_drops, steps_to_epochs
from gradlens.errors import ConfigError
from gradlens.row_chunks import summarise
from gradlens.run import Run
from tests.conftest import make_layers

NAN = np.nan


def run_of(metrics: dict[str, np.ndarray], name: str = "net-s0", first: int = 0, seed: int = 0) -> Run:
    """Return a run in memory."""
    count, width = next(iter(metrics.values())).shape
    steps = np.arange(first, first + count)
    epochs, info = np.zeros(count, np.int32), {"model": "net", "seed": seed, "config": {}}
    return Run(name, Path(f"{name}.h5"), make_layers(width), steps, epochs, {}, metrics, {}, "complete", info)


def halves(seed: int = 0) -> Run:
    """Return a run with a coherence of 0.5, -0.25, 0 in three layers, in every fifth of 20 rows."""
    norm = np.tile([1.0, 2.0, 4.0], (20, 1))
    cosine = np.full((20, 3), NAN)
    cosine[::5] = [0.5, -0.25, 0.0]
    return run_of({"param_grad_norm": norm, "grad_coherence": cosine}, f"net-s{seed}", seed=seed)


def test_the_coherent_norm_is_the_product_and_keeps_its_sign() -> None:
    run = with_derived(halves())
    values = run.metric("coherent_grad_norm")
    np.testing.assert_array_equal(values[::5], np.tile([0.5, -0.5, 0.0], (4, 1)))
    assert np.isnan(values[1:5]).all()
    np.testing.assert_array_equal(run.metric_rows("coherent_grad_norm", 5, 6), [[0.5, -0.5, 0.0]])
    assert with_derived(run).metrics is run.metrics
    assert [*run.metrics] == ["param_grad_norm", "grad_coherence", "coherent_grad_norm"]
    assert len(run.metrics) == 3
    check_metric(run, "coherent_grad_norm")


def test_it_is_the_rate_at_which_a_step_along_one_half_lowers_the_loss_of_the_other() -> None:
    rng = np.random.default_rng(0)
    matrix, start = rng.normal(size=(4, 4)), rng.normal(size=4)
    one, two = rng.normal(size=4), matrix.T @ (matrix @ start)  # the second half's loss is |A w|^2 / 2

    def loss(w: np.ndarray) -> float:
        return float(np.sum((matrix @ w) ** 2) / 2)

    step = 1e-6
    fall = (loss(start) - loss(start - step * one / np.linalg.norm(one))) / step
    cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    run = run_of({"param_grad_norm": np.full((1, 3), np.linalg.norm(two)), "grad_coherence": np.full((1, 3), cosine)})
    assert with_derived(run).metric("coherent_grad_norm")[0, 0] == pytest.approx(fall, rel=1e-4)


def test_noise_has_a_coherent_norm_of_zero_on_average() -> None:
    cosine = np.random.default_rng(0).uniform(-1, 1, (4000, 3))
    run = with_derived(run_of({"param_grad_norm": np.ones((4000, 3)), "grad_coherence": cosine}))
    assert abs(run.metric("coherent_grad_norm").mean()) < 0.02
    curve = make_curves([run], "coherent_grad_norm")[0]
    assert (curve.low < 0).all()
    assert (curve.high > 0).all()


def test_chunks_of_a_derived_metric_are_those_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlens.analysis.derived_metrics.CHUNK", 64)
    rng = np.random.default_rng(0)
    run = with_derived(run_of({"param_grad_norm": rng.random((200, 3)), "grad_coherence": rng.normal(size=(200, 3))}))
    blocks = run.row_chunks("coherent_grad_norm", least=2)
    assert blocks.edges.tolist() == [0, 64, 128, 192, 200]
    starts = np.array([0, 64, 128, 192])
    expected = summarise(run.metric("coherent_grad_norm"), starts, linear=True)
    np.testing.assert_allclose(blocks.values, expected)
    np.testing.assert_allclose(run.row_chunks("param_grad_norm", least=1).mean[0], halfway(run, 64))


def halfway(run: Run, rows: int) -> np.ndarray:
    return np.exp(np.log(run.metric("param_grad_norm")[:rows]).mean(axis=0))


def test_the_error_for_a_missing_factor_names_it_and_how_to_record_it() -> None:
    run = with_derived(run_of({"param_grad_norm": np.ones((3, 3))}))
    assert "coherent_grad_norm" not in run.metrics
    with pytest.raises(ConfigError, match=r"net-s0 lacks grad_coherence; .*--metrics grad_coherence"):
        check_metric(run, "coherent_grad_norm")
    with pytest.raises(ConfigError, match="lacks grad_coherence"):
        make_curves([run], "coherent_grad_norm")
    assert "batch norm" in say_caution("grad_coherence")
    assert say_caution("param_grad_norm") == ""


def test_rows_without_a_value_leave_no_gap() -> None:
    panel = make_panel(halves(), View("grad_coherence"), columns=100)
    assert panel.drawn.tolist() == [[0.5] * 4, [-0.25] * 4, [0.0] * 4]
    assert panel.edges.tolist() == [0, 5, 10, 15, 20]
    scale = common_scale([panel])
    assert (scale.low, scale.high, scale.is_diverging) == (-1, 1, True)
    assert scale.places(np.array([-1, 0, 0.5, 2])).tolist() == [0, 0.5, 0.75, 1]
    blocks = make_panel(halves(), View("grad_coherence"), columns=2)
    assert blocks.drawn.tolist() == [[0.5] * 2, [-0.25] * 2, [0.0] * 2]


def test_linear_metrics_have_arithmetic_means() -> None:
    values = np.array([[1.0, -3.0], [0.0, NAN], [-4.0, 5.0]])
    np.testing.assert_array_equal(chunk_means(values, np.array([0, 2]), linear=True), [[0.5, -3.0], [-4.0, 5.0]])


def test_a_signed_scale_is_symmetric_linear_at_zero_and_logarithmic_beyond() -> None:
    scale = Scale("signed", -1000.0, 1000.0, 0.01)
    places = scale.places(np.array([-1000.0, -1.0, 0.0, 1.0, 1000.0, NAN]))
    assert places[[0, 2, 4]].tolist() == [0, 0.5, 1]
    assert places[1] + places[3] == pytest.approx(1)
    far = scale.places(np.array([1.0, 10.0, 100.0]))
    assert far[2] - far[1] == pytest.approx(far[1] - far[0], rel=0.01)
    near = scale.places(np.array([0.0, 1e-5, 2e-5]))
    assert near[2] - near[1] == pytest.approx(near[1] - near[0], rel=0.01)
    assert np.isnan(places[5])
    assert quiet_end(np.array([0.0, 0.02, -0.5, 30.0, NAN])) == pytest.approx(0.1)
    assert quiet_end(np.zeros(3)) == 1.0


def test_relative_magnitudes_are_decades_over_the_last_hidden_layer() -> None:
    values = np.tile([100.0, 0.0, 10.0, 7.0], (5, 1))
    values[2, 0] = np.inf
    panel = make_panel(run_of({"param_grad_norm": values}), View("param_grad_norm", relative=True), columns=9)
    assert panel.kind == "ratio"
    assert panel.drawn[:, 0].tolist() == pytest.approx([1.0, -np.inf, 0.0, np.log10(0.7)])
    assert panel.drawn[0, 2] == np.inf
    assert common_scale([panel]).low == -common_scale([panel]).high == -1
    with pytest.raises(ConfigError, match="grad_coherence is not a magnitude"):
        make_panel(halves(), View("grad_coherence", relative=True), columns=9)


def test_a_difference_is_a_ratio_of_magnitudes_in_the_steps_that_both_have() -> None:
    a = run_of({"param_grad_norm": np.full((10, 3), 100.0)}, "a")
    lower = np.full((10, 3), 10.0)
    lower[:, 1], lower[:, 2] = 0, np.inf
    b = run_of({"param_grad_norm": lower}, "b", first=4)
    panel = make_panel(a, View("param_grad_norm"), columns=50, minus=b)
    assert panel.edges.tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert (panel.drawn[0] == 1).all()
    assert np.isnan(panel.drawn[1]).all()
    assert np.isposinf(panel.drawn[2]).all()
    linear = make_panel(halves(), View("grad_coherence"), columns=50, minus=halves())
    assert (linear.drawn == 0).all()
    with pytest.raises(ConfigError, match="no steps in common"):
        make_panel(a, View("param_grad_norm"), columns=9, minus=replace(b, steps=b.steps + 50))
    with pytest.raises(ConfigError, match="different layers"):
        make_panel(a, View("param_grad_norm"), columns=9, minus=run_of({"param_grad_norm": np.ones((10, 4))}))


def test_only_layers_at_which_a_residual_block_begins_are_shown() -> None:
    values = np.tile([0.1, NAN, 0.3, NAN, 0.2, NAN], (4, 1))
    run = run_of({"path_cosine": values})
    panel = make_panel(run, View("path_cosine"), columns=9)
    assert [layer.name for layer in panel.layers] == ["stage0.0", "stage0.2", "stage1.1"]
    curve = make_curves([run], "path_cosine")[0]
    assert curve.centre.tolist() == [0.1, 0.3, 0.2]
    assert [layer.depth for layer in curve.layers] == [1, 3, 5]


def test_merged_layers_show_special_values() -> None:
    values = np.array([[1.0, 100.0, 0.0, 10.0, 0.0, NAN, np.inf, 1.0]])
    panel = make_panel(run_of({"param_grad_norm": values}), View("param_grad_norm"), columns=9)
    merged = merge_layers(panel, [0, 2, 4, 6])
    assert merged.drawn[:, 0].tolist() == [1.0, 1.0, -np.inf, np.inf]
    assert len(merged.layers) == 4


def test_profiles_of_linear_metrics_have_values_and_no_slope() -> None:
    curves = make_curves([halves(0), halves(1), halves(2)], "grad_coherence")
    assert curves[0].centre.tolist() == [0.5, -0.25, 0.0]
    assert curves[0].fits == [[], [], []]
    assert [row["grad_coherence"] for row in layer_rows(curves)] == [0.5, -0.25, 0.0]
    assert say_curve(curves[0], "grad_coherence") == (
        "net: from -0.25 (stage0.1) to +0.5 (stage0.0), median over layers +0; the band lies above 0 at 1 of 3 layers "
        "and below 0 at 1"
    )
    assert make_curves([halves()], "coherent_grad_norm")[0].centre.tolist() == [0.5, -0.5, 0.0]


def test_a_smooth_schedule_has_no_drops_of_the_learning_rate() -> None:
    run = halves()
    stepped = np.array([0.1] * 8 + [0.01] * 6 + [0.001] * 6)
    assert learning_rate_drops(replace(run, scalars={"lr": stepped})).tolist() == [8, 14]
    cosine = 0.05 * (1 + np.cos(np.linspace(0, np.pi / 2, 20)))
    assert learning_rate_drops(replace(run, scalars={"lr": cosine})).tolist() == []
    to_zero = 0.05 * (1 + np.cos(np.linspace(0, np.pi, 21)[:-1]))
    assert learning_rate_drops(replace(run, scalars={"lr": to_zero})).tolist() == []
    assert learning_rate_drops(run).tolist() == []
    wild = run_of({"param_grad_norm": np.ones((200, 3))})
    assert learning_rate_drops(replace(wild, scalars={"lr": np.tile([1.0, 0.1], 100)})).tolist() == []


def test_marks_lie_within_the_panel_and_findings_name_its_layers() -> None:
    values = np.full((20, 3), 1.0)
    values[4, 1] = np.inf
    run = replace(run_of({"param_grad_norm": values}), scalars={"lr": np.repeat([0.1, 0.01], 10)})
    panel = make_panel(run, View("param_grad_norm"), columns=50)
    marks = find_marks(panel)
    assert marks.drops.tolist() == [10]
    assert np.flatnonzero(marks.broken).tolist() == [4]
    assert [finding.kind for finding, _, _ in marks.findings] == ["nonfinite"]
    assert find_marks(make_panel(run, View("param_grad_norm", steps=(12, None)), columns=9)).drops.tolist() == []
    assert find_marks(panel, findings=False).findings == ()
    again = replace(run, info={"notes": ["resumed at step 7", "resumed at step 15", "something else"]})
    assert find_marks(make_panel(again, View("param_grad_norm"), columns=50)).resumes.tolist() == [7, 15]
    assert marks.resumes.tolist() == []


def test_steps_are_converted_to_fractions_of_epochs() -> None:
    run = replace(halves(), epoch_of_step=np.repeat(np.arange(4, dtype=np.int32), 5))
    assert steps_to_epochs(run, np.array([0, 2.5, 5, 15, 20])).tolist() == [0, 0.5, 1, 3, 4]
    none = run_of({"param_grad_norm": np.empty((0, 3))})
    assert np.isnan(steps_to_epochs(none, np.array([1.0]))).all()
