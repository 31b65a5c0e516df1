"""Judge the original study's claims by runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from gradlens.errors import ConfigError
from gradlens.format import plural
from gradlens.run import Run
from gradlens.study.claims_a_to_d import judge_end, judge_path, judge_speed, judge_vanishing
from gradlens.study.claims_e_f import judge_cause, judge_depth
from gradlens.study.controls import Control, check_controls
from gradlens.study.criteria import CLAIMS, Claim
from gradlens.study.evidence import JudgedClaim, Part, Verdict, combine_parts, say
from gradlens.study.explanation import explain
from gradlens.study.judgement import Judgement
from gradlens.study.run_groups import CONDITIONS, Setting, SortedRuns, sort_runs
from gradlens.study.study_run import StudyRun

JUDGES = {
    "A": judge_vanishing,
    "B": judge_path,
    "C": judge_speed,
    "D": judge_end,
    "E": judge_depth,
    "F": judge_cause,
}
SMALLER_SUPPORTS = "AE"
"""Claims that a smaller first number supports: a ratio that vanishes, an accuracy that falls with depth."""
COPIES = 0.01
"""Above this share of validation images with a copy among the training images, validation does not count: it partly
measures memory."""


def judge_claims(runs: Sequence[Run | StudyRun]) -> Judgement:
    """Judge each claim of the original study by runs of plain and residual networks.

    Only runs with equal settings (batch norm or not, image size, split, initialisation, ...) are compared with each
    other. Claims A to D and F are judged at the largest depth that both families have, claim E over all depths.

    Args:
        runs: Any runs, in any order, including controls and models with half a shortcut.

    Returns:
        The verdicts with their evidence, the controls, an explanation and notes.

    Raises:
        ConfigError: No run is a complete run of a plain or residual network.
    """
    sorted_runs = sort_runs(runs)
    if not sorted_runs.settings:
        raise ConfigError(
            f"no complete run of a plain or residual network, such as plain34 and resnet34, is among "
            f"{plural(len(runs), 'run')}{_instead(sorted_runs)}",
            tip="gradlens run report trains the necessary runs",
        )
    controls = check_controls(sorted_runs.positive, sorted_runs.negative)
    failed = [control for control in controls if control.passed is False]
    halves = any(any(setting.halves.values()) for setting in sorted_runs.settings)
    judged = [_judge(one, sorted_runs, failed) for one in CLAIMS if one.key != "F" or halves]
    if failed:
        explanation = _withheld(failed)
    else:
        overall = {one.claim.key: one.overall for one in judged}
        settings = [{one.claim.key: one.verdicts[i] for one in judged} for i in range(len(sorted_runs.settings))]
        explanation = explain(overall, settings)
    return Judgement(tuple(judged), controls, explanation, tuple(_notes(sorted_runs, controls, halves)), len(runs))


def _instead(sorted_runs: SortedRuns) -> str:
    """Describe the runs that cannot be judged."""
    counts = {
        "not finished": sorted_runs.unfinished,
        "interrupted or failed": sorted_runs.broken,
        "of a control": [*sorted_runs.positive, *sorted_runs.negative],
        "of a model with half a shortcut": sorted_runs.unmatched,
        "of another network": sorted_runs.others,
        "with frozen layers or rescaled gradients": sorted_runs.changed,
        "not trained by gradlens run": sorted_runs.foreign,
    }
    found = ", ".join(f"{len(runs)} {name}" for name, runs in counts.items() if runs)
    return f" (got {found})" if found else ""


def _withheld(failed: Sequence[Control]) -> str:
    reasons = "; ".join(f"the {control.key} control failed ({control.detail})" for control in failed)
    return f"No verdict is given: {reasons}. An instrument that fails its controls cannot judge claims."


def _judge(claim: Claim, sorted_runs: SortedRuns, failed: Sequence[Control]) -> JudgedClaim:
    verdicts = [JUDGES[claim.key](setting) for setting in sorted_runs.settings]
    if claim.key in "DE":
        verdicts = [
            _discounted(verdict, setting) for verdict, setting in zip(verdicts, sorted_runs.settings, strict=True)
        ]
    if failed:
        why = f"the {' and the '.join(control.key for control in failed)} control failed"
        verdicts = [replace(verdict, verdict="withheld", why=f"{why}; {verdict.why}") for verdict in verdicts]
    overall = {}
    for condition in CONDITIONS:
        here = [verdict for verdict in verdicts if verdict.condition == condition]
        if here:
            overall[condition] = _combine(here, larger_supports=claim.key not in SMALLER_SUPPORTS)
    return JudgedClaim(claim, overall, tuple(verdicts))


def _discounted(verdict: Verdict, setting: Setting) -> Verdict:
    """Do not count a verdict about validation if validation images have copies among the training images."""
    if setting.copies <= COPIES:
        return verdict
    why = f"{setting.copies:.0%} of its validation images have a copy in training: not counted. {verdict.why}"
    return replace(verdict, counts=False, why=why)


def _combine(verdicts: Sequence[Verdict], *, larger_supports: bool) -> Verdict:
    """Combine the verdicts of all settings of a condition; see ``combine_parts``.

    Settings that lack what the test needs do not count. The first number of a verdict's evidence decides whether
    settings differ.

    Returns:
        The verdict of the condition; the settings are named where they differ.
    """
    if not any(verdict.counts for verdict in verdicts):
        return replace(verdicts[0], verdict="withheld" if verdicts[0].verdict == "withheld" else "undecided")
    verdicts = [verdict for verdict in verdicts if verdict.counts]
    verdicts = [verdict for verdict in verdicts if verdict.tested] or verdicts
    if len(verdicts) == 1:
        return verdicts[0]
    if not all(verdict.evidence for verdict in verdicts):
        return replace(verdicts[0], why=f"in all {len(verdicts)} settings; {verdicts[0].setting}: {verdicts[0].why}")
    parts = [Part(one.setting, one.verdict, one.evidence[0]) for one in verdicts]
    found, decided = combine_parts(parts, larger_supports=larger_supports)
    best = max((one for one in verdicts if one.verdict == (decided or found)), key=_seeds, default=verdicts[0])
    if len({verdict.verdict for verdict in verdicts}) == 1:
        why = f"in all {len(verdicts)} settings{_range(verdicts)}; {best.setting}: {best.why}"
        return replace(best, why=why)
    each = "; ".join(f"{verdict.verdict} at {verdict.setting} ({verdict.why})" for verdict in verdicts)
    if found == "mixed":
        return replace(best, verdict="mixed", spread=True, partly=decided, why=f"it depends on the setting: {each}")
    return replace(best, verdict="undecided", partly=decided, why=f"not in all settings: {each}")


def _seeds(verdict: Verdict) -> int:
    return max((one.n for one in verdict.evidence), default=0)


def _range(verdicts: Sequence[Verdict]) -> str:
    """Return the range of the deciding number over the settings."""
    numbers = sorted((one.evidence[0] for one in verdicts if one.evidence), key=lambda one: one.value)
    if len(numbers) < 2:
        return ""
    low, high = (say(replace(one, low=math.nan, high=math.nan)) for one in (numbers[0], numbers[-1]))
    return f", {low} to {high}"


def _notes(sorted_runs: SortedRuns, controls: Sequence[Control], halves: bool) -> list[str]:
    notes = []
    missing = [control.key for control in controls if control.passed is None]
    if missing:
        notes.append(
            f"no {' and no '.join(missing)} control is among the runs: the instrument was not checked in this study "
            "(gradlens run controls; gradlens verify measures known laws)"
        )
    if not halves:
        notes.append("the cause was not tested: gradlens run cause trains models with half a shortcut")
    for runs, why in (
        (sorted_runs.unfinished, "not finished"),
        (sorted_runs.broken, "interrupted or failed before its end"),
        (sorted_runs.unmatched, "half a shortcut, without the networks to compare it with"),
        (sorted_runs.repeats, "a repeated seed of the same model and settings"),
        (sorted_runs.others, "no plain or residual network with a seed"),
        (sorted_runs.changed, "layers that keep their weights, or gradients of another network's sizes"),
        (sorted_runs.foreign, "not trained by gradlens run, whatever the model's name"),
    ):
        if runs:
            names = ", ".join(run.name for run in runs[:3]) + (" ..." if len(runs) > 3 else "")
            notes.append(f"left out, {why}: {plural(len(runs), 'run')} ({names})")
    for setting in sorted_runs.settings:
        if setting.copies > COPIES:
            notes.append(
                f"{setting.condition}, {setting.name()}: {setting.copies:.0%} of the validation images have a copy "
                "among the training images; its validation accuracy and loss partly measure memory"
            )
    return notes
