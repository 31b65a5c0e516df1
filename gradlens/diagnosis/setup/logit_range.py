"""A cross entropy that cannot become small, because its logits lie within a fixed range: exact, read from the graph."""

from __future__ import annotations

import math

import numpy as np

from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.learning import classes_of, guessing_of
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.setup.setup_findings import named, setup_finding

SHUT = 0.9
"""Where even the best logits leave nine tenths of the loss of guessing, nothing can be learnt; no outside source."""
HIGH = 0.5
"""Share of the loss of guessing from which the floor is worth a note."""


def logit_range(rec: Recording) -> list[Finding]:
    """Find logits in so narrow a range that the cross entropy hardly falls below that of guessing.

    Source: Wang et al. 2017, NormFace, proposition 2, bounds the loss of normalised features and weights; the bound
    here, ln(1 + (C - 1) exp(-2 s)) for logits between -s and s, is looser and holds for all logits.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    item, floor = _floor(rec)
    if item is None or floor < SHUT * guessing_of(rec):
        return []
    return [setup_finding(rec, item, _say(rec, item, floor), _remedy(item), "logits in a narrow range", named(item))]


def note_on_logits(rec: Recording) -> list[str]:
    """Return a note on logits whose range leaves a large part of the loss of guessing, and not nearly all of it."""
    item, floor = _floor(rec)
    if item is None or not HIGH * guessing_of(rec) <= floor < SHUT * guessing_of(rec):
        return []
    return [f"{_say(rec, item, floor)}. {_remedy(item)}"]


def _floor(rec: Recording) -> tuple[Entry | None, float]:
    """Return the logits, and the least cross entropy that they can have; it must not be above the loss."""
    items, classes, loss = rec.setup.graph.entries("logit_range"), classes_of(rec), rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    if len(items) != 1 or classes < 2 or math.isnan(guessing_of(rec)) or not len(loss):
        return None, math.nan
    floor = math.log1p((classes - 1) * math.exp(-2 * items[0].number("limit")))
    return (items[0], floor) if floor <= float(loss.min()) else (None, math.nan)


def _say(rec: Recording, item: Entry, floor: float) -> str:
    limit, guess, classes = item.number("limit"), guessing_of(rec), classes_of(rec)
    of = "outputs of a tanh" if item.text("of") == "tanh" else item.text("of")
    return (
        f"the logits are {of} between {-limit:.3g} and {limit:.3g}: whatever the weights are, the cross entropy over "
        f"{classes} classes is at least {floor:.3g}, and guessing has {guess:.3g}"
    )


def _remedy(item: Entry) -> str:
    if item.text("of") == "tanh":
        return "Remove the tanh before the loss."
    return (
        "Divide the similarities by a temperature of 0.05 to 0.5 (multiplying by it makes them smaller), or multiply "
        "them by a scale of 10 to 60."
    )
