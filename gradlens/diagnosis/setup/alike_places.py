"""Places of a sequence that a model cannot tell apart: the same output everywhere, or attention with even weights."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import judged_by, setup_finding

ROUNDED = 1e-5
"""Outputs that differ by less than this share of their size differ by roundings of float32 alone (IEEE 754: 6e-8 per
operation)."""
VARIES = 0.1
"""Share of their size by which targets must differ along a sequence: less may be meant to be left out; no outside
source."""
LEAST_PASSES = 3
"""Passes in which attention must be even; weights that begin at 0 make it so in the first one."""


def alike_places(rec: Recording) -> list[Finding]:
    """Find outputs that are the same at all places of a sequence, and attention that weighs all places alike.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    return [*_same_along(rec), *_even_attention(rec)]


def _same_along(rec: Recording) -> list[Finding]:
    targets = [item for item in rec.setup.graph.entries("targets") if "along" in item.keys]
    losses = rec.setup.graph.entries("losses")
    whole = [item for item in rec.setup.entries("spread") if item.text("layer") == "(model)"]
    item = next((each for each in whole if 0 <= each.number("along") < ROUNDED), None)
    looks = rec.setup.whole("looks")
    vary = bool(targets) and min(each.number("along") for each in targets) > VARIES
    if item is None or not vary or len(losses) != 1 or looks < LEAST_PASSES:
        return []
    data = [each for each in rec.setup.entries("inputs") if each.flag("data") and "least" in each.keys]
    flat = [each for each in data if each.number("least") == each.number("largest")]
    zeros = (
        f"the data that {quoted(flat[0].text('layer'))} gets are {flat[0].number('least'):g} everywhere" if flat else ""
    )
    given = f"; {zeros}" if zeros else ""
    found = setup_finding(
        rec,
        item,
        f"the model returns the same at all places of the second dimension, in each of {looks} looks (they differ by "
        f"{item.number('along'):.0e} of their size), while the targets differ there by "
        f"{targets[0].number('along'):.0%} of theirs: the model does not know which place it is to predict{given}",
        "Give each place something of its own: the targets before it as the decoder's input (moved by one place), or a "
        "code of the position, added to what would be the same everywhere (zeros, a repeated state).",
        "all places get the same output",
    )
    threshold = "outputs that differ by less than 1e-5 of their size along the second dimension, at every look"
    return [judged_by(found, threshold, "IEEE 754: an operation of float32 rounds by 6e-8")]


def _even_attention(rec: Recording) -> list[Finding]:
    passes = rec.setup.graph.whole("passes")
    even = [item for item in rec.setup.graph.entries("even_softmax") if item.whole("passes") >= passes >= LEAST_PASSES]
    if not even:
        return []
    layer = even[0].text("layer")
    what = f"the softmax of the attention behind {quoted(layer)}" if layer else "the softmax of an attention"
    return [
        setup_finding(
            rec,
            even[0],
            f"{what} gives exactly the same weight to all places that it sees, in all rows of each of {passes} passes: "
            "it takes a mean, and the products of queries and keys have no effect",
            "Print the scores before the softmax, with the mask: where a mask adds a number as large as -1e9 to the "
            "places that may be seen, too, float32 has no decimals left for the scores (a mask of 0 and -inf is added; "
            "one of 1 and 0 hides where it is 0). Else look for queries or keys that are 0 or the same everywhere.",
            "attention weighs all places alike",
        )
    ]
