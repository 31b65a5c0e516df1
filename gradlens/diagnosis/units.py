"""Faults inside layers, by metrics that a run may have: dead and saturated units, gradients without one direction."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.profile import ACTIVATION_GRAD
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.recorded_rows import (
    COHERENCE,
    LEAST_ROWS,
    RMS,
    ZEROS,
    Recording,
    Series,
    medians,
    share_beyond,
    since,
)
from gradlens.diagnosis.vanishing import FELL, loss_fell, loss_halved
from gradlens.run import FloatArray

DEAD_SHARE = 0.99
"""smdebug's DeadRelu: a unit that is active less than 1 % of the time is dead; here over a layer's units. Half zeros
are what a healthy ReLU makes."""
SATURATED_RMS = 5.0
"""DeepDiagnosis (Wardat et al. 2022): tanh and sigmoid beyond +-5 are saturated; there the sigmoid's slope is 0.0066,
38 times below its largest."""
BOUNDED = ("tanh", "sigmoid")
NO_RELU = 0.01
"""With fewer zeros behind the activation function than this it is no ReLU, which makes half of them."""
SHRINKS_DECADES = -1.0
"""Across a saturated function the gradient falls at least tenfold: the slope at 5 is 0.0066 (sigmoid) or 0.00018
(tanh)."""
COHERENT = 0.005
"""Measured at initialisation, mean cosine of two disjoint batches of 32 over layers: plain34 with batch norm 0.001,
where gradients are shattered, resnet34 0.028; this is their geometric mean."""
SHATTERED_LAYERS = 8
"""Balduzzi et al. 2017: without shortcuts the correlation falls like (1/2)^L, so that fewer layers than 8 cannot bring
it below 0.005 = (1/2)^7.6. What is lower in a shallow net is noise: a regression that begins at its noise floor
(experiments/scorecard, noise-floor) was called incoherent by four layers."""


def dead(rec: Recording) -> list[Finding]:
    """Nearly all of what follows a layer's activation function is 0, for good.

    Confidence: the largest of the layers' shares of resampled medians beyond the threshold.
    """
    if not rec.has(ZEROS) or len(rec.series(ZEROS)) < LEAST_ROWS // 2:
        return []
    series = rec.series(ZEROS)
    late, window, typical = _typical(series, DEAD_SHARE)
    layers = rec.in_order(np.flatnonzero(np.nan_to_num(typical) > DEAD_SHARE))
    if not layers:
        return []
    names, worst = rec.names(layers), float(typical[layers].max())
    return [
        Finding(
            "dead",
            names,
            _steps(rec, series, layers[0], DEAD_SHARE),
            f"{worst:.1%} of what follows {quoted(names[int(np.argmax(typical[layers]))])} is exactly 0, median of "
            f"{window}; beyond the line are {len(layers)} of {int((~np.isnan(typical)).sum())} layers",
            f"more than {DEAD_SHARE:.0%} zeros for good",
            "smdebug, DeadRelu: active less than 1 % of the time; half zeros are healthy for ReLU",
            "Lower the learning rate and check biases; LeakyReLU or GELU in place of ReLU keeps a slope everywhere.",
            max(share_beyond(series.values[late][:, i], DEAD_SHARE, below=False) for i in layers),
        )
    ]


def _typical(series: Series, line: float) -> tuple[slice, str, FloatArray]:
    """Return the window at the end in which a layer's median is beyond a line, its name, and the medians."""
    found = [(late, said, medians(series.values[late])) for late, said in series.windows]
    return next((item for item in found if (np.nan_to_num(item[2]) > line).any()), found[0])


def _steps(rec: Recording, series: Series, layer: int, line: float) -> tuple[int, int]:
    return int(series.steps[since(np.nan_to_num(series.values[:, layer]) > line)]), rec.last_step


def saturated(rec: Recording) -> list[Finding]:
    """What goes into a bounded activation function lies where its slope is gone.

    The run's configuration names the function (``activation``: tanh or sigmoid); otherwise it is taken to be bounded
    where it makes no zeros and the gradient falls tenfold across it. The output layer is left out: logits may be large.
    Confidence: the largest of the layers' shares of resampled medians beyond the threshold.
    """
    if not rec.has(RMS) or len(rec.series(RMS)) < LEAST_ROWS // 2:
        return []
    series = rec.series(RMS)
    late, window, typical = _typical(series, SATURATED_RMS)
    beyond = np.nan_to_num(typical) > SATURATED_RMS
    layers = [i for i in rec.run.main_layers()[:-1] if beyond[i] and _bounded(rec, int(i))]
    if not layers:
        return []
    names, worst = rec.names(layers), layers[int(np.argmax(typical[layers]))]
    return [
        Finding(
            "saturated",
            names,
            _steps(rec, series, layers[0], SATURATED_RMS),
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
    zeros = medians(rec.series(ZEROS).values)[layer]
    path = rec.path
    place = np.flatnonzero(path == layer)
    if not zeros < NO_RELU or not len(place) or place[0] + 1 >= len(path):
        return False
    grads = rec.series(ACTIVATION_GRAD)
    ends = medians(grads.values[grads.late])[[layer, path[int(place[0]) + 1]]]
    return bool(ends[0] < ends[1] * 10**SHRINKS_DECADES)


def incoherent(rec: Recording) -> list[Finding]:
    """The norms are healthy, but gradients of parts of the batch have no common direction, from the beginning on.

    Near convergence noise outweighs the signal in any net: so it counts only where the first fifth of the rows shows
    it, too, the loss does not fall, nor has it been halved before, and the net is deep enough to be shattered. (A
    ResNet-34 that had learnt all of its pictures in a tenth of the rows was called incoherent.) Confidence: the share
    of resampled medians below the threshold.
    """
    if not rec.has(COHERENCE) or len(rec.series(COHERENCE)) < LEAST_ROWS // 2:
        return []
    series = rec.series(COHERENCE)
    main = rec.run.main_layers()
    if (~np.isnan(series.values[:, main])).any(axis=0).sum() < SHATTERED_LAYERS:
        return []
    middle = _row_medians(series.values[:, main])
    early = middle[: max(len(middle) // 5, 3)]
    fell = loss_fell(rec)
    if not (np.nanmedian(middle) < COHERENT and np.nanmedian(early) < COHERENT) or fell >= FELL or loss_halved(rec):
        return []
    typical = medians(series.values)
    layers = [int(i) for i in main if typical[i] < COHERENT]
    loss = "" if math.isnan(fell) else f"; the loss falls by {max(fell, 0):.1%} after the first fifth of the rows"
    return [
        Finding(
            "incoherent",
            rec.names(layers),
            (int(series.steps[0]), rec.last_step),
            f"the mean cosine of gradients of parts of the batch is {float(np.nanmedian(middle)):.4f} (median over "
            f"layers and rows), below {COHERENT} at {len(layers)} of {len(main)} layers{loss}",
            f"a mean cosine below {COHERENT} from the first rows on",
            "measured at initialisation: plain34 0.001, resnet34 0.028; Balduzzi et al. 2017, The Shattered Gradients "
            "Problem, sec. 2",
            "Add shortcuts, enlarge the batch, or take layers away; the norms are healthy, and clipping does not help.",
            share_beyond(middle, COHERENT, below=True),
        )
    ]


def _row_medians(values: FloatArray) -> FloatArray:
    return medians(values.T)
