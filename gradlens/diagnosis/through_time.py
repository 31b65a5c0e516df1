"""The gradient through time of recurrent layers: it vanishes in a model that does not learn, or it explodes."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.gradient_ratio import VANISH_DECADES, say_power
from gradlens.analysis.stats import median
from gradlens.diagnosis.findings import Finding, quoted, say_layers
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.recorded_rows import Recording, share_beyond, since
from gradlens.metrics import GRADIENT_THROUGH_TIME
from gradlens.run import FloatArray

PADDED = 0.5
"""Share of sequences that end with padding from which on it is said."""


def forgets(rec: Recording, learning: Learning) -> list[Finding]:
    """Find recurrent layers whose gradient vanishes through time in a model that does not learn.

    A model that learns may well forget: only the loss tells whether it needs what is far back. So this is asked where
    the loss does not fall and no other rule has a finding. Confidence: the share of resampled medians below the
    threshold.

    Args:
        rec: The recording.
        learning: Whether the model learns.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    if learning.verdict != "no" or not rec.has(GRADIENT_THROUGH_TIME):
        return []
    decades = _decades(rec)
    series = rec.series(GRADIENT_THROUGH_TIME)
    typical = median(decades[series.late], axis=0)
    layers = rec.in_order(np.flatnonzero(np.nan_to_num(typical, nan=0.0) < VANISH_DECADES))
    if not layers:
        return []
    padded = _padding(rec)
    names, worst = rec.names(layers), float(typical[layers].max())
    column = decades[:, layers[0]]
    verb = "leaves" if len(names) == 1 else "leave"
    return [
        Finding(
            "vanishing",
            names,
            (int(series.steps[since(column < VANISH_DECADES)]), rec.last_step),
            f"{learning.evidence}; {padded[0]}{say_layers(names)} {verb} at most {say_power(worst)} of the "
            "last time step's gradient at the first one, so inputs that far back cannot be learnt from; no other fault "
            "was found",
            "less than 1/1,000 (10^-3) of the last hidden state's gradient, in a model that does not learn",
            "Pascanu, Mikolov & Bengio 2013, section 2.1; the threshold is the one over depth",
            padded[1] + _remedy(rec),
            share_beyond(column[series.late], VANISH_DECADES, below=True),
        )
    ]


def _decades(rec: Recording) -> FloatArray:
    """Return log10 of the metric, (B, L): -inf where it is 0, NaN where unknown."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log10(rec.series(GRADIENT_THROUGH_TIME).values.astype(np.float64)))


def _padding(rec: Recording) -> tuple[str, str]:
    """Return a sentence on sequences that end with padding, which the last time step then is, and what to do."""
    for item in rec.setup.entries("inputs"):
        if item.number("padded") > PADDED:
            return (
                f"{item.number('padded'):.0%} of the sequences of {quoted(item.text('layer'))} end with index 0 "
                "(padding), so that their last time step is not their last real one; ",
                "If the output of the last time step is used: take that of each sequence's last real step, from its "
                "length, or use pack_padded_sequence and h_n. ",
            )
    return "", ""


def _remedy(rec: Recording) -> str:
    kinds = {layer.kind for layer in rec.run.layers}
    gated = "Start with a forget gate's bias of 1" if "LSTM" in kinds else "Use an LSTM with a forget gate's bias of 1"
    if "GRU" in kinds:
        gated = "Start the update gate's bias at 1"
    return (
        f"{gated}, initialise the recurrent weights orthogonally, shorten the sequences, or let attention or a mean "
        "over time read all outputs. If the targets do not depend on inputs far back, first look at the data and the "
        "loss."
    )


def say_growth(rec: Recording) -> str:
    """Return a sentence on a gradient that grows more than a thousandfold through time, or ""."""
    if not rec.has(GRADIENT_THROUGH_TIME):
        return ""
    decades = np.nan_to_num(_decades(rec), nan=-np.inf, posinf=np.inf)
    layer = int(np.argmax(decades.max(axis=0)))
    high = float(decades[:, layer].max())
    if not high > -VANISH_DECADES:
        return ""
    times = f"{say_power(high)} times" if np.isfinite(high) else "to infinity"
    name = quoted(rec.run.layers[layer].name)
    return f"the gradient through time of {name} grows {times} from the last time step to the first"
