"""A model that was trained before, and whose first updates lose what it knew: its loss does not come back."""

from __future__ import annotations

import numpy as np

from gradlens.diagnosis.recorded_rows import Recording

KNEW = 0.8
"""A first loss below this share of that of guessing is that of a model that was trained before."""
SOON = 10
"""Rows within which the loss leaps."""
LEAPS = 1.5
"""A loss so many times the first one is no noise of batches, where it happens at once; no outside source."""
NEVER_BACK = 1.1
"""Every late loss is above so many times the first; no outside source."""


def lost_at_once(rec: Recording, guess: float, least: int) -> tuple[float, float, float]:
    """Return the first loss, the highest soon after and the mean of the last fifth, or three times NaN.

    Args:
        rec: The recording.
        guess: The loss of guessing, or NaN.
        least: Rows that are needed.
    """
    loss = np.asarray(rec.scalar("loss"), dtype=np.float64)
    late = loss[-(len(loss) // 5) :]
    known = len(loss) >= least and bool(np.isfinite(loss).all())
    if not known or not 0 < loss[0] < KNEW * guess or not loss[1:SOON].max() > LEAPS * loss[0]:
        return np.nan, np.nan, np.nan
    if not late.min() > NEVER_BACK * loss[0]:
        return np.nan, np.nan, np.nan
    return float(loss[0]), float(loss[1:SOON].max()), float(late.mean())
