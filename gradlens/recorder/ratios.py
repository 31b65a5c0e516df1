"""Metrics that are a quotient of two sums: what is added up for them over calls, micro-batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from gradlens.metrics import METRICS
from gradlens.recorder.norms import HostNorms

CHANGE = "change"
"""The norm of the update itself."""
OUTPUT_NORM, OUTPUT_NUMEL = "output_norm", "output_numel"
ZEROS, ACTIVATED = "zeros", "activated"
"""Zeros among, and number of, the elements that an activation function put out."""
COSINES, PAIRS = "cosines", "pairs"
SIGNAL, NOISE = "signal", "noise"
"""Estimates of |G|^2 and of trace(S), of one layer on one rank."""
SHORTCUT_NORM, BRANCH_NORM = "shortcut_grad_norm", "branch_grad_norm"
PATH_PRODUCT = "path_product"
"""The inner product of what comes back through a block's shortcut and through its branch."""

ADDENDS: dict[str, tuple[str, ...]] = {
    "update_ratio": (CHANGE, "param_norm"),
    "activation_rms": (OUTPUT_NORM, OUTPUT_NUMEL),
    "zero_fraction": (ZEROS, ACTIVATED),
    "grad_coherence": (COSINES, PAIRS, SIGNAL, NOISE),
    "path_cosine": (PATH_PRODUCT, SHORTCUT_NORM, BRANCH_NORM),
    **{name: metric.quotient for name, metric in METRICS.items() if metric.quotient},
}
"""Metric to what is measured for it; that alone stores none of it. A metric that is not here is measured itself."""
COUNTS = (OUTPUT_NUMEL, ZEROS, ACTIVATED, COSINES, PAIRS, SIGNAL, NOISE, PATH_PRODUCT)
"""What is simply added."""


def addends(metrics: Iterable[str]) -> list[str]:
    """List what must be measured for these metrics, each once."""
    return list(dict.fromkeys(part for name in metrics for part in ADDENDS.get(name, (name,))))


def adds(addend: str) -> bool:
    """Say whether an addend is simply added; others are norms, whose squares are."""
    return addend in COUNTS or (addend in METRICS and METRICS[addend].combine == "sum")


def find_column(metric: str, columns: Mapping[str, HostNorms], n_layers: int) -> HostNorms | None:
    """Return a metric (L,), NaN where it is not known.

    Args:
        metric: Its name.
        columns: Addend to (L,).
        n_layers: L.

    Returns:
        None for an update that was not made.
    """
    unknown: HostNorms = np.full(n_layers, np.nan)
    if metric not in ADDENDS:
        return columns.get(metric, unknown)
    above, below = ADDENDS[metric][:2]
    if above not in columns or below not in columns:
        return None if metric == "update_ratio" else unknown
    top, bottom = columns[above], columns[below]
    if metric == "activation_rms":
        bottom = np.sqrt(bottom)
    if metric == "path_cosine":
        bottom = bottom * columns.get(BRANCH_NORM, unknown)
    missing = np.where(np.isinf(top), np.inf, np.nan)
    usable = (bottom != 0) & ~np.isnan(bottom) & ~np.isinf(top)
    found: HostNorms = np.divide(top, bottom, out=missing, where=usable)
    if metric == "path_cosine":
        np.clip(found, -1, 1, out=found, where=np.isfinite(found))  # rounding
    return found


def noise_scalars(columns: Mapping[str, HostNorms]) -> dict[str, float]:
    """Return what the halves of the batch tell of the gradient's noise, over all layers that have a coherence.

    With mean gradients g and h of two halves of b and c examples, |G|^2 = g . h and trace(S) = |g - h|^2 / (1/b + 1/c)
    are unbiased. For b = c they are the two-batch estimator of McCandlish et al. 2018, An Empirical Model of
    Large-Batch Training, appendix A.1, with the batch and its half. Over ranks both are averaged. Their quotient is
    biased and noisy, and missing where the estimate of |G|^2 is not positive: average the two over many rows first.
    """
    if SIGNAL not in columns or NOISE not in columns:
        return {}
    ranks = max(float(np.nanmax(columns[PAIRS], initial=0)), 1.0)
    signal, noise = (float(np.nansum(columns[name])) / ranks for name in (SIGNAL, NOISE))
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return {}
    found = {"gradient_signal": signal, "gradient_noise": noise}
    if signal > 0:
        found["gradient_noise_scale"] = noise / signal
    return found
