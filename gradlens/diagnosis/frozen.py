"""Layers that do not move: frozen ones, and steps that are far too small to learn by."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.analysis.stats import median
from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.loss import loss_fell
from gradlens.diagnosis.recorded_rows import (
    COHERENCE,
    LEAST_VALUES,
    PARAM_GRAD,
    PARAM_NORM,
    UPDATE,
    Recording,
    Series,
    share_beyond,
)
from gradlens.diagnosis.unused import wants_no_gradient, without_gradient
from gradlens.format import plural

FROZEN_LINE = "no change of the weights at all over the last fifth of the rows"
FROZEN_SOURCE = "exact: any update makes the ratio positive; smdebug, UnchangedTensor: unchanged over 3 steps"
SMALL_STEP = 1e-4
"""Ben Braiek & Khomh 2023, TheDeepChecker: log10 of update / weight is healthy in [-4, -1]."""
AGREE = 0.15
"""At a minimum the gradients of two halves of a batch cancel each other, so that small steps with halves that agree
are no convergence. Measured on experiments/scorecard, seeds 0 to 2: near convergence -0.06 to 0.07, with a learning
rate a thousand times too small 0.42 to 0.53; this is about the geometric mean of 0.07 and 0.42."""
HALVED = 0.5
"""Where the loss is halved after the first fifth of the rows, small steps are enough. Measured there: with a learning
rate a thousand times too small it falls by 6 % to 20 %, with the right one by 68 % to 75 %."""


def frozen(rec: Recording) -> list[Finding]:
    """Layers whose weights do not change: the learning rate is 0, the optimizer lacks them, or they want no gradient.

    Confidence: with n values that are all exactly 0, (n + 1) / (n + 2), by Laplace's rule of succession.
    """
    lr = rec.scalar("lr")
    late = lr[-max(len(lr) // 5, LEAST_ROWS) :]
    late = late[~np.isnan(late)]
    if len(late) >= LEAST_ROWS and (late == 0).all():
        before = np.flatnonzero(np.nan_to_num(lr) != 0)
        start = int(before[-1]) + 1 if len(before) else 0
        return [_finding(rec, np.arange(len(rec.run.layers)), start, "the learning rate is 0", len(late))]
    still, series, said = _still_layers(rec)
    wanting = wants_no_gradient(rec)
    layers = np.setdiff1d(still, without_gradient(rec))
    found: list[Finding] = []
    if series is not None and len(layers):
        moving = series.values[:, layers] != (0 if said == UPDATE else series.values[-1, layers])
        rows = np.flatnonzero((moving & ~np.isnan(series.values[:, layers])).all(axis=1))
        start = int(series.rows[rows[-1] + 1]) if len(rows) and rows[-1] + 1 < len(series) else int(series.rows[0])
        what = "update_ratio is exactly 0" if said == UPDATE else "param_norm stays the same to the last bit"
        count = int((~moving & ~np.isnan(series.values[:, layers])).sum(axis=0).min())
        evidence = f"{what} at {plural(len(layers), 'layer')}, {_say_gradients(rec, layers, start)}"
        found.append(_finding(rec, layers, start, evidence, count))
    elif len(wanting):
        said = "their parameters have no gradient, their outputs have (requires_grad is off)"
        found.append(_finding(rec, wanting, 0, said, rec.n_rows))
    return found


def _say_gradients(rec: Recording, layers: NDArray[np.int64], row: int) -> str:
    """Say what gradients the parameters of layers get from a row on: arriving, exactly 0, none, or not recorded."""
    if not rec.has(PARAM_GRAD):
        return "and whether gradients arrive was not recorded"
    series = rec.series(PARAM_GRAD)
    values = series.values[series.rows >= row][:, layers]
    arrive, known = (values > 0).any(axis=0), (~np.isnan(values)).any(axis=0)
    if arrive.all():
        return "though gradients arrive"
    parts = [
        (int(arrive.sum()), "though gradients arrive"),
        (int((known & ~arrive).sum()), "and the gradient is exactly 0"),
        (int((~known).sum()), "and no gradient comes (requires_grad off, or unused)"),
    ]
    there = [(count, said) for count, said in parts if count]
    return there[0][1] if len(there) == 1 else "; ".join(f"{said} at {count}" for count, said in there)


def _finding(rec: Recording, layers: NDArray[np.int64], row: int, evidence: str, count: int) -> Finding:
    names = rec.names(rec.in_order(layers))
    return Finding(
        "frozen",
        names,
        (int(rec.run.steps[row]), rec.last_step),
        evidence,
        FROZEN_LINE,
        FROZEN_SOURCE,
        "If it is not meant: set requires_grad, give the optimizer all parameters, and check the schedule.",
        (count + 1) / (count + 2),
    )


def _still_layers(rec: Recording) -> tuple[NDArray[np.int64], Series | None, str]:
    """Return the layers whose weights do not change in the last fifth, the series that shows it, and its name."""
    if rec.has(UPDATE):
        series = rec.series(UPDATE)
        late = series.values[-max(len(series) // 5, LEAST_VALUES) :]
        still = (late == 0).any(axis=0) & ~(np.nan_to_num(late) > 0).any(axis=0)
        enough = (series.values == 0).sum(axis=0) >= LEAST_VALUES
        return np.flatnonzero(still & enough), series, UPDATE
    if rec.has(PARAM_NORM) and not rec.long:
        series = rec.series(PARAM_NORM)
        late = series.values[-max(len(series) // 5, LEAST_VALUES) :].astype(np.float32)
        same = np.asarray((late == late[-1]).all(axis=0) & (late[-1] > 0)) & _has_gradients(rec)
        enough = (series.values.astype(np.float32) == late[-1]).sum(axis=0) >= LEAST_VALUES
        return np.flatnonzero(same & enough), series, PARAM_NORM
    return np.empty(0, dtype=np.int64), None, ""


def _has_gradients(rec: Recording) -> NDArray[np.bool_]:
    """Say which layers' parameters get a gradient that is not 0; all where it was not recorded."""
    if not rec.has(PARAM_GRAD):
        return np.ones(len(rec.run.layers), dtype=bool)
    has: NDArray[np.bool_] = np.greater(median(rec.series(PARAM_GRAD).values, axis=0), 0)
    return has


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
    step = float(np.median(median(moved[:, moving], axis=0)))
    fell, middle = loss_fell(rec), median(agreement.values[:, main])
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
