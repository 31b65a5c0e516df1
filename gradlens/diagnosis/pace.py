"""Faults of the pace: gradients that are never cleared, outputs that swell, and steps too small to learn anything."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.gradient_ratio import say_power
from gradlens.analysis.profile import ACTIVATION_GRAD
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.frozen import LEAST_VALUES
from gradlens.diagnosis.recorded_rows import (
    COHERENCE,
    LEAST_ROWS,
    PARAM_GRAD,
    RMS,
    UPDATE,
    Recording,
    medians,
    share_beyond,
    since,
)
from gradlens.diagnosis.vanishing import loss_fell
from gradlens.run import FloatArray

SMOOTH = 0.2
"""The parameters' gradient moves from row to row by so much less than the outputs' from which it is made. A sum of t
gradients changes by the t-th part. Measured on experiments/scorecard, seeds 0 to 2, of 93 healthy runs the smoothest
has 0.35 and all others 0.9 or more; gradients that are never cleared have 0.3 after 50 rows and 0.1 after 100."""
ADDED_UP = 3.0
"""And it grows: independent gradients by the root of the number of rows, 7 over 50, equal ones by that number."""
SUM_ROWS = 50
"""In fewer rows a sum is not smooth yet."""
SMALL_STEP = 1e-4
"""Ben Braiek & Khomh 2023, TheDeepChecker: log10 of update / weight is healthy in [-4, -1]."""
AGREE = 0.15
"""At a minimum the gradients of two halves of a batch cancel each other, so that small steps with halves that agree
are no convergence. Measured on experiments/scorecard, seeds 0 to 2: near convergence -0.06 to 0.07, with a learning
rate a thousand times too small 0.42 to 0.53; this is about the geometric mean of 0.07 and 0.42."""
HALVED = 0.5
"""Where the loss is halved after the first fifth of the rows, small steps are enough. Measured there: with a learning
rate a thousand times too small it falls by 6 % to 20 %, with the right one by 68 % to 75 %."""

SWOLLEN_TIMES = 2.0
"""A hidden layer's outputs a hundred times what they were in the first row. Measured there: healthy nets grow by at
most 1.0 decades, but for one that begins far too small and grows by 2.7."""
SWOLLEN_DEPTH = math.log10(70)
"""And as many times the first layer's: the factor of Zhang et al. 2021 (AutoTrainer) for gradients over depth. Measured
there: healthy nets have at most 1.0 decades, those whose signal explodes on its way forward 1.95 to 2.5."""


def accumulated(rec: Recording) -> list[Finding]:
    """Parameters' gradients add up over the steps: nobody clears them.

    The gradient by the weights is made of the gradient by the outputs, so that both go up and down together from row to
    row; a sum over all steps so far hardly moves. Norms are taken before clipping. Two layers are asked for, as that of
    a single one may have been clipped to 1 unseen. Confidence: the share of resampled medians (of rows' changes) beyond
    the threshold.
    """
    if rec.long or not (rec.has(PARAM_GRAD) and rec.has(ACTIVATION_GRAD)) or len(rec.series(PARAM_GRAD)) < SUM_ROWS:
        return []
    clip = rec.scalar("clip_coefficient")
    clip = np.where(clip > 0, clip, np.nan)[:, None] if len(clip) else np.ones((1, 1))
    grads = [np.asarray(rec.run.metric(name), dtype=np.float64) for name in (PARAM_GRAD, ACTIVATION_GRAD)]
    params, outputs = grads[0][~rec.skipped] / (clip[~rec.skipped] if len(clip) > 1 else clip), grads[1][~rec.skipped]
    known = rec.path
    moves, expected = (_changes(values[:, known]) for values in (params, outputs))
    usual = medians(expected)
    ratio = medians(moves) / np.where(usual > 0, usual, np.nan)
    layers = known[np.nan_to_num(ratio, nan=np.inf) < SMOOTH]
    if len(layers) < 2 or len(layers) <= len(known) / 2:
        return []
    grown = float(np.nanmedian(medians(params[-LEAST_ROWS:, layers]) / medians(params[:LEAST_ROWS, layers])))
    if not grown > ADDED_UP:
        return []
    typical = medians(moves[:, np.isin(known, layers)].T) / float(np.nanmedian(usual))
    return [
        Finding(
            "exploding",
            rec.names(rec.in_order(layers)),
            (int(rec.run.steps[0]), rec.last_step),
            f"from row to row the gradient of the parameters changes by {float(np.nanmedian(ratio)):.2f} of what that "
            f"of the outputs does, and it has grown {grown:.0f} times: it is a sum over steps",
            f"less than {SMOOTH} of the outputs' change at most layers, and a growth of {ADDED_UP:.0f} times",
            "a sum of t gradients changes by the t-th part; measured: healthy runs 0.35 and more, most 0.9",
            "Call optimizer.zero_grad() before each backward pass.",
            share_beyond(typical, SMOOTH, below=True),
        )
    ]


def _changes(values: FloatArray) -> FloatArray:
    """Return how much the logarithm changes from row to row, (T - 1, L); NaN where either is 0 or not known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.where(np.isfinite(values) & (values > 0), values, np.nan))
    return np.asarray(np.abs(np.diff(logs, axis=0)))


def swollen(rec: Recording) -> list[Finding]:
    """A hidden layer's outputs have grown by orders of magnitude, and beyond those of the first layer.

    The signal explodes on its way forward, whatever the gradient's norms are under an optimizer that divides by them.
    Embeddings are no first layer, as theirs are small by custom. Confidence: the largest of the layers' shares of
    resampled medians beyond the line.
    """
    if not rec.has(RMS) or len(rec.series(RMS)) < LEAST_ROWS // 2:
        return []
    series = rec.series(RMS)
    hidden = [i for i in rec.run.main_layers()[:-1] if rec.run.layers[i].kind != "Embedding"]
    if len(hidden) < 2:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        outputs = np.log10(series.values[:, hidden])
    outputs = np.where(np.isfinite(outputs), outputs, np.nan)
    grown = np.minimum(outputs - outputs[0] - SWOLLEN_TIMES, outputs - outputs[:, :1] - SWOLLEN_DEPTH)
    late = grown[series.late]
    typical = np.nan_to_num(medians(late), nan=-np.inf)
    beyond = np.flatnonzero(typical > 0)
    if not len(beyond):
        return []
    top, names = int(np.argmax(typical)), rec.names(hidden)
    over_time, over_depth = (medians((outputs - base)[series.late])[top] for base in (outputs[0], outputs[:, :1]))
    return [
        Finding(
            "exploding",
            tuple(names[i] for i in beyond),
            (int(series.steps[since(grown[:, beyond[0]] > 0)]), rec.last_step),
            f"the outputs of {quoted(names[top])} are {say_power(over_time)} times what they were in the first row, "
            f"and {say_power(over_depth)} times those of {quoted(names[0])}, median of the later half of the rows",
            f"hidden outputs {10**SWOLLEN_TIMES:.0f} times their first and {10**SWOLLEN_DEPTH:.0f} times the first "
            "layer's",
            "He et al. 2015, sec. 2.2: the forward signal must keep its size; the factor 70 is Zhang et al. 2021's",
            "Use He initialisation, add batch norm, or lower the learning rate.",
            max(share_beyond(late[:, i], 0.0, below=False) for i in beyond),
        )
    ]


def slow(rec: Recording) -> list[Finding]:
    """Weights hardly move, though halves of the batch agree on where to go: the learning rate is far too small.

    In words of kinds they are frozen: for what is learned, steps of less than 1e-4 are none. It takes grad_coherence to
    tell it from convergence, and a loss. A learning rate that rises is a warm-up. Confidence: the share of resampled
    medians of the agreement beyond the threshold.
    """
    if not (rec.has(UPDATE) and rec.has(COHERENCE)):
        return []
    series, agreement = rec.series(UPDATE), rec.series(COHERENCE)
    if min(len(series), len(agreement)) < LEAST_VALUES or _warms_up(rec):
        return []
    main = rec.run.main_layers()
    moved = series.values[:, main]
    moving = (np.nan_to_num(moved) > 0).any(axis=0)
    if not moving.any():
        return []
    step = float(np.median(medians(moved[:, moving])))
    fell, middle = loss_fell(rec), medians(agreement.values[:, main].T)
    if not (step < SMALL_STEP and np.nanmedian(middle) > AGREE) or math.isnan(fell) or fell >= HALVED:
        return []
    return [
        Finding(
            "frozen",
            rec.names(rec.in_order(main[moving])),
            (int(series.steps[0]), rec.last_step),
            f"layers change by {step:.1e} of their norm in a step (median of layers and rows), while gradients of "
            f"halves of the batch agree (cosine {float(np.nanmedian(middle)):.2f}) and the loss falls by only "
            f"{max(fell, 0):.0%}",
            f"updates below {SMALL_STEP:.0e} with a cosine above {AGREE}, and a loss that is not halved",
            "Ben Braiek & Khomh 2023, TheDeepChecker: log10 of update / weight in [-4, -1]; at a minimum the halves' "
            "gradients cancel",
            "Raise the learning rate ten- or a hundredfold, or check its schedule.",
            share_beyond(middle, AGREE, below=False),
        )
    ]


def _warms_up(rec: Recording) -> bool:
    """Say whether the learning rate rises to the end."""
    lr = rec.scalar("lr")
    lr = lr[~np.isnan(lr)]
    return bool(len(lr) > 1 and lr[-1] > lr[len(lr) // 2])
