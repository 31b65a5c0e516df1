"""The claims: what was planted is found, what was not is not, and controls are asked first."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlens.analysis.stats import t_975
from gradlens.study import Verdict, judge_claims
from gradlens.study.measures import epochs_to, fieller, shortcut_share, slope_over
from gradlens.study.run_groups import WITH, WITHOUT
from gradlens.study.study_run import as_study_run, block_shares
from tests.study.planted_claims import (
    FAST,
    JITTER,
    LAYERS,
    ROWS,
    SLOW,
    curves,
    ends,
    halves,
    over_depth,
    pair,
    planted,
    seeds,
    verdict,
)

# --- A ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decades", "expected"),
    [
        ([-5.0, -6.0, -5.5, -4.5, -5.0], "supported"),
        ([2.0, 2.5, 2.2, 2.4, 1.9], "refuted"),
        ([0.2, -0.3, 0.1, 0.0, -0.2], "refuted"),
        ([-2.0, -2.2, -1.8, -2.1, -1.9], "mixed"),
        ([-2.0, -5.0, -1.0, -6.0, -3.0], "undecided"),
        ([-9.0, -300.0, -20.0, -8.0, -math.inf], "supported"),  # cut, or one seed would hide the others
    ],
)
@pytest.mark.parametrize("suffix", ["", "-nobn"])
def test_where_the_gradient_vanishes(decades: list[float], expected: str, suffix: str) -> None:
    runs = pair({"decades": decades}, {"decades": 1.0}, suffix)
    found = verdict(runs, "A", WITHOUT if suffix else WITH)
    assert found.verdict == expected
    assert found.evidence[0].n == 5
    assert found.evidence[0].value == pytest.approx(np.mean(np.clip(decades, -7.22, 7.22)), abs=1e-9)


def test_one_seed_decides_nothing() -> None:
    judged = judge_claims(pair({"decades": -9.0}, {"decades": 0.0}, count=1))
    assert {one.overall[WITH].verdict for one in judged.claims} == {"undecided"}
    assert "one seed" in judged.claims[0].overall[WITH].why


# --- B ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.floats(-150, 0))
def test_the_share_is_the_projection_on_the_sum(seed: int, scale: float) -> None:
    """Also of gradients whose squares are no longer numbers."""
    rng = np.random.default_rng(seed)
    short, branch = rng.normal(size=(2, 50)) * rng.uniform(0.1, 2, size=(2, 1))
    run = planted("resnet34", 0)
    norms = [np.linalg.norm(short), np.linalg.norm(branch)]
    cosine = short @ branch / (norms[0] * norms[1])
    for name, value in zip(
        ("shortcut_grad_norm", "branch_grad_norm", "path_cosine"),
        (norms[0] * 10**scale, norms[1] * 10**scale, cosine),
        strict=True,
    ):
        run.metrics[name][~np.isnan(run.metrics[name])] = value
    whole = short + branch
    shares = block_shares(run)
    assert shares.shape == (ROWS / 5, (LAYERS - 1) // 2)
    np.testing.assert_allclose(shares, short @ whole / (whole @ whole), rtol=1e-9)
    assert shortcut_share(as_study_run(run)) == round(float(shares[0, 0]), 4)


def test_the_share_is_that_of_the_median_block() -> None:
    run = planted("resnet34", 0)
    blocks = np.flatnonzero(~np.isnan(run.metrics["shortcut_grad_norm"][0]))
    for block, share in zip(blocks, (0.1, 0.2, 0.3, 0.9, 0.95), strict=True):
        run.metrics["shortcut_grad_norm"][::5, block] = np.sqrt(share)
        run.metrics["branch_grad_norm"][::5, block] = np.sqrt(1 - share)
    assert shortcut_share(as_study_run(run)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        ([0.6, 0.62, 0.58, 0.61, 0.6], "supported"),
        ([0.05, 0.04, 0.06, 0.05, 0.03], "refuted"),
        ([0.3, 0.31, 0.29, 0.3, 0.3], "supported"),  # a path need not be the main one
        ([0.05, 0.2, 0.1, 0.02, 0.15], "undecided"),
    ],
)
def test_what_came_through_the_shortcut(share: list[float], expected: str) -> None:
    assert verdict(pair({}, {"share": share}), "B").verdict == expected


def test_without_a_path_split_paths_are_not_judged() -> None:
    runs = pair({}, {})
    for run in runs:
        run.metrics.pop("shortcut_grad_norm", None)  # type: ignore[attr-defined]
    found = verdict(runs, "B")
    assert (found.verdict, found.tested) == ("undecided", False)
    assert "shortcut_grad_norm" in found.why


# --- C ----------------------------------------------------------------------------------------------------------


def test_a_faster_net() -> None:
    found = verdict(pair({"accuracy": curves(SLOW)}, {"accuracy": curves(FAST)}), "C")
    assert found.verdict == "supported"
    assert found.evidence[0].value == pytest.approx(np.mean(FAST) - np.mean(SLOW))
    assert verdict(pair({"accuracy": curves(FAST)}, {"accuracy": curves(SLOW)}), "C").verdict == "refuted"
    same = pair({"accuracy": curves(SLOW)}, {"accuracy": curves(SLOW, JITTER[::-1])})
    assert verdict(same, "C").verdict == "undecided"  # jitter against jitter: 0.02 is not excluded
    assert verdict(pair({"accuracy": SLOW}, {"accuracy": SLOW}), "C").verdict == "refuted"


def test_pairs_of_equal_seed_are_compared() -> None:
    """Seeds differ far more than the networks do; only pairs show it."""
    wide = [-0.2, -0.1, 0.0, 0.1, 0.2]
    better = [tuple(v + 0.03 for v in curve) for curve in curves(SLOW, wide)]
    found = verdict(pair({"accuracy": curves(SLOW, wide)}, {"accuracy": better}), "C")
    assert found.verdict == "supported"
    assert found.evidence[0].low == pytest.approx(0.03)


def test_a_run_that_never_gets_there_counts_as_what_is_known_of_it() -> None:
    """Levels are 0.4, 0.6 and 0.8; the epochs that all runs have are 3, as one stopped early."""
    plain = [(0.3, 0.45, 0.5, 0.5, 0.9), (0.3, 0.45, 0.5, 0.5), (0.3, 0.45, 0.5)]
    resnet = [(0.5, 0.7, 0.9)] * 3
    found = verdict(pair({"accuracy": plain}, {"accuracy": resnet}, count=3), "C")
    levels = [one for one in found.evidence if one.unit == "epochs"]
    assert [one.value for one in levels] == [1.0, 1.0, 0.0]  # 2 - 1; 3 (never) - 2; 3 (never) - 3
    assert "by 0 of 3 plain and 3 of 3 residual" in levels[1].note
    assert epochs_to(as_study_run(planted("plain34", 0, accuracy=(0.1, 0.2))), 0.3) == math.inf


def test_no_faster_on_the_whole_but_sooner_at_a_level_is_mixed() -> None:
    plain = [(0.3, 0.5, 0.58, 0.7)] * 5
    resnet = [(0.3, 0.35, 0.62, 0.7)] * 5
    assert verdict(pair({"accuracy": plain}, {"accuracy": resnet}), "C").verdict == "mixed"


def test_faster_on_the_whole_but_later_at_a_level_is_mixed() -> None:
    plain = curves((0.3, 0.3, 0.3, 0.82, 0.82), [0.0] * 5)
    resnet = curves((0.5, 0.7, 0.75, 0.79, 0.82), [0.0] * 5)
    assert verdict(pair({"accuracy": plain}, {"accuracy": resnet}), "C").verdict == "mixed"


# --- D ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resnet", "expected"),
    [
        (ends(0.9, 0.7, 0.3, 0.8), "supported"),
        (ends(0.8, 0.7, 0.5, 0.8), "supported"),  # training no worse
        (ends(0.7, 0.7, 0.5, 0.8), "mixed"),  # training worse
        (ends(0.8, 0.6, 0.5, 1.0), "refuted"),  # all the same
        (ends(0.8, 0.5, 0.5, 1.2), "refuted"),
        (ends(0.9, 0.6, 0.3, 1.0), "mixed"),  # better in training alone, and validation surely not
        (ends(0.9, 0.7, 0.3, 1.2), "mixed"),  # accuracy better, loss worse
        (ends(0.8, 0.61, 0.5, 0.8), "supported"),  # by little, but surely
    ],
)
def test_how_it_ends(resnet: dict[str, Any], expected: str) -> None:
    found = verdict(pair(ends(0.8, 0.6, 0.5, 1.0), resnet), "D")
    assert found.verdict == expected, found.why


def test_an_end_that_is_not_shown_is_undecided() -> None:
    noisy = ends(0.9, 0.62, 0.3, 1.0)
    noisy["val_accuracy"] = [0.5, 0.75, 0.6, 0.7, 0.55]
    noisy["val_loss"] = [1.2, 0.7, 0.9, 0.8, 1.1]
    found = verdict(pair(ends(0.8, 0.6, 0.5, 1.0), noisy), "D")
    assert found.verdict == "undecided"
    assert "training accuracy and training loss better, the rest not shown" in found.why


def test_a_loss_that_is_not_finite_is_left_out_and_noted() -> None:
    broken = ends(0.9, 0.7, 0.3, 0.8)
    broken["val_loss"][0] = math.nan
    found = verdict(pair(ends(0.8, 0.6, 0.5, 1.0), broken), "D")
    loss = next(one for one in found.evidence if one.name.startswith("validation loss"))
    assert loss.n == 4
    assert "1 not finite" in loss.note


# --- E ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slopes", "expected"),
    [
        ((-0.1, 0.0), "supported"),
        ((0.0, 0.0, 0.05, 0.0), "supported"),  # it overfits
        ((-0.1, -0.1), "mixed"),
        ((0.0, 0.0), "refuted"),
        ((0.0, -0.1), "refuted"),
    ],
)
def test_what_depth_does(slopes: tuple[float, ...], expected: str) -> None:
    found = verdict(over_depth(*slopes), "E")
    assert found.verdict == expected, found.why
    assert found.evidence[0].value == pytest.approx(slopes[0], abs=1e-9)


def test_a_gap_that_is_not_known_well_enough_is_undecided() -> None:
    runs = over_depth(-0.1, 0.0)
    for run in runs:
        if run.model == "resnet44":
            run.epochs["val_accuracy"][:] += (-0.2, 0.0, 0.2)[run.seed]
    found = verdict(runs, "E")
    assert found.verdict == "undecided"
    assert found.why.startswith("the plain network gets worse with depth; it is inconclusive whether the residual")
    assert found.setting == "20 to 44 layers, 64 px"


def test_a_gap_may_close() -> None:
    """A validation accuracy above that of training is a negative gap, and no overfitting."""
    found = verdict(over_depth(-0.1, 0.0, 0.0, -0.2), "E")
    assert found.evidence[3].value == pytest.approx(-0.2)
    assert found.verdict == "supported"


def test_only_depths_that_both_nets_have_are_fitted() -> None:
    runs = over_depth(-0.1, 0.0)
    apart = [run for run in runs if run.model not in ("plain20", "plain32", "resnet44")]
    assert verdict(apart, "E").tested is False  # no depth in common
    lone = [*runs, planted("plain110", 0, accuracy=(0.9,)), *seeds("resnet8", 3, accuracy=[(0.0,)] * 3)]
    assert verdict(lone, "E").evidence == verdict(runs, "E").evidence
    few = [*runs, planted("plain110", 0, accuracy=(0.9,)), planted("resnet110", 0, accuracy=(0.9,))]
    assert verdict(few, "E").setting == "20 to 44 layers, 64 px"


def test_one_depth_says_nothing_of_depth() -> None:
    found = verdict(pair(ends(0.8, 0.6, 0.5, 1.0), ends(0.9, 0.7, 0.3, 0.8)), "E")
    assert (found.verdict, found.tested) == ("undecided", False)
    gaps = [one for one in found.evidence if "gap" in one.name]
    assert [round(one.value, 6) for one in gaps] == [0.2, 0.2]
    losses = {one.name: one.value for one in found.evidence if "loss" in one.name}
    assert losses["plain network, training loss at the end"] == pytest.approx(1.3)  # the median of 1.6, 1.3 and 0.5
    assert losses["plain network, fall of the training loss per epoch at the end"] == pytest.approx((1.6 - 0.5) / 2)


def test_a_slope_is_that_of_a_least_squares_fit() -> None:
    rng = np.random.default_rng(0)
    depths, values = np.array([20, 32, 44, 56, 110]), rng.normal(size=5)
    assert slope_over(depths, values) == pytest.approx(np.polyfit(depths / 10, values, 1)[0])
    assert math.isnan(slope_over(np.array([34.0]), np.array([1.0])))


# --- F ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradient", "value", "expected"),
    [
        (0.9, 0.1, "supported"),
        (0.0, 0.3, "refuted"),
        (0.1, 0.1, "refuted"),
        (0.9, 0.9, "mixed"),
        (0.5, 0.5, "undecided"),
    ],
)
def test_which_half_of_the_shortcut_cures(gradient: float, value: float, expected: str) -> None:
    found = verdict(halves(gradient, value, plain=-6.0), "F")
    assert found.verdict == expected, found.why
    assert found.evidence[0].value == pytest.approx(gradient, abs=1e-6)


def test_a_cure_where_nothing_had_vanished_is_no_support() -> None:
    found = verdict(halves(0.9, 0.1, plain=2.0), "F")
    assert found.verdict == "mixed"
    assert "nothing had vanished" in found.why
    assert verdict(halves(0.9, 0.1, plain=-3.0), "F").verdict == "undecided"  # at the line


def test_where_there_is_no_gap_there_is_nothing_to_close() -> None:
    for gap in (-0.4, 0.0):
        found = verdict(halves(0.9, 0.1, plain=-6.0, gap=gap), "F")
        assert (found.verdict, found.tested) == ("undecided", False)
        assert "no gap to close" in found.why
        assert "closes" not in judge_claims(halves(0.9, 0.1, plain=-6.0, gap=gap)).explanation


def test_shares_of_validation_accuracy_stand_beside() -> None:
    runs = halves(0.9, 0.1, plain=-6.0)
    for run in runs:
        run.epochs["val_accuracy"][:] = {"plain34": 0.2, "resnet34": 0.6, "resnet34-gradonly": 0.3}.get(run.model, 0.5)
    assert [round(one.value, 6) for one in verdict(runs, "F").evidence[2:4]] == [0.25, 0.75]


def outcomes(speed: tuple[float, float], unseen: tuple[float, float], wide: float = 0.004) -> Verdict:
    """Judge halves of which the gradient and the value close such shares of both gaps."""
    runs = halves(*speed, plain=-6.0)
    share = {"plain34": 0.0, "resnet34": 1.0, "resnet34-gradonly": unseen[0], "resnet34-valueonly": unseen[1]}
    for run in runs:
        shift = wide * (-1) ** run.seed * (1 + run.seed) * ("only" in run.model)
        run.epochs["val_accuracy"][:] = 0.4 + 0.2 * share[run.model] + shift
    return verdict(runs, "F")


@pytest.mark.parametrize(
    ("speed", "unseen", "expected"),
    [
        ((0.9, 0.1), (0.9, 0.1), "supported"),
        ((-0.2, 0.55), (0.1, 0.3), "refuted"),
        ((-0.2, 0.55), (0.9, 0.1), "mixed"),  # contradiction
        ((-0.2, 0.55), (0.45, 0.3), "mixed"),  # open on unseen images, and shown to differ: as in the study
        ((0.5, 0.5), (0.5, 0.5), "undecided"),
    ],
)
def test_a_cause_is_judged_in_both_outcomes(
    speed: tuple[float, float], unseen: tuple[float, float], expected: str
) -> None:
    found = outcomes(speed, unseen)
    assert found.verdict == expected, found.why
    assert "in the speed of training" in found.why
    assert "; on unseen images" in found.why
    assert found.why.startswith("it depends on the outcome: ") == (expected == "mixed")


def test_outcomes_that_may_be_equal_are_undecided() -> None:
    found = outcomes((0.3, 0.55), (0.5, 0.3), wide=0.02)
    assert found.verdict == "undecided", found.why
    alone = verdict(halves(0.0, 0.3, plain=-6.0), "F")
    assert alone.why.endswith("; on unseen images no gap is shown that could be closed")


def test_a_cause_is_judged_at_the_depth_of_its_halves() -> None:
    deeper = [*seeds("plain110", 3), *seeds("resnet110", 3)]
    found = verdict([*halves(0.0, 0.3), *deeper], "F")
    assert (found.verdict, found.setting) == ("refuted", "34 layers, 64 px")


def test_a_way_back_on_which_the_gradient_vanishes_is_no_test() -> None:
    found = verdict(halves(0.0, 0.6, decades=-6.0), "F")
    assert found.verdict == "undecided"
    assert found.why.startswith("no test")


def test_without_halves_the_cause_is_no_claim_but_a_note() -> None:
    found = judge_claims(pair({}, {}))
    assert [one.claim.key for one in found.claims] == list("ABCDE")
    assert any("gradlens run cause" in note for note in found.notes)


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_the_interval_of_a_ratio_holds_what_students_t_does_not_refuse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = rng.normal(1.0, 0.2, size=6)
    part = rng.uniform(-1, 1) * whole + rng.normal(0, 0.2, size=6)
    found = fieller(part, whole)
    ratios = np.linspace(-5, 5, 4001)
    left = part[:, None] - ratios * whole[:, None]
    kept = np.abs(left.mean(0)) <= t_975(5) * left.std(0, ddof=1) / np.sqrt(6)
    inside = (ratios >= found.low) & (ratios <= found.high)
    if math.isfinite(found.low):
        assert (kept != inside).sum() <= 2  # at its ends
    nothing = fieller(rng.normal(size=4), np.array([-1.0, 1.1, -0.9, 1.0]))
    assert (nothing.low, nothing.high) == (-math.inf, math.inf)
