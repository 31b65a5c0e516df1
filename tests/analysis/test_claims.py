"""The claims: what was planted is found, what was not is not, and controls are asked first."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlens.analysis.claims import CLAIMS, OUTCOMES, Judgement, judge_claims
from gradlens.analysis.claims.arms import WITH, WITHOUT, sort_runs
from gradlens.analysis.claims.controls import check_controls
from gradlens.analysis.claims.evidence import Verdict
from gradlens.analysis.claims.measures import epochs_to, fieller, shortcut_share, slope_over
from gradlens.analysis.claims.verdicts import judge_end, judge_speed, judge_vanishing
from gradlens.analysis.diagnose import diagnose
from gradlens.analysis.stats import t_975
from gradlens.errors import ConfigError
from gradlens.run import Run
from tests.analysis.planted_claims import planted, seeds

SLOW, FAST = (0.3, 0.4, 0.5, 0.6), (0.5, 0.8, 0.9, 0.95)
JITTER = [-0.02, -0.01, 0.0, 0.01, 0.02]
CONTROLS = [*seeds("plain34-nobn-sigmoid", 2, decades=-18.0), *seeds("plain8", 2, decades=0.2)]


def curves(base: tuple[float, ...], jitter: list[float] = JITTER) -> list[tuple[float, ...]]:
    return [tuple(value + shift for value in base) for shift in jitter]


def verdict(runs: list[Run], key: str, condition: str = WITH) -> Verdict:
    judged = {one.claim.key: one for one in judge_claims(runs).claims}
    return judged[key].overall[condition]


def pair(plain: dict[str, Any], resnet: dict[str, Any], suffix: str = "", count: int = 5) -> list[Run]:
    return [*seeds(f"plain34{suffix}", count, **plain), *seeds(f"resnet34{suffix}", count, **resnet)]


# --- A ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decades", "expected"),
    [
        ([-5.0, -6.0, -5.5, -4.5, -5.0], "supported"),
        ([2.0, 2.5, 2.2, 2.4, 1.9], "not supported"),
        ([0.2, -0.3, 0.1, 0.0, -0.2], "not supported"),
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


@settings(deadline=None, max_examples=50)
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
    assert shortcut_share(run) == pytest.approx(short @ whole / (whole @ whole), rel=1e-9)


def test_the_share_is_that_of_the_median_block() -> None:
    run = planted("resnet34", 0)
    blocks = np.flatnonzero(~np.isnan(run.metrics["shortcut_grad_norm"][0]))
    for block, share in zip(blocks, (0.1, 0.2, 0.3, 0.9, 0.95), strict=True):
        run.metrics["shortcut_grad_norm"][::5, block] = np.sqrt(share)
        run.metrics["branch_grad_norm"][::5, block] = np.sqrt(1 - share)
    assert shortcut_share(run) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        ([0.6, 0.62, 0.58, 0.61, 0.6], "supported"),
        ([0.05, 0.04, 0.06, 0.05, 0.03], "not supported"),
        ([0.3, 0.31, 0.29, 0.3, 0.3], "mixed"),
        ([0.4, 0.6, 0.5, 0.45, 0.55], "undecided"),
    ],
)
def test_what_came_through_the_shortcut(share: list[float], expected: str) -> None:
    assert verdict(pair({}, {"share": share}), "B").verdict == expected


def test_without_a_path_split_nothing_is_said_of_paths() -> None:
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
    assert verdict(pair({"accuracy": curves(FAST)}, {"accuracy": curves(SLOW)}), "C").verdict == "not supported"
    same = pair({"accuracy": curves(SLOW)}, {"accuracy": curves(SLOW, JITTER[::-1])})
    assert verdict(same, "C").verdict == "undecided"  # jitter against jitter: 0.02 is not excluded
    assert verdict(pair({"accuracy": SLOW}, {"accuracy": SLOW}), "C").verdict == "not supported"


def test_pairs_of_equal_seed_are_compared() -> None:
    """Seeds differ far more than the nets do; only pairs show it."""
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
    assert epochs_to(planted("plain34", 0, accuracy=(0.1, 0.2)), 0.3) == math.inf


def test_no_faster_on_the_whole_but_sooner_at_a_level_is_mixed() -> None:
    plain = [(0.3, 0.5, 0.58, 0.7)] * 5
    resnet = [(0.3, 0.35, 0.62, 0.7)] * 5
    assert verdict(pair({"accuracy": plain}, {"accuracy": resnet}), "C").verdict == "mixed"


def test_faster_on_the_whole_but_later_at_a_level_is_mixed() -> None:
    plain = curves((0.3, 0.3, 0.3, 0.82, 0.82), [0.0] * 5)
    resnet = curves((0.5, 0.7, 0.75, 0.79, 0.82), [0.0] * 5)
    assert verdict(pair({"accuracy": plain}, {"accuracy": resnet}), "C").verdict == "mixed"


# --- D ----------------------------------------------------------------------------------------------------------


def ends(train: float, val: float, loss: float, val_loss: float, noise: float = 0.01) -> dict[str, Any]:
    shifts = [noise * shift / 0.02 for shift in JITTER]
    return {
        "accuracy": [(0.3, 0.5, train + s) for s in shifts],
        "val_accuracy": [val + s for s in shifts],
        "loss": [loss + s for s in shifts],
        "val_loss": [val_loss + s for s in shifts],
    }


@pytest.mark.parametrize(
    ("resnet", "expected"),
    [
        (ends(0.9, 0.7, 0.3, 0.8), "supported"),
        (ends(0.8, 0.7, 0.5, 0.8), "supported"),  # training no worse
        (ends(0.7, 0.7, 0.5, 0.8), "mixed"),  # training worse
        (ends(0.8, 0.6, 0.5, 1.0), "not supported"),  # all the same
        (ends(0.8, 0.5, 0.5, 1.2), "not supported"),
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


def test_a_loss_that_is_not_finite_is_left_out_and_said() -> None:
    broken = ends(0.9, 0.7, 0.3, 0.8)
    broken["val_loss"][0] = math.nan
    found = verdict(pair(ends(0.8, 0.6, 0.5, 1.0), broken), "D")
    loss = next(one for one in found.evidence if one.name.startswith("validation loss"))
    assert loss.n == 4
    assert "1 not finite" in loss.note


# --- E ----------------------------------------------------------------------------------------------------------


def over_depth(
    plain: float, resnet: float, plain_gap: float = 0.0, resnet_gap: float = 0.0, size: int = 64
) -> list[Run]:
    """Final training accuracy and gap change by so much per ten layers."""
    runs = []
    for family, fit, gap in (("plain", plain, plain_gap), ("resnet", resnet, resnet_gap)):
        for depth in (20, 32, 44):
            far = (depth - 20) / 10
            for seed, shift in enumerate(JITTER[1:4]):
                train = 0.9 + fit * far + shift / 10
                runs.append(
                    planted(
                        f"{family}{depth}",
                        seed,
                        accuracy=(0.3, 0.5, train),
                        val_accuracy=train - 0.2 - gap * far,
                        settings={"image_size": size},
                    )
                )
    return runs


@pytest.mark.parametrize(
    ("slopes", "expected"),
    [
        ((-0.1, 0.0), "supported"),
        ((0.0, 0.0, 0.05, 0.0), "supported"),  # it overfits
        ((-0.1, -0.1), "mixed"),
        ((0.0, 0.0), "not supported"),
        ((0.0, -0.1), "not supported"),
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
    assert found.why.startswith("the plain net gets worse with depth; whether the residual net")
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
    assert losses["plain net, training loss at the end"] == pytest.approx(1.3)  # the median of 1.6, 1.3 and 0.5
    assert losses["plain net, fall of the training loss per epoch at the end"] == pytest.approx((1.6 - 0.5) / 2)


def test_a_slope_is_that_of_a_least_squares_fit() -> None:
    rng = np.random.default_rng(0)
    depths, values = np.array([20, 32, 44, 56, 110]), rng.normal(size=5)
    assert slope_over(depths, values) == pytest.approx(np.polyfit(depths / 10, values, 1)[0])
    assert math.isnan(slope_over(np.array([34.0]), np.array([1.0])))


# --- F ----------------------------------------------------------------------------------------------------------


def halves(
    gradient: float, value: float, *, decades: float = 1.0, plain: float = 2.0, count: int = 5, gap: float = 0.4
) -> list[Run]:
    """Plain and residual net, and halves of the shortcut that close such a share of the gap in accuracy."""

    def level(share: float) -> list[tuple[float, ...]]:
        return [(0.5 - gap / 2 + gap * share + shift / 4,) * 3 for shift in JITTER]

    jitter = [level(0.0), level(1.0), level(gradient)[::-1], level(value)]
    names = ("plain34", "resnet34", "resnet34-gradonly", "resnet34-valueonly")
    sizes = (plain, 1.0, decades, -2.0)
    runs = []
    for name, accuracy, size in zip(names, jitter, sizes, strict=True):
        runs += seeds(name, count, accuracy=accuracy, decades=size)
    return runs


@pytest.mark.parametrize(
    ("gradient", "value", "expected"),
    [
        (0.9, 0.1, "supported"),
        (0.0, 0.3, "not supported"),
        (0.1, 0.1, "not supported"),
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


def test_a_cause_is_judged_at_the_depth_of_its_halves() -> None:
    deeper = [*seeds("plain110", 3), *seeds("resnet110", 3)]
    found = verdict([*halves(0.0, 0.3), *deeper], "F")
    assert (found.verdict, found.setting) == ("not supported", "34 layers, 64 px")


def test_a_way_back_on_which_the_gradient_vanishes_is_no_test() -> None:
    found = verdict(halves(0.0, 0.6, decades=-6.0), "F")
    assert found.verdict == "undecided"
    assert found.why.startswith("no test")


def test_without_halves_the_cause_is_no_claim_but_a_note() -> None:
    found = judge_claims(pair({}, {}))
    assert [one.claim.key for one in found.claims] == list("ABCDE")
    assert any("cause.toml" in note for note in found.notes)


@settings(deadline=None, max_examples=40)
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


# --- what is true of all ----------------------------------------------------------------------------------------


def study() -> list[Run]:
    bare = pair({"decades": -6.0, "accuracy": (0.2, 0.2, 0.2)}, {"decades": 0.5, "accuracy": FAST}, "-nobn", 3)
    return [*halves(0.0, 0.6), *bare, *over_depth(-0.1, 0.0, size=32), *CONTROLS]


def test_the_order_of_the_runs_is_irrelevant() -> None:
    runs = study()
    first = judge_claims(runs).to_dict()
    for seed in range(3):
        random.Random(seed).shuffle(runs)
        assert judge_claims(runs).to_dict() == first


def test_a_study_as_a_whole() -> None:
    found = judge_claims(study())
    assert [control.passed for control in found.controls] == [True, True]
    assert found.conditions == [WITH, WITHOUT]
    overall = {one.claim.key: {c: v.verdict for c, v in one.overall.items()} for one in found.claims}
    assert overall["A"] == {WITH: "not supported", WITHOUT: "supported"}
    assert overall["C"] == {WITH: "supported", WITHOUT: "supported"}
    assert overall["E"] == {WITH: "supported", WITHOUT: "undecided"}
    assert overall["F"][WITH] == "not supported"
    assert found.explanation == (
        "With batch norm the plain net's gradient does not vanish (norm at the first layer over the last hidden "
        "one: 10^+2.0 [+2.0, +2.0], at 34 layers, 64 px), and without batch norm the plain net's gradient "
        "vanishes on its way back (norm at the first layer over the last hidden one: 10^-6.0 [-6.0, -6.0], at 34 "
        "layers, 64 px). With batch norm the residual net learns faster (mean training accuracy +0.400 [+0.400, "
        "+0.400], at 34 layers, 64 px) and ends better in part (validation accuracy +0.000 [+0.000, +0.000], loss"
        " +0.000 [+0.000, +0.000], at 34 layers, 64 px); without batch norm the residual net learns faster (mean "
        "training accuracy +0.533 [+0.533, +0.533], at 34 layers, 64 px) and ends better in part (validation "
        "accuracy +0.000 [+0.000, +0.000], loss +0.000 [+0.000, +0.000], at 34 layers, 64 px). With batch norm, a"
        " shortcut that passes back the gradient alone closes 0 % [-2, 2] of the gap in training between the two "
        "nets, one that passes on the value alone 60 % [60, 60], at 34 layers, 64 px. With batch norm the "
        "shortcut helps although nothing vanishes: the report's reason is wrong there (in 2 of 2 settings); "
        "without batch norm the report's reason fits what is seen, but was not put to the test."
    )
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert set(json.loads(text)) == {"conditions", "controls", "claims", "explanation", "notes", "runs"}
    rows = found.rows()
    assert {row["claim"] for row in rows} == set("ABCDEF")
    assert all(row["verdict"] in OUTCOMES for row in rows)


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        (planted("plain34-nobn-sigmoid", 7, decades=0.0), "positive"),  # it should vanish and does not
        (planted("plain8", 7, decades=-8.0), "negative"),  # it should not and does
    ],
)
def test_no_verdict_is_given_where_a_control_fails(bad: Run, key: str) -> None:
    found = judge_claims([*study(), bad])
    assert {v.verdict for one in found.claims for v in (*one.overall.values(), *one.verdicts)} == {"withheld"}
    assert found.explanation.startswith(f"No verdict is given: the {key} control failed")
    assert bad.name in found.explanation


def test_controls_are_judged_by_measure_and_diagnosis() -> None:
    """A net that vanishes by its ends, and learns all the same, is diagnosed healthy: then the control fails."""
    learns = planted("plain34-nobn-sigmoid", 0, decades=-4.0)
    learns.scalars["loss"][:] = np.geomspace(1.6, 0.01, len(learns.scalars["loss"]))
    (positive, _) = check_controls([learns], [])
    assert ("vanishing" not in diagnose(learns).kinds) == (positive.passed is False)
    (positive, negative) = check_controls([planted("plain34-nobn-sigmoid", 0, decades=-2.0)], [])
    assert positive.passed is False
    (_, negative) = check_controls([], [planted("plain8", 0, decades=-4.0)])
    assert negative.passed is False


def test_a_control_in_which_nothing_can_be_seen_is_missing() -> None:
    for model in ("plain8", "plain34-nobn-sigmoid"):
        blind = planted(model, 0)
        blind.metrics.clear()  # type: ignore[attr-defined]
        controls = {one.key: one for one in judge_claims([*pair({}, {}), blind]).controls}
        control = controls["negative" if model == "plain8" else "positive"]
        assert (control.passed, control.runs) == (None, 0)
        assert f"in {blind.name} nothing can be seen" in control.detail


def test_a_shallow_net_that_may_vanish_is_no_control() -> None:
    deep = planted("plain14-nobn", 0, decades=-5.0)
    odd = planted("plain8-nobn", 0, decades=-5.0, settings={"init": "default"})
    found = judge_claims([*pair({}, {}), deep, odd])
    assert found.controls[1].passed is None
    assert not found.explanation.startswith("No verdict")


def test_controls_that_are_missing_are_named() -> None:
    found = judge_claims(pair({}, {}))
    assert [control.passed for control in found.controls] == [None, None]
    assert any("no positive and no negative control" in note for note in found.notes)


def test_only_what_was_trained_alike_is_compared() -> None:
    large = [planted(f"plain34{n}", s, settings={"image_size": 224}) for n in ("",) for s in range(3)]
    arms = sort_runs([*seeds("resnet34", 3), *large])
    assert [sorted(one.name() for one in arms.settings)] == [["34 layers, 224 px", "34 layers, 64 px"]]
    assert {v.verdict for v in judge_claims([*seeds("resnet34", 3), *large]).claims[2].verdicts} == {"undecided"}
    watched = [planted("plain34", s, settings={"metrics": ["grad_coherence"], "device": "cuda"}) for s in range(3)]
    assert len(sort_runs([*seeds("resnet34", 3), *watched]).settings) == 1


def test_validation_that_was_trained_on_does_not_count() -> None:
    copied = {"copies": 0.6, "settings": {"split": "random"}}
    better = [
        *seeds("plain34", **ends(0.8, 0.6, 0.5, 1.0), **copied),
        *seeds("resnet34", **ends(0.9, 0.7, 0.3, 0.8), **copied),
    ]
    alone = judge_claims(better)
    assert alone.claims[3].overall[WITH].verdict == "undecided"
    assert alone.claims[3].verdicts[0].verdict == "supported"
    worse = pair(ends(0.8, 0.6, 0.5, 1.0), ends(0.8, 0.5, 0.5, 1.2))
    both = judge_claims([*better, *worse])
    assert both.claims[3].overall[WITH].verdict == "not supported"
    assert any("60% of the validation pictures have a copy" in note for note in both.notes)


def test_settings_that_contradict_each_other_are_mixed_and_a_minority_decides_nothing() -> None:
    def at(size: int, decades: list[float]) -> list[Run]:
        return [planted("plain34", s, decades=d, settings={"image_size": size}) for s, d in enumerate(decades)]

    vanishes, grows, unclear = [-6.0, -5.0, -5.5], [2.0, 2.1, 1.9], [-6.0, 2.0, -1.0]
    mixed = verdict([*at(32, vanishes), *at(64, grows)], "A")
    assert mixed.verdict == "mixed"
    assert "32 px" in mixed.why
    assert "64 px" in mixed.why
    half = verdict([*at(32, vanishes), *at(64, unclear)], "A")
    assert (half.verdict, half.partly) == ("undecided", "supported")
    most = verdict([*at(32, vanishes), *at(64, unclear), *at(96, vanishes)], "A")
    assert (most.verdict, most.partly) == ("supported", None)
    assert "in 2 of 3 settings" in most.why
    minority = verdict([*at(32, vanishes), *at(64, unclear), *at(96, unclear)], "A")
    assert (minority.verdict, minority.partly) == ("undecided", "supported")


def test_a_run_that_did_not_come_to_its_end_is_no_evidence() -> None:
    short = [planted("plain34", s, accuracy=(0.3, 0.4), status="interrupted") for s in range(3)]
    found = judge_claims([*seeds("resnet34", 3), *short])
    assert not found.claims[3].overall[WITH].tested
    assert any("interrupted or failed before its end: 3 runs" in note for note in found.notes)
    rerun = [*short, *pair({}, {}, count=3)]
    assert judge_claims(rerun).to_dict()["claims"] == judge_claims(pair({}, {}, count=3)).to_dict()["claims"]


def test_a_run_that_diverged_is_evidence() -> None:
    """It is at chance from there on; its loss is no number, so that nothing is said of losses."""
    runs = pair({"accuracy": curves(SLOW)}, {"accuracy": curves(FAST)})
    broken = planted("resnet34", 0, accuracy=(0.5,), status="failed")
    broken.scalars["loss"][-1] = math.nan
    found = [broken, *[run for run in runs if run.name != "resnet34-s0"]]
    speed = verdict(found, "C")
    assert "first 4 epochs" in speed.evidence[0].name
    pairs = [np.mean(FAST) - np.mean(SLOW)] * 4 + [(0.5 + 3 * 0.2) / 4 - (np.mean(SLOW) - 0.02)]
    assert speed.evidence[0].value == pytest.approx(np.mean(pairs))
    end = verdict(found, "D")
    assert end.evidence[0].value == pytest.approx((0.2 - 0.6) / 5)
    assert [one.n for one in end.evidence] == [5, 4, 5, 4]
    assert "validation loss" in end.why.split(":")[0]
    assert "not known in every run" in end.why


def test_of_several_runs_of_a_seed_a_complete_one_counts() -> None:
    diverged = planted("resnet34", 0, accuracy=(0.2,), status="failed")
    diverged.scalars["loss"][-1] = math.inf
    object.__setattr__(diverged, "path", Path("a/resnet34-s0.h5"))
    runs = pair({}, {"accuracy": curves(FAST)})
    assert judge_claims([diverged, *runs]).to_dict()["claims"] == judge_claims(runs).to_dict()["claims"]


def test_a_gradient_that_is_seldom_known_says_nothing() -> None:
    """Not finite in most rows, or exactly 0 at both ends."""
    for value in (math.inf, 0.0):
        runs = seeds("plain34", 3, decades=-6.0)
        for run in runs:
            run.metrics["activation_grad_norm"][6:] = value
        found = verdict(runs, "A")
        assert (found.verdict, found.tested) == ("undecided", False)


def test_a_bound_is_not_given_as_a_value() -> None:
    found = judge_claims(pair({"decades": [-9.0, -30.0, -20.0, -8.0, -math.inf]}, {}))
    assert "below 10^-7.2" in found.claims[0].overall[WITH].why
    assert "[-7.2" not in found.explanation
    some = verdict(pair({"decades": [-9.0, -7.1, -5.0, -7.0, -6.8]}, {}), "A").evidence[0]
    assert (some.cut, round(some.low, 2)) == (1, -7.22)
    assert "1 of 5 beyond" in some.note


def test_what_is_concluded_is_concluded_within_one_setting() -> None:
    """At 32 px the gradient is known and no speed, at 64 px a speed and no gradient."""
    small = [planted(m, s, decades=2.0, accuracy=(0.5,), settings={"image_size": 32})
             for m in ("plain34", "resnet34") for s in range(3)]  # fmt: skip
    large = pair({"decades": [-6.0, 2.0, -1.0, -4.0, 0.0], "accuracy": curves(SLOW)}, {"accuracy": curves(FAST)})
    found = judge_claims([*small, *large])
    assert "reason" not in found.explanation


def test_plain_nets_stand_beside_either_shortcut() -> None:
    runs = [
        *[planted("plain34", s, settings={"shortcut": "A"}) for s in range(3)],
        *[planted("resnet34", s, settings={"shortcut": "B"}) for s in range(3)],
    ]
    assert judge_claims(runs).claims[2].overall[WITH].tested
    both = [*runs, *[planted("resnet34", s, settings={"shortcut": "A"}) for s in range(3)]]
    verdicts = judge_claims(both).claims[2].verdicts
    assert [(one.setting, one.tested) for one in verdicts] == [
        ("34 layers, 64 px", True),  # the usual one is not named
        ("34 layers, 64 px, shortcut=B", True),
    ]


def test_copies_that_are_not_known_are_no_copies() -> None:
    runs = pair({}, {})
    for run in runs:
        run.config["data_facts"]["val_share_exact_copy_in_train"] = None
    assert judge_claims(runs).claims[3].verdicts[0].counts
    for run in runs:
        run.config["data_facts"]["val_share_any_copy_in_train"] = 0.7
    judged = judge_claims(runs)
    assert not any(judged.claims[i].verdicts[0].counts for i in (3, 4))
    assert "validation" not in judged.explanation


def test_what_is_left_out_is_said() -> None:
    runs = pair({}, {})
    extra = [planted("plain34", 9, status="running"), planted("plain34", 0), planted("torchvision:vgg16", 0)]
    notes = " ".join(judge_claims([*runs, *extra]).notes)
    for words in ("not ended yet: 1 run (plain34-s9)", "repeated seed", "no plain or residual net"):
        assert words in notes
    with pytest.raises(ConfigError, match="none of the 1 runs"):
        judge_claims([planted("torchvision:vgg16", 0)])
    with pytest.raises(ConfigError, match="they are: 1 not ended, 2 halves of a shortcut alone"):
        judge_claims([planted("plain34", 9, status="running"), *seeds("resnet34-valueonly", 2)])
    assert any("halves of a shortcut without" in note for note in judge_claims(
        [*runs, planted("resnet34-valueonly", 0, settings={"image_size": 96})]).notes)  # fmt: skip


def test_every_claim_says_what_would_count_and_why() -> None:
    assert [one.key for one in CLAIMS] == list("ABCDEF")
    assert all(one.text and one.supports and one.refutes and one.reason for one in CLAIMS)


# --- nothing is supported where there is nothing ---------------------------------------------------------------


TRIALS = 400


def share_supported(judge: Any, make: Any) -> float:
    found = 0
    for trial in range(TRIALS):
        rng = np.random.default_rng(trial)
        found += judge(sort_runs(make(rng)).settings[0]).verdict == "supported"
    return found / TRIALS


def random_pair(rng: np.random.Generator) -> list[Run]:
    """Both nets from one distribution; pairs share what their seed brings."""
    runs = []
    for seed in range(5):
        common = rng.normal(0, 0.05)
        for family in ("plain34", "resnet34"):
            own = rng.normal(0, 0.05, size=4)
            runs.append(
                planted(
                    family,
                    seed,
                    accuracy=[0.3, 0.5, 0.7 + common + own[0]],
                    val_accuracy=0.6 + common + own[1],
                    loss=0.5 + own[2],
                    val_loss=1.0 + own[3],
                )
            )
    return runs


def test_the_null_is_seldom_called_supported() -> None:
    """By Student's t 2.5 % lie above; with twice the standard error of 400 trials 0.041 (by the Normal's z: 0.06)."""
    assert share_supported(judge_speed, random_pair) <= 0.041
    assert share_supported(judge_end, random_pair) <= 0.02  # two quantities must agree


def test_a_gradient_at_the_line_is_seldom_called_vanished() -> None:
    def at_the_line(rng: np.random.Generator) -> list[Run]:
        return [planted("plain34", seed, decades=float(-3.0 + rng.normal(0, 0.5))) for seed in range(5)]

    assert share_supported(judge_vanishing, at_the_line) <= 0.041


def test_a_judgement_has_no_verdict_of_a_condition_that_was_not_trained() -> None:
    found: Judgement = judge_claims(pair({}, {}))
    assert found.conditions == [WITH]
    assert all(list(one.overall) == [WITH] for one in found.claims)
