"""Clipping that leaves next to nothing of the gradient, or comes too late to have an effect."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.diagnosis.findings import Finding, exact_finding
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.loss import HALVED, loss_fell
from gradlens.diagnosis.network import Network, usual_update
from gradlens.diagnosis.recorded_rows import PARAM_GRAD, Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.format import plural

LITTLE = 0.1
"""Clipping that always leaves less than a tenth of the gradient is a lower learning rate, not a protection. Pascanu et
al. 2013, On the difficulty of training recurrent neural networks, sec. 3.2: the threshold is 0.5 to 10 times the
average norm."""

ONE_SIZE = 0.8
"""Gradients whose root mean square per entry differs so little between layers and rows do so only where all entries are
cut off at one value; no outside source."""
TINY = 1e-3
"""Where a usual step changes a layer by more than a thousandth, strong clipping is balanced by a high learning rate, as
in normalised gradient descent. Ten times the lowest healthy value of Ben Braiek & Khomh 2023, TheDeepChecker."""


def clipping(rec: Recording, learning: Learning) -> list[Finding]:
    """Find clipping that is far too strong, comes after the step, or acts on gradients that are still scaled.

    Optimizers that divide gradients by their size are not changed by strong clipping, and a loss that halves
    shows that enough is left: in both cases it is no fault. Confidence: 1, because the calls were observed.

    Args:
        rec: The recording.
        learning: Whether the model learns.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    found = []
    for item in rec.setup.entries("clipping"):
        if item.text("when") == "scaled":
            found.append(_scaled(rec, item))
        elif item.text("when") == "after_step" and learning.verdict != "yes":
            found.append(_late(rec, item))
        elif _too_strong(rec, item):
            found.append(_strong(rec, item))
    return found or _by_value(rec)


def _by_value(rec: Recording) -> list[Finding]:
    """Find gradients whose entries all have one size, in all layers and rows: they are cut off at a tiny value."""
    fell, main = loss_fell(rec), rec.run.main_layers()
    if not rec.has(PARAM_GRAD) or Network(rec).rescales or fell >= HALVED or not usual_update(rec) < TINY:
        return []
    counts = np.array([max(rec.run.layers[i].param_numel, 1) for i in main])
    series = rec.series(PARAM_GRAD)
    if not len(main) or len(series) < LEAST_ROWS:
        return []
    ends = series.by_layers(lambda values: np.stack([values.min(axis=0), values.max(axis=0)]))[:, main]  # NaN of a gap
    least, largest = float((ends[0] / np.sqrt(counts)).min()), float((ends[1] / np.sqrt(counts)).max())
    if not largest > 0 or not least >= ONE_SIZE * largest:
        return []
    return [
        exact_finding(
            "clipping",
            rec.names(main),
            (int(rec.run.steps[0]), rec.last_step),
            f"the entries of the gradient have one size, about {largest:.2g}, at {plural(len(main), 'layer')} in all "
            f"{plural(len(series), 'row')}: they are clipped by value (clip_grad_value_), and "
            f"{Network(rec).say_rate()} leaves steps of {usual_update(rec):.1g} of a layer's norm",
            "Raise the value of clip_grad_value_ far above the usual entry, or clip the norm (clip_grad_norm_) at its "
            "usual size.",
            "clipping by value leaves next to nothing of every gradient",
        )
    ]


def _too_strong(rec: Recording, item: Entry) -> bool:
    coefficients = item.numbers("coefficient")
    fell = loss_fell(rec)
    slow = math.isnan(fell) or fell < HALVED
    tiny = not usual_update(rec) >= TINY
    return bool(coefficients) and max(coefficients) < LITTLE and slow and tiny and not Network(rec).rescales


def _made(rec: Recording, item: Entry, evidence: str, remedy: str, cause: str) -> Finding:
    return exact_finding("clipping", (), (item.whole("first_step"), rec.last_step), evidence, remedy, cause)


def _strong(rec: Recording, item: Entry) -> Finding:
    low, usual, high = (*item.numbers("coefficient"), math.nan, math.nan)[:3]
    norm = (*item.numbers("total_norm"), math.nan, math.nan)[1]
    limit = item.number("max_norm")
    return _made(
        rec,
        item,
        f"clipping to a norm of {limit:g} multiplies the gradient by {usual:.2g} ({low:.2g} to {high:.2g}): its usual "
        f"norm is {norm:.2g}, so every step is clipped, and {Network(rec).say_rate()} acts as {usual:.2g} times as "
        "large",
        f"Raise max_norm from {limit:g} to about {max(norm, limit):.1g}, the usual norm, so that only outliers are "
        "clipped.",
        "clipping leaves next to nothing of every gradient",
    )


def _late(rec: Recording, item: Entry) -> Finding:
    return _made(
        rec,
        item,
        f"clip_grad_norm_ (max_norm {item.number('max_norm'):g}) is called after the optimizer's step: it has no "
        "effect",
        "Call clip_grad_norm_ between loss.backward() and optimizer.step().",
        "clipping after the step",
    )


def _scaled(rec: Recording, item: Entry) -> Finding:
    return _made(
        rec,
        item,
        f"clip_grad_norm_ (max_norm {item.number('max_norm'):g}) is called on gradients that are still multiplied by "
        "the loss scale, so max_norm acts as if it were divided by that scale",
        "Call scaler.unscale_(optimizer) before clip_grad_norm_.",
        "clipping before unscaling",
    )
