"""Weights that grow by the same factor in each step, in all layers: what is added to them is a share of themselves."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.findings import say_layers
from gradlens.diagnosis.network import Network
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.metrics import PARAM_NORM

LEAST_POINTS = 4
LEAST_GROWTH = 10.0
"""Weights grow tenfold in the later half of the rows, in every layer; no outside source."""
ALIKE = 0.2
"""Rates that differ by less than a fifth are one; no outside source."""


def weight_growth(rec: Recording) -> tuple[str, str]:
    """Return a sentence on weights that grow exponentially at one rate, and what to look at; or twice "".

    A learning rate that is too large makes layers grow at rates of their own, and by leaps.

    Args:
        rec: The recording.
    """
    if not rec.has(PARAM_NORM):
        return "", ""
    series = rec.series(PARAM_NORM)
    known = np.flatnonzero(series.by_rows(lambda values: (np.isfinite(values) & (values > 0)).all(axis=1)))
    rows = known[len(known) // 2 :]
    if len(rows) < LEAST_POINTS or not len(rec.run.layers):
        return "", ""
    first, last = np.log(series.at(rows[[0, -1]]))
    if not (last - first > np.log(LEAST_GROWTH)).all():
        return "", ""
    apart = np.diff(series.steps[rows])[:, None]
    rates = series.by_layers(lambda values: np.diff(np.log(values[rows]), axis=0) / apart)
    rate = median_of_all(rates)
    if not (np.abs(rates - rate) < ALIKE * rate).all():
        return "", ""
    names = rec.names(rec.run.main_layers())
    whose = Network(rec).optimizer
    return (
        f"the weights of {say_layers(names)} grow by {np.expm1(rate):.1%} per step, all by the same factor, whatever "
        "their gradients are: what is added to them is a share of themselves",
        f"Look at what is added to the weights beside the gradient ({whose}): weight decay must "
        "be added to the gradient (or the loss) with a plus, so that it makes weights smaller; in an optimizer of your "
        "own, look also at momentum and at the correction of its averages.",
    )
