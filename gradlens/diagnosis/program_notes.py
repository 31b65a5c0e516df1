"""Notes on what a program does with its targets and weights, exact, that may be meant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.diagnosis.findings import Finding, quoted, say_layers
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import LEAST_CALLS, layers_of
from gradlens.format import plural

INPUTS = "the targets are the inputs"
RISES = 2.0
"""Times by which a rate rises that is in its warm-up; cycles of a rate fall in between."""


def notes_on_program(rec: Recording, findings: Sequence[Finding]) -> list[str]:
    """Return notes on targets that are the inputs, on weights that something else writes, and on a long warm-up.

    Args:
        rec: The recording.
        findings: What was found.
    """
    return [*_copied_inputs(rec, findings), *_written_outside(rec, findings), *_still_warming(rec)]


def _copied_inputs(rec: Recording, findings: Sequence[Finding]) -> list[str]:
    """Return a note on targets that are the inputs, where no finding says so: an autoencoder is meant to copy them."""
    if any(finding.cause == INPUTS for finding in findings):
        return []
    return [
        f"in each of {item.whole('passes')} passes the targets are the indices that {quoted(item.text('layer'))} gets "
        "at the same positions: an autoencoder is meant to copy them; to predict the next one, move the targets by one "
        "position (input x[:, :-1], target x[:, 1:])"
        for item in rec.setup.entry("tokens").entries("shifts")[:1]
        if item.whole("distance", -1) == 0 and item.whole("passes") >= LEAST_CALLS
    ]


def _still_warming(rec: Recording) -> list[str]:
    """Return a note on a learning rate that rises from the first row to the last."""
    rates = rec.scalar("lr")
    rates = rates[np.isfinite(rates)]
    if len(rates) < 2 * LEAST_ROWS or (np.diff(rates) < 0).any() or not rates[-1] > RISES * rates[0]:
        return []
    if rates[-1] <= rates[-LEAST_ROWS]:
        return []
    return [
        f"the learning rate rises from {rates[0]:.2g} to {rates[-1]:.2g}, until the last row: its warm-up has not "
        "ended; if the training has, look at whether the warm-up counts steps or epochs"
    ]


def _written_outside(rec: Recording, findings: Sequence[Finding]) -> list[str]:
    """Return a note on weights of the optimizer that something else writes in every step that was compared."""
    found = [item for item in rec.setup.entries("changed_outside") if item.flag("in_optimizer")]
    found = [
        item
        for item in found
        if item.flag("requires_grad") and item.whole("looks") >= rec.setup.whole("looks") - 2 > LEAST_CALLS
    ]
    layers = layers_of(found)
    if not layers or any(set(layers) & set(finding.layers) for finding in findings):
        return []
    return [
        f"besides the optimizer, something writes the weights of {say_layers(layers)} between the steps, in all "
        f"{plural(found[0].whole('looks'), 'step')} that were compared (a clamp or projection, an average that is "
        "copied back?)"
    ]
