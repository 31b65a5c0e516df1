"""The loss of a model that answers every example with the same number: what has to be beaten first."""

from __future__ import annotations

import math

import numpy as np

from gradlens.diagnosis.recorded_rows import Recording
from gradlens.run import FloatArray

BINARY = ("BinaryCrossEntropy", "BinaryCrossEntropyWithLogits")
VARIES = 0.1
"""Shares of ones that differ by so much from batch to batch tell no common share; no outside source."""
STOOD = 0.05
"""A loss that fell by at most this share since the second fifth of the rows has stood since then."""
ENOUGH = 1000
"""Targets from which their variance is known to within 5 % (its relative standard error is sqrt(2 / n) for a normal
distribution)."""
WITHIN = 1.1
"""A loss of at most so many times that of a constant is at its level; no outside source."""


def entropy_of_targets(rec: Recording) -> float:
    """Return the binary cross entropy of the share of ones as the only answer; NaN where the loss is not that alone.

    Args:
        rec: The recording.
    """
    graph = rec.setup.graph
    losses = graph.entries("losses")
    targets = [item for item in graph.entries("targets") if item.text("op") in BINARY]
    if len(losses) != 1 or losses[0].text("op") not in BINARY or losses[0].text("reduction") != "mean" or not targets:
        return math.nan
    if losses[0].flag("scaled") or not losses[0].flag("alone") or graph.entries("class_weights"):
        return math.nan
    shares = [item.number("mean") for item in targets]
    share = float(np.mean(shares))
    if max(shares) - min(shares) > VARIES or not 0 < share < 1:
        return math.nan
    return -share * math.log(share) - (1 - share) * math.log(1 - share)


def many_targets(rec: Recording) -> bool:
    """Return whether enough targets were read to tell the loss of a constant.

    Args:
        rec: The recording.
    """
    targets = rec.setup.graph.entries("targets")
    return sum(item.whole("count") * item.whole("passes") for item in targets) >= ENOUGH


def stays_at(values: FloatArray, level: float, least: float) -> bool:
    """Return whether a loss has stood at a level since the second fifth of the rows.

    Args:
        values: (N,) the finite losses.
        level: The level.
        least: Share of the level that counts as below it.
    """
    part = len(values) // 5
    early, late = float(values[part : 2 * part].mean()), float(values[-part:].mean())
    return least * level < late < WITHIN * level and abs(late - early) < STOOD * early
