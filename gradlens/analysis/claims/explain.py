"""Three or four sentences that tie the verdicts together, made from their numbers."""

from __future__ import annotations

from collections.abc import Mapping

from gradlens.analysis.claims.arms import WITH, WITHOUT
from gradlens.analysis.claims.texts import VANISHES
from gradlens.analysis.claims.verdicts import Evidence, Verdict, beyond, say

Overall = Mapping[str, Mapping[str, Verdict]]


def explain(overall: Overall) -> str:
    """Say what the claims come to.

    Args:
        overall: Claim's letter to condition to verdict.
    """
    sentences = [_gradient(overall["A"]), _training(overall), _cause(overall), _conclusion(overall)]
    return " ".join(sentence for sentence in sentences if sentence)


def _gradient(verdicts: Mapping[str, Verdict]) -> str:
    """Say where the gradient vanishes."""
    parts = []
    for condition, verdict in verdicts.items():
        if not verdict.evidence:
            continue
        main = verdict.evidence[0]
        ratio = f"its norm at the first layer is {say(main)} times that at the last hidden one"
        does = {
            "supported": "vanishes on its way back",
            "not supported": "does not vanish",
            "mixed": "depends on the setting" if "depends" in verdict.why else "weakens, without vanishing",
        }.get(verdict.verdict, "leaves the question open")
        parts.append(f"{condition} the plain net's gradient {does} ({ratio})")
    return _sentence(", and ".join(parts))


def _training(overall: Overall) -> str:
    """Say what the shortcut does for training."""
    parts = []
    for condition in (WITH, WITHOUT):
        speed, end = overall["C"].get(condition), overall["D"].get(condition)
        if speed is None or end is None or not (speed.evidence or end.evidence):
            continue
        said = []
        if speed.evidence:
            does = {"supported": "learns faster", "not supported": "learns no faster"}.get(
                speed.verdict, "does not clearly learn faster"
            )
            said.append(f"{does} (mean training accuracy {say(speed.evidence[0])})")
        if end.evidence:
            does = {
                "supported": "ends better",
                "not supported": "ends no better",
                "mixed": "ends better in part",
            }.get(end.partly or end.verdict, "is not shown to end better")
            if end.partly:
                does += " in some of the settings"
            said.append(f"{does} (validation accuracy {say(end.evidence[0])})")
        parts.append(f"{condition} the residual net {' and '.join(said)}")
    return _sentence("; ".join(parts))


def _cause(overall: Overall) -> str:
    """Say by which half of the shortcut, or how much of the gradient came through it."""
    for condition, verdict in overall.get("F", {}).items():
        if len(verdict.evidence) >= 2:
            grad, value = verdict.evidence[:2]
            return _sentence(
                f"{condition}, a shortcut that passes back the gradient alone closes {_share(grad)} of the gap between "
                f"the two nets, one that passes on the value alone {_share(value)}"
            )
    for condition, verdict in overall["B"].items():
        if verdict.evidence:
            share = _share(verdict.evidence[0])
            return _sentence(f"{condition}, {share} of the gradient at a residual block came through its shortcut")
    return ""


def _share(evidence: Evidence) -> str:
    said = f"{evidence.value:.0%}"
    if evidence.low == evidence.low and abs(evidence.low) < float("inf"):
        said += f" [{evidence.low:.0%}, {evidence.high:.0%}]"
    return said


def _conclusion(overall: Overall) -> str:
    """Say whether the report's reason holds."""
    vanishes = {condition: verdict.verdict for condition, verdict in overall["A"].items()}
    helped = [
        condition
        for condition in vanishes
        if any(overall[key].get(condition) and overall[key][condition].verdict == "supported" for key in "CD")
    ]
    cause = {condition: verdict.verdict for condition, verdict in overall.get("F", {}).items()}
    said = []
    for condition in vanishes:
        if condition not in helped:
            continue
        if vanishes[condition] == "not supported":
            said.append(f"{condition} the shortcut helps although nothing vanishes: the report's reason is wrong there")
        elif vanishes[condition] == "supported" and cause.get(condition) == "not supported":
            said.append(f"{condition} the gradient vanishes, but giving it a way back does not cure the net")
        elif vanishes[condition] == "supported":
            said.append(f"{condition} the report's reason fits what is seen{_but(overall, condition)}")
    return _sentence("; ".join(said))


def _but(overall: Overall, condition: str) -> str:
    """Say where a net learns although its gradient vanishes: that of a shortcut that passes on the value alone."""
    cause = overall.get("F", {}).get(condition)
    if cause is None or len(cause.evidence) < 6:
        return ""
    share, decades = cause.evidence[1], cause.evidence[5]
    if not (beyond(share, above=0) and beyond(decades, below=VANISHES)):
        return ", but was not tested there" if cause.verdict == "undecided" else ""
    return (
        f", but a shortcut that passes on the value alone closes {_share(share)} of the gap while the "
        f"gradient vanishes all the same ({say(decades)})"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""
