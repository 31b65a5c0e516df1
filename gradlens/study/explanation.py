"""Three or four sentences that tie the verdicts together, made from their numbers.

What is concluded is concluded within one setting: a gradient that vanishes at one image size says nothing of a network that
learns at another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gradlens.study.criteria import VANISHES
from gradlens.study.evidence import SHARE, Evidence, Verdict, beyond, say
from gradlens.study.run_groups import WITH, WITHOUT

ByClaim = Mapping[str, Verdict]
Overall = Mapping[str, Mapping[str, Verdict]]


def explain(overall: Overall, settings: Sequence[ByClaim]) -> str:
    """Say what the claims come to.

    Args:
        overall: Claim's letter to condition to verdict over all settings.
        settings: For each setting, claim's letter to its verdict.
    """
    several = len({verdict.condition for one in settings for verdict in one.values()}) < len(settings)
    sentences = [
        _gradient(overall["A"], several),
        _training(overall, several),
        _cause(overall, several),
        _conclusion(settings),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _at(verdict: Verdict, several: bool) -> str:
    return f", at {verdict.setting}" if several else ""


def _gradient(verdicts: Mapping[str, Verdict], several: bool) -> str:
    """Say where the gradient vanishes."""
    parts = []
    for condition, verdict in verdicts.items():
        if not verdict.tested:
            continue
        if verdict.verdict == "mixed" and verdict.spread:
            parts.append(f"{condition} it depends on the setting whether the plain network's gradient vanishes")
            continue
        ratio = f"norm at the first layer over the last hidden one: {say(verdict.evidence[0])}{_at(verdict, several)}"
        does = {
            "supported": "vanishes on its way back",
            "not supported": "does not vanish",
            "mixed": "weakens, without vanishing",
        }.get(verdict.verdict, "is not shown to vanish, nor not to")
        parts.append(f"{condition} the plain network's gradient {does} ({ratio})")
    return _sentence(", and ".join(parts))


def _training(overall: Overall, several: bool) -> str:
    """Say what the shortcut does for training."""
    parts = []
    for condition in (WITH, WITHOUT):
        said = []
        speed, end = overall["C"].get(condition), overall["D"].get(condition)
        if speed is not None and speed.tested:
            does = {"supported": "learns faster", "not supported": "learns no faster"}.get(
                speed.partly or speed.verdict, "is not clearly shown to learn faster"
            )
            said.append(
                f"{does}{_partly(speed)} (mean training accuracy {say(speed.evidence[0])}{_at(speed, several)})"
            )
        if end is not None and end.tested and end.counts:
            said.append(f"{_ends(end)}{_partly(end)} ({_numbers(end)}{_at(end, several)})")
        if said:
            parts.append(f"{condition} the residual network {' and '.join(said)}")
    return _sentence("; ".join(parts))


def _partly(verdict: Verdict) -> str:
    return " in some of the settings" if verdict.partly else ""


def _ends(end: Verdict) -> str:
    does = {"supported": "ends better", "not supported": "ends no better", "mixed": "ends better in part"}
    known = does.get(end.partly or end.verdict)
    if known:
        return known
    accuracy, loss = (beyond(end.evidence[0], above=0), beyond(end.evidence[1], below=0))
    if accuracy != loss:
        better, other = ("accuracy", "loss") if accuracy else ("loss", "accuracy")
        return f"ends with a better validation {better}, while its {other} is not shown to be better"
    return "is not shown to end better"


def _numbers(end: Verdict) -> str:
    return f"validation accuracy {say(end.evidence[0])}, loss {say(end.evidence[1])}"


def _cause(overall: Overall, several: bool) -> str:
    """Say by which half of the shortcut, or how much of the gradient came through it."""
    for condition, verdict in overall.get("F", {}).items():
        if verdict.tested and all(math.isfinite(end) for one in verdict.evidence[:2] for end in (one.low, one.high)):
            grad, value = verdict.evidence[:2]
            return _sentence(
                f"{condition}, a shortcut that passes back the gradient alone closes {_percent(grad)} of the gap in "
                f"training between the two networks, one that passes on the value alone {_percent(value)}"
                f"{_at(verdict, several)}"
            )
    parts = [
        f"{condition}, {_percent(verdict.evidence[0])} of the gradient at a residual block came through its shortcut"
        f"{_at(verdict, several)}"
        for condition, verdict in overall["B"].items()
        if verdict.tested
    ]
    return _sentence("; ".join(parts[:1]))


def _percent(evidence: Evidence) -> str:
    assert evidence.unit == SHARE
    value, low, high = (f"{round(100 * number) + 0.0:.0f}" if math.isfinite(number) else "?"
                        for number in (evidence.value, evidence.low, evidence.high))  # fmt: skip
    return f"{value} %" if math.isnan(evidence.low) else f"{value} % [{low}, {high}]"


def _conclusion(settings: Sequence[ByClaim]) -> str:
    """Say whether the study's reason holds, where one setting shows both the gradient and what the shortcut does."""
    said: dict[str, list[str]] = {}
    conditions = [one["A"].condition for one in settings]
    for one in settings:
        reason = _reason(one)
        if reason:
            said.setdefault(f"{one['A'].condition} {reason}", []).append(one["A"].setting)
    parts = []
    for reason, places in said.items():
        total = next(conditions.count(condition) for condition in (WITHOUT, WITH) if reason.startswith(condition))
        where = f" (at {places[0]})" if len(places) == 1 else f" (in {len(places)} of {total} settings)"
        parts.append(reason + (where if total > 1 else ""))
    return _sentence("; ".join(parts))


def _reason(one: ByClaim) -> str:
    """Say of one setting whether the original study's reason holds; "" where it does not show it."""
    helped = any(one[key].verdict == "supported" and one[key].counts for key in "CD")
    vanishes, cause = one["A"].verdict, one.get("F")
    if not helped or vanishes not in ("supported", "not supported"):
        return ""
    if vanishes == "not supported":
        return "the shortcut helps although nothing vanishes: the original study's reason is wrong there"
    if cause is None or not cause.tested:
        return f"the original study's reason fits what is seen, but was not put to the test{_but(cause)}"
    return {
        "supported": "the original study's reason holds: a way back for the gradient cures the network",
        "not supported": "the gradient vanishes, but giving it a way back does not cure the network",
    }.get(cause.verdict, "the original study's reason fits what is seen, but its test is undecided") + _but(cause)


def _but(cause: Verdict | None) -> str:
    """Say where a network learns although its gradient vanishes: that of a shortcut that passes on the value alone."""
    if cause is None or len(cause.evidence) < 6:
        return ""
    share, decades = cause.evidence[1], cause.evidence[5]
    if not (beyond(share, above=0) and beyond(decades, below=VANISHES) and math.isfinite(share.high)):
        return ""
    return (
        f", and a shortcut that passes on the value alone closes {_percent(share)} of the gap while the gradient "
        f"vanishes all the same ({say(decades)})"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""
