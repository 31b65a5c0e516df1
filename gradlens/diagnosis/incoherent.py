"""Gradients of parts of a batch that have no common direction."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.analysis.stats import median
from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.loss import FELL, loss_fell, loss_halved
from gradlens.diagnosis.recorded_rows import (
    COHERENCE,
    Recording,
    share_beyond,
)
from gradlens.run import FloatArray

COHERENT = 0.005
"""Measured at initialisation, mean cosine of two disjoint batches of 32 over layers: plain34 with batch norm 0.001,
where gradients are shattered, resnet34 0.028; this is their geometric mean."""
SHATTERED_LAYERS = 8
"""Balduzzi et al. 2017: without shortcuts the correlation falls like (1/2)^L, so that fewer layers than 8 cannot bring
it below 0.005 = (1/2)^7.6. What is lower in a shallow net is noise: a regression that begins at its noise floor
(experiments/scorecard, noise-floor) was called incoherent by four layers."""


def incoherent(rec: Recording) -> list[Finding]:
    """The norms are healthy, but gradients of parts of the batch have no common direction, from the beginning on.

    Near convergence noise outweighs the signal in any net: so it counts only where the first fifth of the rows shows
    it, too, the loss does not fall, nor has it been halved before, and the net is deep enough to be shattered. (A
    ResNet-34 that had learnt all of its pictures in a tenth of the rows was called incoherent.) Confidence: the share
    of resampled medians below the threshold.
    """
    if not rec.has(COHERENCE) or len(rec.series(COHERENCE)) < LEAST_ROWS // 2:
        return []
    series = rec.series(COHERENCE)
    main = rec.run.main_layers()
    if (~np.isnan(series.values[:, main])).any(axis=0).sum() < SHATTERED_LAYERS:
        return []
    middle = _row_medians(series.values[:, main])
    early = middle[: max(len(middle) // 5, 3)]
    fell = loss_fell(rec)
    if not (np.nanmedian(middle) < COHERENT and np.nanmedian(early) < COHERENT) or fell >= FELL or loss_halved(rec):
        return []
    typical = median(series.values, axis=0)
    layers = [int(i) for i in main if typical[i] < COHERENT]
    loss = "" if math.isnan(fell) else f"; the loss falls by {max(fell, 0):.1%} after the first fifth of the rows"
    return [
        Finding(
            "incoherent",
            rec.names(layers),
            (int(series.steps[0]), rec.last_step),
            f"the mean cosine of gradients of parts of the batch is {float(np.nanmedian(middle)):.4f} (median over "
            f"layers and rows), below {COHERENT} at {len(layers)} of {len(main)} layers{loss}",
            f"a mean cosine below {COHERENT} from the first rows on",
            "measured at initialisation: plain34 0.001, resnet34 0.028; Balduzzi et al. 2017, The Shattered Gradients "
            "Problem, sec. 2",
            "Add shortcuts, enlarge the batch, or take layers away; the norms are healthy, and clipping does not help.",
            share_beyond(middle, COHERENT, below=True),
        )
    ]


def _row_medians(values: FloatArray) -> FloatArray:
    return median(values)
