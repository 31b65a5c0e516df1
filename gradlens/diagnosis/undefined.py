"""A loss that has no value: the logarithm of what is not above 0, or an average over no element. Exact, from facts."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, exact_finding, quoted
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry

LOGARITHM = "a logarithm of a number that is not above 0"
EMPTY = "an average over no element"


def undefined(rec: Recording) -> list[Finding]:
    """Find what makes the loss NaN or infinite in one of the passes whose graph was read.

    Args:
        rec: The recording.

    Returns:
        One finding of the kind ``nonfinite``, or none.
    """
    since = rec.setup.graph.whole("nonfinite_since", -1)
    return [*_logarithm(rec, since), *_empty(rec, since)][:1] if since >= 0 else []


def _logarithm(rec: Recording, since: int) -> list[Finding]:
    for item in rec.setup.graph.entries("logarithms"):
        least = [value for step, value in _pairs(item, "least") if step == since]
        if not least or not min(least) <= 0:
            continue
        layer, factors = item.text("layer"), item.whole("factors", 1)
        what = "of a negative number" if min(least) < 0 else "of 0"
        made = f"a product of {factors} numbers" if factors > 1 else f"the result of {item.text('of') or 'a layer'}"
        where = f" ({quoted(layer)})" if layer else ""
        fix = (
            "Make it positive before the logarithm: a sigmoid or a softmax makes scores into probabilities "
            "(F.logsigmoid and F.log_softmax do both in one, and cannot overflow)."
            if min(least) < 0
            else "Add up logarithms instead (log_prob(...).sum(), torch.logsumexp): a product of many densities, or a "
            "probability far from 1, is rounded to 0. Or clamp it before the logarithm."
        )
        return [
            exact_finding(
                "nonfinite",
                (layer,) if layer else (),
                (since, rec.last_step),
                f"first at step {since}, in the loss: the logarithm {what} (the least that it gets is "
                f"{min(least):.3g}); it is taken of {made}{where}",
                fix,
                LOGARITHM,
            )
        ]
    return []


def _empty(rec: Recording, since: int) -> list[Finding]:
    for item in rec.setup.graph.entries("counted"):
        if not any(step == since and count == 0 for step, count in _pairs(item, "counts")):
            continue
        return [
            exact_finding(
                "nonfinite",
                (),
                (since, rec.last_step),
                f"first at step {since}, in the loss: a sum is divided by 0, the number of its elements, and 0 / 0 "
                "is NaN: nothing was selected in this batch",
                "Divide by at least 1 (mask.sum().clamp(min=1)), or leave out a batch in which nothing is selected. "
                "One NaN is enough: the optimizer's step carries it into all weights.",
                EMPTY,
            )
        ]
    return []


def may_be_empty(rec: Recording) -> str:
    """Return what to look at first where a loss is NaN in a later step: an average over as many as a mask leaves.

    Args:
        rec: The recording.
    """
    for item in rec.setup.graph.entries("counted"):
        counts = [count for _, count in _pairs(item, "counts")]
        if len(set(counts)) > 1:
            seen = ", ".join(f"{count:.0f}" for count in counts[:3])
            return (
                f"The loss averages over as many elements as are selected ({seen} in the first passes): is it 0 in "
                "this step? Then 0 / 0 is NaN, so divide by at least 1 (mask.sum().clamp(min=1)). "
            )
    return ""


def may_be_zero(rec: Recording) -> str:
    """Return what to look at first where a loss is NaN in a later step: what a logarithm in it gets.

    Args:
        rec: The recording.
    """
    seen = [(min(least for _, least in _pairs(item, "least")), item) for item in _entries(rec) if _pairs(item, "least")]
    if not seen:
        return ""
    least, item = min(seen, key=lambda pair: pair[0])
    layer = f" of {quoted(item.text('layer'))}" if item.text("layer") else ""
    made = f"the result of {item.text('of') or 'a layer'}{layer}"
    return (
        f"The loss takes a logarithm of {made} (at least {least:.3g} in the first passes): is it 0 for an example of "
        "this step, such as one that is all zeros? Then the loss is infinite, so add a small number inside the "
        "logarithm (1e-8), or leave out such examples. "
    )


def _entries(rec: Recording) -> tuple[Entry, ...]:
    return tuple(rec.setup.graph.entries("logarithms"))


def _pairs(item: Entry, key: str) -> list[tuple[float, ...]]:
    """Return the steps of a fact, each with its number."""
    return [pair for pair in item.lists(key) if len(pair) == 2]
