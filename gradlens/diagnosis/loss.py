"""The loss as evidence for or against a finding: whether it falls, halves or rises."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.gradient_ratio import FIRST_ROWS, LEAST_ROWS
from gradlens.analysis.overfitting import LASTING, accuracy_gap
from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.recorded_rows import Recording

FELL = 0.1
"""A loss that falls by less than this share after the first fifth of the rows is stuck. Measured on small models of 3
to 30 layers: it falls by 13 % to 81 % where training works; by at most 1.3 % where the gradient vanishes, training is
slow, or it has converged before. In one tanh network whose gradient vanishes it fell by 24 % under Adam."""
HALVED = 0.5
"""Where the loss halves after the first fifth of the rows, small steps are enough. Measured on experiments/scorecard,
seeds 0 to 2: it falls by 6 % to 20 % with a learning rate 1,000 times too small, by 68 % to 75 % with a suitable
one."""

POOR = 0.6
"""A validation loss below this share of that of guessing tells of a model that works, overfitted or not."""
FAR_ABOVE = 10
"""A validation loss so many times that in training is not noise; no outside source."""


def loss_fell(rec: Recording) -> float:
    """Return the share by which the loss fell from the second to the last fifth of the rows; NaN where unknown."""
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    part = len(loss) // 5
    if part < 2:
        return math.nan
    before, after = median_of_all(loss[part : 2 * part]), median_of_all(loss[-part:])
    return (before - after) / abs(before) if before != 0 else math.nan


def loss_is_nothing(rec: Recording) -> bool:
    """Return whether the loss is known in at least ``LEAST_ROWS`` rows, and exactly 0 in each of them.

    Args:
        rec: The recording.
    """
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    return len(loss) >= LEAST_ROWS and not loss.any()


def loss_halved(rec: Recording) -> bool:
    """Return whether the loss in the last fifth of the rows is at most half of that in the very first rows.

    A model may finish learning before the second fifth, where ``loss_fell`` begins.

    Args:
        rec: The recording.
    """
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    part = len(loss) // 5
    if part < 2:
        return False
    first = median_of_all(loss[: max(min(part // 4, FIRST_ROWS), 2)])
    last = median_of_all(loss[-part:])
    return bool(last <= HALVED * first and last != first)  # a loss that is 0 from the first row on was not learnt


def overfits(rec: Recording, guess: float) -> str:
    """Return a sentence on a validation loss that is far above the training's, or "".

    Args:
        rec: The recording.
        guess: The loss of guessing, of which it must be a large part; NaN where unknown.
    """
    table = rec.run.epochs
    seen = next((table[name] for name in ("train_loss", "loss") if name in table), rec.scalar("loss"))
    unseen = next((table[name] for name in ("val_loss", "valid_loss", "test_loss") if name in table), np.empty(0))
    unseen, seen = unseen[np.isfinite(unseen)], seen[np.isfinite(seen)]
    if len(unseen) <= LASTING or not len(seen):
        return ""
    if {"train_accuracy", "val_accuracy"} <= table.keys() and math.isnan(accuracy_gap(rec.run)):
        accuracies = np.concatenate([table["train_accuracy"], table["val_accuracy"]])
        if not np.isnan(accuracies).all():
            return ""  # few images of which some are badly wrong
    here, there = median_of_all(seen[-max(len(seen) // 5, 1) :]), float(unseen[-1])
    if not (0 <= here < there / FAR_ABOVE) or there < POOR * guess or there < float(unseen[-max(len(unseen) // 3, 2)]):
        return ""
    return f"the validation loss ends at {there:.3g}, while that in training is {here:.2g}"


def falls_after(rec: Recording, row: int) -> float:
    """Return the share by which the loss fell from the first rows after a given one to the last fifth; NaN if unknown.

    Args:
        rec: The recording.
        row: Index of the row.
    """
    loss = rec.scalar("loss")
    later = loss[row:][np.isfinite(loss[row:])]
    if len(later) < 2 * LEAST_ROWS:
        return math.nan
    before, after = median_of_all(later[:LEAST_ROWS]), median_of_all(later[-max(len(later) // 5, 2) :])
    return (before - after) / abs(before) if before else math.nan


def loss_rises(rec: Recording, row: int) -> bool:
    """Return whether the median loss from a row on exceeds that of the first rows; True where it was not recorded.

    Args:
        rec: The recording.
        row: Index of the row.
    """
    loss = rec.scalar("loss")
    first, later = loss[:LEAST_ROWS], loss[row:]
    first, later = first[np.isfinite(first)], later[~np.isnan(later)]
    return not len(first) or not len(later) or median_of_all(later) > median_of_all(first)
