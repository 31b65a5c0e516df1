"""Recurrent layers of which a part gets no gradient: a layer that nothing reads, or a state that is never handed on."""

from __future__ import annotations

import re

from gradlens.diagnosis.findings import Finding, exact_finding, quoted
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.loss import loss_halved
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry

PART = re.compile(r"(weight|bias)_(ih|hh|hr)_l(\d+)(_reverse)?")
"""Names of the parameters of ``torch.nn.RNN``, ``LSTM`` and ``GRU``."""
NOTHING = {"none", "zero"}
"""States of a gradient in which nothing is learnt."""


def recurrent(rec: Recording, learning: Learning) -> list[Finding]:
    """Find parts of recurrent layers that no output uses, and recurrent weights whose state is always 0.

    The gradient of the recurrent weights is the sum over time steps of a product with the state before: it is exactly 0
    where every sequence ends after one step, or where only the first step of a direction is read.

    Args:
        rec: The recording.
        learning: Whether the model learns.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    found = []
    states = rec.setup.states(requires_grad=True, in_optimizer=True)
    for layer in dict.fromkeys(name for item in states for name in item.texts("layers")):
        parts = _parts(states, layer)
        used = {part for part, seen in parts.items() if not seen <= NOTHING}
        idle = _idle(parts)
        if not used:
            continue  # all of it is cut off: another rule's matter
        if idle:
            found.append(_unread(rec, layer, max(idle)))
        elif held := [part for part in parts if part[0] == "weight_hh" and parts[part] == {"zero"}]:
            inputs = [part for part in parts if part[0] == "weight_ih" and part[1:] in [each[1:] for each in held]]
            if used.issuperset(inputs) and (learning.verdict != "yes" or not loss_halved(rec)):
                found.append(_without_state(rec, layer, held, parts))
    return found


def _parts(states: list[Entry], layer: str) -> dict[tuple[str, str, str], set[str]]:
    """Return the parameters of a recurrent layer, as (weight_ih, 0, _reverse), and all states of their gradients."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for item in states:
        for name in item.texts("names") if layer in item.texts("layers") else ():
            if match := PART.fullmatch(name):
                key = f"{match[1]}_{match[2]}", match[3], match[4] or ""
                found.setdefault(key, set()).update(item.texts("seen"))
    return found


def _idle(parts: dict[tuple[str, str, str], set[str]]) -> list[tuple[str, str]]:
    """Return the layers and directions of which no parameter ever has a gradient."""
    places = dict.fromkeys((depth, way) for _, depth, way in parts)
    return [place for place in places if all(seen <= NOTHING for part, seen in parts.items() if part[1:] == place)]


def _unread(rec: Recording, layer: str, place: tuple[str, str]) -> Finding:
    depth, way = place
    return exact_finding(
        "cut",
        (layer,),
        (int(rec.run.steps[0]), rec.last_step),
        f"no gradient reaches layer {int(depth) + 1} of {quoted(layer)} (weight_ih_l{depth}{way}, "
        f"weight_hh_l{depth}{way}) although other parameters of {quoted(layer)} get one: the loss does not read its "
        "output",
        "Read the last layer's output, or its last state h_n[-1] (h_n[0] is the first layer's); of a bidirectional "
        "layer join both directions, torch.cat([h_n[-2], h_n[-1]], 1).",
        "a part of the recurrent layer is not read",
    )


def _without_state(
    rec: Recording, layer: str, held: list[tuple[str, str, str]], parts: dict[tuple[str, str, str], set[str]]
) -> Finding:
    names = ", ".join(f"weight_hh_l{depth}{way}" for _, depth, way in held)
    every = all(part in held for part in parts if part[0] == "weight_hh")
    if not every and all(way for _, _, way in held):
        why = (
            "the loss reads the backward direction after its first step only: output[:, -1] of a bidirectional layer "
            "is the end of the forward direction, and the beginning of the backward one"
        )
        fix = "Take the last state of both directions, torch.cat([h_n[-2], h_n[-1]], 1), or the mean over time."
        cause = "one direction has seen a single step"
    else:
        why = (
            "the state is 0 at every step that the loss reads, so that nothing is remembered: sequences have a single "
            "step, the layer is called for each step without the state of the call before, or only a first step is read"
        )
        fix = (
            f"Hand the state from call to call, output, state = {layer}(x, state), or give {quoted(layer)} whole "
            "sequences (batch x time x features with batch_first=True)."
        )
        cause = "the state is never handed on"
    return exact_finding(
        "cut",
        (layer,),
        (int(rec.run.steps[0]), rec.last_step),
        f"the gradient of {names} of {quoted(layer)} is exactly 0 in every step that was looked at, and that of its "
        f"input weights is not: {why}",
        fix,
        cause,
    )
