"""Ratios of step times, with their spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def compare(seconds: Sequence[float], bare: Sequence[float]) -> dict[str, float]:
    """Compare step times that were taken in the same rounds.

    Args:
        seconds: (R,) of one model.
        bare: (R,) of the other.

    Returns:
        "median", "low" and "high" of the ratios within rounds (quartiles); "sums", the ratio of the sums, in which
        dear steps that come seldom have their share, with "sums_low" and "sums_high": 5 % and 95 % of what it comes to
        over rounds drawn anew (bootstrap).
    """
    a, b = np.asarray(seconds), np.asarray(bare)
    low, median, high = np.quantile(a / b, [0.25, 0.5, 0.75])
    drawn = np.random.default_rng(0).integers(0, len(a), (RESAMPLES, len(a)))
    sums_low, sums_high = np.quantile(a[drawn].sum(1) / b[drawn].sum(1), [0.05, 0.95])
    found = {"median": median, "low": low, "high": high}
    found |= {"sums": a.sum() / b.sum(), "sums_low": sums_low, "sums_high": sums_high}
    return {name: float(value) for name, value in found.items()}
