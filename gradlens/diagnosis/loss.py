"""What the loss says beside a finding: whether it falls, is halved, or rises."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.gradient_ratio import FIRST_ROWS, LEAST_ROWS
from gradlens.diagnosis.recorded_rows import (
    Recording,
)

FELL = 0.1
"""A loss that falls by less after the first fifth of the rows is stuck. Measured on small nets of 3 to 30 layers: by
13 % to 81 % where training goes on; by at most 1.3 % where the gradient vanishes, training is slow, or has converged
before. One net of tanh whose gradient vanishes fell by 24 % under Adam."""


def loss_fell(rec: Recording) -> float:
    """Return by which share the loss fell from the second fifth of the rows to the last; NaN where it is not known."""
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    part = len(loss) // 5
    if part < 2:
        return math.nan
    before, after = float(np.median(loss[part : 2 * part])), float(np.median(loss[-part:]))
    return (before - after) / abs(before) if before != 0 else math.nan


def loss_halved(rec: Recording) -> bool:
    """Say whether the loss of the last fifth of the rows is at most half of that of the very first ones.

    A net may be through with learning before ``loss_fell`` begins to look.
    """
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    part = len(loss) // 5
    if part < 2:
        return False
    first = max(min(part // 4, FIRST_ROWS), 2)
    return bool(np.median(loss[-part:]) <= 0.5 * np.median(loss[:first]))


def loss_rises(rec: Recording, row: int) -> bool:
    """Say whether the loss is above its first rows' from a row on; True where it is not recorded."""
    loss = rec.scalar("loss")
    first, later = loss[:LEAST_ROWS], loss[row:]
    first, later = first[np.isfinite(first)], later[~np.isnan(later)]
    return not len(first) or not len(later) or float(np.median(later)) > float(np.median(first))
