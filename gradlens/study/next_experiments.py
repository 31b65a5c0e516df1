"""Suggest what would decide undecided claims: experiments to run, or more seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gradlens.analysis.stats import seeds_for_power, t_975
from gradlens.study.controls import Control
from gradlens.study.criteria import DEPTH_MARGIN, HALF, KEEPS, NO_PATH, VANISHES
from gradlens.study.evidence import Evidence, JudgedClaim, Verdict, beyond
from gradlens.study.run_groups import CONDITIONS, WITH, WITHOUT

BOTH_NETWORKS = {WITH: "report", WITHOUT: "norm"}
"""Condition to the experiment that trains both networks with equal settings and several seeds."""
COMMAND = "gradlens run "
SEEDS = "more seeds of both networks, to narrow the intervals (--seeds 0-9)"
MOST_SEEDS = 200
"""Where more seeds than this would be needed, seeds are not the answer."""
TOO_NEAR = (
    f"more than {MOST_SEEDS} seeds would be needed for a power of 0.8 because the mean is next to the threshold, so "
    "that another outcome is the better question"
)
THRESHOLDS: Mapping[str, Mapping[int, tuple[float, ...]]] = {
    "A": {0: (VANISHES, KEEPS)},
    "B": {0: (NO_PATH,)},
    "C": {0: (0.0,)},
    "D": {0: (0.0,), 1: (0.0,)},
    "E": {0: (0.0,), 2: (-DEPTH_MARGIN,), 3: (DEPTH_MARGIN,)},
    "F": {0: (HALF,), 2: (HALF,)},
}
"""Claim to the numbers of its evidence that decide, by their places, and the thresholds that they must leave."""


def what_decides(claims: Sequence[JudgedClaim], controls: Sequence[Control], notes: Sequence[str]) -> list[str]:
    """Return sentences that say what to run next.

    Args:
        claims: The judged claims.
        controls: The judged controls; a control that failed must be examined first.
        notes: The notes of the judgement; those that name an experiment are returned too.

    Returns:
        The sentences; empty if everything is decided.
    """
    failed = [control.key for control in controls if control.passed is False]
    if failed:
        return [
            f"find out why the {' and the '.join(failed)} control fails before judging any claim; gradlens verify "
            "measures known laws with the same recorder"
        ]
    steps = [note for note in notes if names_experiment(note)]
    steps += [f"{COMMAND}{BOTH_NETWORKS[one]} trains both networks {one}"
             for one in CONDITIONS if one not in trained_conditions(claims)]  # fmt: skip
    wanted: dict[str, dict[str, list[str]]] = {}
    for judged in claims:
        for condition, verdict in judged.overall.items():
            if verdict.verdict == "undecided":
                need = _need(judged.claim.key, condition, verdict)
                wanted.setdefault(need, {}).setdefault(condition, []).append(judged.claim.key)
    return steps + [f"{_keys(keys)}: {need}" for need, keys in wanted.items()]


def trained_conditions(claims: Sequence[JudgedClaim]) -> list[str]:
    """Return the conditions under which networks were trained."""
    return [one for one in CONDITIONS if any(one in judged.overall for judged in claims)]


def names_experiment(note: str) -> bool:
    """Return whether a note names an experiment to run."""
    return COMMAND in note


def listed(keys: Sequence[str]) -> str:
    """Write letters of claims as a list: ``A, B and C``."""
    return " and ".join(filter(None, [", ".join(keys[:-1]), *keys[-1:]]))


def _keys(keys: dict[str, list[str]]) -> str:
    return ", ".join(f"{listed(keys[one])} {one}" for one in CONDITIONS if one in keys)


def _need(key: str, condition: str, verdict: Verdict) -> str:
    """Return what an undecided claim needs."""
    if not verdict.counts:
        return "a split that keeps copies of an image on one side (--split group)"
    if key == "F":
        return _need_of_cause(verdict)
    if verdict.tested:
        return _need_of_seeds(key, verdict.evidence)
    if key == "E" and condition == WITH:
        return f"{COMMAND}depth trains both networks at five depths"
    if key == "E":
        return "both networks at a second depth with equal settings, from two seeds or more"
    return f"{COMMAND}{BOTH_NETWORKS[condition]} trains both networks with equal settings, from several seeds"


def _need_of_cause(verdict: Verdict) -> str:
    if not verdict.evidence:
        return f"{COMMAND}cause trains networks with half a shortcut"
    if beyond(verdict.evidence[4], below=VANISHES):
        return "a shortcut that passes only the gradient and keeps it alive; with this one it vanishes, too"
    return _need_of_seeds("F", verdict.evidence)


def _need_of_seeds(key: str, evidence: Sequence[Evidence]) -> str:
    """Return how many seeds decide a claim with a power of 0.8, if means and scatter stay as they are."""
    needed = seeds_that_decide(key, evidence)
    if math.isnan(needed):
        return SEEDS
    if needed > MOST_SEEDS:
        return TOO_NEAR
    return (
        f"the same experiment with --seeds 0-{needed - 1:.0f}, as many as a power of 0.8 needs if mean and scatter "
        "stay the same"
    )


def seeds_that_decide(key: str, evidence: Sequence[Evidence]) -> float:
    """Return how many seeds bring every number that is next to a threshold to one side of it, with a power of 0.8.

    Args:
        key: The letter of the claim.
        evidence: Its evidence.

    Returns:
        The number; NaN where no interval contains a threshold.
    """
    needed = [
        seeds_for_power((one.high - one.low) / 2 / t_975(one.n - 1) * math.sqrt(one.n), abs(one.value - threshold))
        for place, thresholds in THRESHOLDS[key].items()
        for one in evidence[place : place + 1]
        for threshold in thresholds
        if one.n > 1 and one.low < threshold < one.high and math.isfinite(one.high - one.low)
    ]
    return max(needed, default=math.nan)
