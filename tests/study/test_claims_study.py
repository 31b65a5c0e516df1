"""The claims all together: controls first, what is no evidence is left out, nothing is found where nothing is."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradlens import studies
from gradlens.analysis.stats import mean_interval
from gradlens.diagnosis.diagnose import diagnose
from gradlens.errors import ConfigError
from gradlens.run import Run
from gradlens.study import CLAIMS, OUTCOMES, Judgement, judge_claims
from gradlens.study.claims_a_to_d import judge_end, judge_speed, judge_vanishing
from gradlens.study.claims_e_f import SPEED, UNSEEN, Gap, _say_cause
from gradlens.study.controls import check_controls
from gradlens.study.evidence import Evidence, Part, combine_parts, differ
from gradlens.study.run_groups import WITH, WITHOUT, short_data, sort_runs
from tests.study.planted_claims import (
    CONTROLS,
    FAST,
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
    assert overall["A"] == {WITH: "refuted", WITHOUT: "supported"}
    assert overall["C"] == {WITH: "supported", WITHOUT: "supported"}
    assert overall["E"] == {WITH: "supported", WITHOUT: "undecided"}
    assert overall["F"][WITH] == "refuted"
    assert found.explanation == (
        "With batch norm the plain network's gradient does not vanish (norm at the first layer over the last hidden "
        "one: 10^2.0 [2.0, 2.0], at 34 layers, 64 px), and without batch norm the plain network's gradient "
        "vanishes toward the input (norm at the first layer over the last hidden one: 10^-6.0 [-6.0, -6.0], at 34 "
        "layers, 64 px). With batch norm the residual network learns faster (mean training accuracy +0.400 [+0.400, "
        "+0.400], at 34 layers, 64 px) and ends better in part (validation accuracy +0.000 [+0.000, +0.000], loss"
        " +0.000 [+0.000, +0.000], at 34 layers, 64 px); without batch norm the residual network learns faster (mean "
        "training accuracy +0.533 [+0.533, +0.533], at 34 layers, 64 px) and ends better in part (validation "
        "accuracy +0.000 [+0.000, +0.000], loss +0.000 [+0.000, +0.000], at 34 layers, 64 px). With batch norm, a"
        " shortcut that passes only the gradient closes 0 % [-2, 2] of the gap in training between the two networks, "
        "one that passes only the value 60 % [60, 60], at 34 layers, 64 px. With batch norm the shortcut helps "
        "although nothing vanishes: the original study's explanation is wrong there (in 2 of 2 settings); without "
        "batch norm the original study's explanation fits the observations, but was not tested."
    )
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert set(json.loads(text)) == {"schema", "conditions", "controls", "claims", "explanation", "notes", "runs"}
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
    """A network that vanishes by its ends, and learns all the same, is diagnosed healthy: then the control fails."""
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
        assert f"{blind.name} cannot be judged" in control.detail


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
    sorted_runs = sort_runs([*seeds("resnet34", 3), *large])
    assert [sorted(one.name() for one in sorted_runs.settings)] == [["34 layers, 224 px", "34 layers, 64 px"]]
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
    assert both.claims[3].overall[WITH].verdict == "refuted"
    assert any("60% of the validation images have a copy" in note for note in both.notes)


def test_settings_that_differ_are_mixed_and_no_vote_is_taken() -> None:
    def at(size: int, decades: list[float]) -> list[Run]:
        return [planted("plain34", s, decades=d, settings={"image_size": size}) for s, d in enumerate(decades)]

    vanishes, grows, unclear = [-6.0, -5.0, -5.5], [2.0, 2.1, 1.9], [-6.0, 2.0, -1.0]
    mixed = verdict([*at(32, vanishes), *at(64, grows)], "A")
    assert mixed.verdict == "mixed"
    said = judge_claims([*at(32, vanishes), *at(64, grows)]).explanation
    assert "it depends on the setting whether the plain network's gradient vanishes" in said
    assert "32 px" in mixed.why
    assert "64 px" in mixed.why
    half = verdict([*at(32, vanishes), *at(64, unclear)], "A")
    assert (half.verdict, half.partly) == ("undecided", "supported")  # -6 to 2 may well be -5.5
    most = verdict([*at(32, vanishes), *at(64, unclear), *at(96, vanishes)], "A")
    assert (most.verdict, most.partly) == ("undecided", "supported")
    assert "undecided at 34 layers, 64 px" in most.why
    every = verdict([*at(32, vanishes), *at(64, vanishes)], "A")
    assert (every.verdict, every.partly) == ("supported", None)
    assert every.why.startswith("in all 2 settings, 10^-5.5 to 10^-5.5; ")
    lone = verdict([*at(32, vanishes), *at(64, [2.0])], "A")
    assert lone.verdict == "supported"  # one seed is no test


def test_an_open_setting_that_is_shown_to_differ_makes_a_claim_mixed() -> None:
    """As the study's claim D: better at 64 px, open at 224 px, and the two gains differ."""

    def at(size: int, gains: list[float]) -> list[Run]:
        runs = []
        for s, gain in enumerate(gains):
            for model, val in (("plain34", 0.5), ("resnet34", 0.5 + gain)):
                runs.append(planted(model, s, accuracy=(0.5, 0.9), val_accuracy=val, val_loss=2 - val - s / 100,
                                    settings={"image_size": size}))  # fmt: skip
        return runs

    clear, near, wide = [0.14, 0.15, 0.16, 0.15, 0.14], [0.04, -0.03, 0.05, -0.02, 0.06], [0.4, -0.3, 0.1, 0.5, -0.2]
    mixed = verdict([*at(64, clear), *at(224, near)], "D")
    assert (mixed.verdict, mixed.spread, mixed.partly) == ("mixed", True, "supported")
    assert mixed.why.startswith("it depends on the setting: supported at 34 layers, 64 px (")
    assert "; undecided at 34 layers, 224 px (" in mixed.why
    assert verdict([*at(64, clear), *at(224, wide)], "D").verdict == "undecided"


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


def foreign(model: str, seed: int, config: dict[str, Any]) -> Run:
    """A run of a loop of one's own, whose model has a name of the study; ``config`` is what its user stored."""
    run = planted(model, seed)
    run.info["config"] = config
    return run


@pytest.mark.parametrize(
    "config",
    [{}, {"lr": 1e-3}, {"model": "plain34", "data": "cifar10", "data_facts": 3}, {"model": "mine", "data_facts": {}}],
)
def test_own_models_with_names_of_the_study_are_no_evidence_for_it(config: dict[str, Any]) -> None:
    own = [foreign(model, seed, config) for model in ("plain34", "resnet34") for seed in range(3)]
    controls = [foreign("plain34-nobn-sigmoid", 0, config), foreign("plain8", 0, config)]
    with pytest.raises(ConfigError, match=r"is among 8 runs .got 8 not trained by gradlens run"):
        judge_claims([*own, *controls])
    assert studies.judge_pairs(own) is None  # what a report asks
    assert not studies.pairs(own)
    judged = judge_claims([*pair({}, {}), *own])
    assert judged.explanation == judge_claims(pair({}, {})).explanation
    assert any("left out, not trained by gradlens run, whatever the model's name: 6 runs" in n for n in judged.notes)


def test_what_is_left_out_is_noted() -> None:
    runs = pair({}, {})
    extra = [planted("plain34", 9, status="running"), planted("plain34", 0), planted("torchvision:vgg16", 0)]
    rescaled = planted("plain34", 0, settings={"rescale_to": "../residual/resnet34"})
    frozen = [planted(model, 0, settings={"freeze": 0.34}, decades=-9.0) for model in ("plain34", "resnet34")]
    judged = judge_claims([*runs, *extra, rescaled, *frozen])
    notes = " ".join(judged.notes)
    for words in ("not finished: 1 run (plain34-s9)", "repeated seed", "no plain or residual network"):
        assert words in notes
    assert "left out, layers that keep their weights, or gradients of another network's sizes: 3 runs" in notes
    assert judged.explanation == judge_claims(runs).explanation
    with pytest.raises(ConfigError, match=r"is among 3 runs .got 3 with frozen layers or rescaled gradients"):
        judge_claims([*frozen, rescaled])
    with pytest.raises(ConfigError, match=r"is among 1 run .got 1 of another network"):
        judge_claims([planted("torchvision:vgg16", 0)])
    with pytest.raises(ConfigError, match=r"among 2 runs .got 2 of another network"):  # without a seed, neither repeats
        judge_claims([planted("Sequential", -1), planted("Sequential", -1)])
    with pytest.raises(ConfigError, match="got 1 not finished, 2 of a model with half a shortcut"):
        judge_claims([planted("plain34", 9, status="running"), *seeds("resnet34-valueonly", 2)])
    assert any("half a shortcut, without" in note for note in judge_claims(
        [*runs, planted("resnet34-valueonly", 0, settings={"image_size": 96})]).notes)  # fmt: skip


def test_every_claim_says_what_would_count_and_why() -> None:
    assert [one.key for one in CLAIMS] == list("ABCDEF")
    assert all(one.text and one.supports and one.refutes and one.reason for one in CLAIMS)


def number(value: float, low: float, high: float) -> Evidence:
    return Evidence("x", value, low, high, "share", 5)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["supported", "supported"], ("supported", None)),
        (["refuted", "refuted", "refuted"], ("refuted", None)),
        (["supported", "refuted"], ("mixed", None)),
        (["mixed", "mixed"], ("mixed", None)),
        (["undecided", "undecided"], ("undecided", None)),
        (["refuted", "refuted", "refuted", "undecided"], ("undecided", "refuted")),
    ],
)
def test_parts_are_combined_without_a_vote(verdicts: list[Any], expected: tuple[str, str | None]) -> None:
    parts = [Part(str(i), one, number(0.5, 0.2, 0.8)) for i, one in enumerate(verdicts)]
    assert combine_parts(parts, larger_supports=True) == expected
    apart = [*parts[:-1], replace(parts[-1], evidence=number(0.95, 0.9, 1.0))]
    if expected == ("undecided", "refuted"):
        assert combine_parts(apart, larger_supports=True) == ("mixed", "refuted")
        assert combine_parts(apart, larger_supports=False) == ("undecided", "refuted")  # it differs, and agrees


def evidence_of(stored: dict[str, Any]) -> Evidence:
    values = {key: math.nan if stored[key] is None else float(stored[key]) for key in ("value", "low", "high")}
    return Evidence(stored["name"], **values, unit=stored["unit"], n=stored["n"], cut=stored["cut"])


def test_todays_rules_on_the_numbers_of_the_151_runs() -> None:
    """Their files are gone; the numbers that were printed suffice for claims D and F with batch norm: both mixed."""
    path = Path(__file__).parents[2] / "experiments" / "results" / "claims.json"
    claims = {one["key"]: one for one in json.loads(path.read_text(encoding="utf-8"))["claims"]}
    stored = [one for one in claims["D"]["verdicts"] if one["condition"] == WITH and one["tested"] and one["counts"]]
    parts = [Part(one["setting"], one["verdict"], evidence_of(one["evidence"][0])) for one in stored]
    assert combine_parts(parts, larger_supports=True) == ("mixed", "supported")
    assert not differ(parts[1].evidence, replace(parts[2].evidence, high=0.2))
    (cause,) = (one for one in claims["F"]["verdicts"] if one["condition"] == WITH and one["tested"])
    numbers = [evidence_of(one) for one in cause["evidence"]]
    verdict, why = _say_cause([Gap(SPEED, *numbers[:2]), Gap(UNSEEN, *numbers[2:4])], numbers)
    assert verdict == "mixed"
    assert why.startswith("it depends on the outcome: in the speed of training the alternative path of the gradient")
    assert "on unseen images an interval contains one half; a part of it is closed" in why


def test_two_numbers_differ_as_seldom_as_they_should() -> None:
    """Intervals by Student's t, six values each: the difference excludes 0 in 5 % of equal pairs at most."""
    rng = np.random.default_rng(0)

    def mean(shift: float) -> Evidence:
        found = mean_interval(rng.normal(shift, 1, size=6))
        return number(found.mean, found.low, found.high)

    assert sum(differ(mean(0), mean(0)) for _ in range(1000)) / 1000 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)
    assert sum(differ(mean(0), mean(3)) for _ in range(100)) > 90
    assert not differ(number(0, -math.inf, math.inf), number(9, 8.9, 9.1))


def test_data_are_named_without_the_folders_that_all_share() -> None:
    assert short_data(["csv:/home/me/food/train.csv", "patterns", "csv:/home/me/food/train.csv"]) == {
        "csv:/home/me/food/train.csv": "csv:train.csv", "patterns": "patterns",
    }  # fmt: skip
    two = short_data(["csv:/a/food/train.csv", "csv:/b/birds/train.csv"])
    assert list(two.values()) == ["csv:food/train.csv", "csv:birds/train.csv"]
    assert sorted(short_data(["csv:a/x.csv", "csv:x.csv"]).values()) == ["csv:a/x.csv", "csv:x.csv"]


# --- nothing is supported where there is nothing ---------------------------------------------------------------


TRIALS = 400


def share_supported(judge: Any, make: Any) -> float:
    found = 0
    for trial in range(TRIALS):
        rng = np.random.default_rng(trial)
        found += judge(sort_runs(make(rng)).settings[0]).verdict == "supported"
    return found / TRIALS


def random_pair(rng: np.random.Generator) -> list[Run]:
    """Both networks from one distribution; pairs share what their seed brings."""
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


@pytest.mark.slow
def test_the_null_is_seldom_called_supported() -> None:
    """By Student's t 2.5 % lie above; with twice the standard error of 400 trials 0.041 (by the Normal's z: 0.06)."""
    assert share_supported(judge_speed, random_pair) <= 0.041
    assert share_supported(judge_end, random_pair) <= 0.02  # two quantities must agree


@pytest.mark.slow
def test_a_gradient_at_the_line_is_seldom_called_vanished() -> None:
    def at_the_line(rng: np.random.Generator) -> list[Run]:
        return [planted("plain34", seed, decades=float(-3.0 + rng.normal(0, 0.5))) for seed in range(5)]

    assert share_supported(judge_vanishing, at_the_line) <= 0.041


def test_a_judgement_has_no_verdict_of_a_condition_that_was_not_trained() -> None:
    found: Judgement = judge_claims(pair({}, {}))
    assert found.conditions == [WITH]
    assert all(list(one.overall) == [WITH] for one in found.claims)
