"""|W| |dL/dW| of layers behind a norm: it stays the same where scaling a layer's weights or inputs changes nothing
else.

Behind batch norm a layer whose weights or inputs are multiplied by c has its gradient divided by c, and the model is
the same function. So a ratio of gradients that involves such a layer counts only if this product shows it, too.

Source: van Laarhoven 2017, L2 Regularization versus Batch and Weight Normalization, sec. 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradlens.diagnosis.recorded_rows import PARAM_GRAD, Recording
from gradlens.metrics import PARAM_NORM
from gradlens.run import FloatArray


def invariant_decades(rec: Recording, path: NDArray[np.int64]) -> FloatArray:
    """Return log10 of |W| |dL/dW| of layers over that of the last hidden layer, (M,); NaN where it need not be used.

    Args:
        rec: The recording.
        path: (M,) indices of layers, input first; the last is the output layer.

    Returns:
        Medians over the later half of the rows; NaN for layers that no norm follows, and where a metric is missing.
    """
    if not (rec.has(PARAM_GRAD) and rec.has(PARAM_NORM)):
        return np.full(len(path), np.nan)
    grads, norms = rec.series(PARAM_GRAD), rec.series(PARAM_NORM)
    with np.errstate(divide="ignore", invalid="ignore"):
        products = grads.median(grads.late) * norms.median(norms.late)
        decades = np.log10(products[path]) - np.log10(products[path[-2]])
    behind = np.array([rec.is_behind_norm(int(i)) for i in path])
    return np.where(behind & np.isfinite(decades), decades, np.nan)
