"""Incoherent gradients: those of parts of a batch have no common direction."""

from __future__ import annotations

import math

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.analysis.stats import median, median_of_all
from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.loss import FELL, loss_fell, loss_halved
from gradlens.diagnosis.network import Network
from gradlens.diagnosis.recorded_rows import (
    BATCHES,
    Recording,
    share_beyond,
)

COHERENT = 0.005
"""The geometric mean of two mean cosines over layers, measured at initialisation between disjoint batches of 32 images:
0.001 for plain34 with batch norm, whose gradients are shattered, and 0.028 for resnet34."""
SHORTCUTS = "Add shortcuts, enlarge the batch, or remove layers. Clipping does not help: the norms are healthy."
ENLARGE = "Enlarge the batch, or remove layers. Clipping does not help: the norms are healthy."
OPPOSED = 0.05
"""Gradients of batches in succession that oppose each other by more have a direction in common: that of a step that was
too large. Ten times the threshold above."""
SHATTERED_LAYERS = 8
"""Balduzzi et al. 2017: without shortcuts the correlation falls like (1/2)^L. So fewer than 8 layers cannot bring it
below 0.005 = (1/2)^7.6, and a lower cosine in a shallower model is noise. Without this limit, a regression with four
layers that begins at its noise floor (experiments/scorecard, noise-floor) was called incoherent."""


def incoherent(rec: Recording) -> list[Finding]:
    """Find gradients of parts of the batch that have no common direction from the beginning, with healthy norms.

    Near convergence noise outweighs the signal in any model. So low cosines count only if the first fifth of the rows
    shows them too, the loss does not fall and has not halved before, and the model is deep enough for shattered
    gradients. Halves of one batch share its statistics behind batch norm, so their cosine is no evidence there: it
    needs micro-batches, or the cosine between batches in succession (batch_coherence). (Without these conditions a
    ResNet-34 that had learnt all images in a tenth of the rows was called incoherent.) Confidence: the share of
    resampled medians below the threshold.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    name = rec.coherence
    if not name or len(rec.series(name)) < LEAST_ROWS // 2:
        return []
    series = rec.series(name)
    main = rec.run.main_layers()
    if series.known[main].sum() < SHATTERED_LAYERS:
        return []
    cosines = series.by_rows(lambda values: median(values[:, main]))
    early = cosines[: max(len(cosines) // 5, 3)]
    fell = loss_fell(rec)
    if name == BATCHES and median_of_all(cosines) < -OPPOSED:
        return []
    if not (median_of_all(cosines) < COHERENT and median_of_all(early) < COHERENT) or fell >= FELL or loss_halved(rec):
        return []
    typical = series.typical
    layers = [int(i) for i in main if typical[i] < COHERENT]
    loss = "" if math.isnan(fell) else f"; the loss falls by {max(fell, 0):.1%} after the first fifth of the rows"
    return [
        Finding(
            "incoherent",
            rec.names(layers),
            (int(series.steps[0]), rec.last_step),
            f"the cosine between gradients of {rec.compared_gradients} is {median_of_all(cosines):.4f} (median "
            f"over layers and rows), and below {COHERENT} at {len(layers)} of {len(main)} layers{loss}",
            f"a cosine below {COHERENT} from the first rows on",
            "measured at initialisation: plain34 0.001, resnet34 0.028; Balduzzi et al. 2017, The Shattered Gradients "
            "Problem, sec. 2",
            ENLARGE if Network(rec).has_shortcuts else SHORTCUTS,
            share_beyond(cosines, COHERENT, below=True),
        )
    ]
