"""Dead units: the output of the activation function after a layer stays at 0."""

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
from gradlens.format import plural

DEAD_SHARE = 0.99
"""smdebug's DeadRelu: a unit that is active less than 1 % of the time is dead; here the share is over all units of a
layer. A healthy ReLU outputs about half zeros."""


def dead(rec: Recording) -> list[Finding]:
    """Find layers whose units are nearly all 0 at the end of the rows.

    Confidence: the share of resampled medians beyond the threshold; the largest over the layers.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
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
            f"{worst:.1%} of the activations after {quoted(names[int(np.argmax(typical[layers]))])} are exactly 0 "
            f"(median of {window}); {len(layers)} of {plural(int((~np.isnan(typical)).sum()), 'layer')} "
            f"{'is' if len(layers) == 1 else 'are'} beyond the threshold",
            f"more than {DEAD_SHARE:.0%} zeros, lasting to the end",
            "smdebug, DeadRelu: a unit active less than 1 % of the time is dead; for ReLU, half zeros are healthy",
            "Lower the learning rate and check the biases, or replace ReLU by LeakyReLU or GELU, whose slope is not 0.",
            max(share_beyond(series.values[late][:, i], DEAD_SHARE, below=False) for i in layers),
        )
    ]
