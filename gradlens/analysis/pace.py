"""Faults of the pace: gradients that are never cleared and add up, and steps so small that nothing is learned."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.findings import Finding
from gradlens.analysis.profile import ACTIVATION_GRAD
from gradlens.analysis.recording import (
    COHERENCE,
    LEAST_ROWS,
    PARAM_GRAD,
    UPDATE,
    Recording,
    medians,
    share_beyond,
)
from gradlens.analysis.still import LEAST_VALUES
from gradlens.analysis.wayback import loss_fell
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
are no convergence. Measured on experiments/scorecard, seeds 0 to 2: near convergence -0.06 to 0.07, with a learning rate
a thousand times too small 0.42 to 0.53; this is about the geometric mean of 0.07 and 0.42."""
HALVED = 0.5
"""Where the loss is halved after the first fifth of the rows, small steps are enough. Measured there: with a learning
rate a thousand times too small it falls by 6 % to 20 %, with the right one by 68 % to 75 %."""


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
            f"layers change by {step:.1e} of their norm in a step (median of layers and rows), while gradients of halves "
            f"of the batch agree (cosine {float(np.nanmedian(middle)):.2f}) and the loss falls by {max(fell, 0):.0%} only",
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
