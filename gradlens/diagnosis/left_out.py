"""Notes on what takes no part in the training: outputs, classes and single examples that the loss does not use."""

from __future__ import annotations

import numpy as np

from gradlens.diagnosis.findings import quoted
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.metrics import DEAD_FRACTION

SWITCHED_OFF = {"Relu", "Clamp", "ClampMin", "Threshold", "Hardtanh"}
"""Operations at the end of a model that can take the gradient of single outputs by themselves."""
BOUNDED = {"Sigmoid", "Tanh"}
"""Operations that do so far from 0 only."""


def notes_on_what_is_left_out(rec: Recording) -> list[str]:
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
