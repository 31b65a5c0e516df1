"""Explain the verdicts in three or four sentences, made from their numbers.

Conclusions are drawn within one setting: a gradient that vanishes at one image size says nothing about a network that
learns at another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gradlens.study.claims_a_to_d import FIRST, LIVE, MEDIAN, ROWS_DIFFER, WHERE
from gradlens.study.criteria import VANISHES
from gradlens.study.evidence import SHARE, Evidence, Verdict, beyond, say
from gradlens.study.run_groups import WITH, WITHOUT

ByClaim = Mapping[str, Verdict]
Overall = Mapping[str, Mapping[str, Verdict]]


def explain(overall: Overall, settings: Sequence[ByClaim]) -> str:
    """Return sentences that summarise the verdicts.

    Args:
        overall: Letter of a claim to condition to verdict over all settings.
        settings: For each setting, letter of a claim to verdict.
    """
    several = len({verdict.condition for one in settings for verdict in one.values()}) < len(settings)
    sentences = [
        _gradient(overall["A"], several, settings),
        _training(overall, several),
        _cause(overall, several),
        _conclusion(settings),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _at(verdict: Verdict, several: bool) -> str:
    return f", at {verdict.setting}" if several else ""


def _gradient(verdicts: Mapping[str, Verdict], several: bool, settings: Sequence[ByClaim]) -> str:
    """State where the gradient vanishes."""
    parts = []
    for condition, verdict in verdicts.items():
        if not verdict.tested:
            continue
        if verdict.verdict == "mixed" and verdict.spread:
            judged = {one["A"].verdict for one in settings if "A" in one and one["A"].condition == condition}
            if "supported" in judged:
                parts.append(f"{condition} it depends on the setting whether the plain network's gradient vanishes")
            else:
                parts.append(f"{condition} the plain network's gradient is shown to vanish in none of the settings")
            continue
        if verdict.why.startswith(ROWS_DIFFER):
            parts.append(f"{condition} {_by_rows(verdict)}{_at(verdict, several)}")
            continue
        ratio = f"norm at the first layer over the last hidden one: {say(verdict.evidence[0])}{_at(verdict, several)}"
        does = {
            "supported": "vanishes toward the input",
            "refuted": "does not vanish",
            "mixed": "weakens, without vanishing",
        }.get(verdict.verdict)
        gradient = "the plain network's gradient"
        sentence = f"{gradient} {does}" if does else f"it is inconclusive whether {gradient} vanishes"
        parts.append(f"{condition} {sentence} ({ratio})")
    return _sentence(", and ".join(parts))


def _by_rows(verdict: Verdict) -> str:
    """State the plain network's ratio by each of the measures that disagree."""
    numbers = {one.name: say(one) for one in verdict.evidence if one.name.startswith("plain network, first / last")}
    ratio = "plain network, first / last hidden layer"
    named = [f"{numbers[key]} {where}" for key, where in (
        (f"{ratio}, {FIRST}", WHERE[FIRST]), (f"{ratio}, {LIVE}", WHERE[LIVE]), (ratio, WHERE[MEDIAN]),
    ) if key in numbers]  # fmt: skip
    return (
        "it depends on the rows whether the plain network's gradient vanishes (norm at the first layer over the last "
        f"hidden one: {', '.join(named)})"
    )


def _training(overall: Overall, several: bool) -> str:
    """State how the shortcut changes training."""
    parts = []
    for condition in (WITH, WITHOUT):
        effects = []
        speed, end = overall["C"].get(condition), overall["D"].get(condition)
        if speed is not None and speed.tested:
            does = {"supported": "learns faster", "refuted": "learns no faster"}.get(
                speed.partly or speed.verdict, "is not clearly shown to learn faster"
            )
            effects.append(
                f"{does}{_partly(speed)} (mean training accuracy {say(speed.evidence[0])}{_at(speed, several)})"
            )
        if end is not None and end.tested and end.counts:
            effects.append(f"{_ends(end)}{_partly(end)} ({_numbers(end)}{_at(end, several)})")
        if effects:
            parts.append(f"{condition} the residual network {' and '.join(effects)}")
    return _sentence("; ".join(parts))


def _partly(verdict: Verdict) -> str:
    return " in some of the settings" if verdict.partly else ""


def _ends(end: Verdict) -> str:
    does = {"supported": "ends better", "refuted": "ends no better", "mixed": "ends better in part"}
    known = does.get(end.partly or end.verdict)
    if known:
        return known
    accuracy, loss = (beyond(end.evidence[0], above=0), beyond(end.evidence[1], below=0))
    if accuracy != loss:
        better, other = ("accuracy", "loss") if accuracy else ("loss", "accuracy")
        return f"ends with a better validation {better}, while the {other} is inconclusive"
    return "is not shown to end better"


def _numbers(end: Verdict) -> str:
    return f"validation accuracy {say(end.evidence[0])}, loss {say(end.evidence[1])}"


def _cause(overall: Overall, several: bool) -> str:
    """State which half of the shortcut closes the gap; without such runs, how much gradient came through shortcuts."""
    for condition, verdict in overall.get("F", {}).items():
        if verdict.tested and all(math.isfinite(end) for one in verdict.evidence[:2] for end in (one.low, one.high)):
            grad, value, *unseen = verdict.evidence[:4]
            shares = [_percent(one) for one in unseen if math.isfinite(one.low) and math.isfinite(one.high)]
            also = f" (on unseen images {' and '.join(shares)})" if len(shares) == 2 else ""
            return _sentence(
                f"{condition}, a shortcut that passes only the gradient closes {_percent(grad)} of the gap in "
                f"training between the two networks, one that passes only the value {_percent(value)}{also}"
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
    """State whether the study's explanation holds, by settings that show the gradient and the shortcut's effect."""
    found: dict[str, list[str]] = {}
    conditions = [one["A"].condition for one in settings]
    for one in settings:
        reason = _reason(one)
        if reason:
            found.setdefault(f"{one['A'].condition} {reason}", []).append(one["A"].setting)
    parts = []
    for reason, places in found.items():
        total = next(conditions.count(condition) for condition in (WITHOUT, WITH) if reason.startswith(condition))
        where = f" (at {places[0]})" if len(places) == 1 else f" (in {len(places)} of {total} settings)"
        parts.append(reason + (where if total > 1 else ""))
    return _sentence("; ".join(parts))


def _reason(one: ByClaim) -> str:
    """State for one setting whether the original study's explanation holds; "" if the setting does not show it."""
    helped = any(one[key].verdict == "supported" and one[key].counts for key in "CD")
    vanishes, cause = one["A"].verdict, one.get("F")
    if not helped or vanishes not in ("supported", "refuted"):
        return ""
    if vanishes == "refuted":
        return "the shortcut helps although nothing vanishes: the original study's explanation is wrong there"
    if cause is None or not cause.tested:
        return f"the original study's explanation fits the observations, but was not tested{_but(cause)}"
    return {
        "supported": "the original study's explanation holds: an alternative path for the gradient cures the network",
        "refuted": "the gradient vanishes, but an alternative path for it does not cure the network",
        "mixed": "the gradient vanishes, and it depends on the outcome whether an alternative path for it cures the "
        "network",
    }.get(cause.verdict, "the original study's explanation fits the observations, but its test is undecided") + _but(
        cause
    )


def _but(cause: Verdict | None) -> str:
    """Report a network with only the value's path that learns although its gradient vanishes; "" if there is none."""
    if cause is None or len(cause.evidence) < 6:
        return ""
    share, decades = cause.evidence[1], cause.evidence[5]
    if not (beyond(share, above=0) and beyond(decades, below=VANISHES) and math.isfinite(share.high)):
        return ""
    return (
        f", and a shortcut that passes only the value closes {_percent(share)} of the gap although the gradient "
        f"still vanishes ({say(decades)})"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""
