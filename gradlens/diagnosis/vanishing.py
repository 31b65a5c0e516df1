"""The gradient vanishes toward the input. Judged by ratios: no absolute size is a fault."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.gradient_ratio import LEAST_ROWS, VANISH_DECADES, say_power, say_ratio
from gradlens.analysis.profile import ACTIVATION_GRAD
from gradlens.analysis.stats import median
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.loss import FELL, loss_fell
from gradlens.diagnosis.recorded_rows import (
    UPDATE,
    Recording,
    share_beyond,
    since,
)
from gradlens.run import FloatArray
from gradlens.theory.predict import predicted_profile

HARDLY = 1e-2
"""Early layers that move so much less than the last hidden one hardly learn. DeepDiagnosis (Wardat et al. 2022) calls
an update wrong when it is 100 times away from what is healthy."""
ROUNDING = 2.0**-24
"""A relative change below half the spacing of float32 numbers leaves most weights as they are (IEEE 754)."""
BEYOND_RESCALING = -8.0
"""Adam divides each gradient by its own size, so that early layers may learn though their gradient is small, but not
below its epsilon of 1e-8 (Kingma & Ba 2015, algorithm 1); what moves weights there is decay or momentum."""


def vanishing(rec: Recording, notes: list[str]) -> list[Finding]:
    """The first layer's gradient is far below the last hidden one's for good, and the early layers hardly learn.

    Confidence: the share of resampled medians (block bootstrap over the window) beyond the threshold.
    """
    ratio = rec.ratio
    if ratio is None or len(ratio.decades) < LEAST_ROWS:
        return []
    series, path = rec.series(rec.gradient), ratio.indices
    first = ratio.decades[:, 0]
    found = [(late, said, ratio.typical(late)) for late, said in series.windows]
    late, window, typical = next((item for item in found if item[2] < VANISH_DECADES), found[0])
    if not typical < VANISH_DECADES:
        return []
    begins = since(first < VANISH_DECADES)
    why, learns = _early_layers(rec, path, typical, int(series.rows[begins]))
    names = rec.names(path)
    said = f"{say_ratio(quoted(names[0]), quoted(names[-2]), typical)}, median of {window}"
    if learns:
        notes.append(f"{said}, but {why}: that is no fault")
        return []
    lows = ratio.profile(late)
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


def _early_layers(rec: Recording, path: NDArray[np.int64], typical: float, row: int) -> tuple[str, bool]:
    """Say whether the early layers learn in spite of a gradient that is small from a row on, and what shows it."""
    if not rec.has(UPDATE):
        return "", False
    series = rec.series(UPDATE)
    since_then = series.values[series.rows >= row]
    ratios = median(since_then if len(since_then) else series.values[series.late], axis=0)[path]
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
