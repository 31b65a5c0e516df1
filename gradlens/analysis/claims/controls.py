"""Whether the instrument sees a gradient that must vanish, and none where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradlens.analysis.claims.measures import decades_back
from gradlens.analysis.claims.texts import SHALLOW, VANISHES
from gradlens.analysis.diagnose import diagnose
from gradlens.run import Run


@dataclass(frozen=True)
class Control:
    """A study's check of its instrument.

    Args:
        key: "positive" or "negative".
        text: What must be seen.
        runs: How many runs it was looked for in.
        passed: Whether it was seen in all of them; None where there are none.
        detail: What was seen, in a sentence.
    """

    key: str
    text: str
    runs: int
    passed: bool | None
    detail: str


POSITIVE = "a sigmoid stack without batch norm: the gradient must vanish"
NEGATIVE = f"a plain net of at most {SHALLOW} layers: the gradient must not vanish"


def check_controls(positive: Sequence[Run], negative: Sequence[Run]) -> tuple[Control, Control]:
    """Judge the controls' runs by the diagnosis and by the measure of claim A; both must say the same.

    Args:
        positive: Runs whose gradient must vanish. A sigmoid's slope is at most 1/4, so that every layer weakens it.
        negative: Runs whose gradient cannot, as they are too shallow.
    """
    return (
        _check("positive", POSITIVE, positive, vanishes=True),
        _check("negative", NEGATIVE, negative, vanishes=False),
    )


def _check(key: str, text: str, runs: Sequence[Run], *, vanishes: bool) -> Control:
    if not runs:
        return Control(key, text, 0, None, "not among the runs")
    said, right = [], []
    for run in runs:
        decades, kinds = decades_back(run), diagnose(run).kinds
        measured = decades < VANISHES
        right.append(measured == vanishes and ("vanishing" in kinds) == vanishes)
        if not right[-1]:
            seen = "healthy" if not kinds else ", ".join(kinds)
            said.append(f"{run.name}: diagnosed {seen}, first / last 10^{decades:+.1f}")
    seen = "it vanishes" if vanishes else "it does not vanish"
    detail = f"{seen} in all {len(runs)} runs" if all(right) else "; ".join(said)
    return Control(key, text, len(runs), all(right), detail)
