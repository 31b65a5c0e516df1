"""Faults of the gradient's way back: it vanishes, or it explodes. Judged by ratios: no absolute size is a fault."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.gradient_ratio import FIRST_ROWS, VANISH_DECADES, say_power
from gradlens.analysis.profile import ACTIVATION_GRAD
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.recorded_rows import (
    LEAST_ROWS,
    PARAM_GRAD,
    UPDATE,
    Recording,
    late_windows,
    medians,
    share_beyond,
    since,
)
from gradlens.run import FloatArray
from gradlens.theory.laws import batch_norm_growth
from gradlens.theory.predict import predicted_profile

HARDLY = 1e-2
"""Early layers that move so much less than the last hidden one hardly learn. DeepDiagnosis (Wardat et al. 2022) calls
an update wrong when it is 100 times away from what is healthy."""
ROUNDING = 2.0**-24
"""A relative change below half the spacing of float32 numbers leaves most weights as they are (IEEE 754)."""
BEYOND_RESCALING = -8.0
"""Adam divides each gradient by its own size, so that early layers may learn though their gradient is small, but not
below its epsilon of 1e-8 (Kingma & Ba 2015, algorithm 1); what moves weights there is decay or momentum."""
FELL = 0.1
"""A loss that falls by less after the first fifth of the rows is stuck. Measured on small nets of 3 to 30 layers: by
13 % to 81 % where training goes on; by at most 1.3 % where the gradient vanishes, training is slow, or has converged
before. One net of tanh whose gradient vanishes fell by 24 % under Adam."""
ALLOWED_DECADES = math.log10(70)
"""Zhang et al. 2021 (AutoTrainer, ICSE): |g_first| / |g_last| > 70 is an explosion; here over what the law of
batch norm allows."""
SPREADS = 3.0
"""So many standard deviations of the predicted spread belong to the law: one draw in 700 is beyond."""
SURGE_DECADES = 3.0
"""Over steps: a thousand times what was usual. Measured: the norm of healthy runs (plain34 and resnet34, 20 epochs) is
never more than 0.7 decades above the median of its first ten rows."""
RISE_DECADES = 2.0
"""Before a step that is not finite, a rise of a hundred times is the beginning of it. Measured: in the same healthy
runs single rows are up to 1.5 decades above the one before."""
RISING_ROWS = 20
TOO_LARGE = "Use He initialisation (weights are too large for their fan-in), add batch norm, or clip gradients."
TOO_FAST = "Lower the learning rate or warm it up, and clip the gradient's norm."


def way_back(rec: Recording) -> tuple[NDArray[np.int64], FloatArray]:
    """Return the main layers and log10 of their gradient over the last hidden layer's, row by row.

    Returns:
        (M,) and (B, M); -inf where a layer's gradient is exactly 0 and that of a layer nearer the loss is not, NaN
        where either is not known. Nothing where there are fewer than three layers.
    """
    path = rec.path
    if len(path) < 3:
        return path, np.empty((0, len(path)))
    values = rec.series(rec.gradient).values[:, path]
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.log10(values) - np.log10(values[:, -2:-1])
    alive = np.nan_to_num(values).max(axis=1, keepdims=True) > 0
    decades = np.where((values == 0) & alive, -np.inf, decades)
    decades[:, -2][values[:, -2] > 0] = 0.0
    return path, np.where(np.isposinf(decades), np.nan, decades)


# --- vanishing --------------------------------------------------------------------------------------------


def vanishing(rec: Recording, notes: list[str]) -> list[Finding]:
    """The first layer's gradient is far below the last hidden one's for good, and the early layers hardly learn.

    Confidence: the share of resampled medians (block bootstrap over the window) beyond the threshold.
    """
    path, decades = way_back(rec)
    series = rec.series(rec.gradient) if rec.gradient else None
    if series is None or len(decades) < LEAST_ROWS:
        return []
    first = decades[:, 0]
    found = [(late, said, _lower_median(first[late])) for late, said in series.windows]
    late, window, typical = next((item for item in found if item[2] < VANISH_DECADES), found[0])
    if not typical < VANISH_DECADES:
        return []
    begins = since(first < VANISH_DECADES)
    why, learns = _early_layers(rec, path, typical, int(series.rows[begins]))
    power = say_power(typical)
    names = rec.names(path)
    said = f"{quoted(names[0])} has {power} times the gradient norm of {quoted(names[-2])}, median of {window}"
    if learns:
        notes.append(f"{said}, but {why}: that is no fault")
        return []
    lows = np.array([_lower_median(column) for column in decades[late].T])
    below = [name for name, low in zip(names[:-1], lows[:-1], strict=True) if low < VANISH_DECADES]
    start = int(series.steps[begins])
    confidence = share_beyond(first[late], VANISH_DECADES, below=True)
    parts = [said, _zeros_said(lows, names), _theory_said(rec, path, typical), why]
    return [
        Finding(
            "vanishing",
            tuple(below),
            (start, rec.last_step),
            "; ".join(part for part in parts if part),
            "first / last hidden below 10^-3 for good, and early layers that hardly learn",
            "Zhang et al. 2021, AutoTrainer, ICSE: |g_first| / |g_last| < 1e-3; relative only, as all gradients are "
            "tiny near convergence",
            "Add batch norm or shortcuts, take ReLU and He initialisation in place of sigmoid, or use fewer layers.",
            confidence,
        )
    ]


def _lower_median(values: FloatArray) -> float:
    known = np.sort(values[~np.isnan(values)])
    return float(known[(len(known) - 1) // 2]) if len(known) else math.nan


def _early_layers(rec: Recording, path: NDArray[np.int64], typical: float, row: int) -> tuple[str, bool]:
    """Say whether the early layers learn in spite of a gradient that is small from a row on, and what shows it."""
    if not rec.has(UPDATE):
        return "", False
    series = rec.series(UPDATE)
    since_then = series.values[series.rows >= row]
    ratios = medians(since_then if len(since_then) else series.values[series.late])[path]
    first, last = float(ratios[0]), float(ratios[-2])
    if math.isnan(first) or math.isnan(last):
        return "", False
    early, late = (quoted(name) for name in rec.names(path[[0, -2]]))
    said = f"{early} changes by {first:.1e} of its norm in a step, {late} by {last:.1e}"
    if first < ROUNDING or first < HARDLY * last:
        return said, False
    if typical < BEYOND_RESCALING:
        return f"{said}, but a gradient so small does not guide it: decay or momentum moves it", False
    fell = loss_fell(rec)
    if math.isnan(fell) or fell >= FELL:
        return said + ("" if math.isnan(fell) else f" and the loss falls by {fell:.0%}"), True
    return f"{said}, yet the loss is stuck (it falls by {max(fell, 0):.1%} after the first fifth)", False


def loss_fell(rec: Recording) -> float:
    """Return by which share the loss fell from the second fifth of the rows to the last; NaN where it is not known."""
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    part = len(loss) // 5
    if part < 2:
        return math.nan
    before, after = float(np.median(loss[part : 2 * part])), float(np.median(loss[-part:]))
    return (before - after) / abs(before) if before != 0 else math.nan


def loss_halved(rec: Recording) -> bool:
    """Say whether the loss of the last fifth of the rows is at most half of that of the very first ones.

    A net may be through with learning before ``loss_fell`` begins to look.
    """
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    part = len(loss) // 5
    if part < 2:
        return False
    first = max(min(part // 4, FIRST_ROWS), 2)
    return bool(np.median(loss[-part:]) <= 0.5 * np.median(loss[:first]))


def _zeros_said(lows: FloatArray, names: tuple[str, ...]) -> str:
    zero = np.flatnonzero(np.isneginf(lows))
    if not len(zero):
        return ""
    after = lows[int(zero[-1]) + 1 :]
    known = after[np.isfinite(after)]
    abrupt = len(known) and known[0] > -20
    said = f"exactly 0 at {len(zero)} layer(s) up to {quoted(names[int(zero[-1])])}"
    if abrupt:
        said += ", and not by underflow: units that are off, or a cut; record zero_fraction to tell"
    return said


def _theory_said(rec: Recording, path: NDArray[np.int64], typical: float) -> str:
    """Say what theory expects at initialisation."""
    prediction = predicted_profile(rec.run) if rec.gradient == ACTIVATION_GRAD else None
    if prediction is None or not len(prediction.decades) or prediction.layers[0] != path[0]:
        return ""
    expected, spread = float(prediction.decades[0]), float(prediction.spread[0])
    if not math.isfinite(expected):
        return ""
    apart = f", {abs(typical - expected) / spread:.0f} spreads away" if spread > 0 and math.isfinite(typical) else ""
    return f"theory expects {say_power(expected)} at initialisation ({prediction.source}){apart}"


# --- exploding --------------------------------------------------------------------------------------------


def exploding(rec: Recording, broken: int | None) -> list[Finding]:
    """The gradient grows over depth beyond the law, or over steps by orders of magnitude, or until it is not finite.

    Args:
        rec: What was recorded.
        broken: The first row that is not finite, or None.
    """
    return [found for found in (_over_depth(rec, broken), _over_steps(rec, broken)) if found is not None][:1]


def allowed_growth(rec: Recording, layers: int) -> tuple[float, str]:
    """Return how many decades a gradient may grow towards the input, and why.

    Nets with batch norm and no shortcuts grow by sqrt(pi / (pi - 1)) per layer (Yang et al. 2019), the most
    that is known of a build that trains; a run tells nowhere for sure that it has none.
    """
    law = (layers - 2) * math.log10(batch_norm_growth(1024, "relu"))
    said = f"the growth of a net with batch norm over {layers} layers, Yang et al. 2019, 10^{law:+.1f}"
    prediction = predicted_profile(rec.run) if rec.gradient == ACTIVATION_GRAD else None
    if prediction is not None and "Yang" in prediction.source:
        known = prediction.decades + SPREADS * np.nan_to_num(prediction.spread)
        most = float(np.nanmax(known)) if np.isfinite(known).any() else -math.inf
        if most > law:
            law, said = most, f"theory of this net and {SPREADS:.0f} spreads ({prediction.source}), 10^{law:+.1f}"
    return law + ALLOWED_DECADES, f"{said}, times 70, Zhang et al. 2021, AutoTrainer, ICSE"


def _over_depth(rec: Recording, broken: int | None) -> Finding | None:
    """Judged by the windows at the end of the rows; where one is not finite, of those before it.

    Confidence: the share of resampled medians beyond the threshold; of few rows, by Laplace's rule of succession.
    """
    path, decades = way_back(rec)
    if not len(decades):
        return None
    series = rec.series(rec.gradient)
    n = len(decades) if broken is None else int((series.rows < broken).sum())
    if n < (LEAST_ROWS if broken is None else 1):
        return None
    line, source = allowed_growth(rec, len(path))
    early = np.where(np.isinf(decades[:n, :-1]), np.nan, decades[:n, :-1])
    found = [(early[part], said, np.nan_to_num(medians(early[part]), nan=-np.inf)) for part, said in late_windows(n)]
    late, window, typical = next((item for item in found if (item[2] > line).any()), found[0])
    if not (typical > line).any():
        return None
    top = int(np.argmax(typical))
    names = rec.names(path)
    layers = [names[i] for i in np.flatnonzero(typical > ALLOWED_DECADES) if i != top]
    beyond = np.nan_to_num(early[:, top], nan=-np.inf) > line
    few = float((beyond[-len(late) :].sum() + 1) / (len(late) + 2))
    rows = f"median of {window}" + ("" if broken is None else " before one that is not finite")
    return Finding(
        "exploding",
        (names[top], *layers),
        (int(series.steps[since(beyond)]), int(series.steps[n - 1])),
        f"{quoted(names[top])} has {say_power(typical[top])} times the gradient norm of {quoted(names[-2])}, {rows}",
        f"a growth over depth beyond 10^{line:+.1f}",
        source,
        TOO_LARGE if beyond[0] else TOO_FAST,
        few if n < LEAST_ROWS else share_beyond(late[:, top], line, below=False),
    )


def _over_steps(rec: Recording, broken: int | None) -> Finding | None:
    """The norm of all gradients together rises over steps.

    A surge counts where the loss rises with it, or ends in a step that is not finite. Confidence: of the rows since the
    surge, the share beyond the line; of a rise before a step that is not finite, the share of neighbouring rows that
    rise.
    """
    name = PARAM_GRAD if rec.has(PARAM_GRAD) else rec.gradient
    if not name:
        return None
    series = rec.series(name)
    with np.errstate(divide="ignore", over="ignore"):
        total = np.log10(np.sqrt(np.nansum(series.values**2, axis=1)))
    total[np.isinf(total)] = np.nan
    before = np.ones(len(total), dtype=bool) if broken is None else series.rows < broken
    if broken is not None and (found := _rise(rec, series.steps[before], total[before], series.values[before])):
        return found
    if before.sum() < LEAST_ROWS:
        return None
    usual = float(np.nanmedian(total[:LEAST_ROWS])) if not np.isnan(total[:LEAST_ROWS]).all() else math.nan
    smooth = np.array([_lower_median(total[max(i - 4, 0) : i + 1]) for i in range(len(total))])
    high = np.nan_to_num(smooth - usual, nan=-np.inf) > SURGE_DECADES
    if not high.any():
        return None
    start = int(np.flatnonzero(high)[0])
    if broken is None and not _loss_rises(rec, int(series.rows[start])):
        return None
    grown = medians(series.values[start:]) / np.maximum(medians(series.values[:LEAST_ROWS]), np.finfo(float).tiny)
    layers = rec.in_order(np.flatnonzero(np.nan_to_num(grown) > 10**SURGE_DECADES))
    share = float((np.nan_to_num(total[start:] - usual, nan=-np.inf) > SURGE_DECADES).mean())
    return Finding(
        "exploding",
        rec.names(layers),
        (int(series.steps[start]), rec.last_step),
        f"the norm of all gradients is {say_power(float(np.nanmax(smooth) - usual))} times what it was in the first "
        f"{LEAST_ROWS} rows",
        "a thousand times the usual norm over 5 rows, with a loss that rises or a step that is not finite",
        "measured: healthy runs (plain34 and resnet34, 20 epochs) never rise 0.7 decades above their first ten rows",
        TOO_FAST,
        max(share, 1 / (len(total) + 1)),
    )


def _rise(rec: Recording, steps: NDArray[np.int64], total: FloatArray, values: FloatArray) -> Finding | None:
    """The rows just before one that is not finite rise a hundredfold, most of them one after another."""
    window = total[-RISING_ROWS:]
    known = window[~np.isnan(window)]
    if len(known) < 3:
        return None
    low = int(np.argmin(known))
    rise, steps_up = float(known[-1] - known[low]), np.diff(known[low:])
    if rise < RISE_DECADES or not len(steps_up) or (steps_up > 0).mean() <= 0.5:
        return None
    start = len(steps) - len(known) + low
    with np.errstate(divide="ignore", invalid="ignore"):
        grown = np.nan_to_num(values[-1] / values[start])
    layers = rec.in_order(np.flatnonzero(grown > 10**RISE_DECADES))
    return Finding(
        "exploding",
        rec.names(layers),
        (int(steps[start]), int(steps[-1])),
        f"the norm of all gradients grows by {say_power(rise)} in {len(steps_up)} row(s), then it is not finite",
        f"a hundredfold rise within {RISING_ROWS} rows before a row that is not finite",
        "measured: in healthy runs (plain34 and resnet34) no row is more than 1.5 decades above the one before",
        TOO_FAST,
        float((np.sum(steps_up > 0) + 1) / (len(steps_up) + 2)),
    )


def _loss_rises(rec: Recording, row: int) -> bool:
    """Say whether the loss is above its first rows' from a row on; True where it is not recorded."""
    loss = rec.scalar("loss")
    first, later = loss[:LEAST_ROWS], loss[row:]
    first, later = first[np.isfinite(first)], later[~np.isnan(later)]
    return not len(first) or not len(later) or float(np.median(later)) > float(np.median(first))
