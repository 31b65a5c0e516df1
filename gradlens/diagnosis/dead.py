"""Units that are off: what follows a layer's activation function is 0 for good."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.recorded_rows import (
    ZEROS,
    Recording,
    share_beyond,
    steps_beyond,
    window_beyond,
)

DEAD_SHARE = 0.99
"""smdebug's DeadRelu: a unit that is active less than 1 % of the time is dead; here over a layer's units. Half zeros
are what a healthy ReLU makes."""


def dead(rec: Recording) -> list[Finding]:
    """Nearly all of what follows a layer's activation function is 0, for good.

    Confidence: the largest of the layers' shares of resampled medians beyond the threshold.
    """
    if not rec.has(ZEROS) or len(rec.series(ZEROS)) < LEAST_ROWS // 2:
        return []
    series = rec.series(ZEROS)
    late, window, typical = window_beyond(series, DEAD_SHARE)
    layers = rec.in_order(np.flatnonzero(np.nan_to_num(typical) > DEAD_SHARE))
    if not layers:
        return []
    names, worst = rec.names(layers), float(typical[layers].max())
    return [
        Finding(
            "dead",
            names,
            steps_beyond(rec, series, layers[0], DEAD_SHARE),
            f"{worst:.1%} of what follows {quoted(names[int(np.argmax(typical[layers]))])} is exactly 0, median of "
            f"{window}; beyond the line are {len(layers)} of {int((~np.isnan(typical)).sum())} layers",
            f"more than {DEAD_SHARE:.0%} zeros for good",
            "smdebug, DeadRelu: active less than 1 % of the time; half zeros are healthy for ReLU",
            "Lower the learning rate and check biases; LeakyReLU or GELU in place of ReLU keeps a slope everywhere.",
            max(share_beyond(series.values[late][:, i], DEAD_SHARE, below=False) for i in layers),
        )
    ]
