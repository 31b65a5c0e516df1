"""The gradient explodes over depth or over steps, or a layer's outputs do. Judged by ratios, not by absolute sizes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.gradient_ratio import LEAST_ROWS, late_windows, say_power, say_ratio
from gradlens.analysis.profile import ACTIVATION_GRAD
from gradlens.analysis.stats import median
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.loss import loss_rises
from gradlens.diagnosis.recorded_rows import (
    PARAM_GRAD,
    RMS,
    Recording,
    share_beyond,
    since,
)
from gradlens.run import FloatArray
from gradlens.theory.laws import batch_norm_growth
from gradlens.theory.predict import predicted_profile

ALLOWED_DECADES = math.log10(70)
"""Zhang et al. 2021 (AutoTrainer, ICSE): |g_first| / |g_last| > 70 is an explosion; here over what the law of
batch norm allows."""
SPREADS = 3.0
"""So many standard deviations of the predicted spread belong to the law: one draw in 700 is beyond."""
SURGE_DECADES = 3.0
"""Over steps: a thousand times what was usual. Measured: the norm of healthy runs (plain34 and resnet34, 20 epochs) is
never more than 0.7 decades above the median of its first ten rows."""
RISE_DECADES = 2.0
"""Before a step that is not finite, a rise of a hundred times is the beginning of it. Measured: in the same healthy
runs single rows are up to 1.5 decades above the one before."""
RISING_ROWS = 20
TOO_LARGE = "Use He initialisation (weights are too large for their fan-in), add batch norm, or clip gradients."
TOO_FAST = "Lower the learning rate or warm it up, and clip the gradient's norm."
SWOLLEN_TIMES = 2.0
"""A hidden layer's outputs a hundred times what they were in the first row. Measured on experiments/scorecard, seeds 0
to 2: healthy nets grow by at most 1.0 decades, but for one that begins far too small and grows by 2.7."""
SWOLLEN_DEPTH = math.log10(70)
"""And as many times the first layer's: the factor of Zhang et al. 2021 (AutoTrainer) for gradients over depth. Measured
there: healthy nets have at most 1.0 decades, those whose signal explodes on its way forward 1.95 to 2.5."""


def exploding(rec: Recording, broken: int | None) -> list[Finding]:
    """The gradient grows over depth beyond the law, or over steps by orders of magnitude, or until it is not finite.

    Args:
        rec: What was recorded.
        broken: The first row that is not finite, or None.
    """
    return [found for found in (_over_depth(rec, broken), _over_steps(rec, broken)) if found is not None][:1]


def allowed_growth(rec: Recording, layers: int) -> tuple[float, str]:
    """Return how many decades a gradient may grow towards the input, and why.

    Nets with batch norm and no shortcuts grow by sqrt(pi / (pi - 1)) per layer (Yang et al. 2019), the most
    that is known of a build that trains; a run tells nowhere for sure that it has none.
    """
    law = (layers - 2) * math.log10(batch_norm_growth(1024, "relu"))
    said = f"the growth of a net with batch norm over {layers} layers, Yang et al. 2019, {say_power(law)}"
    prediction = predicted_profile(rec.run) if rec.gradient == ACTIVATION_GRAD else None
    if prediction is not None and "Yang" in prediction.source:
        known = prediction.decades + SPREADS * np.nan_to_num(prediction.spread)
        most = float(np.nanmax(known)) if np.isfinite(known).any() else -math.inf
        if most > law:
            law, said = most, f"theory of this net and {SPREADS:.0f} spreads ({prediction.source}), {say_power(law)}"
    return law + ALLOWED_DECADES, f"{said}, times 70, Zhang et al. 2021, AutoTrainer, ICSE"


def _over_depth(rec: Recording, broken: int | None) -> Finding | None:
    """Judged by the windows at the end of the rows; where one is not finite, of those before it.

    Confidence: the share of resampled medians beyond the threshold; of few rows, by Laplace's rule of succession.
    """
    ratio = rec.ratio
    if ratio is None:
        return None
    path, decades = ratio.indices, ratio.decades
    series = rec.series(rec.gradient)
    n = len(decades) if broken is None else int((series.rows < broken).sum())
    if n < (LEAST_ROWS if broken is None else 1):
        return None
    line, source = allowed_growth(rec, len(path))
    early = np.where(np.isinf(decades[:n, :-1]), np.nan, decades[:n, :-1])
    found = [
        (early[part], said, np.nan_to_num(median(early[part], axis=0), nan=-np.inf)) for part, said in late_windows(n)
    ]
    late, window, typical = next((item for item in found if (item[2] > line).any()), found[0])
    if not (typical > line).any():
        return None
    top = int(np.argmax(typical))
    names = rec.names(path)
    layers = [names[i] for i in np.flatnonzero(typical > ALLOWED_DECADES) if i != top]
    beyond = np.nan_to_num(early[:, top], nan=-np.inf) > line
    few = float((beyond[-len(late) :].sum() + 1) / (len(late) + 2))
    rows = f"median of {window}" + ("" if broken is None else " before one that is not finite")
    return Finding(
        "exploding",
        (names[top], *layers),
        (int(series.steps[since(beyond)]), int(series.steps[n - 1])),
        f"{say_ratio(quoted(names[top]), quoted(names[-2]), float(typical[top]))}, {rows}",
        f"a growth over depth beyond {say_power(line)}",
        source,
        TOO_LARGE if beyond[0] else TOO_FAST,
        few if n < LEAST_ROWS else share_beyond(late[:, top], line, below=False),
    )


def _over_steps(rec: Recording, broken: int | None) -> Finding | None:
    """The norm of all gradients together rises over steps.

    A surge counts where the loss rises with it, or ends in a step that is not finite. Confidence: of the rows since the
    surge, the share beyond the line; of a rise before a step that is not finite, the share of neighbouring rows that
    rise.
    """
    name = PARAM_GRAD if rec.has(PARAM_GRAD) else rec.gradient
    if not name:
        return None
    series = rec.series(name)
    with np.errstate(divide="ignore", over="ignore"):
        total = np.log10(np.sqrt(np.nansum(series.values**2, axis=1)))
    total[np.isinf(total)] = np.nan
    before = np.ones(len(total), dtype=bool) if broken is None else series.rows < broken
    if broken is not None and (found := _rise(rec, series.steps[before], total[before], series.values[before])):
        return found
    if before.sum() < LEAST_ROWS:
        return None
    usual = float(np.nanmedian(total[:LEAST_ROWS])) if not np.isnan(total[:LEAST_ROWS]).all() else math.nan
    smooth = np.array([float(median(total[max(i - 4, 0) : i + 1])) for i in range(len(total))])
    high = np.nan_to_num(smooth - usual, nan=-np.inf) > SURGE_DECADES
    if not high.any():
        return None
    start = int(np.flatnonzero(high)[0])
    if broken is None and not loss_rises(rec, int(series.rows[start])):
        return None
    grown = median(series.values[start:], axis=0) / np.maximum(
        median(series.values[:LEAST_ROWS], axis=0), np.finfo(float).tiny
    )
    layers = rec.in_order(np.flatnonzero(np.nan_to_num(grown) > 10**SURGE_DECADES))
    share = float((np.nan_to_num(total[start:] - usual, nan=-np.inf) > SURGE_DECADES).mean())
    return Finding(
        "exploding",
        rec.names(layers),
        (int(series.steps[start]), rec.last_step),
        f"the norm of all gradients is {say_power(float(np.nanmax(smooth) - usual))} times what it was in the first "
        f"{LEAST_ROWS} rows",
        "a thousand times the usual norm over 5 rows, with a loss that rises or a step that is not finite",
        "measured: healthy runs (plain34 and resnet34, 20 epochs) never rise 0.7 decades above their first ten rows",
        TOO_FAST,
        max(share, 1 / (len(total) + 1)),
    )


def _rise(rec: Recording, steps: NDArray[np.int64], total: FloatArray, values: FloatArray) -> Finding | None:
    """The rows just before one that is not finite rise a hundredfold, most of them one after another."""
    window = total[-RISING_ROWS:]
    known = window[~np.isnan(window)]
    if len(known) < 3:
        return None
    low = int(np.argmin(known))
    rise, steps_up = float(known[-1] - known[low]), np.diff(known[low:])
    if rise < RISE_DECADES or not len(steps_up) or (steps_up > 0).mean() <= 0.5:
        return None
    start = len(steps) - len(known) + low
    with np.errstate(divide="ignore", invalid="ignore"):
        grown = np.nan_to_num(values[-1] / values[start])
    layers = rec.in_order(np.flatnonzero(grown > 10**RISE_DECADES))
    return Finding(
        "exploding",
        rec.names(layers),
        (int(steps[start]), int(steps[-1])),
        f"the norm of all gradients grows by {say_power(rise)} in {len(steps_up)} row(s), then it is not finite",
        f"a hundredfold rise within {RISING_ROWS} rows before a row that is not finite",
        "measured: in healthy runs (plain34 and resnet34) no row is more than 1.5 decades above the one before",
        TOO_FAST,
        float((np.sum(steps_up > 0) + 1) / (len(steps_up) + 2)),
    )


def swollen(rec: Recording) -> list[Finding]:
    """A hidden layer's outputs have grown by orders of magnitude, and beyond those of the first layer.

    The signal explodes on its way forward, whatever the gradient's norms are under an optimizer that divides by them.
    Embeddings are no first layer, as theirs are small by custom. Confidence: the largest of the layers' shares of
    resampled medians beyond the line.
    """
    if not rec.has(RMS) or len(rec.series(RMS)) < LEAST_ROWS // 2:
        return []
    series = rec.series(RMS)
    hidden = [i for i in rec.run.main_layers()[:-1] if rec.run.layers[i].kind != "Embedding"]
    if len(hidden) < 2:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        outputs = np.log10(series.values[:, hidden])
    outputs = np.where(np.isfinite(outputs), outputs, np.nan)
    grown = np.minimum(outputs - outputs[0] - SWOLLEN_TIMES, outputs - outputs[:, :1] - SWOLLEN_DEPTH)
    late = grown[series.late]
    typical = np.nan_to_num(median(late, axis=0), nan=-np.inf)
    beyond = np.flatnonzero(typical > 0)
    if not len(beyond):
        return []
    top, names = int(np.argmax(typical)), rec.names(hidden)
    over_time, over_depth = (
        median((outputs - base)[series.late], axis=0)[top] for base in (outputs[0], outputs[:, :1])
    )
    return [
        Finding(
            "exploding",
            tuple(names[i] for i in beyond),
            (int(series.steps[since(grown[:, beyond[0]] > 0)]), rec.last_step),
            f"the outputs of {quoted(names[top])} are {say_power(over_time)} times what they were in the first row, "
            f"and {say_power(over_depth)} times those of {quoted(names[0])}, median of the later half of the rows",
            f"hidden outputs {10**SWOLLEN_TIMES:.0f} times their first and {10**SWOLLEN_DEPTH:.0f} times the first "
            "layer's",
            "He et al. 2015, sec. 2.2: the forward signal must keep its size; the factor 70 is Zhang et al. 2021's",
            "Use He initialisation, add batch norm, or lower the learning rate.",
            max(share_beyond(late[:, i], 0.0, below=False) for i in beyond),
        )
    ]
