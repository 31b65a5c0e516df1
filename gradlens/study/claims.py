"""The original study's claims, judged by runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from gradlens.errors import ConfigError
from gradlens.run import Run
from gradlens.study.claims_a_to_d import judge_end, judge_path, judge_speed, judge_vanishing
from gradlens.study.claims_e_f import judge_cause, judge_depth
from gradlens.study.controls import Control, check_controls
from gradlens.study.criteria import CLAIMS, Claim
from gradlens.study.evidence import JudgedClaim, Verdict, say
from gradlens.study.explanation import explain
from gradlens.study.judgement import Judgement
from gradlens.study.run_groups import CONDITIONS, Arms, Setting, sort_runs

JUDGES = {
    "A": judge_vanishing,
    "B": judge_path,
    "C": judge_speed,
    "D": judge_end,
    "E": judge_depth,
    "F": judge_cause,
}
COPIES = 0.01
"""Of a larger share of validation pictures with a copy among the training pictures, validation is memory."""


def judge_claims(runs: Sequence[Run]) -> Judgement:
    """Judge each claim of the original study by runs of plain and residual networks.

    Runs that were trained alike are compared with each other, and with no others: those with batch norm apart from
    those without, and each way to train (image size, split, initialisation, ...) on its own. Claims A to D and F are
    judged at the deepest network that both families have, E over all depths.

    Args:
        runs: Any runs, in any order; also of the controls, and of halves of the shortcut.

    Raises:
        ConfigError: None of them is of a plain or a residual network.
    """
    arms = sort_runs(runs)
    if not arms.settings:
        raise ConfigError(
            f"none of the {len(runs)} runs is a complete one of a plain or residual network, such as plain34 and resnet34"
            f"{_instead(arms)}",
            tip="gradlens run report trains what is needed",
        )
    controls = check_controls(arms.positive, arms.negative)
    failed = [control for control in controls if control.passed is False]
    halves = any(any(setting.halves.values()) for setting in arms.settings)
    judged = [_judge(one, arms, failed) for one in CLAIMS if one.key != "F" or halves]
    if failed:
        explanation = _withheld(failed)
    else:
        overall = {one.claim.key: one.overall for one in judged}
        settings = [{one.claim.key: one.verdicts[i] for one in judged} for i in range(len(arms.settings))]
        explanation = explain(overall, settings)
    return Judgement(tuple(judged), controls, explanation, tuple(_notes(arms, controls, halves)), len(runs))


def _instead(arms: Arms) -> str:
    """Say what the runs are instead."""
    counts = {
        "not ended": arms.unfinished,
        "interrupted or failed": arms.broken,
        "controls": [*arms.positive, *arms.negative],
        "halves of a shortcut alone": arms.lone,
        "other networks": arms.others,
    }
    found = ", ".join(f"{len(runs)} {name}" for name, runs in counts.items() if runs)
    return f" (they are: {found})" if found else ""


def _withheld(failed: Sequence[Control]) -> str:
    said = "; ".join(f"the {control.key} control failed ({control.detail})" for control in failed)
    return f"No verdict is given: {said}. An instrument that fails its controls cannot judge a claim."


def _judge(claim: Claim, arms: Arms, failed: Sequence[Control]) -> JudgedClaim:
    verdicts = [JUDGES[claim.key](setting) for setting in arms.settings]
    if claim.key in "DE":
        verdicts = [_discounted(verdict, setting) for verdict, setting in zip(verdicts, arms.settings, strict=True)]
    if failed:
        why = f"the {' and the '.join(control.key for control in failed)} control failed"
        verdicts = [replace(verdict, verdict="withheld", why=f"{why}; {verdict.why}") for verdict in verdicts]
    overall = {}
    for condition in CONDITIONS:
        here = [verdict for verdict in verdicts if verdict.condition == condition]
        if here:
            overall[condition] = _combine(here)
    return JudgedClaim(claim, overall, tuple(verdicts))


def _discounted(verdict: Verdict, setting: Setting) -> Verdict:
    """Do not count what is said of validation where its pictures have copies among those of training."""
    if setting.copies <= COPIES:
        return verdict
    why = f"{setting.copies:.0%} of its validation pictures have a copy in training: not counted. {verdict.why}"
    return replace(verdict, counts=False, why=why)


def _combine(verdicts: Sequence[Verdict]) -> Verdict:
    """Put the settings of a condition together.

    What all settings that decide say, where they are more than half of those that test it; mixed where they contradict
    each other.
    """
    if not any(verdict.counts for verdict in verdicts):
        return replace(verdicts[0], verdict="withheld" if verdicts[0].verdict == "withheld" else "undecided")
    verdicts = [verdict for verdict in verdicts if verdict.counts]
    verdicts = [verdict for verdict in verdicts if verdict.tested] or verdicts
    if len(verdicts) == 1:
        return verdicts[0]
    decided = [verdict for verdict in verdicts if verdict.verdict != "undecided"]
    outcomes = sorted({verdict.verdict for verdict in decided})
    if not decided:
        best = max(verdicts, key=_seeds)
        return replace(best, why=f"in all {len(verdicts)} settings; {best.setting}: {best.why}")
    if len(outcomes) > 1:
        said = "; ".join(f"{verdict.verdict} at {verdict.setting} ({verdict.why})" for verdict in decided)
        return replace(decided[0], verdict="mixed", spread=True, why=f"it depends on the setting: {said}")
    best = max(decided, key=_seeds)
    where = f"in {len(decided)} of {len(verdicts)} settings{_range(decided)}; {best.setting}: {best.why}"
    if len(decided) * 2 <= len(verdicts):
        return replace(best, verdict="undecided", partly=best.verdict, why=f"{best.verdict} {where}")
    return replace(best, why=where)


def _seeds(verdict: Verdict) -> int:
    return max((one.n for one in verdict.evidence), default=0)


def _range(verdicts: Sequence[Verdict]) -> str:
    """Say from where to where the deciding number goes over the settings."""
    numbers = sorted((one.evidence[0] for one in verdicts if one.evidence), key=lambda one: one.value)
    if len(numbers) < 2:
        return ""
    low, high = (say(replace(one, low=math.nan, high=math.nan)) for one in (numbers[0], numbers[-1]))
    return f", {low} to {high}"


def _notes(arms: Arms, controls: Sequence[Control], halves: bool) -> list[str]:
    notes = []
    missing = [control.key for control in controls if control.passed is None]
    if missing:
        notes.append(
            f"no {' and no '.join(missing)} control is among the runs: the instrument was not checked in this study "
            "(gradlens run controls; gradlens verify measures its laws)"
        )
    if not halves:
        notes.append("the cause was not tested: gradlens run cause trains halves of the shortcut")
    for runs, why in (
        (arms.unfinished, "not ended yet"),
        (arms.broken, "interrupted or failed before its end"),
        (arms.lone, "halves of a shortcut without the networks to compare them with"),
        (arms.repeats, "a repeated seed of the same model and settings"),
        (arms.others, "no plain or residual network with a seed"),
    ):
        if runs:
            names = ", ".join(run.name for run in runs[:3]) + (" ..." if len(runs) > 3 else "")
            notes.append(f"left out, {why}: {len(runs)} run{'s' * (len(runs) > 1)} ({names})")
    for setting in arms.settings:
        if setting.copies > COPIES:
            notes.append(
                f"{setting.condition}, {setting.name()}: {setting.copies:.0%} of the validation pictures have a copy "
                "among the training pictures; its validation figures are partly memory"
            )
    return notes
