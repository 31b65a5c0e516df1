"""Gradients that vanish toward the input; judged by ratios, because no absolute size is a fault."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.gradient_ratio import LEAST_ROWS, VANISH_DECADES, say_power, say_ratio
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.invariant import invariant_decades
from gradlens.diagnosis.loss import FELL, loss_fell
from gradlens.diagnosis.network import LARGE_STEP, Network
from gradlens.diagnosis.recorded_rows import (
    UPDATE,
    Recording,
    share_beyond,
    since,
)
from gradlens.diagnosis.zero_gradient import is_underflow, zero_layers
from gradlens.format import plural
from gradlens.metrics import ACTIVATION_GRAD_NORM
from gradlens.run import FloatArray
from gradlens.theory.predict import predicted_profile, say_deviation

FIT = "use ReLU with He initialisation where an activation function is bounded"
HARDLY = 1e-2
"""First layers whose relative updates are 1/100 of the last hidden layer's hardly learn. DeepDiagnosis (Wardat et al.
2022) calls an update wrong when it is a factor of 100 away from a healthy one."""
ROUNDING = 2.0**-24
"""A relative change below half the spacing of float32 numbers leaves most weights unchanged (IEEE 754)."""
BEYOND_RESCALING = -8.0
"""Adam divides each gradient by its own size. So first layers may learn from a small gradient, but not below Adam's
epsilon of 1e-8 (Kingma & Ba 2015, algorithm 1): there, weight decay or momentum changes the weights."""


def vanishing(rec: Recording, notes: list[str]) -> list[Finding]:
    """Find a gradient that vanishes toward the input for the rest of the run while the first layers hardly learn.

    Confidence: the share of resampled medians (block bootstrap over the window) beyond the threshold.

    Args:
        rec: The recording.
        notes: A note is appended where the gradient vanishes but the first layers learn.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    ratio = rec.ratio
    if ratio is None or len(ratio.rows) < LEAST_ROWS:
        return []
    series, path = rec.series(rec.gradient), ratio.indices
    first = ratio.first_decades
    found = [(late, name, ratio.typical(late)) for late, name in series.windows]
    late, window, typical = next((item for item in found if item[2] < VANISH_DECADES), found[0])
    if not typical < VANISH_DECADES or float(invariant_decades(rec, path)[0]) >= VANISH_DECADES:
        return []
    if typical == -math.inf and not is_underflow(rec, zero_layers(rec)):
        return []  # an exact zero is no small number: see zero_gradient
    begins = since(first < VANISH_DECADES)
    why, learns = _early_layers(rec, path, typical, int(series.rows[begins]))
    names = rec.names(path)
    comparison = f"{say_ratio(quoted(names[0]), quoted(names[-2]), typical)} (median of {window})"
    if learns:
        notes.append(f"{comparison}, but {why}: this is not a fault")
        return []
    lows = ratio.profile(late)
    below = [name for name, low in zip(names[:-1], lows[:-1], strict=True) if low < VANISH_DECADES]
    start = int(series.steps[begins])
    confidence = share_beyond(first[late], VANISH_DECADES, below=True)
    parts = [comparison, _say_zeros(lows, names), _say_theory(rec, path, typical), why]
    return [
        Finding(
            "vanishing",
            tuple(below),
            (start, rec.last_step),
            "; ".join(part for part in parts if part),
            "less than 1/1,000 (10^-3) of the last hidden layer's gradient, lasting to the end, and first layers that "
            "hardly learn",
            "Zhang et al. 2021, AutoTrainer, ICSE: |g_first| / |g_last| < 1e-3; a ratio, as all gradients are tiny "
            "near convergence",
            _late(rec) if _arrived(first, begins) and Network(rec).first_update() > LARGE_STEP else _remedy(rec),
            confidence,
        )
    ]


def _early_layers(rec: Recording, path: NDArray[np.int64], typical: float, row: int) -> tuple[str, bool]:
    """Return the evidence on whether the first layers learn from a given row on, and whether they do."""
    if not rec.has(UPDATE):
        return "", False
    series = rec.series(UPDATE)
    begins = int(np.searchsorted(series.rows, row))
    ratios = series.median(slice(begins, None) if begins < len(series) else series.late)[path]
    first, last = float(ratios[0]), float(ratios[-2])
    if math.isnan(first) or math.isnan(last):
        return "", False
    early, late = (quoted(name) for name in rec.names(path[[0, -2]]))
    amount = f"{first:.1e}" if first else "exactly 0"
    updates = f"one step changes {early} by {amount} of its norm, {late} by {last:.1e}"
    if first < ROUNDING or first < HARDLY * last:
        return updates, False
    if typical < BEYOND_RESCALING:
        cause = "weight decay or momentum changes its weights"
        return f"{updates}; the gradient of {early} is too small to guide it: {cause}", False
    fell = loss_fell(rec)
    if math.isnan(fell) or fell >= FELL:
        return updates + ("" if math.isnan(fell) else f", and the loss falls by {fell:.0%}"), True
    return f"{updates}; the loss is stuck (it falls by {max(fell, 0):.1%} after the first fifth of the rows)", False


def _remedy(rec: Recording) -> str:
    network = Network(rec)
    bounded, read = network.say_bounded(), bool(rec.setup.graph.text("source"))
    unbounded = "initialise larger weights (He: a standard deviation of sqrt(2 / inputs))" if read else FIT
    parts = [
        "" if network.norms else "normalise the layers' outputs (batch norm or layer norm)",
        f"use ReLU with He initialisation instead of {bounded}" if bounded else unbounded,
        "" if network.has_shortcuts else "add shortcuts",
        f"use fewer than {len(rec.path)} layers",
    ]
    first, *more = [part for part in parts if part]
    return f"{', '.join([first[0].upper() + first[1:], *more[:-1]])}, or {more[-1]}."


def _arrived(first: FloatArray, begins: int) -> bool:
    """Return whether the gradient arrived in the first row, before any update: then the initialisation is no cause."""
    return begins > 0 and bool(first[0] >= VANISH_DECADES)


def _late(rec: Recording) -> str:
    """Return the remedy for a gradient that arrived at first: what came between were updates that are too large."""
    return (
        f"In the first rows the gradient arrived, and the first update changed a layer by "
        f"{Network(rec).first_update():.0%} of its norm. {Network(rec).slow_down()}"
    )


def _say_zeros(lows: FloatArray, names: tuple[str, ...]) -> str:
    zero = np.flatnonzero(np.isneginf(lows))
    if not len(zero):
        return ""
    return (
        f"the gradient is exactly 0 at {plural(len(zero), 'layer')} up to {quoted(names[int(zero[-1])])}, by underflow"
    )


def _say_theory(rec: Recording, path: NDArray[np.int64], typical: float) -> str:
    """Return a sentence on the ratio that theory expects at initialisation; "" where it has no prediction."""
    prediction = predicted_profile(rec.run) if rec.gradient == ACTIVATION_GRAD_NORM else None
    if prediction is None or not len(prediction.decades) or prediction.layers[0] != path[0]:
        return ""
    expected, spread = float(prediction.decades[0]), float(prediction.spread[0])
    if not math.isfinite(expected):
        return ""
    distance = ""
    if spread > 0 and math.isfinite(typical):
        distance = f"; the measured ratio is {say_deviation((typical - expected) / spread, digits=0)}"
    return f"theory expects {say_power(expected)} at initialisation ({prediction.source}){distance}"
