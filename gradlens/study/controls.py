"""Check the instrument: it must report a vanishing gradient where one must occur, and none where none can."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradlens.analysis.gradient_ratio import say_power
from gradlens.diagnosis.kinds import UNDECIDED
from gradlens.run import Run
from gradlens.study.criteria import SHALLOW, VANISHES
from gradlens.study.measures import typical_ratio
from gradlens.study.study_run import StudyRun, as_study_run


@dataclass(frozen=True)
class Control:
    """A study's check of its instrument.

    Args:
        key: "positive" or "negative".
        text: What the runs must show.
        runs: The number of runs that could be checked.
        passed: Whether all of them show it; None where there are no such runs.
        detail: What the runs show, in a sentence.
    """

    key: str
    text: str
    runs: int
    passed: bool | None
    detail: str


POSITIVE = "a sigmoid stack without batch norm: the gradient must vanish"
NEGATIVE = f"a plain network of at most {SHALLOW} layers, from He initialisation: the gradient must not vanish"


def check_controls(positive: Sequence[Run | StudyRun], negative: Sequence[Run | StudyRun]) -> tuple[Control, Control]:
    """Judge the controls' runs by the diagnosis and by the measure of claim A; both must say the same.

    Args:
        positive: Runs whose gradient must vanish: the slope of a sigmoid is at most 1/4, so every layer weakens it.
        negative: Runs whose gradient cannot vanish, because they are too shallow.

    Returns:
        Both controls. Runs that cannot be judged (no gradients, too few rows) are named and do not count.
    """
    return (
        _check("positive", POSITIVE, positive, vanishes=True),
        _check("negative", NEGATIVE, negative, vanishes=False),
    )


def _check(key: str, text: str, runs: Sequence[Run | StudyRun], *, vanishes: bool) -> Control:
    wrong, unknown, checked = [], [], 0
    for run in map(as_study_run, runs):
        decades, (kind, *kinds) = typical_ratio(run), run.kinds
        if math.isnan(decades) or kind == UNDECIDED:
            unknown.append(run.name)
            continue
        checked += 1
        if (decades < VANISHES) != vanishes or ("vanishing" in kinds) != vanishes:
            wrong.append(f"{run.name}: diagnosed {kind}, first / last {say_power(decades)}")
    note = [f"{', '.join(unknown)} cannot be judged"] if unknown else []
    if not checked:
        return Control(key, text, 0, None, "; ".join(["not among the runs", *note]))
    where = "the only run" if checked == 1 else f"all {checked} runs"
    right = f"it {'vanishes' if vanishes else 'does not vanish'} in {where}"
    return Control(key, text, checked, not wrong, "; ".join([*(wrong or [right]), *note]))
