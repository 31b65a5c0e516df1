"""Sequences of indices: targets that are moved, seen, or the inputs; positions along the batch; a turned mask.

Exact: the recorder compares the indices that embeddings get with the loss's targets and with the masks in its graph.
"""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.setup.setup_findings import LEAST_CALLS, named, setup_finding


def sequences(rec: Recording) -> list[Finding]:
    """Find sequences of indices that do not fit the targets, the positions or the mask.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    return [*_moved_twice(rec), *_sees_targets(rec), *_copies(rec), *_turned_mask(rec), *_places_of_examples(rec)]


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
    """Find a model of the next index that sees it: attention without a causal mask, or a layer in both directions."""
    found = []
    for target, item in _shifts(rec, distance=1):
        attentions, both = item.whole("attentions"), item.whole("both_ways")
        if not (attentions and item.whole("open") == attentions) and not both:
            continue
        layer = quoted(item.text("layer"))
        evidence = (
            f"the targets are the indices that {layer} gets 1 position later, and attention without a causal mask sees "
            f"that position, too, in each of {item.whole('passes')} passes: the answer is in the input"
            if attentions
            else f"the targets are the indices that {layer} gets 1 position later, and a recurrent layer that reads in "
            f"both directions sees that position, too, in each of {item.whole('passes')} passes: the answer is in the "
            "input"
        )
        remedy = (
            "Hide later positions: is_causal=True in scaled_dot_product_attention, or an upper triangular mask "
            "(nn.Transformer.generate_square_subsequent_mask)."
            if attentions
            else "Let the recurrent layer read in one direction only (bidirectional=False)."
        )
        found.append(setup_finding(rec, target, evidence, remedy, "the model sees what it is to predict"))
    return found[:1]


def _copies(rec: Recording) -> list[Finding]:
    """Find a model with a causal mask, or one recurrent layer in one direction, whose targets are its inputs."""
    found = []
    for target, item in _shifts(rec, distance=0):
        attentions, recurrent = item.whole("attentions"), item.whole("recurrent")
        causal = attentions > 0 and item.whole("causal") == attentions and not recurrent
        if causal or (not attentions and recurrent == 1 and not item.whole("both_ways")):
            found.append(
                setup_finding(
                    rec,
                    target,
                    f"in each of {target.whole('passes')} passes the target of each position is the index that "
                    f"{quoted(item.text('layer'))} gets there, in a model that sees no later "
                    "position: it learns to repeat its input",
                    "Move the targets by one position: input x[:, :-1] and target x[:, 1:].",
                    "the targets are the inputs",
                )
            )
    return found[:1] or _fed_targets(rec)


def _fed_targets(rec: Recording) -> list[Finding]:
    """Find a decoder that gets the very targets that it is to predict."""
    return [
        setup_finding(
            rec,
            item,
            f"in each of {item.whole('passes')} passes {quoted(item.text('layer'))}, the last of the embeddings that "
            "get sequences, gets at each position the target of that position: a decoder is given what it is to "
            "predict",
            "Give the decoder the targets moved by one position: a start index first, and the last target left out "
            "(y[:, :-1] in, y[:, 1:] out).",
            "the targets are the inputs",
        )
        for item in rec.setup.entry("tokens").entries("shifts")
        if item.whole("distance") == 0 and item.whole("after") and item.whole("passes") >= LEAST_CALLS
    ][:1]


def _shifts(rec: Recording, *, distance: int) -> list[tuple[Entry, Entry]]:
    """Return where targets lie so many positions behind the inputs, and what sees later positions there."""
    tokens = rec.setup.entry("tokens")
    return [
        (target, item)
        for target in tokens.entries("shifts")
        for item in tokens.entries("next")
        if target.text("layer") == item.text("layer")
        and target.whole("distance") == distance
        and min(target.whole("passes"), item.whole("passes")) >= LEAST_CALLS
    ]


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
