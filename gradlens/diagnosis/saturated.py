"""Inputs of a bounded activation function that lie where its slope is gone."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.analysis.profile import ACTIVATION_GRAD
from gradlens.analysis.stats import median
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.recorded_rows import (
    RMS,
    ZEROS,
    Recording,
    share_beyond,
    steps_beyond,
    window_beyond,
)

SATURATED_RMS = 5.0
"""DeepDiagnosis (Wardat et al. 2022): tanh and sigmoid beyond +-5 are saturated; there the sigmoid's slope is 0.0066,
38 times below its largest."""
BOUNDED = ("tanh", "sigmoid")
NO_RELU = 0.01
"""With fewer zeros behind the activation function than this it is no ReLU, which makes half of them."""
SHRINKS_DECADES = -1.0
"""Across a saturated function the gradient falls at least tenfold: the slope at 5 is 0.0066 (sigmoid) or 0.00018
(tanh)."""


def saturated(rec: Recording) -> list[Finding]:
    """What goes into a bounded activation function lies where its slope is gone.

    The run's configuration names the function (``activation``: tanh or sigmoid); otherwise it is taken to be bounded
    where it makes no zeros and the gradient falls tenfold across it. The output layer is left out: logits may be large.
    Confidence: the largest of the layers' shares of resampled medians beyond the threshold.
    """
    if not rec.has(RMS) or len(rec.series(RMS)) < LEAST_ROWS // 2:
        return []
    series = rec.series(RMS)
    late, window, typical = window_beyond(series, SATURATED_RMS)
    beyond = np.nan_to_num(typical) > SATURATED_RMS
    layers = [i for i in rec.run.main_layers()[:-1] if beyond[i] and _bounded(rec, int(i))]
    if not layers:
        return []
    names, worst = rec.names(layers), layers[int(np.argmax(typical[layers]))]
    return [
        Finding(
            "saturated",
            names,
            steps_beyond(rec, series, layers[0], SATURATED_RMS),
            f"the output of {quoted(rec.run.layers[worst].name)} has a root mean square of {typical[worst]:.1f} before "
            f"its bounded activation function; {len(layers)} layers beyond {SATURATED_RMS:.0f}; median of {window}",
            f"a root mean square beyond {SATURATED_RMS:.0f} for good",
            "Wardat et al. 2022, DeepDiagnosis: beyond +-5, where the sigmoid's slope is 0.0066 of at most 0.25",
            "Make the weights smaller (Glorot initialisation), normalise before the activation, or scale the inputs.",
            max(share_beyond(series.values[late][:, i], SATURATED_RMS, below=False) for i in layers),
        )
    ]


def _bounded(rec: Recording, layer: int) -> bool:
    """Say whether a layer's activation function is bounded, as far as the run tells."""
    named = str(rec.run.config.get("activation", "")).lower()
    if named:
        return named in BOUNDED
    if not (rec.has(ZEROS) and rec.has(ACTIVATION_GRAD)):
        return False
    zeros = median(rec.series(ZEROS).values, axis=0)[layer]
    path = rec.path
    place = np.flatnonzero(path == layer)
    if not zeros < NO_RELU or not len(place) or place[0] + 1 >= len(path):
        return False
    grads = rec.series(ACTIVATION_GRAD)
    ends = median(grads.values[grads.late], axis=0)[[layer, path[int(place[0]) + 1]]]
    return bool(ends[0] < ends[1] * 10**SHRINKS_DECADES)
