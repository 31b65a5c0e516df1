"""Layers that do not move: frozen ones, and parameters that no gradient ever reaches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.profile import ACTIVATION_GRAD
from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.recorded_rows import LEAST_ROWS, PARAM_GRAD, PARAM_NORM, UPDATE, Recording, Series, medians

LEAST_VALUES = 3
"""Weights have a coarse rhythm, so that a window may hold few values; two exact zeros may be a schedule's start and
end, three in a row are a state. smdebug's UnchangedTensor asks for 3 steps, too."""
FROZEN_LINE = "no change of the weights at all over the last fifth of the rows"
FROZEN_SOURCE = "exact: any update makes the ratio positive; smdebug, UnchangedTensor: unchanged over 3 steps"


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
    wanting = _wants_no_gradient(rec)
    layers = np.setdiff1d(still, _without_any(rec))
    found: list[Finding] = []
    if series is not None and len(layers):
        moving = series.values[:, layers] != (0 if said == UPDATE else series.values[-1, layers])
        rows = np.flatnonzero((moving & ~np.isnan(series.values[:, layers])).all(axis=1))
        start = int(series.rows[rows[-1] + 1]) if len(rows) and rows[-1] + 1 < len(series) else int(series.rows[0])
        what = "update_ratio is exactly 0" if said == UPDATE else "param_norm stays the same to the last bit"
        count = int((~moving & ~np.isnan(series.values[:, layers])).sum(axis=0).min())
        graded = np.setdiff1d(layers, wanting)
        why = "though gradients arrive" if len(graded) else "and no gradient comes (requires_grad off, or unused)"
        found.append(_finding(rec, layers, start, f"{what} at {len(layers)} layer(s), {why}", count))
    elif len(wanting):
        said = "their parameters have no gradient, their outputs have (requires_grad is off)"
        found.append(_finding(rec, wanting, 0, said, rec.n_rows))
    return found


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
    has: NDArray[np.bool_] = np.greater(medians(rec.series(PARAM_GRAD).values), 0)
    return has


def _never(rec: Recording, name: str) -> NDArray[np.bool_]:
    """Say for which layers a gradient metric has no value in any row, finite or not."""
    known = (~np.isnan(rec.series(name).values)).any(axis=0)
    rows = rec.broken_rows(name)
    if len(rows):
        known |= rec.broken(name, int(rows[0]), int(rows[0]) + 1)[0]
    return np.logical_not(known)


def _wants_no_gradient(rec: Recording) -> NDArray[np.int64]:
    """Return the layers that ran, and of whose parameters alone no gradient was asked for.

    Their weights are seen to stand still, and their output's gradient is known; or, at the input, all layers up to them
    have none, as when the first layers of a trained net are kept as they are.
    """
    if not (rec.has(PARAM_GRAD) and rec.has(ACTIVATION_GRAD) and rec.has(UPDATE)):
        return np.empty(0, dtype=np.int64)
    never, silent = _never(rec, PARAM_GRAD), _never(rec, ACTIVATION_GRAD)
    updates = rec.series(UPDATE).values
    still = (updates == 0).any(axis=0) & ~(np.nan_to_num(updates) > 0).any(axis=0)
    kept = never & still & ~silent
    for i in rec.run.main_layers():
        layer = rec.run.layers[i]
        if not (never[i] and still[i] and layer.out_numel > 0 and layer.calls > 0):
            break
        kept[i] = True
    return np.flatnonzero(kept)


def _without_any(rec: Recording) -> NDArray[np.int64]:
    """Return the layers whose parameters no gradient reaches, but for those of which none was asked for."""
    name = PARAM_GRAD if rec.has(PARAM_GRAD) else rec.gradient
    if not name:
        return np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.flatnonzero(_never(rec, name)), _wants_no_gradient(rec))


def unused(rec: Recording) -> list[Finding]:
    """Parameters that never get a gradient while others do.

    Confidence: n rows without a gradient, (n + 1) / (n + 2), by Laplace's rule of succession.
    """
    layers = _without_any(rec)
    name = PARAM_GRAD if rec.has(PARAM_GRAD) else rec.gradient
    if not len(layers) or len(layers) == len(rec.run.layers) or rec.n_rows < LEAST_VALUES:
        return []
    uncalled = [i for i in layers if rec.run.layers[i].out_numel == 0]
    said = f", {len(uncalled)} of them never called" if uncalled else ""
    return [
        Finding(
            "unused",
            rec.names(rec.in_order(layers)),
            (int(rec.run.steps[0]), rec.last_step),
            f"{name} is missing in all {rec.n_rows} rows at {len(layers)} layer(s){said}, while others have it",
            "no gradient in any row",
            "exact: autograd leaves .grad at None where no path leads from the loss to a parameter",
            "Use the layer's output in the loss (look for detach and branches not taken), or take the layer out.",
            (rec.n_rows + 1) / (rec.n_rows + 2),
        )
    ]
