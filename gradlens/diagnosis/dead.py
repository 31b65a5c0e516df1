"""Dead units: the output of the activation function after a layer stays at 0."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.diagnosis.findings import Finding, exact_finding, quoted, say_layers
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.network import LARGE_STEP, Network
from gradlens.diagnosis.recorded_rows import (
    ZEROS,
    Recording,
    share_beyond,
    since,
    steps_beyond,
    window_beyond,
)
from gradlens.format import plural
from gradlens.metrics import DEAD_FRACTION

DEAD_SHARE = 0.99
"""smdebug's DeadRelu: a unit that is active less than 1 % of the time is dead; here the share is over all units of a
layer. A healthy ReLU outputs about half zeros."""
NO_DATA = "Look at the data: they are all 0."
MOSTLY_DEAD, HALF_DEAD = 0.9, 0.5
"""Shares of dead units that count as a fault beside a loss that does not fall, and as a note."""


def dead(rec: Recording, learning: Learning) -> list[Finding]:
    """Find layers whose units are all 0 at the end of the rows, or nearly all in a model that does not learn.

    A few units that are on may be meant (a sparse autoencoder), so that a share of zeros below 1 counts only beside a
    loss that does not fall. Without zero_fraction, weights with a gradient of exactly 0 and a bias that gets one show
    it: the layer's input is 0. Confidence: the share of resampled medians beyond the threshold; the largest over the
    layers; 1 for the exact case.

    Args:
        rec: The recording.
        learning: Whether the model learns.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    if not rec.has(ZEROS) or len(rec.series(ZEROS)) < LEAST_ROWS // 2:
        return _no_input(rec) or _few_left(rec, learning)
    series = rec.series(ZEROS)
    late, window, typical = window_beyond(series, DEAD_SHARE)
    least = DEAD_SHARE if learning.verdict == "no" else 1 - 1e-9
    layers = rec.in_order(np.flatnonzero(np.nan_to_num(typical) > least))
    if not layers:
        return _no_input(rec) or _few_left(rec, learning)
    names, worst = rec.names(layers), float(typical[layers].max())
    return [
        Finding(
            "dead",
            names,
            steps_beyond(rec, series, layers[0], DEAD_SHARE),
            f"{worst:.1%} of the activations after {quoted(names[int(np.argmax(typical[layers]))])} are exactly 0 "
            f"(median of {window}); {len(layers)} of {plural(int((~np.isnan(typical)).sum()), 'layer')} "
            f"{'is' if len(layers) == 1 else 'are'} beyond the threshold",
            f"more than {DEAD_SHARE:.0%} zeros, lasting to the end",
            "smdebug, DeadRelu: a unit active less than 1 % of the time is dead; for ReLU, half zeros are healthy",
            _revive(rec, names, bool(np.nan_to_num(series.of(layers[0], slice(2))).min() > DEAD_SHARE)),
            max(share_beyond(series.of(i, late), DEAD_SHARE, below=False) for i in layers),
        )
    ]


def _no_input(rec: Recording) -> list[Finding]:
    """Find a layer whose weights get a gradient of exactly 0 while its bias gets one: its input is exactly 0."""
    zero = {
        name
        for item in rec.setup.states(gradient="zero")
        if "weight" in item.texts("names")
        for name in item.texts("layers")
    }
    zero -= {item.text("weights") for item in rec.setup.graph.entries("flat")}  # rounded weights: see rounded_weights
    order = [layer.name for layer in rec.run.layers]
    for item in rec.setup.states(gradient="arriving"):
        found = [name for name in item.texts("layers") if name in zero and name in order]
        if item.texts("names") != ("bias",) or not found:
            continue
        place = order.index(found[0])
        path = [int(i) for i in rec.run.main_layers() if rec.run.layers[i].depth < rec.run.layers[place].depth]
        before = f"all units after {quoted(order[path[-1]])} are off" if path else "the data that it gets are 0"
        since = max(state.whole("since") for state in rec.setup.states(gradient="zero"))
        return [
            exact_finding(
                "dead",
                (order[path[-1]] if path else found[0],),
                (since, rec.last_step),
                f"the weights of {quoted(found[0])} get a gradient of exactly 0 and its bias does not (seen first at "
                f"step {since}): its input is exactly 0, {before}",
                _revive(rec, (order[path[-1]],), since <= int(rec.run.steps[0])) if path else NO_DATA,
                "the input of a layer is exactly 0",
            )
        ]
    return []


def _few_left(rec: Recording, learning: Learning) -> list[Finding]:
    """Find hidden layers most of whose units never get a gradient, in a model that does not learn.

    Layers whose gradient is exactly 0 altogether are for ``zero_gradient``. The last layers are left out: an output
    without a target has no gradient either. Confidence: by Laplace's rule of succession over the late values.

    Returns:
        The findings.
    """
    if learning.verdict != "no" or not rec.has(DEAD_FRACTION):
        return []
    series = rec.series(DEAD_FRACTION)
    typical = np.nan_to_num(series.median(series.late))
    used = {parent for layer in rec.run.layers for parent in layer.parents}
    hidden = [int(i) for i in (used or rec.run.main_layers()[:-1])]
    layers = rec.in_order(np.array([i for i in hidden if MOSTLY_DEAD <= typical[i] < 1], dtype=np.int64))
    if not layers:
        return []
    worst = max(layers, key=lambda i: typical[i])
    column = series.of(worst)
    beyond = int((np.nan_to_num(column[series.late]) >= MOSTLY_DEAD).sum())
    return [
        Finding(
            "dead",
            rec.names(layers),
            (int(series.steps[since(column >= MOSTLY_DEAD)]), rec.last_step),
            f"{typical[worst]:.0%} of the units of {quoted(rec.run.layers[worst].name)} get a gradient of exactly 0 in "
            f"three recordings in succession, in the later half; {plural(len(layers), 'hidden layer')} in all; "
            f"{learning.evidence}",
            f"at least {MOSTLY_DEAD:.0%} dead units in a hidden layer of a model that does not learn",
            "smdebug, DeadRelu, judges activations; judging each unit over three recordings is this project's choice",
            _revive(rec, rec.names(layers), bool(np.nan_to_num(column[np.isfinite(column)][:1] >= MOSTLY_DEAD).all())),
            (beyond + 1) / (len(column[series.late]) + 2),
        )
    ]


def say_dead_units(rec: Recording) -> list[str]:
    """Return a note on hidden layers half of whose units never get a gradient, or nothing.

    Args:
        rec: The recording.
    """
    if not rec.has(DEAD_FRACTION):
        return []
    series = rec.series(DEAD_FRACTION)
    typical = np.nan_to_num(series.median(series.late))
    used = {parent for layer in rec.run.layers for parent in layer.parents}
    layers = [i for i in sorted(used) if HALF_DEAD <= typical[i] < 1]
    if not layers:
        return []
    most = max(layers, key=lambda i: typical[i])
    return [
        f"in {plural(len(layers), 'hidden layer')}, at least half of the units get no gradient in three recordings in "
        f"succession ({quoted(rec.run.layers[most].name)}: {typical[most]:.0%}): dead units, inputs that are 0, or "
        "outputs that nothing uses"
    ]


def _revive(rec: Recording, names: tuple[str, ...], from_the_start: bool) -> str:
    """Return the remedy for dead units: they were made so, or a step was too large."""
    network = Network(rec)
    if network.first_update() > LARGE_STEP:
        return f"{network.slow_down()} The first update was {network.first_update():.0%} of the weights' norm."
    other = "use LeakyReLU or GELU, whose slope is not 0"
    if from_the_start:
        return (
            f"These units are off from the first rows on: initialise the biases of {say_layers(names)} with 0 and the "
            f"weights at random (He initialisation), or {other}."
        )
    return f"Lower {network.say_rate()} by a factor of 10, check the biases of {say_layers(names)}, or {other}."
