"""Outputs that cannot tell the examples or the classes apart, whatever the weights are."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.loss import loss_halved
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import judged_by, named, setup_finding

ROUNDED = 1e-5
"""Outputs that differ by less than this share of their size differ by roundings of float32 alone (IEEE 754: 6e-8 per
operation)."""
HUGE = 1e4
"""Data so large in one column leave the others no decimals after a few layers; no outside source."""
SAME = "all examples get the same output"
DROWNED = "a column of the data drowns all others"
LOGITS = {"NllLoss": "cross entropy", "NllLoss2D": "cross entropy", "BinaryCrossEntropyWithLogits": "loss with logits"}
LAST = ("Addmm", "Convolution")
"""Operations of an output layer."""
BENT = {"Relu": "ReLU", "Hardtanh": "ReLU6 or hardtanh", "Threshold": "threshold"}


def same_for_all(rec: Recording, learning: Learning) -> list[Finding]:
    """Find a model that returns the same for all examples of a batch while its data differ.

    Args:
        rec: The recording.
        learning: Whether the model learns; one whose loss halves may have another output than what is seen.

    Returns:
        The finding; an empty list where there is no such fault.
    """
    data = [item for item in rec.setup.entries("inputs") if item.flag("data")]
    if not data or any(item.flag("examples_alike") is not False for item in data):
        return []
    if learning.verdict == "yes" and loss_halved(rec):
        return []
    largest = max(max(abs(item.number("largest")), abs(item.number("least"))) for item in data)
    for item in rec.setup.entries("spread"):
        seen = [item.number(key) for key in ("first", "before", "last")]
        if item.text("layer") != "(model)" or not all(value < ROUNDED for value in seen):
            continue
        found = setup_finding(
            rec,
            item,
            f"the model's outputs for the examples of a batch differ by {seen[-1]:.1e} of their size, no more than "
            "roundings, at every look, while its data differ",
            f"Look at the data: they reach {largest:.3g}, and one such column drowns all others. Divide by its "
            "standard deviation, unless that is 0."
            if largest > HUGE
            else "Look for a mean, a sum, a norm or a softmax over dimension 0, the batch, or over all nodes of a "
            "graph at once: print the outputs of each layer for two examples, and find the first that are the same.",
            DROWNED if largest > HUGE else SAME,
        )
        threshold = "outputs that differ by less than 1e-5 of their size, at every look"
        return [judged_by(found, threshold, "IEEE 754: an operation of float32 rounds by 6e-8")]
    return []


def bent_logits(rec: Recording) -> list[Finding]:
    """Find a ReLU between the last layer and a loss that takes logits.

    Args:
        rec: The recording.

    Returns:
        The finding; an empty list where there is no such fault.
    """
    return [
        setup_finding(
            rec,
            item,
            f"the {LOGITS[item.text('loss')]} gets the output of a {BENT[item.text('op')]} behind "
            f"{quoted(item.text('behind'))}: logits below 0 are lost, and with them their gradient",
            f"Remove the {BENT[item.text('op')]} at the end of the model: the loss takes logits of both signs.",
            "an activation function behind the output layer",
            named(item),
        )
        for item in rec.setup.graph.entries("outputs")
        if item.text("loss") in LOGITS
        and item.text("op") in BENT
        and item.text("behind_op") in ("Addmm", "Convolution")
    ][:1]
