"""Whether training accuracy is above validation accuracy by more than chance and the first epochs explain."""

from __future__ import annotations

import math

import numpy as np

from gradlens.run import FloatArray, Run

ACCURACY_GAP = 0.1
"""Zhang et al. 2021 and smdebug judge overfitting by the loss; here a gap of this size in accuracy is reported."""
LASTING = 3
"""The gap must be there in so many last epochs, none of which is the first: training accuracy of the first is a mean
over an epoch that began untrained, and in few steps batch norm's running mean has not reached that of the data."""
ERRORS = 2.0
"""A gap of fewer standard errors of the validation accuracy is noise of the images (95 % of a normal distribution)."""
MANY = 1000
"""With so many images or more, the standard error is at most 0.016: far below ``ACCURACY_GAP``."""
ROUNDING = 1e-6
"""A share of images in float32 is off by less."""


def accuracy_gap(run: Run) -> float:
    """Return by how much training accuracy ends above validation accuracy where that is overfitting, else NaN."""
    train, val = (run.epochs.get(key, np.empty(0)) for key in ("train_accuracy", "val_accuracy"))
    if min(len(train), len(val)) < LASTING + 1:
        return math.nan
    least = max(ACCURACY_GAP, ERRORS * _error_of(float(val[-1]), _count_images(run, val)))
    gaps = train[-LASTING:] - val[-LASTING:]
    return float(gaps[-1]) if bool((gaps > least).all()) else math.nan


def _error_of(share: float, images: int) -> float:
    """Return the standard error of a share of images, with one more right and one more wrong (Agresti & Coull 1998)."""
    share = (share * images + 1) / (images + 2)
    return math.sqrt(max(share * (1 - share), 0.0) / (images + 2))


def _count_images(run: Run, val: FloatArray) -> int:
    """Return the number of validation images, or the least number that gives these accuracies; at most ``MANY``."""
    facts = run.config.get("data_facts", {})
    known = facts.get("val_images") if isinstance(facts, dict) else None
    if isinstance(known, int) and known > 0:
        return min(known, MANY)
    shares = val[np.isfinite(val)]
    counts = np.arange(1, MANY + 1)[:, None] * shares
    fits = (np.abs(counts - counts.round()) < ROUNDING * np.arange(1, MANY + 1)[:, None]).all(axis=1)
    return int(np.argmax(fits)) + 1 if fits.any() else MANY
