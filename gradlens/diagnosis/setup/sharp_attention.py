"""Scores of attention that are not divided by the root of their width, so that the softmax chooses one key at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.setup.setup_findings import judged_by, named, setup_finding

SHARP = 0.9
"""Mean largest weight from which a softmax passes next to no gradient: w * (1 - w) is below 0.09. No outside source."""
UNSCALED = "scores of attention without a scale"
SOURCE = "Vaswani et al. 2017, sec. 3.2.1: dot products grow with the root of the width"


def sharp_attention(rec: Recording, learning: Learning) -> list[Finding]:
    """Find scores of attention that are not scaled and saturate the softmax, in a model that does not learn.

    Args:
        rec: The recording.
        learning: Whether the model learns.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    item = _sharpest(rec) if learning.verdict == "no" else None
    if item is None:
        return []
    finding = setup_finding(rec, item, _say(item), f"{_fix(item)}.", UNSCALED, named(item))
    return [judged_by(finding, f"a mean largest weight above {SHARP} in the first steps", SOURCE)]


def note_on_attention(rec: Recording, findings: Sequence[Finding]) -> list[str]:
    """Return a note on such scores in a model that learns all the same.

    Args:
        rec: The recording.
        findings: What was found.
    """
    item = None if any(finding.cause == UNSCALED for finding in findings) else _sharpest(rec)
    return [] if item is None else [f"{_say(item)}. {_fix(item)}"]


def _sharpest(rec: Recording) -> Entry | None:
    items = [each for each in rec.setup.graph.entries("unscaled_scores") if each.number("largest") > SHARP]
    return max(items, key=lambda each: each.number("largest"), default=None)


def _say(item: Entry) -> str:
    name = quoted(item.text("layer")) if item.text("layer") else "a layer"
    return (
        f"the scores of attention behind {name} are products of {item.whole('width')} numbers that nothing divides, "
        f"and in the first steps the softmax over {item.whole('keys')} of them gives the largest a weight of "
        f"{item.number('largest'):.2f} on average: nearly all of the gradient is lost there"
    )


def _fix(item: Entry) -> str:
    return (
        f"Divide the scores by the root of their width ({math.sqrt(item.whole('width')):.3g}) before the softmax, as "
        "F.scaled_dot_product_attention does"
    )
