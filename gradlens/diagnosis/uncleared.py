"""Gradients that are never cleared and therefore add up over the steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.analysis.stats import median, median_of_all
from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.recorded_rows import (
    PARAM_GRAD,
    Recording,
    share_beyond,
)
from gradlens.metrics import ACTIVATION_GRAD_NORM
from gradlens.run import FloatArray

SMOOTH = 0.2
"""Change of the parameters' gradient from row to row, divided by that of the outputs' gradient. A sum of t gradients
changes by 1/t of its size. Measured on experiments/scorecard, seeds 0 to 2: the smoothest of 93 healthy runs has 0.35,
all others 0.9 or more; gradients that are never cleared have 0.3 after 50 rows and 0.1 after 100."""
ADDED_UP = 3.0
"""Factor by which the gradient must also grow. Over 50 rows, a sum of independent gradients grows by a factor of 7, the
square root of 50, and a sum of equal gradients by 50."""
PART = 512
"""Layers that are looked at at once."""
SUM_ROWS = 50
"""With fewer rows a sum is not yet smooth."""


def uncleared(rec: Recording) -> list[Finding]:
    """Find parameter gradients that add up over the steps because they are never cleared.

    The gradient w.r.t. the weights follows from the gradient w.r.t. the outputs: both rise and fall together from row
    to row. A sum over all steps so far hardly changes. Norms are taken before clipping. At least two layers must show
    it, because the norm of a single layer may be constant through clipping that was not recorded. Confidence: the share
    of resampled medians of the changes beyond the threshold.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    if (
        rec.long
        or not (rec.has(PARAM_GRAD) and rec.has(ACTIVATION_GRAD_NORM))
        or len(rec.series(PARAM_GRAD)) < SUM_ROWS
    ):
        return []
    clip = rec.scalar("clip_coefficient")
    clip = np.where(clip > 0, clip, np.nan)[:, None] if len(clip) else np.ones((1, 1))
    clip = clip[~rec.skipped] if len(clip) > 1 else clip
    grads = [_all_rows(rec, name) for name in (PARAM_GRAD, ACTIVATION_GRAD_NORM)]
    known = rec.path

    def params_of(layers: NDArray[np.int64]) -> FloatArray:
        return np.asarray(grads[0][:, layers].astype(np.float64) / clip)

    parts = [known[i : i + PART] for i in range(0, max(len(known), 1), PART)]
    usual = np.concatenate([median(_changes(grads[1][:, part].astype(np.float64)), axis=0) for part in parts])
    moved = np.concatenate([median(_changes(params_of(part)), axis=0) for part in parts])
    ratio = moved / np.where(usual > 0, usual, np.nan)
    layers = known[np.nan_to_num(ratio, nan=np.inf) < SMOOTH]
    if len(layers) < 2 or len(layers) <= len(known) / 2:
        return []
    params = params_of(layers)
    grown = float(median(median(params[-LEAST_ROWS:], axis=0) / median(params[:LEAST_ROWS], axis=0)))
    if not grown > ADDED_UP:
        return []
    typical = median(_changes(params)) / median_of_all(usual)
    return [
        Finding(
            "exploding",
            rec.names(rec.in_order(layers)),
            (int(rec.run.steps[0]), rec.last_step),
            f"from row to row, the parameters' gradient changes {median_of_all(ratio):.2f} times as much as the "
            f"outputs' gradient, and it has grown to {grown:.0f} times its first size: it is a sum over steps",
            f"less than {SMOOTH} times the outputs' change at most layers, and a growth by a factor of {ADDED_UP:.0f}",
            "a sum of t gradients changes by 1/t of its size; measured: 0.35 or more in healthy runs, mostly 0.9",
            "Call optimizer.zero_grad() before each backward pass.",
            share_beyond(typical, SMOOTH, below=True),
        )
    ]


def _all_rows(rec: Recording, name: str) -> FloatArray:
    """Return a metric in all rows but the skipped ones, not finite values included, (T, L) as the run holds it."""
    values = rec.run.metric_rows(name, 0, len(rec.run.steps))
    return values[~rec.skipped] if rec.skipped.any() else values


def _changes(values: FloatArray) -> FloatArray:
    """Return the change of the natural logarithm from row to row, (T - 1, L); NaN where a value is 0 or unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.where(np.isfinite(values) & (values > 0), values, np.nan))
    return np.asarray(np.abs(np.diff(logs, axis=0)))
