"""Labels of 0 and 1 for losses that take -1 and 1, and distances below 0: exact, from what torch keeps of the loss."""

from __future__ import annotations

import numpy as np

from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import setup_finding

ZEROS = "labels of 0 where the loss takes -1 and 1"
BELOW = "distances below 0"
OFTEN = 0.1
"""Share of the rows in which a loss must be below 0."""


def labels(rec: Recording) -> list[Finding]:
    """Find a loss of margins or pairs whose labels are 0 and 1, and one of distances that gets numbers below 0.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    return [*_zeros(rec), *_soft_margin(rec), *_negative_distances(rec)]


def _zeros(rec: Recording) -> list[Finding]:
    graph = rec.setup.graph
    for item in graph.entries("label_signs"):
        zeros, op = item.number("zeros"), item.text("op")
        if not 0 < zeros < 1 or item.whole("passes") < graph.whole("passes"):
            continue
        loss = "a hinge loss, max(0, margin - label * output)," if op == "hinge" else op
        return [
            setup_finding(
                rec,
                item,
                f"{loss} gets labels that are 0 for {zeros:.0%} of the examples: it takes -1 and 1, and for a label of "
                "0 it is a constant, so that these examples have no gradient and the model sees one class alone",
                "Turn the labels into -1 and 1: 2 * label - 1.",
                ZEROS,
            )
        ]
    return []


def _soft_margin(rec: Recording) -> list[Finding]:
    return [
        setup_finding(
            rec,
            item,
            f"the loss is a soft margin, log(1 + exp(-label * output)), and its labels go from "
            f"{item.number('least'):g} to {item.number('largest'):g}: it takes -1 and 1, and for a "
            "label of 0 it is a constant",
            "Turn the labels into -1 and 1: 2 * label - 1.",
            ZEROS,
        )
        for item in rec.setup.graph.entries("targets")
        if item.text("op") == "SoftMarginLoss" and item.number("least") == 0 and item.number("largest") > 0
    ][:1]


def _negative_distances(rec: Recording) -> list[Finding]:
    """Find that a loss of distances, which is never below 0, is below 0: it gets no distances."""
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    pairs = [item for item in rec.setup.graph.entries("pairs") if item.text("op") == "hinge_embedding_loss"]
    if not pairs or not (loss < 0).sum() > OFTEN * len(loss):
        return []
    return [
        setup_finding(
            rec,
            pairs[0],
            f"hinge_embedding_loss takes distances, which are never below 0, and the loss falls to "
            f"{float(loss.min()):.3g}: for a label of 1 it is what it gets itself, without bound",
            "Give it distances (F.pairwise_distance of two embeddings). For scores of one output, use "
            "F.soft_margin_loss with labels of -1 and 1, or F.binary_cross_entropy_with_logits with 0 and 1.",
            BELOW,
        )
    ]
