"""Marks on a heatmap: drops of the learning rate, resumed steps, non-finite columns, findings.

Shapes: C columns, R values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.profile import epoch_starts
from gradlens.charts.heatmap import Panel
from gradlens.diagnosis.diagnose import diagnose
from gradlens.diagnosis.findings import Finding
from gradlens.run import RESUMED, FloatArray, Run

DROP = 0.7
"""A learning rate below this share of that of the row before counts as a drop; a smooth schedule falls more slowly."""
LEVEL = 0.9
"""Where the rate fell below this share in the row before a drop already, the schedule is smooth: a cosine near 0."""
MOST_DROPS = 24
"""With more drops than this, none is marked: they belong to a gradual schedule."""

# IEEE 754-2019, binary16, and bfloat16 (Kalamkar et al. 2019, A Study of BFLOAT16): smallest normal and largest number.
NORMAL_RANGES = {"fp16": (2.0**-14, 65504.0), "bf16": (2.0**-126, 3.3895e38)}


@dataclass(frozen=True)
class Marks:
    """The marks of a panel.

    Args:
        drops: (R,) optimizer steps at which the learning rate drops.
        broken: (C,) whether a column of the panel contains a non-finite value.
        findings: Findings of the diagnosis, each with the indices in the panel of its first and last layer.
        resumes: (R,) optimizer steps at which the run was resumed.
    """

    drops: FloatArray
    broken: NDArray[np.bool_]
    findings: tuple[tuple[Finding, int, int], ...] = ()
    resumes: FloatArray = field(default_factory=lambda: np.empty(0))


def find_marks(panel: Panel, *, findings: bool = True) -> Marks:
    """Return the marks of a panel.

    Args:
        panel: The panel.
        findings: Whether to diagnose the run and mark its findings.
    """
    found = []
    places = {layer.name: i for i, layer in enumerate(panel.layers)}
    for finding in diagnose(panel.run).findings if findings and panel.minus is None else ():
        named = [places[name] for name in finding.layers if name in places]
        if named:
            found.append((finding, min(named), max(named)))
    first, last = panel.edges[[0, -1]]
    drops, resumes = (
        steps[(steps > first) & (steps < last)] for steps in (learning_rate_drops(panel.run), resumed_steps(panel.run))
    )
    return Marks(drops, np.asarray(np.isposinf(panel.drawn).any(axis=0)), tuple(found), resumes)


def learning_rate_drops(run: Run) -> FloatArray:
    """Return the steps at which the learning rate suddenly drops below 0.7 times that of the row before.

    Args:
        run: The run.

    Returns:
        (R,) optimizer steps; empty where there are more than ``MOST_DROPS``.

    Source: a step schedule divides by 10 (He et al. 2015, section 3.4); cosine and linear schedules fall smoothly.
    """
    rates = np.asarray(run.scalars.get("lr", np.empty(0)), dtype=np.float64)
    if len(rates) != len(run.steps) or len(rates) < 2:
        return np.empty(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = rates[1:] / rates[:-1]
        sudden = (shares < DROP) & ~(np.append(1.0, shares[:-1]) < LEVEL)
    drops = run.steps[1:][sudden].astype(np.float64)
    return drops if len(drops) <= MOST_DROPS else np.empty(0)


def resumed_steps(run: Run) -> FloatArray:
    """Return the optimizer steps at which a run was resumed, according to its notes, (R,)."""
    steps = [text.removeprefix(RESUMED) for text in run.info.get("notes", ()) if text.startswith(RESUMED)]
    return np.array([float(step) for step in steps if step.isdigit()])


def steps_to_epochs(run: Run, steps: FloatArray) -> FloatArray:
    """Return the number of epochs completed at each step, with fractions.

    Args:
        run: The run.
        steps: (R,) optimizer steps.

    Returns:
        (R,) epochs; NaN for a run without rows.
    """
    starts = epoch_starts(run)
    if not len(starts):
        return np.full(len(steps), np.nan)
    first = float(run.epoch_of_step[0])
    longest = float(np.diff(starts).max()) if len(starts) > 1 else 0.0
    end = max(starts[-1] + longest, float(run.steps[-1]) + 1, float(np.max(steps, initial=0)))
    return np.asarray(np.interp(steps, [*starts, end], first + np.arange(len(starts) + 1)))
