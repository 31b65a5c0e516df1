"""A model whose outputs become alike for all examples of a batch, although they differed at first."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.learning import Learning, stands_early
from gradlens.diagnosis.network import LARGE_STEP, Network
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry

ALIKE = 0.2
"""Distance of outputs from their mean over the batch, divided by their size, below which representations collapse. Chen
& He 2021, SimSiam, sec. 4.1: in a collapse the standard deviation of normalised outputs goes to 0, else it is near
1 / sqrt(d), which is 1 here; a fifth of that."""
FEWER = 2
"""Outputs that collapse were at least so many times as far apart at first: at initialisation many networks give outputs
that are alike."""
SAME, MANY = 0.01, 20
"""The same where a model does not learn; no outside source."""
EMBEDDING = 4
"""Numbers per example from which an output is a representation; a single score may have a large common part."""


def collapsed(rec: Recording, learning: Learning) -> list[Finding]:
    """Find representations that are the same for all examples, under a loss that compares outputs with each other.

    Under another loss, the same output for all examples may be the best one. Where the loss does not fall, or stays the
    same after the first updates because they were too large, the collapse has another cause: see ``plateau``.

    Args:
        rec: The recording.
        learning: Whether the model learns.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    graph = rec.setup.graph
    compared = {item.text("op") for item in graph.entries("compared")}
    others = {item.text("op") for kind in ("losses", "targets") for item in graph.entries(kind)}
    items = [item for item in _same_outputs(rec, ALIKE, FEWER) if item.whole("features") >= EMBEDDING]
    leapt = Network(rec).first_update() > LARGE_STEP and stands_early(rec)
    if not compared or others - compared - {"", "Mean", "Sum"} or learning.verdict == "no" or leapt or not items:
        return []
    item = items[0]
    layers = (item.text("layer"),) if item.text("layer") != "(model)" else ()
    return [
        Finding(
            "setup",
            layers,
            (item.whole("last_step"), rec.last_step),
            f"{_say(item)}: the representations collapse, which alone lowers this loss",
            f"below {ALIKE} of their size in two measurements in succession, and less than half of the first one, "
            "under a loss that compares outputs with each other",
            "Chen & He 2021, SimSiam, sec. 4.1: the standard deviation of normalised outputs is near 1 / sqrt(d), and "
            "0 in a collapse; a fifth of that is this project's choice",
            "Let the loss keep different examples apart: negatives (InfoNCE) or a term for the variance (VICReg); or "
            "compare with outputs that pass no gradient (.detach(), an average of weights) behind a predictor "
            "(SimSiam, BYOL).",
            0.75,
        )
    ]


def say_collapse(rec: Recording) -> str:
    """Return a sentence on outputs that have become the same for all examples, or "".

    Args:
        rec: The recording.
    """
    items = _same_outputs(rec, SAME, MANY)
    return _say(items[0]) if items else ""


def _same_outputs(rec: Recording, most: float, times: float) -> list[Entry]:
    return [
        item
        for item in rec.setup.entries("spread")
        if max(item.number("before"), item.number("last")) < min(most, item.number("first") / times)
    ]


def _say(item: Entry) -> str:
    of = "the model" if item.text("layer") == "(model)" else quoted(item.text("layer"))
    return (
        f"the outputs of {of} become alike: at step {item.whole('last_step')} those of a batch differ by "
        f"{item.number('last'):.1%} of their size, at first by {item.number('first'):.0%}"
    )
