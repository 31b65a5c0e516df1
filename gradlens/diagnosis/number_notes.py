"""Notes on numbers that are odd and may be meant: data, updates, logits, rare classes, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.learning import trained_before
from gradlens.diagnosis.loss import loss_halved
from gradlens.diagnosis.network import Network
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.logit_range import note_on_logits

MOSTLY_PADDED, PADDED_TARGETS = 0.5, 0.4
"""Shares of sequences that end with padding, and of targets that are padding; no outside source."""
RARELY = 0.95
"""Share of the more frequent of two classes above which an accuracy tells little; no outside source."""
FAR_BELOW = 10
"""A largest learning rate that is so many times smaller than the one that was asked for; no outside source."""
BINARY = ("BinaryCrossEntropy", "BinaryCrossEntropyWithLogits")
RARE = (
    "a model that always says so is as accurate. Look at precision and recall, or the area under the precision-recall "
    "curve, and give the rare class a weight (pos_weight, weight) or sample it more often"
)


def notes_on_numbers(rec: Recording, findings: Sequence[Finding]) -> list[str]:
    """Return notes on data, updates, logits and targets whose numbers are odd, unless a finding has said so.

    Args:
        rec: The recording.
        findings: What was found.
    """
    network, said = Network(rec), [finding.evidence for finding in findings]
    pairs = (network.far_inputs(), network.rounding(), network.decays(), network.slow_groups())
    notes = [f"{what}. {fix.strip()}" for what, fix in pairs if what and not any(what in each for each in said)]
    return [
        *notes,
        *note_on_logits(rec),
        *_note_on_the_rate(rec),
        *_note_on_rare(rec),
        *_note_on_padding(rec),
        *_note_on_padding_index(rec),
    ]


def _note_on_the_rate(rec: Recording) -> list[str]:
    """Return a note on an optimizer none of whose groups ever had the learning rate that it was made with.

    Not while a warm-up still raises it, and not where the loss is halved or the model was trained before.
    """
    rates = rec.scalar("lr")
    rates = rates[np.isfinite(rates)]
    if not len(rates) or rates[-1] > 1.01 * rates[-(len(rates) // 10) - 1] or loss_halved(rec) or trained_before(rec):
        return []
    for item in Network(rec).optimizers:
        made = item.number("made_with")
        largest = max((group.entry("lr").number("largest") for group in item.entries("groups")), default=math.nan)
        if 0 < largest < made / FAR_BELOW:
            return [
                f"{item.text('class')} was made with a learning rate of {made:.3g}, and the largest in these rows is "
                f"{largest:.3g}. A warm-up or schedule that was made before takes the rate that it finds as its base: "
                "make them in the right order, and print the rate of the first steps"
            ]
    return []


def _note_on_padding(rec: Recording) -> list[str]:
    """Return a note on targets that are mostly the index with which padded sequences end."""
    inputs = [item for item in rec.setup.entries("inputs") if item.number("padded") > MOSTLY_PADDED]
    for item in rec.setup.graph.entries("targets") if inputs else ():
        if item.number("commonest") == 0 and item.number("common") > PADDED_TARGETS and item.whole("distinct") > 2:
            return [
                f"{item.number('common'):.0%} of the targets are 0, with which {inputs[0].number('padded'):.0%} of the "
                f"sequences of {quoted(inputs[0].text('layer'))} end (padding): the loss is mostly that of padding. "
                "Leave it out with ignore_index=0, or with a mask"
            ]
    return []


def _note_on_padding_index(rec: Recording) -> list[str]:
    """Return a note on an embedding that gets single indices, among them the one that is kept at 0."""
    return [
        f"{item.number('padding_share'):.0%} of the single indices that {quoted(item.text('layer'))} gets are "
        f"{item.whole('padding_idx')}, its padding_idx: the vector of this index stays as it was (0) and gets no "
        "gradient. Leave out padding_idx if the index stands for something"
        for item in rec.setup.entries("inputs")
        if item.number("padding_share") > 0
    ][:1]


def _note_on_rare(rec: Recording) -> list[str]:
    """Return a note on targets of two kinds, one of which is rare: an accuracy tells little then."""
    for item in rec.setup.graph.entries("targets"):
        shapes = [loss.numbers("shape") for loss in rec.setup.graph.entries("losses")]
        single = all(len(shape) == 1 or math.prod(shape[1:]) == 1 for shape in shapes)
        of_two = item.number("least") == 0 and item.number("largest") == 1
        if item.text("op") in BINARY and of_two and single and item.number("mean") > 0:
            share = max(item.number("mean"), 1 - item.number("mean"))
            which = 0 if item.number("mean") < 0.5 else 1
            return [f"{share:.1%} of the targets are {which}: {RARE}"] if share > RARELY else []
        if item.whole("distinct") == 2 and item.number("common") > RARELY:
            return [f"{item.number('common'):.1%} of the targets are of one of two classes: {RARE}"]
    return []
