"""Whether the instrument sees a gradient that must vanish, and none where it cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradlens.analysis.gradient_ratio import say_power
from gradlens.diagnosis.diagnose import diagnose
from gradlens.diagnosis.kinds import UNDECIDED
from gradlens.run import Run
from gradlens.study.criteria import SHALLOW, VANISHES
from gradlens.study.measures import typical_ratio


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
NEGATIVE = f"a plain network of at most {SHALLOW} layers, from He initialisation: the gradient must not vanish"


def check_controls(positive: Sequence[Run], negative: Sequence[Run]) -> tuple[Control, Control]:
    """Judge the controls' runs by the diagnosis and by the measure of claim A; both must say the same.

    Args:
        positive: Runs whose gradient must vanish. A sigmoid's slope is at most 1/4, so that every layer weakens it.
        negative: Runs whose gradient cannot, as they are too shallow.

    Returns:
        Both controls. Runs in which nothing can be seen (no gradients, too few rows) are named and count for neither.
    """
    return (
        _check("positive", POSITIVE, positive, vanishes=True),
        _check("negative", NEGATIVE, negative, vanishes=False),
    )


def _check(key: str, text: str, runs: Sequence[Run], *, vanishes: bool) -> Control:
    wrong, blind, seen = [], [], 0
    for run in runs:
        decades, diagnosis = typical_ratio(run), diagnose(run)
        if math.isnan(decades) or diagnosis.kind == UNDECIDED:
            blind.append(run.name)
            continue
        seen += 1
        if (decades < VANISHES) != vanishes or ("vanishing" in diagnosis.kinds) != vanishes:
            wrong.append(f"{run.name}: diagnosed {diagnosis.kind}, first / last {say_power(decades)}")
    told = [f"in {', '.join(blind)} nothing can be seen"] if blind else []
    if not seen:
        return Control(key, text, 0, None, "; ".join(["not among the runs", *told]))
    right = f"it {'vanishes' if vanishes else 'does not vanish'} in all {seen} runs"
    return Control(key, text, seen, not wrong, "; ".join([*(wrong or [right]), *told]))
