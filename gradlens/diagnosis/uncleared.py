"""Gradients that are never cleared, so that they add up over the steps."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.analysis.profile import ACTIVATION_GRAD
from gradlens.analysis.stats import median
from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.recorded_rows import (
    PARAM_GRAD,
    Recording,
    share_beyond,
)
from gradlens.run import FloatArray

SMOOTH = 0.2
"""The parameters' gradient moves from row to row by so much less than the outputs' from which it is made. A sum of t
gradients changes by the t-th part. Measured on experiments/scorecard, seeds 0 to 2, of 93 healthy runs the smoothest
has 0.35 and all others 0.9 or more; gradients that are never cleared have 0.3 after 50 rows and 0.1 after 100."""
ADDED_UP = 3.0
"""And it grows: independent gradients by the root of the number of rows, 7 over 50, equal ones by that number."""
SUM_ROWS = 50
"""In fewer rows a sum is not smooth yet."""


def uncleared(rec: Recording) -> list[Finding]:
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
    usual = median(expected, axis=0)
    ratio = median(moves, axis=0) / np.where(usual > 0, usual, np.nan)
    layers = known[np.nan_to_num(ratio, nan=np.inf) < SMOOTH]
    if len(layers) < 2 or len(layers) <= len(known) / 2:
        return []
    grown = float(
        np.nanmedian(median(params[-LEAST_ROWS:, layers], axis=0) / median(params[:LEAST_ROWS, layers], axis=0))
    )
    if not grown > ADDED_UP:
        return []
    typical = median(moves[:, np.isin(known, layers)]) / float(np.nanmedian(usual))
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
