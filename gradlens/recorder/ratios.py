"""Metrics that are a quotient of two sums, and the addends that are summed over calls, micro-batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from gradlens.metrics import (
    ACTIVATION_RMS,
    BATCH_COHERENCE,
    BRANCH_GRAD_NORM,
    DEAD_FRACTION,
    GRAD_COHERENCE,
    GRADIENT_THROUGH_TIME,
    METRICS,
    PARAM_NORM,
    PATH_COSINE,
    SHORTCUT_GRAD_NORM,
    UPDATE_RATIO,
    ZERO_FRACTION,
)
from gradlens.recorder.norms import HostNorms

CHANGE = "change"
"""The norm of the update."""
OUTPUT_NORM, OUTPUT_NUMEL = "output_norm", "output_numel"
ZEROS, ACTIVATED = "zeros", "activated"
"""Zeros in the output of an activation function, and the number of its elements."""
COSINES, PAIRS = "cosines", "pairs"
SIGNAL, NOISE = "signal", "noise"
"""Estimates of |G|^2 and of trace(S) for one layer on one rank."""
SHORTCUT_NORM, BRANCH_NORM = SHORTCUT_GRAD_NORM, BRANCH_GRAD_NORM
PATH_PRODUCT = "path_product"
"""The inner product of the gradients that return through a block's shortcut and through its branch."""
BATCH_PRODUCT, BATCH_NORM, NEXT_BATCH_NORM = "batch_product", "batch_grad_norm", "next_batch_grad_norm"
"""Inner product and norms of the gradients of two batches in succession."""
OFF, UNITS = "units_off", "units"
"""Units without a gradient in several recordings, and all units of a layer."""
FIRST_STATE, LAST_STATE = "first_state_grad_norm", "last_state_grad_norm"
"""Norms of the gradients of a recurrent layer's states after the first and the last time step."""

ADDENDS: dict[str, tuple[str, ...]] = {
    UPDATE_RATIO: (CHANGE, PARAM_NORM),
    ACTIVATION_RMS: (OUTPUT_NORM, OUTPUT_NUMEL),
    ZERO_FRACTION: (ZEROS, ACTIVATED),
    GRAD_COHERENCE: (COSINES, PAIRS, SIGNAL, NOISE),
    DEAD_FRACTION: (OFF, UNITS),
    GRADIENT_THROUGH_TIME: (FIRST_STATE, LAST_STATE),
    BATCH_COHERENCE: (BATCH_PRODUCT, BATCH_NORM, NEXT_BATCH_NORM),
    PATH_COSINE: (PATH_PRODUCT, SHORTCUT_NORM, BRANCH_NORM),
    **{name: metric.quotient for name, metric in METRICS.items() if metric.quotient},
}
"""Metric to its addends, which are not stored themselves. A metric that is not listed is its own addend."""
OF_TWO_NORMS = (PATH_COSINE, BATCH_COHERENCE)
"""Metrics whose first addend is divided by both others: cosines."""
COUNTS = (OUTPUT_NUMEL, ZEROS, ACTIVATED, OFF, UNITS, COSINES, PAIRS, SIGNAL, NOISE, PATH_PRODUCT, BATCH_PRODUCT)
"""Addends that are summed as they are; others are norms, whose squares are summed."""


def addends(metrics: Iterable[str]) -> list[str]:
    """Return the addends of these metrics, each once."""
    return list(dict.fromkeys(part for name in metrics for part in ADDENDS.get(name, (name,))))


def adds(addend: str) -> bool:
    """Return whether an addend is summed as it is; the squares of others are summed."""
    return addend in COUNTS or (addend in METRICS and METRICS[addend].combine == "sum")


def find_column(metric: str, columns: Mapping[str, HostNorms], n_layers: int) -> HostNorms | None:
    """Return the values of a metric.

    Args:
        metric: Its name.
        columns: Addend to (L,).
        n_layers: L.

    Returns:
        (L,) in the metric's unit, NaN where unknown; None for an update ratio without an update.
    """
    unknown: HostNorms = np.full(n_layers, np.nan)
    if metric not in ADDENDS:
        return columns.get(metric, unknown)
    above, below = ADDENDS[metric][:2]
    if above not in columns or below not in columns:
        return None if metric == UPDATE_RATIO else unknown
    top, bottom = columns[above], columns[below]
    if metric == ACTIVATION_RMS:
        bottom = np.sqrt(bottom)
    if metric in OF_TWO_NORMS:
        bottom = bottom * columns.get(ADDENDS[metric][2], unknown)
    missing = np.where(np.isinf(top), np.inf, np.nan)
    usable = (bottom != 0) & ~np.isnan(bottom) & ~np.isinf(top)
    found: HostNorms = np.divide(top, bottom, out=missing, where=usable)
    if metric in OF_TWO_NORMS:
        np.clip(found, -1, 1, out=found, where=np.isfinite(found))  # rounding
    return found


def noise_scalars(columns: Mapping[str, HostNorms]) -> dict[str, float]:
    """Return estimates of gradient noise from two halves of the batch, over all layers with a coherence.

    With mean gradients g and h of two halves of b and c examples, |G|^2 = g . h and trace(S) = |g - h|^2 / (1/b + 1/c)
    are unbiased. For b = c they are the two-batch estimator with the batch and its half. Over ranks both are averaged.
    Their quotient is biased and noisy: average both over many rows before dividing.

    Args:
        columns: Addend to (L,).

    Returns:
        ``gradient_signal``, ``gradient_noise`` and their quotient ``gradient_noise_scale``, which is missing where the
        signal is not positive; empty where the halves are unknown.

    Source:
        McCandlish et al. 2018, An Empirical Model of Large-Batch Training, appendix A.1.
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
