"""A loss that falls to minus infinity, which explains gradients that explode and numbers that are not finite."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.nonfinite import first_broken_row
from gradlens.diagnosis.recorded_rows import Recording

FEW = 3
"""Rows of which the median is the loss at the start and before it is not finite."""
FAR_BELOW = 1e3
"""Times its first size, and at least so far below 0: losses that have a lower bound end within a few times their first
size; no outside source."""
EXPLAINS = ("exploding", "nonfinite")
"""Kinds that such a loss explains."""
NO_BOUND = (
    "Look at the sign of each term of the loss: a log-likelihood gets a minus (loss = -log_prob.mean()), and a "
    "distance or a divergence that is made larger has no end. Where the signs are right, a variance goes to 0: bound "
    "it below."
)


def with_lower_bound(rec: Recording, finding: Finding) -> Finding:
    """Add to a finding without an exact cause that the loss has no lower bound.

    Args:
        rec: The recording.
        finding: The finding.

    Returns:
        The finding, with another remedy where the loss falls to minus infinity.
    """
    said = "" if finding.cause or finding.kind not in EXPLAINS else _falls_without_bound(rec)
    return replace(finding, evidence=f"{finding.evidence}; {said}", remedy=NO_BOUND) if said else finding


def _falls_without_bound(rec: Recording) -> str:
    row, loss = first_broken_row(rec), np.asarray(rec.scalar("loss"), dtype=np.float64)
    if row is None or not len(loss):
        return ""
    known = loss[:row][np.isfinite(loss[:row])]
    if len(known) < 2 * FEW:
        return ""
    first, last = median_of_all(known[:FEW]), median_of_all(known[-FEW:])
    far = min(last, known[-1]) < -FAR_BELOW * max(abs(first), 1)
    if last >= min(first, 0) or not (far or loss[row] == -math.inf):
        return ""
    return f"before, the loss falls from {first:.3g} to {known[-1]:.3g}: it has no lower bound"
