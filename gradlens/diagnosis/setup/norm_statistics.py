"""Running statistics of batch norms: whether they are those of the data."""

from __future__ import annotations

import math

from gradlens.diagnosis.findings import Finding, quoted, say_layers
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.setup.setup_findings import setup_finding

FAR_MEAN, FAR_VARIANCE = 1.0, 4.0
"""Running statistics are far from the batch's where the mean is off by one standard deviation, or the variance by a
factor of 4: the normalised values then lie outside the range in which the following layers were trained."""
FIT_MEAN, FIT_VARIANCE = 0.25, 2.0
"""Statistics that are never updated fit where the mean is off by less than a quarter, the variance by less than 2."""


def is_far(item: Entry, mean: float = FAR_MEAN, variance: float = FAR_VARIANCE) -> bool:
    """Return whether running statistics of a batch norm are far from those of the batch.

    Args:
        item: One of ``batch_norm`` in docs/facts.md.
        mean: Standard deviations from which on the mean is far.
        variance: Factor from which on the variance is far.
    """
    ratio = item.number("variance_ratio")
    off = abs(math.log(ratio)) > math.log(variance) if ratio > 0 else ratio == 0
    return item.number("mean_distance") > mean or off


def say_statistics(item: Entry) -> str:
    """Return how far the running statistics of a batch norm are from those of the batch.

    Args:
        item: One of ``batch_norm`` in docs/facts.md.
    """
    return (
        f"at {quoted(item.text('layer'))} the running mean is {item.number('mean_distance'):.2g} standard deviations "
        f"off, and the running variance is {item.number('variance_ratio'):.2g} times that of the batch"
    )


def momentum(rec: Recording) -> list[Finding]:
    """Find batch norms with momentum 0 whose running statistics do not fit: they are never updated."""
    norms = [item for item in rec.setup.entries("batch_norm") if item.flag("tracks") and item.number("momentum") == 0]
    far = [item for item in norms if is_far(item, FIT_MEAN, FIT_VARIANCE)]
    if not far:
        return []  # statistics that fit may be kept on purpose, with a pretrained model
    return [
        setup_finding(
            rec,
            far[0],
            f"batch norm has momentum 0 at {say_layers(norm_names(norms))}: its running statistics stay as they were "
            f"made, and the model evaluates with them ({say_statistics(far[0])})",
            "Set momentum to 0.1 (torch's default): it is the weight of the new batch, 1 minus what other frameworks "
            "call momentum.",
            "running statistics of batch norm are never updated",
            norm_names(norms),
        )
    ]


def norm_names(items: list[Entry]) -> tuple[str, ...]:
    """Return the names of batch norms."""
    return tuple(item.text("layer") for item in items)
