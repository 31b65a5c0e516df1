"""Saturated units: the inputs of a bounded activation function lie where it is flat."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.analysis.stats import median, median_of_all
from gradlens.diagnosis.findings import Finding, quoted, say_layers
from gradlens.diagnosis.learning import guessing_of, judge_learning
from gradlens.diagnosis.loss import loss_halved
from gradlens.diagnosis.network import Network
from gradlens.diagnosis.recorded_rows import (
    RMS,
    ZEROS,
    Recording,
    share_beyond,
    steps_beyond,
    window_beyond,
)
from gradlens.format import plural
from gradlens.metrics import ACTIVATION_GRAD_NORM

SATURATED_RMS = 5.0
"""DeepDiagnosis (Wardat et al. 2022): tanh and sigmoid are saturated beyond +-5, where the sigmoid's slope is 0.0066,
1/38 of its maximum."""
HALF = 0.5
"""Share of the loss of guessing below which a classifier has learnt."""
BOUNDED = ("tanh", "sigmoid")
NO_RELU = 0.01
"""With a smaller share of zeros in its output, an activation function is not a ReLU, which outputs about half zeros."""
SHRINKS_DECADES = -1.0
"""Across a saturated function the gradient falls by at least a factor of 10: the slope at 5 is 0.0066 (sigmoid) or
0.00018 (tanh)."""


def saturated(rec: Recording) -> list[Finding]:
    """Find layers whose outputs saturate the bounded activation function that follows.

    The run's configuration may name the function (``activation``: tanh or sigmoid). Otherwise it counts as bounded
    where it outputs no zeros, no norm follows, and the gradient falls by a factor of 10 across it. The output layer is
    left out, because logits may be large. Confidence: the share of resampled medians beyond the threshold; the largest
    over the layers.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    if fed := _fed(rec):
        return fed
    if not rec.has(RMS) or len(rec.series(RMS)) < LEAST_ROWS // 2:
        return []
    series = rec.series(RMS)
    late, window, typical = window_beyond(series, SATURATED_RMS)
    beyond = np.nan_to_num(typical) > SATURATED_RMS
    layers = [i for i in rec.run.main_layers()[:-1] if beyond[i] and _bounded(rec, int(i))]
    if not layers:
        return []
    names, worst = rec.names(layers), layers[int(np.argmax(typical[layers]))]
    return [
        Finding(
            "saturated",
            names,
            steps_beyond(rec, series, layers[0], SATURATED_RMS),
            f"the output of {quoted(rec.run.layers[worst].name)} has a root mean square of {typical[worst]:.1f} before "
            f"its bounded activation function (median of {window}); {plural(len(layers), 'layer')} "
            f"{'is' if len(layers) == 1 else 'are'} beyond {SATURATED_RMS:.0f}",
            f"a root mean square above {SATURATED_RMS:.0f}, lasting to the end",
            "Wardat et al. 2022, DeepDiagnosis: beyond +-5, where the sigmoid's slope is 0.0066 instead of 0.25 at 0",
            _calm(rec, names),
            max(share_beyond(series.of(i, late), SATURATED_RMS, below=False) for i in layers),
        )
    ]


def _fed(rec: Recording) -> list[Finding]:
    """Find a layer whose data are so large that a tanh or sigmoid directly behind it is flat from the first step on."""
    ops = {item.text("layer"): item.text("op").lower() for item in rec.setup.graph.entries("bounded")}
    item = next((item for item in rec.setup.entries("inputs") if item.text("layer") in ops), None)
    if item is None or not item.number("output_rms") > SATURATED_RMS or loss_halved(rec) or _is_good(rec):
        return []
    layer = item.text("layer")
    return [
        Finding(
            "saturated",
            (layer,),
            (item.whole("since"), rec.last_step),
            f"the output of {quoted(layer)} has a root mean square of {item.number('output_rms'):.3g} before a "
            f"{ops[layer]} in the first step, and the loss does not halve",
            f"a root mean square above {SATURATED_RMS:.0f} at a layer that is fed with data",
            "Wardat et al. 2022, DeepDiagnosis: beyond +-5, where the sigmoid's slope is 0.0066 instead of 0.25 at 0",
            _calm(rec, (layer,)),
            0.95,
        )
    ]


def _calm(rec: Recording, names: tuple[str, ...]) -> str:
    """Return the remedy for inputs of an activation function that are too large."""
    network = Network(rec)
    function = network.bounded.get(names[0], "activation function")
    scaled = any("float" in item.text("dtype") for item in rec.setup.entries("inputs")) and not network.inputs()[0]
    data = "" if scaled else " Scale the inputs to a standard deviation of 1."
    return (
        f"Use smaller weights (Glorot initialisation) at {say_layers(names)}, or put a norm between "
        f"{'it' if len(names) == 1 else 'them'} and the {function}.{data}"
    )


def _is_good(rec: Recording) -> bool:
    """Return whether a model learns whose loss is no cross entropy, or one far below guessing."""
    loss, guess = rec.scalar("loss"), guessing_of(rec)
    late = loss[np.isfinite(loss)][-max(len(loss) // 5, 1) :]
    far = not len(late) or not median_of_all(late) > HALF * guess
    return judge_learning(rec).verdict == "yes" and far


def _bounded(rec: Recording, layer: int) -> bool:
    """Return whether a layer's activation function is bounded, as far as the run shows it."""
    named = str(rec.run.config.get("activation", "")).lower()
    if named:
        return named in BOUNDED
    if rec.is_behind_norm(layer):
        return False  # the norm divides the output by its size, and the gradient with it
    if not (rec.has(ZEROS) and rec.has(ACTIVATION_GRAD_NORM)):
        return False
    zeros = rec.series(ZEROS).typical[layer]
    path = rec.path
    place = np.flatnonzero(path == layer)
    if not zeros < NO_RELU or not len(place) or place[0] + 1 >= len(path):
        return False
    grads = rec.series(ACTIVATION_GRAD_NORM)
    ends = median(grads.of([layer, int(path[int(place[0]) + 1])], grads.late), axis=0)
    return bool(ends[0] < ends[1] * 10**SHRINKS_DECADES)
