"""Exploding gradients, over depth or over steps, and exploding outputs; judged by ratios, not by absolute sizes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gradlens.analysis.gradient_ratio import LEAST_ROWS, GradientRatio, late_windows, say_power, say_ratio, say_times
from gradlens.analysis.parts import over_layers
from gradlens.analysis.stats import median, median_of_all
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.invariant import invariant_decades
from gradlens.diagnosis.loss import FELL, falls_after, loss_rises
from gradlens.diagnosis.network import Network
from gradlens.diagnosis.recorded_rows import (
    PARAM_GRAD,
    RMS,
    Recording,
    Series,
    share_beyond,
    since,
)
from gradlens.diagnosis.zero_gradient import rounded_off
from gradlens.format import plural
from gradlens.metrics import ACTIVATION_GRAD_NORM
from gradlens.run import FloatArray
from gradlens.theory.laws import batch_norm_growth
from gradlens.theory.predict import predicted_profile

ALLOWED_DECADES = math.log10(70)
"""Zhang et al. 2021 (AutoTrainer, ICSE): |g_first| / |g_last| > 70 is an explosion; here the factor 70 is on top of the
growth that batch norm explains."""
SPREADS = 3.0
"""Standard deviations between initialisations that the law allows: one initialisation in 700 is beyond."""
SURGE_DECADES = 3.0
"""Over steps: 1,000 times the usual norm. Measured: in healthy runs (plain34 and resnet34, 20 epochs) the norm is never
more than 0.7 decades above the median of its first ten rows."""
SMOOTHED = 5
"""Rows whose median is compared with the first ones."""
RISE_DECADES = 2.0
"""Before a non-finite step, a rise by a factor of 100 counts as its beginning. Measured: in the same healthy runs, a
row is up to 1.5 decades above the row before it."""
RISING_ROWS = 20
"""Rows before a non-finite row in which the rise must lie."""
SWOLLEN_TIMES = 2.0
"""Decades by which a hidden layer's outputs must grow since the first row: a factor of 100. Measured on
experiments/scorecard, seeds 0 to 2: healthy models grow by at most 1.0 decades, except one whose outputs begin far too
small and grow by 2.7."""
SWOLLEN_DEPTH = math.log10(70)
"""Decades by which these outputs must also exceed the first layer's: the factor 70 of Zhang et al. 2021 (AutoTrainer)
for gradients over depth. Measured in the same experiments: at most 1.0 decades in healthy models, 1.95 to 2.5 in models
whose signal explodes in the forward pass."""


def exploding(rec: Recording, broken: int | None) -> list[Finding]:
    """Find a gradient that grows over depth beyond the law, or over steps by orders of magnitude or to infinity.

    Args:
        rec: The recording.
        broken: The first non-finite row, or None.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    return [found for found in (_over_depth(rec, broken), _over_steps(rec, broken)) if found is not None][:1]


def allowed_growth(rec: Recording, layers: int) -> tuple[float, str]:
    """Return how many decades a gradient may grow toward the input, and the reason.

    In networks with batch norm and without shortcuts, gradients grow by sqrt(pi / (pi - 1)) per layer. No architecture
    that trains is known to grow faster. Every run is allowed this growth, because a run file does not show with
    certainty that a network has no batch norm.

    Args:
        rec: The recording.
        layers: Number of layers on the main path, the output layer included.

    Source: Yang et al. 2019, A Mean Field Theory of Batch Normalization, sec. 4; Zhang et al. 2021, AutoTrainer, for
    the factor 70.
    """
    law = (layers - 2) * math.log10(batch_norm_growth(1024, "relu"))
    reason = f"batch norm explains a growth of {say_power(law)} over {layers} layers (Yang et al. 2019)"
    prediction = predicted_profile(rec.run) if rec.gradient == ACTIVATION_GRAD_NORM else None
    if prediction is not None and "Yang" in prediction.source:
        known = prediction.decades + SPREADS * np.nan_to_num(prediction.spread)
        most = float(np.nanmax(known)) if np.isfinite(known).any() else -math.inf
        if most > law:
            law = most
            reason = (
                f"theory for this network, plus {SPREADS:.0f} standard deviations between seeds, explains a growth of "
                f"{say_power(law)} ({prediction.source})"
            )
    return law + ALLOWED_DECADES, f"{reason}; a factor of 70 on top of it: Zhang et al. 2021, AutoTrainer, ICSE"


def grows_over_depth(ratio: GradientRatio, decades: FloatArray) -> bool:
    """Return whether gradients grow from layer to layer, and are not large at layers of the trunk alone.

    In a residual network whose branches are scaled down (LayerScale, SkipInit), layers of the trunk have far larger
    gradients than layers inside a branch, at any depth. So a layer that feeds the output layer past all others does not
    count, and of the others up to the last that is larger by the factor 70, at least half must be.

    Args:
        ratio: The layers that are compared, M of them.
        decades: (M - 1,) log10 of the ratio of each hidden layer's gradient to the last one's, input first.
    """
    feeds_output = np.isin(ratio.indices[:-1], ratio.layers[-1].parents)
    large = decades[~feeds_output] > ALLOWED_DECADES
    return bool(large.any()) and float(large[: int(np.flatnonzero(large)[-1]) + 1].mean()) >= 0.5


def _over_depth(rec: Recording, broken: int | None) -> Finding | None:
    """Find a growth over depth in the windows at the end of the rows, or at the end of those before a non-finite row.

    Confidence: the share of resampled medians beyond the threshold; for few rows, by Laplace's rule of succession.

    Returns:
        The finding; None where there is none.
    """
    ratio = rec.ratio
    if ratio is None or _chooses(rec, ratio):
        return None
    path, series = ratio.indices, rec.series(rec.gradient)
    n = len(series) if broken is None else int((series.rows < broken).sum())
    if n < (LEAST_ROWS if broken is None else 1):
        return None
    line, source = allowed_growth(rec, len(path))
    table = np.array(["Embedding" in rec.run.layers[i].kind for i in path[:-1]])  # its rows are used now and then
    least = invariant_decades(rec, path)[:-1]
    ends, which = np.unique(next_terms(rec, path), return_inverse=True)
    base = np.stack([_finite(ratio.decades_of(slice(n), slice(end, end + 1))[:, 0]) for end in ends.tolist()], axis=1)
    base[:, ends == len(path) - 2] = 0  # the last hidden layer, which the others are already compared with
    least = least - np.where(np.isnan(least[ends]), median(base, axis=0), _padded(least)[ends])[which]

    def compared(rows: slice, layers: slice) -> FloatArray:
        return np.asarray(_finite(ratio.decades_of(rows, layers)) - base[rows][:, which[layers]])

    found = []
    for part, name in late_windows(n):
        medians = _medians(compared, part, len(path) - 1, n)
        usual = np.where(table, -np.inf, np.nan_to_num(np.fmin(medians, least), nan=-np.inf))
        found.append((part, name, medians, usual))
    late, window, medians, typical = next((item for item in found if (item[3] > line).any()), found[0])
    if not (typical > line).any() or not grows_over_depth(ratio, medians):
        return None
    top = int(np.argmax(typical))
    names = rec.names(path)
    layers = [names[i] for i in np.flatnonzero(typical > ALLOWED_DECADES) if i != top]
    early = compared(slice(n), slice(top, top + 1))[:, 0]
    beyond = np.nan_to_num(early, nan=-np.inf) > line
    few = float((beyond[late].sum() + 1) / (len(early[late]) + 2))
    rows = f"median of {window}" + ("" if broken is None else " before the first non-finite row")
    return Finding(
        "exploding",
        (names[top], *layers),
        (int(series.steps[since(beyond)]), int(series.steps[n - 1])),
        f"{say_ratio(quoted(names[top]), quoted(names[ends[which[top]]]), float(typical[top]))} ({rows})",
        f"more than {say_power(line)} times the gradient norm of the last hidden layer",
        source,
        f"{Network(rec).tame()} {Network(rec).clip()}" if beyond[0] else too_fast(rec),
        few if n < LEAST_ROWS else share_beyond(early[late], line, below=False),
    )


def _medians(make: Callable[[slice, slice], FloatArray], rows: slice, layers: int, count: int) -> FloatArray:
    return over_layers(lambda part: median(make(rows, part), axis=0), layers, count)


def _finite(decades: FloatArray) -> FloatArray:
    return np.where(np.isinf(decades), np.nan, decades)


def next_terms(rec: Recording, path: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the layer that each hidden layer of a path is compared with: places in the path, (M - 1,).

    It is the last hidden layer, or the next layer toward the output at which another term of the loss joins: the loss
    reads its output, as a divergence reads the latent layers of a variational autoencoder, or that of a head which
    branches off behind it. All layers before it get the gradient of that term, and those after it do not. Such a layer
    is compared with itself.

    Args:
        rec: The recording.
        path: (M,) indices of the layers on the path, input first.
    """
    hidden, place = len(path) - 1, {int(layer): i for i, layer in enumerate(path)}
    numbers = {layer.name: i for i, layer in enumerate(rec.run.layers)}
    made = [(item.text("layer"), item.text("behind")) for item in rec.setup.graph.entries("outputs")]
    read = {numbers.get(layer, numbers.get(behind, -1)) for layer, behind in made} - {-1}
    joins = {place[layer] for layer in read & place.keys()}
    stack, seen = list(read - place.keys()), set[int]()
    while stack:
        parents = {int(parent) for parent in rec.run.layers[stack.pop()].parents} - seen
        seen |= parents
        joins |= {place[parent] for parent in parents & place.keys()}
        stack += parents - place.keys()
    ends = np.array([*sorted(end for end in joins if end < hidden - 1), hidden - 1], dtype=np.int64)
    found: NDArray[np.int64] = ends[np.searchsorted(ends, np.arange(hidden))]
    return found


def _padded(decades: FloatArray) -> FloatArray:
    """Return decades that are 0 at the last hidden layer, which the others are already compared with."""
    whole = decades.copy()
    whole[..., -1] = 0
    return whole


def _chooses(rec: Recording, ratio: GradientRatio) -> bool:
    """Return whether the output layer is fed by experts of which some are not chosen at times.

    The gradient of an expert grows with its share of the inputs, so that it is no measure for the layers before.
    """
    now_and_then = {
        name
        for item in rec.setup.states()
        if {"arriving", "none"} <= {*item.texts("seen")}
        for name in item.texts("layers")
    }
    return any(rec.run.layers[i].name in now_and_then for i in ratio.layers[-1].parents)


def _over_steps(rec: Recording, broken: int | None) -> Finding | None:
    """Find a rise over steps of the norm of all gradients together.

    A surge counts where the loss rises too, or where it ends in a non-finite step. Confidence: the share of rows since
    the surge that are beyond the threshold; for a rise before a non-finite step, the share of rows that are above the
    row before them.

    Returns:
        The finding; None where there is none.
    """
    name = PARAM_GRAD if rec.has(PARAM_GRAD) else rec.gradient
    if not name:
        return None
    series = rec.series(name)
    with np.errstate(divide="ignore", over="ignore"):
        total = np.log10(np.sqrt(series.by_rows(lambda values: np.nansum(values**2, axis=1))))
    total[np.isinf(total)] = np.nan
    before = np.ones(len(total), dtype=bool) if broken is None else series.rows < broken
    if broken is not None and (found := _rise(rec, series, total[before])):
        return found
    if before.sum() < LEAST_ROWS:
        return None
    usual = median_of_all(total[:LEAST_ROWS]) if not np.isnan(total[:LEAST_ROWS]).all() else math.nan
    begin = [float(median(total[: i + 1])) for i in range(min(SMOOTHED - 1, len(total)))]
    smooth = np.append(begin, median(sliding_window_view(total, SMOOTHED)) if len(total) >= SMOOTHED else [])
    high = np.nan_to_num(smooth - usual, nan=-np.inf) > SURGE_DECADES
    if not high.any():
        return None
    start = int(np.flatnonzero(high)[0])
    if broken is None and (len(rounded_off(rec)) or _is_over(rec, high, int(series.rows[start]))):
        return None
    grown = series.median(slice(start, None)) / np.maximum(series.median(slice(LEAST_ROWS)), np.finfo(float).tiny)
    layers = rec.in_order(np.flatnonzero(np.nan_to_num(grown) > 10**SURGE_DECADES))
    share = float((np.nan_to_num(total[start:] - usual, nan=-np.inf) > SURGE_DECADES).mean())
    return Finding(
        "exploding",
        rec.names(layers),
        (int(series.steps[start]), rec.last_step),
        f"the norm of all gradients reaches {say_times(float(np.nanmax(smooth) - usual))} its median in the first "
        f"{LEAST_ROWS} rows",
        "1,000 times the usual norm (median of 5 rows), with a rising loss or a non-finite step",
        "measured: in healthy runs (plain34 and resnet34, 20 epochs) it is never more than 0.7 decades above the first "
        "ten rows",
        too_fast(rec),
        max(share, 1 / (len(total) + 1)),
    )


def _is_over(rec: Recording, high: NDArray[np.bool_], row: int) -> bool:
    """Return whether a surge is no explosion: the loss did not rise with it, falls since then, or the surge ended."""
    return not loss_rises(rec, row) or falls_after(rec, row) >= FELL or not high[-max(len(high) // 10, 1) :].any()


def too_fast(rec: Recording) -> str:
    """Return the remedy for gradients that grow over steps."""
    network = Network(rec)
    return f"{network.slow_down()} {network.clip()}"


def _rise(rec: Recording, series: Series, total: FloatArray) -> Finding | None:
    """Find a rise by a factor of 100 just before a non-finite row; most rows must be above the one before.

    Args:
        rec: The recording.
        series: The gradients.
        total: (n,) log10 of the norm of all gradients in the rows before the non-finite one.

    Returns:
        The finding; None where there is none.
    """
    window = total[-RISING_ROWS:]
    known = window[~np.isnan(window)]
    if len(known) < 3:
        return None
    low = int(np.argmin(known))
    rise, steps_up = float(known[-1] - known[low]), np.diff(known[low:])
    if rise < RISE_DECADES or not len(steps_up) or (steps_up > 0).mean() <= 0.5:
        return None
    start, end = len(total) - len(known) + low, len(total) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        grown = np.nan_to_num(series.at(end) / series.at(start))
    layers = rec.in_order(np.flatnonzero(grown > 10**RISE_DECADES))
    return Finding(
        "exploding",
        rec.names(layers),
        (int(series.steps[start]), int(series.steps[end])),
        f"the norm of all gradients grows to {say_times(rise)} its value within {plural(len(steps_up), 'row')}, "
        "then it is not finite",
        f"a rise by a factor of 100 within the {RISING_ROWS} rows before a non-finite row",
        "measured: in healthy runs (plain34 and resnet34) no row is more than 1.5 decades above the one before",
        too_fast(rec),
        float((np.sum(steps_up > 0) + 1) / (len(steps_up) + 2)),
    )


def swollen(rec: Recording) -> list[Finding]:
    """Find hidden layers whose outputs grew by orders of magnitude and exceed those of the first layer.

    The signal then explodes in the forward pass, even if an optimizer that divides by gradient norms keeps training.
    An embedding does not count as the first layer, because its outputs are conventionally small. Confidence: the share
    of resampled medians beyond the threshold; the largest over the layers.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    if not rec.has(RMS) or len(rec.series(RMS)) < LEAST_ROWS // 2:
        return []
    series = rec.series(RMS)
    main = rec.run.main_layers()[:-1]
    hidden = np.array([i for i in main if rec.run.layers[i].kind != "Embedding"], dtype=np.int64)
    if len(hidden) < 2:
        return []
    first = _decades(series.of(hidden[:1]))

    def grown(layers: NDArray[np.int64]) -> FloatArray:
        outputs = _decades(series.of(layers))
        return np.asarray(np.minimum(outputs - outputs[0] - SWOLLEN_TIMES, outputs - first - SWOLLEN_DEPTH))

    typical = over_layers(lambda part: median(grown(hidden[part])[series.late], axis=0), len(hidden), len(series))
    typical = np.nan_to_num(typical, nan=-np.inf)
    beyond = np.flatnonzero(typical > 0)
    if not len(beyond):
        return []
    top, names = int(np.argmax(typical)), rec.names(hidden)
    outputs = _decades(series.of(hidden[top : top + 1]))
    over_time, over_depth = (float(median((outputs - base)[series.late], axis=0)[0]) for base in (outputs[0], first))
    return [
        Finding(
            "exploding",
            tuple(names[i] for i in beyond),
            (int(series.steps[since(grown(hidden[beyond[:1]])[:, 0] > 0)]), rec.last_step),
            f"the outputs of {quoted(names[top])} are {say_times(over_time)} as large as in the first row, and "
            f"{say_times(over_depth)} as large as those of {quoted(names[0])} (median of the later half of the rows)",
            f"hidden outputs more than {10**SWOLLEN_TIMES:.0f} times as large as in the first row, and more than "
            f"{10**SWOLLEN_DEPTH:.0f} times as large as the first layer's",
            "He et al. 2015, sec. 2.2: the forward signal must keep its size; the factor 70 is from Zhang et al. 2021",
            f"{Network(rec).tame()} {Network(rec).slow_down()}",
            max(share_beyond(grown(hidden[[i]])[series.late, 0], 0.0, below=False) for i in beyond),
        )
    ]


def _decades(outputs: FloatArray) -> FloatArray:
    """Return log10 of outputs; NaN where they are 0 or unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(outputs)
    return np.where(np.isfinite(logs), logs, np.nan)
