"""The ratio of the gradient at the first layer to that at the last hidden layer.

Profile, diagnosis, claims, watch, report, notebook and captions all take the ratio from this module, so that they
always agree.

* *Layers*: the layers on one path (``gradlens.analysis.paths``) whose value is known in more than half of the rows that
  have any values. The first of them is the first layer; the last is the output layer, whose gradient depends on the
  loss alone; the one before it is the last hidden layer. Where a run has several paths, it is the longest, the main
  path; ``gradient_ratios`` compares each.
* *Rows*: all requested rows, without steps that a GradScaler skipped; in a long run, chunks of rows.
* *Zeros*: a layer that is exactly 0 in a row is at -inf decades in that row. If the last hidden layer is exactly 0, the
  layers that are not 0 are at inf. A row in which all layers are exactly 0 is counted and left out of the ratio.
* *Typical ratio*: the median over the rows in which it is known; infinities count as values.

Shapes: T rows, L layers, M main layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.parts import by_layers, by_rows, over_layers, parts_of
from gradlens.analysis.paths import LEAST_LAYERS, find_paths, name_path
from gradlens.analysis.profile import ALL_ROWS, element_scale, held_values, is_long, long_chunks
from gradlens.analysis.stats import median
from gradlens.metrics import ACTIVATION_GRAD_NORM
from gradlens.run import FloatArray, Layer, Run

LEAST_ROWS = 10
"""Fewer rows do not support a verdict over time: their later half has fewer than the 5 independent values that
``gradlens.analysis.bootstrap`` needs."""
FIRST_ROWS = 10
"""Number of first rows; their ratio is reported next to that of all rows."""
VANISH_DECADES = -3.0
"""Below this ratio the gradient vanishes. Zhang et al. 2021 (AutoTrainer, ICSE): |g_first| / |g_last| < 1e-3."""
SIMILAR_DECADES = 1.0
"""Within a factor of ten the two gradients count as about equally large."""

Fate = Literal["zero", "vanishes", "shrinks", "similar", "grows", "unknown"]
FATES: dict[str, str] = {
    "zero": "the gradient is exactly 0 at the first layer",
    "vanishes": "the gradient vanishes toward the input",
    "shrinks": "the gradient shrinks toward the input",
    "similar": "the gradients at the first and the last hidden layer differ by less than ten times",
    "grows": "the gradient does not vanish: it grows toward the input",
    "unknown": "the ratio of the first layer's gradient to the last hidden layer's is not known",
}
"""How the gradient changes toward the input, in a neutral sentence: none of them calls it a fault."""
RATIOS = {
    "ratio times": "{first} has about {number} times ({power}) the gradient norm of {last}",
    "ratio part": "{first} has about 1/{number} ({power}) of the gradient norm of {last}",
    "ratio power": "{first} has {power} times the gradient norm of {last}",
    "ratio zero": "the gradient norm of {first} is exactly 0",
    "ratio inf": "the gradient norm of {last} is exactly 0, that of {first} is not",
}
"""Sentences that compare two gradient norms."""
MESSAGES = {
    "ratio times": "the gradient at the first layer is about {number} times the last one's",
    "ratio part": "the gradient at the first layer is 1/{number} of the last one's",
    "ratio power": "the gradient at the first layer is {power} times the last one's",
    "ratio zero": "the gradient at the first layer is exactly 0",
    "ratio inf": "the gradient at the last hidden layer is exactly 0, at the first layer it is not",
}
"""The same without names, for titles; the last one is the last hidden layer."""
SHORT_MESSAGES = {
    "ratio times": "first layer {number} times the last",
    "ratio part": "first layer 1/{number} of the last",
    "ratio power": "first layer {power} times the last",
    "ratio zero": "first layer exactly 0",
    "ratio inf": "last layer exactly 0",
}
"""The same for titles of small panels."""


@dataclass(frozen=True)
class GradientRatio:
    """Gradient norms of a run's layers, divided by that of its last hidden layer.

    Args:
        layers: (M,) the compared layers, input first; the last is the output layer.
        indices: (M,) their indices among the run's layers.
        norms: (T, L) the norms of all layers of the run; NaN where unknown or not finite.
        scale: (L,) what the norms are divided by; None for 1.
        rows: (T,) index of the row in the run; in a long run, index of the first row of each chunk.
        counts: (T,) number of rows; 1, or more for a chunk.
        all_zero: (T,) whether all of these layers are exactly 0.
        path: Which of several paths it is: "the longest of 2 paths, from FIRST to LAST"; "" where there is one.
    """

    layers: tuple[Layer, ...]
    indices: NDArray[np.int64]
    norms: FloatArray
    scale: FloatArray | None
    rows: NDArray[np.int64]
    counts: FloatArray
    all_zero: NDArray[np.bool_]
    path: str = ""

    @cached_property
    def decades(self) -> FloatArray:
        """(T, M) log10 of each layer's norm over the last hidden layer's, float64.

        -inf where a layer is exactly 0, inf where only the last hidden layer is, NaN where either is unknown. It is as
        large as the metric; a rule takes ``decades_of`` or ``by_layers``.
        """
        return self.decades_of()

    @cached_property
    def first_decades(self) -> FloatArray:
        """(T,) ``decades`` of the first layer."""
        return self.decades_of(layers=slice(0, 1))[:, 0]

    def decades_of(self, window: slice = ALL_ROWS, layers: slice = ALL_ROWS) -> FloatArray:
        """Return ``decades`` in a window of rows, of some of the M layers."""
        last = self._norms(window, slice(-2, -1))
        norms = self._norms(window, layers)
        zero = (norms == 0) & ~self.all_zero[window][:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            decades = np.log10(norms, out=norms)
            decades -= np.log10(last)
        decades[zero] = -np.inf
        itself = np.arange(len(self.indices))[layers] == len(self.indices) - 2
        decades[np.ix_(last[:, 0] > 0, itself)] = 0.0
        return decades

    def _norms(self, window: slice, layers: slice) -> NDArray[np.float64]:
        """Return the norms of some of the M layers, in a new array."""
        at = self.indices[layers]
        norms = self.norms[window][:, at].astype(np.float64, copy=False)
        return norms if self.scale is None else norms / self.scale[at]

    def by_layers(self, function: Callable[[FloatArray], Any], window: slice = ALL_ROWS) -> NDArray[Any]:
        """Apply a function to ``decades`` of a few layers at a time; the last axis of what it returns is the layers."""
        rows = len(range(*window.indices(len(self.rows))))
        return over_layers(lambda part: function(self.decades_of(window, part)), len(self.indices), rows)

    @property
    def first(self) -> Layer:
        """The first layer."""
        return self.layers[0]

    @property
    def last(self) -> Layer:
        """The last hidden layer."""
        return self.layers[-2]

    @property
    def rows_known(self) -> int:
        """The number of rows in which the ratio of first to last hidden layer is known."""
        return int(self.counts[~np.isnan(self.first_decades)].sum())

    @property
    def rows_all_zero(self) -> int:
        """The number of rows in which all gradients are exactly 0."""
        return int(self.counts[self.all_zero].sum())

    def typical(self, window: slice = ALL_ROWS) -> float:
        """Return the median ratio of the first layer to the last hidden layer over a window of rows, in decades."""
        return float(median(self.first_decades[window]))

    def profile(self, window: slice = ALL_ROWS) -> FloatArray:
        """Return the median ratio of each layer to the last hidden layer over a window of rows, (M,), in decades."""
        return self.by_layers(lambda decades: median(decades, axis=0), window)

    def late(self) -> list[tuple[float, str]]:
        """Return the typical ratio, in decades, of each window of ``late_windows``, with the window's name."""
        return [(self.typical(window), name) for window, name in late_windows(len(self.rows))]


def late_windows(rows: int) -> list[tuple[slice, str]]:
    """Return the windows at the end of the rows by which a lasting state is judged, each with its name.

    These are the later half of the rows, and the last fifth where it has at least ``LEAST_ROWS`` rows.

    Args:
        rows: Number of rows.
    """
    found = [(slice(rows // 2, rows), "the later half of the rows")]
    if rows // 5 >= LEAST_ROWS:
        found.append((slice(rows - rows // 5, rows), "the last fifth of the rows"))
    return found


def gradient_ratio(
    run: Run, metric: str = ACTIVATION_GRAD_NORM, rows: slice = ALL_ROWS, *, per_element: bool = False
) -> GradientRatio | None:
    """Compare the gradient norms of a run's layers with that of its last hidden layer, row by row.

    Args:
        run: The run; a long one is read in chunks of rows.
        metric: A norm, or any other metric that is a magnitude.
        rows: The rows of interest.
        per_element: Use the root mean square per element instead of the L2 norm.

    Returns:
        The ratios on the main path; None where the run lacks the metric, or fewer than three main layers are known.

    Raises:
        ConfigError: ``per_element`` is set and the metric is not a norm.
    """
    return next(iter(gradient_ratios(run, metric, rows, per_element=per_element)), None)


def gradient_ratios(
    run: Run, metric: str = ACTIVATION_GRAD_NORM, rows: slice = ALL_ROWS, *, per_element: bool = False
) -> list[GradientRatio]:
    """Compare the layers on each path of a run, as ``gradient_ratio`` does on the longest.

    Args:
        run: The run; a long one is read in chunks of rows.
        metric: A norm, or any other metric that is a magnitude.
        rows: The rows of interest.
        per_element: Use the root mean square per element instead of the L2 norm.

    Returns:
        The ratios, the longest path first; paths of fewer than three known layers are left out.

    Raises:
        ConfigError: ``per_element`` is set and the metric is not a norm.
    """
    if metric not in run.metrics or not len(run.steps):
        return []
    values, at, counts = finite_rows(run, metric, rows)
    scale = element_scale(run, metric) if per_element else None
    paths = known_paths(run, values)
    return [
        _compare(run, values, scale, at, counts, paths, n) for n in range(len(paths)) if len(paths[n]) >= LEAST_LAYERS
    ]


def compare_layers(
    run: Run, values: FloatArray, rows: NDArray[np.int64] | None = None, counts: FloatArray | None = None
) -> GradientRatio | None:
    """Compare values that were already read, as ``gradient_ratio`` does.

    Args:
        run: The run to which the layers belong.
        values: (T, L) norms; NaN where unknown or not finite.
        rows: (T,) index of each row; None for 0, 1, ...
        counts: (T,) number of rows of each; None for one each.

    Returns:
        The ratios; None where fewer than three main layers are known.
    """
    rows = np.arange(len(values)) if rows is None else rows
    counts = np.ones(len(values)) if counts is None else counts
    paths = known_paths(run, values)
    return _compare(run, values, None, rows, counts, paths, 0) if len(paths[0]) >= LEAST_LAYERS else None


def _compare(
    run: Run,
    values: FloatArray,
    scale: FloatArray | None,
    rows: NDArray[np.int64],
    counts: FloatArray,
    paths: Sequence[NDArray[np.int64]],
    number: int,
) -> GradientRatio:
    """Compare the layers of one of the paths."""
    indices = paths[number]
    all_zero = np.logical_not(by_rows(lambda norms: (norms[:, indices] > 0).any(axis=1), values))
    rank = f"number {number + 1}" if number else "the longest"
    path = f"{rank} of {len(paths)} paths, {name_path(run, indices)}" if len(paths) > 1 else ""
    return GradientRatio(tuple(run.layers[i] for i in indices), indices, values, scale, rows, counts, all_zero, path)


def known_layers(run: Run, values: FloatArray) -> NDArray[np.int64]:
    """Return the layers of the main path with a value in more than half of the rows that have any values.

    Args:
        run: The run to which the layers belong.
        values: (T, L) values; NaN where unknown.

    Returns:
        (M,) indices, input first.
    """
    return known_paths(run, values)[0]


def known_paths(run: Run, values: FloatArray) -> list[NDArray[np.int64]]:
    """Return the paths of layers that are known, as in ``known_layers``.

    Args:
        run: The run to which the layers belong.
        values: (T, L) values; NaN where unknown.

    Returns:
        (M,) indices of each, input first; at least one, which may be empty.
    """
    held = by_rows(lambda some: (~np.isnan(some)).any(axis=1), values)
    if not held.any():
        return [np.empty(0, dtype=np.int64)]
    return find_paths(run, by_layers(lambda some: (~np.isnan(some[held])).mean(axis=0), values) > 0.5)


def finite_rows(
    run: Run, metric: str, rows: slice = ALL_ROWS
) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.float64]]:
    """Return a metric's finite values by rows; in a long run by chunks of rows.

    Args:
        run: The run.
        metric: The metric's name.
        rows: The rows of interest.

    Returns:
        Three arrays; rows without any value are left out. (T, L) values in the metric's unit, float64, or as
        ``held_values`` returns them: NaN where a value is missing or not finite, or where a GradScaler skipped the
        step; for a chunk the mean, or 0 where more than half of the values are exactly 0. (T,) index of the row, or of
        the chunk's first row. (T,) number of rows.
    """
    start, stop, _ = rows.indices(len(run.steps))
    if is_long(run, rows):
        chunks = long_chunks(run, metric, rows)
        values = np.where(chunks.zeros > chunks.count, 0.0, chunks.mean)
        at = np.asarray(chunks.edges[:-1])
        counts = (chunks.count + chunks.zeros).max(axis=1)
    else:
        values = held_values(run, metric, rows)
        skipped = np.asarray(run.scalars.get("skipped", np.zeros(len(run.steps))))[start:stop] == 1
        for part in parts_of(*values.shape):
            some = values[part]
            some[~np.isfinite(some) | skipped[part, None]] = np.nan
        at, counts = np.arange(start, stop), np.ones(stop - start)
    if not values.size:
        return values[:0], at[:0], counts[:0]
    known = by_rows(lambda some: ~np.isnan(some).all(axis=1), values)
    return (values, at, counts) if known.all() else (values[known], at[known], counts[known])


def over_seeds(decades: Sequence[float]) -> float:
    """Return the typical ratio of several seeds: the mean, or the median where a ratio is infinite.

    Args:
        decades: One ratio per seed, in decades; unknown ones (NaN) are left out.

    Returns:
        The ratio in decades; NaN where none is known.
    """
    known = np.array([value for value in decades if not math.isnan(value)], dtype=np.float64)
    if len(known) and np.isfinite(known).all():
        return float(known.mean())
    return float(median(known))


def fate_of(decades: float) -> Fate:
    """Classify how the gradient changes from the last hidden layer to the first.

    Args:
        decades: log10 of the first layer's norm over the last hidden layer's.

    Returns:
        One of the keys of ``FATES``.
    """
    if math.isnan(decades):
        return "unknown"
    if decades == -math.inf:
        return "zero"
    if decades < VANISH_DECADES:
        return "vanishes"
    if decades < -SIMILAR_DECADES:
        return "shrinks"
    return "similar" if decades <= SIMILAR_DECADES else "grows"


def say_fate(decades: float) -> str:
    """Return a neutral sentence about how the gradient changes toward the input.

    Args:
        decades: log10 of the first layer's norm over the last hidden layer's.
    """
    return FATES[fate_of(decades)]


def say_all_zero(ratio: GradientRatio, rows: int) -> str:
    """Return a sentence about the rows in which all gradients are exactly 0; "" where there are none.

    Args:
        ratio: The ratio.
        rows: Total number of rows.
    """
    zero = ratio.rows_all_zero
    return f"all gradients are exactly 0 in {say_rows(zero, rows)}" if zero else ""


def say_ratio(first: str, last: str, decades: float, words: Mapping[str, str] = RATIOS) -> str:
    """Return a sentence that compares the gradient norms of two layers: "a has about 126 times (10^2.1) ...".

    Args:
        first: Name of the first layer.
        last: Name of the last hidden layer.
        decades: log10 of the first layer's norm over the last one's.
        words: The sentences of ``RATIOS``, in any language.
    """
    form, number = _for_people(decades)
    return words[f"ratio {form}"].format(first=first, last=last, number=number, power=say_power(decades))


def say_message(ratio: GradientRatio | None, rows: int, *, short: bool = False) -> str:
    """Return the message of a run's gradient for a title: "the gradient at the first layer is 1/126 of the last one's".

    Args:
        ratio: The ratio, or None.
        rows: Total number of rows.
        short: Whether the title is that of a small panel.

    Returns:
        The sentence; "" where the ratio is not known.
    """
    if ratio is None:
        return ""
    if 2 * ratio.rows_all_zero >= rows > 0:
        return "all exactly 0" if short else "all gradients are exactly 0 in most rows"
    typical = ratio.typical()
    said = "" if math.isnan(typical) else say_ratio("", "", typical, SHORT_MESSAGES if short else MESSAGES)
    if short:
        return said
    collapse = f"all gradients are exactly 0 in {say_rows(ratio.rows_all_zero, rows)}" if ratio.rows_all_zero else ""
    return "; ".join(filter(None, [said, collapse]))


def _for_people(decades: float) -> tuple[str, str]:
    """Return the form of the sentence, and the ratio with two or three digits; "" beyond a million."""
    if not abs(decades) < 6:
        return {-math.inf: "zero", math.inf: "inf"}.get(decades, "power"), ""
    number = 10.0 ** abs(decades)
    if number < 10:
        return "times", f"{10.0**decades:.2g}"
    digits = math.floor(math.log10(number)) - (2 if decades > 0 else 1)
    return ("times" if decades > 0 else "part"), f"{round(number, -max(digits, 0)):,.0f}"


def say_power(decades: float) -> str:
    """Return a ratio as a power of ten: ``10^2.4``; ``0`` for exactly 0.

    Args:
        decades: log10 of the ratio.
    """
    if decades == -math.inf:
        return "0"
    decades = round(decades, 1) + 0.0 if math.isfinite(decades) else decades  # no "-0.0"
    return f"10^{decades:.1f}" if math.isfinite(decades) else "not known" if math.isnan(decades) else "inf"


def say_times(decades: float) -> str:
    """Return a factor with a number first, then the power of ten: "about 126 times (10^2.1)".

    Args:
        decades: log10 of the factor.
    """
    form, number = _for_people(decades)
    if math.isnan(decades):
        return "an unknown number of times"
    if form not in ("times", "part"):
        return f"{say_power(decades)} times"
    return f"about {number if form == 'times' else '1/' + number} times ({say_power(decades)})"


def say_rows(known: int, total: int) -> str:
    """Return the extent of a median as text: "all rows" or "15 of 20 rows".

    Args:
        known: Number of rows in the median.
        total: Number of all rows.
    """
    return "all rows" if known == total else f"{known:,} of {total:,} rows"
