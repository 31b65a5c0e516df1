"""Sequences of indices: targets that are moved, places that are counted along the batch, a mask that is turned round.

Exact: the recorder compares the indices that embeddings get with the loss's targets and with the masks in its graph.
"""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.unfit import LEAST_CALLS, named, setup_finding


def sequences(rec: Recording) -> list[Finding]:
    """Find sequences of indices that do not fit the targets, the positions or the mask.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    return [*_moved_twice(rec), *_sees_targets(rec), *_turned_mask(rec), *_places_of_examples(rec)]


def _moved_twice(rec: Recording) -> list[Finding]:
    """Find targets that are the inputs of two positions later or more."""
    return [
        setup_finding(
            rec,
            item,
            f"in each of {item.whole('passes')} passes the targets are the indices that {quoted(item.text('layer'))} "
            f"gets {item.whole('distance')} positions later: the model never learns to predict the next one",
            "Move the targets by one position in all: either where the batch is made (input x[:, :-1], target "
            "x[:, 1:]) or in the loss (logits[:, :-1] with labels[:, 1:]), not in both.",
            "targets are moved by more than one position",
        )
        for item in rec.setup.entry("tokens").entries("shifts")[:1]
        if item.whole("distance") > 1 and item.whole("passes") >= LEAST_CALLS
    ]


def _sees_targets(rec: Recording) -> list[Finding]:
    """Find a model that is to predict the next index and whose attention sees it: no mask hides what comes later."""
    tokens = rec.setup.entry("tokens")
    next_ones = {item.text("layer") for item in tokens.entries("shifts") if item.whole("distance") == 1}
    return [
        setup_finding(
            rec,
            item,
            f"in each of {item.whole('passes')} passes the targets are the indices that {quoted(item.text('layer'))} "
            "gets one position later, and every attention that was read lets each position see the next one: the "
            "model learns to copy the answer, and cannot generate",
            "Hide later positions: is_causal=True in scaled_dot_product_attention, or a mask from torch.triu(..., "
            "diagonal=1) that is True (or -inf) above the diagonal.",
            "no causal mask",
        )
        for item in tokens.entries("future")
        if item.text("layer") in next_ones and item.whole("passes") >= LEAST_CALLS
    ][:1]


def _turned_mask(rec: Recording) -> list[Finding]:
    """Find attention that sees nothing but one index, which is padding."""
    return [
        setup_finding(
            rec,
            item,
            f"in each of {item.whole('passes')} passes attention sees index {item.whole('index')} of "
            f"{quoted(item.text('layer'))} wherever it is, and no other index: the mask hides the words and shows the "
            "padding",
            "Turn the mask round: in key_padding_mask of nn.MultiheadAttention and in masked_fill, True hides a "
            "position; in scaled_dot_product_attention, True shows it.",
            "the padding mask is turned round",
        )
        for item in rec.setup.entry("tokens").entries("seen")[:1]
        if item.whole("passes") >= LEAST_CALLS
    ]


def _places_of_examples(rec: Recording) -> list[Finding]:
    """Find an embedding of positions that gets the numbers of the examples of the batch instead."""
    return [
        setup_finding(
            rec,
            item,
            f"{quoted(item.text('layer'))} gets the numbers 0 to {item.whole('examples') - 1} of the examples of the "
            f"batch in each of {item.whole('passes')} passes, one for all {item.whole('length')} positions of a "
            "sequence, whatever the examples are: positions are counted along the batch",
            "Count along the sequence: torch.arange(x.size(1)) for data of batch x positions, the same for all "
            "examples.",
            "positions are counted along the batch",
            named(item),
        )
        for item in rec.setup.entry("tokens").entries("places")[:1]
        if item.whole("passes") >= LEAST_CALLS
    ]
