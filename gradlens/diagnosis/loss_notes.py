"""Notes on the loss: its odd values, and outputs, classes and single examples that it does not use."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.learning import guessing_of
from gradlens.diagnosis.loss import FAR_ABOVE
from gradlens.diagnosis.network import Network
from gradlens.diagnosis.recorded_rows import UNSEEN_DATA, Recording, words_of
from gradlens.diagnosis.unseen_data import note_on_unseen_data
from gradlens.format import plural
from gradlens.metrics import DEAD_FRACTION
from gradlens.run import FloatArray

SWITCHED_OFF = {"Relu", "Clamp", "ClampMin", "Threshold", "Hardtanh"}
"""Operations at the end of a model that can take the gradient of single outputs by themselves."""
BOUNDED = {"Sigmoid", "Tanh"}
"""Operations that do so far from 0 only."""


SPIKE = 100
"""A row whose loss is so many times the median is another batch than the rest; no outside source."""
NO_CHANGE, HIGH = 0.05, 0.9
"""An accuracy stays the same where its values lie within five points, and has room to rise below 0.9."""


def notes_on_loss(rec: Recording, findings: Sequence[Finding]) -> list[str]:
    """Return notes on rows whose loss is NaN beside finite gradients or far above others, on its start and on accuracy.

    Args:
        rec: The recording.
        findings: What was found.
    """
    loss = np.asarray(rec.scalar("loss"), dtype=np.float64)
    bad = np.flatnonzero(np.isnan(loss) & ~rec.skipped) if len(loss) else np.empty(0, dtype=np.int64)
    known = loss[np.isfinite(loss)]
    notes = []
    at_interval = bool(np.all(np.diff(np.flatnonzero(np.isfinite(loss))) > 1))  # frameworks log every few steps
    often = len(bad) and len(known) >= len(loss) / 2 and not at_interval and bad[0] < len(loss) - 1
    if often and not any(finding.kind == "nonfinite" for finding in findings):
        first = int(rec.run.steps[bad[0]])
        notes.append(
            f"the loss is NaN or was not logged in {plural(len(bad), 'row')}, first at step {first}, although the "
            "gradients are finite: an average over no element (all targets ignored, an empty mask) does that"
        )
    parts = [known[: len(known) // 5], known] if len(known) >= 5 * LEAST_ROWS else []
    usual = max((median_of_all(part) for part in parts), default=math.nan)  # late losses may be tiny and scatter
    notes += [*_note_on_accuracy(rec), *note_on_unseen_data(rec, findings)]
    notes += _note_on_the_start(rec, loss, findings)
    high = np.flatnonzero(np.nan_to_num(loss, posinf=0) > SPIKE * usual) if usual > 0 else bad[:0]
    if len(high):
        high = high[high > np.flatnonzero(loss <= usual)[0]]  # a loss that falls begins far above where it ends
    if 0 < len(high) < len(loss) / 10:
        notes.append(
            f"in {plural(len(high), 'row')}, first at step {int(rec.run.steps[high[0]])}, the loss is more than "
            f"{SPIKE} times its median ({float(loss[high].max()):.3g} against {usual:.3g}): look at these batches"
        )
    return notes


def _note_on_the_start(rec: Recording, loss: FloatArray, findings: Sequence[Finding]) -> list[str]:
    """Return a note on a classifier that begins far above guessing: because of its initial weights, or unexplained."""
    said, guess = Network(rec).first_weights()[0], guessing_of(rec)
    if not len(loss) or not loss[0] > FAR_ABOVE * guess:
        return []
    if not said and not findings and median_of_all(loss[-LEAST_ROWS:]) > guess:
        return [
            f"the loss begins at {loss[0]:.3g}, {loss[0] / guess:.0f} times that of guessing, and is still above it: "
            "print the size of each layer's output for one batch, and find where it grows (inputs that are not "
            "normalised, a sum over many elements in place of a mean, weights that are too large)"
        ]
    if not said:
        return []
    return [f"the loss begins at {loss[0]:.3g}, and guessing has {guess:.3g}: {said}"]


def _note_on_accuracy(rec: Recording) -> list[str]:
    """Return a note on an accuracy that stays the same while the loss falls to half: it is computed wrongly."""
    table = rec.run.epochs
    scores = {
        name: np.asarray(values)[np.isfinite(values)]
        for name, values in table.items()
        if words_of(name) & {"acc", "accuracy"} and not words_of(name) & UNSEEN_DATA
    }
    losses = [
        values[np.isfinite(values)]
        for values in (table.get("train_loss", np.empty(0)), rec.scalar("loss"))
        if np.isfinite(values).sum() >= LEAST_ROWS
    ]
    if not losses or not median_of_all(losses[0][-2:]) < median_of_all(losses[0][:2]) / 2 or losses[0].min() < 0:
        return []
    return [
        f"{name} stays at {median_of_all(values):.3g} while the loss falls to less than half: look at how the "
        "accuracy is computed (shapes that are broadcast, such as (N, 1) with (N,), a wrong dimension of argmax, a "
        "threshold of 0.5 on logits)"
        for name, values in scores.items()
        if len(values) >= LEAST_ROWS and float(np.ptp(values)) < NO_CHANGE and float(values.max()) < HIGH
    ]


def notes_on_left_out(rec: Recording) -> list[str]:
    """Return notes on outputs without a gradient, and on a class that a loss leaves out.

    Args:
        rec: The recording.
    """
    return [*_unused_outputs(rec), *_ignored_class(rec), *_averaged_batch(rec)]


def _unused_outputs(rec: Recording) -> list[str]:
    """Return a note on an output layer of which some units never get a gradient: the loss does not depend on them."""
    if not rec.has(DEAD_FRACTION):
        return []
    series, layers = rec.series(DEAD_FRACTION), rec.run.layers
    used = {parent for layer in layers for parent in layer.parents}
    late = series.values[series.late]
    for item in rec.setup.graph.entries("outputs"):
        name, shape = item.text("behind") or item.text("layer"), item.numbers("shape")
        i = next((k for k, layer in enumerate(layers) if layer.name == name and k not in used), -1)
        if i < 0 or not len(late) or len(shape) < 2 or item.text("op") in SWITCHED_OFF or np.isnan(late[:, i]).any():
            continue
        share, units = float(late[:, i].min()), int(shape[1])
        if not 0 < share < 1 or float(late[:, i].max()) > share:
            continue
        bounded = item.text("op").lower() if item.text("op") in BOUNDED else ""
        saturated = f". A {bounded} that is saturated does that, too" if bounded else ""
        return [
            f"{share * units:.0f} of the {units} outputs of {quoted(name)} get a gradient of exactly 0 in every "
            f"recording of the last rows: the loss does not depend on them, so nothing trains them. Look at the "
            f"indices with which the loss reads the output{saturated}"
        ]
    return []


def _averaged_batch(rec: Recording) -> list[str]:
    """Return a note on a loss that compares nothing but the average of the model's output over the batch."""
    losses = rec.setup.graph.entries("losses")
    if len(losses) != 1 or not losses[0].flag("alone"):
        return []
    return [
        f"the loss compares the mean of the model's output over its first dimension ({item.numbers('shape')[0]:.0f} "
        "examples), and no single one: it is 0 as soon as the averages agree. Compare each example with its own "
        "target, and average the losses, unless these are the parts of one example"
        for item in rec.setup.graph.entries("averaged_batch")[:1]
    ]


def _ignored_class(rec: Recording) -> list[str]:
    """Return a note on a class of the output that ``ignore_index`` leaves out, where it is no padding of sequences."""
    classes = max((item.whole("classes") for item in rec.setup.graph.entries("losses")), default=0)
    if any(item.number("padded") > 0 for item in rec.setup.entries("inputs")):
        return []
    return [
        f"the loss leaves out {item.number('left_out'):.0%} of its targets, those of class {item.whole('ignored')} "
        f"(ignore_index={item.whole('ignored')}), which is one of the {classes} classes of the output: the model never "
        "learns it. This is right for padding and for what was not labelled only; else leave out ignore_index"
        for item in rec.setup.graph.entries("targets")
        if item.number("left_out") > 0 and 0 <= item.whole("ignored", -1) < classes
    ][:1]
