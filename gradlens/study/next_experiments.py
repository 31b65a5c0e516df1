"""What would decide the claims that are undecided: experiments to run, and more seeds."""

from __future__ import annotations

from collections.abc import Sequence

from gradlens.study.controls import Control
from gradlens.study.criteria import VANISHES
from gradlens.study.evidence import JudgedClaim, Verdict, beyond
from gradlens.study.run_groups import CONDITIONS, WITH, WITHOUT

BOTH_NETS = {WITH: "report", WITHOUT: "norm"}
"""The experiment that trains the plain and the residual network alike, from several seeds."""
COMMAND = "gradlens run "
SEEDS = "more seeds of both networks, to narrow the intervals (--seeds 0-9)"


def what_decides(claims: Sequence[JudgedClaim], controls: Sequence[Control], notes: Sequence[str]) -> list[str]:
    """Return sentences that say what to run next, the controls first; none where all is decided.

    Args:
        claims: What was found.
        controls: Likewise.
        notes: Likewise; those that name an experiment are among the sentences.
    """
    failed = [control.key for control in controls if control.passed is False]
    if failed:
        return [
            f"find out why the {' and the '.join(failed)} control fails, before any claim is judged: gradlens verify "
            "measures known laws with the same recorder"
        ]
    said = [note for note in notes if names_experiment(note)]
    said += [f"{COMMAND}{BOTH_NETS[one]} trains both networks {one}"
             for one in CONDITIONS if one not in trained_conditions(claims)]  # fmt: skip
    wanted: dict[str, dict[str, list[str]]] = {}
    for judged in claims:
        for condition, verdict in judged.overall.items():
            if verdict.verdict == "undecided":
                need = _need(judged.claim.key, condition, verdict)
                wanted.setdefault(need, {}).setdefault(condition, []).append(judged.claim.key)
    return said + [f"{_keys(keys)}: {need}" for need, keys in wanted.items()]


def trained_conditions(claims: Sequence[JudgedClaim]) -> list[str]:
    """Return the conditions under which networks were trained."""
    return [one for one in CONDITIONS if any(one in judged.overall for judged in claims)]


def names_experiment(note: str) -> bool:
    """Say whether a note of a judgement says what to run."""
    return COMMAND in note


def listed(keys: Sequence[str]) -> str:
    """Return letters of claims as they are read out: ``A, B and C``."""
    return " and ".join(filter(None, [", ".join(keys[:-1]), *keys[-1:]]))


def _keys(keys: dict[str, list[str]]) -> str:
    return ", ".join(f"{listed(keys[one])} {one}" for one in CONDITIONS if one in keys)


def _need(key: str, condition: str, verdict: Verdict) -> str:
    """Say what an undecided claim lacks."""
    if not verdict.counts:
        return "a split that keeps copies of a picture on one side (--split group)"
    if key == "F":
        return _need_of_cause(verdict)
    if verdict.tested:
        return SEEDS
    if key == "E" and condition == WITH:
        return f"{COMMAND}depth trains both networks at five depths"
    if key == "E":
        return "both networks at a second depth, trained alike, from two seeds or more"
    return f"{COMMAND}{BOTH_NETS[condition]} trains both networks alike, from several seeds"


def _need_of_cause(verdict: Verdict) -> str:
    if not verdict.evidence:
        return f"{COMMAND}cause trains the halves of the shortcut"
    if beyond(verdict.evidence[4], below=VANISHES):
        return "a shortcut that passes back the gradient alone and keeps it alive; with this one it vanishes, too"
    return SEEDS
