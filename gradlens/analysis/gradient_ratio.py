"""How large the gradient at the first layer is beside that at the last hidden one: the one source of that number.

Profile, diagnosis, claims, watch, report, notebook and captions ask here, so that one fact reads the same everywhere.

* *Layers*: the main layers whose value is known in more than half of the rows that have any. The first of them is the
  first layer, the last but one the last hidden layer; the last is the output layer, whose gradient is the loss's own.
* *Rows*: all that were asked for, without steps that a GradScaler skipped; in a long run, chunks of rows.
* *Zeros*: a layer at exactly 0 in a row in which any of these layers is not, is at -inf decades there; where the last
  hidden layer alone is, a layer that is not is at inf. A row in which
  all are exactly 0 compares nothing: it is counted, and left out of the ratio.
* *Typical*: the median over the rows in which it is known, where infinities are values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.profile import ACTIVATION_GRAD, ALL_ROWS, element_scale, is_long, layer_values, long_chunks
from gradlens.analysis.stats import median
from gradlens.run import FloatArray, Layer, Run

LEAST_LAYERS = 3
"""First, last hidden and output layer."""
LEAST_ROWS = 10
"""Fewer rows are no base for a verdict over time: their later half is worth fewer than the 5 independent numbers that
``gradlens.analysis.bootstrap`` asks for."""
FIRST_ROWS = 10
"""The first rows, whose ratio is named beside that of all."""
VANISH_DECADES = -3.0
"""Below this the gradient vanishes. Zhang et al. 2021 (AutoTrainer, ICSE): |g_first| / |g_last| < 1e-3."""
SIMILAR_DECADES = 1.0
"""Within a factor of ten the two are called about as large."""

Fate = Literal["zero", "vanishes", "shrinks", "similar", "grows", "unknown"]
FATES: dict[str, str] = {
    "zero": "the gradient is exactly 0 at the first layer",
    "vanishes": "the gradient vanishes toward the input",
    "shrinks": "the gradient shrinks toward the input",
    "similar": "the gradient is about as large at the first layer as at the last hidden one",
    "grows": "the gradient does not vanish: it grows toward the input",
    "unknown": "the gradient at the first layer beside that at the last hidden one is not known",
}
"""What becomes of a gradient, in a sentence that calls nothing a fault."""
RATIOS = {
    "ratio times": "{first} has about {number} times ({power}) the gradient norm of {last}",
    "ratio part": "{first} has about 1/{number} ({power}) of the gradient norm of {last}",
    "ratio power": "{first} has {power} times the gradient norm of {last}",
    "ratio zero": "the gradient norm of {first} is exactly 0",
    "ratio inf": "the gradient norm of {last} is exactly 0, that of {first} is not",
}
"""How one gradient norm compares with another."""


@dataclass(frozen=True)
class GradientRatio:
    """Gradient norms of the layers of a run over that of its last hidden layer.

    Args:
        layers: (M,) the layers that are compared, input first; the last is the output layer.
        indices: (M,) their places among the run's layers.
        decades: (T, M) log10 of each layer's norm over the last hidden layer's; -inf where a layer is exactly 0, inf
            where the last hidden layer alone is, NaN where either is not known.
        rows: (T,) the row of the run; in a long run the first row of each chunk.
        counts: (T,) how many rows each stands for.
        all_zero: (T,) whether all of these layers are exactly 0.
    """

    layers: tuple[Layer, ...]
    indices: NDArray[np.int64]
    decades: FloatArray
    rows: NDArray[np.int64]
    counts: FloatArray
    all_zero: NDArray[np.bool_]

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
        return int(self.counts[~np.isnan(self.decades[:, 0])].sum())

    @property
    def rows_all_zero(self) -> int:
        """The number of rows in which all gradients are exactly 0."""
        return int(self.counts[self.all_zero].sum())

    def typical(self, window: slice = ALL_ROWS) -> float:
        """Return the median ratio of first to last hidden layer over some of the rows, in decades."""
        return float(median(self.decades[window, 0]))

    def profile(self, window: slice = ALL_ROWS) -> FloatArray:
        """Return (M,) the median ratio of every layer to the last hidden one, in decades."""
        return median(self.decades[window], axis=0)

    def late(self) -> list[tuple[float, str]]:
        """Return the typical ratio of each window at the end of the rows, with the window's name."""
        return [(self.typical(window), name) for window, name in late_windows(len(self.decades))]


def late_windows(rows: int) -> list[tuple[slice, str]]:
    """Return the windows at the end of so many rows by which a state that lasts is judged, each with its name.

    These are the later half, and the last fifth where it has at least ``LEAST_ROWS`` rows.
    """
    found = [(slice(rows // 2, rows), "the later half of the rows")]
    if rows // 5 >= LEAST_ROWS:
        found.append((slice(rows - rows // 5, rows), "the last fifth of the rows"))
    return found


def gradient_ratio(
    run: Run, metric: str = ACTIVATION_GRAD, rows: slice = ALL_ROWS, *, per_element: bool = False
) -> GradientRatio | None:
    """Compare the gradient norms of a run's layers with that of its last hidden layer, row by row.

    Args:
        run: The run; a long one is read in chunks of rows.
        metric: Which norm; any metric that is a magnitude.
        rows: Which rows.
        per_element: The root mean square per element instead of the L2 norm.

    Returns:
        None where the run lacks the metric, or fewer than three main layers are known.

    Raises:
        ConfigError: Per element of what is no norm.
    """
    if metric not in run.metrics or not len(run.steps):
        return None
    values, at, counts = finite_rows(run, metric, rows)
    if per_element:
        values = values / element_scale(run, metric)
    return compare_layers(run, values, at, counts)


def compare_layers(
    run: Run, values: FloatArray, rows: NDArray[np.int64] | None = None, counts: FloatArray | None = None
) -> GradientRatio | None:
    """Compare rows of values that were read before, as ``gradient_ratio`` does.

    Args:
        run: Whose layers they are of.
        values: (T, L) norms; what is not known or not finite is NaN.
        rows: (T,) the row of each; None for 0, 1, ...
        counts: (T,) how many rows each stands for; None for one each.
    """
    rows = np.arange(len(values)) if rows is None else rows
    counts = np.ones(len(values)) if counts is None else counts
    indices = known_layers(run, values)
    if len(indices) < LEAST_LAYERS:
        return None
    norms = values[:, indices]
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.log10(norms) - np.log10(norms[:, -2:-1])
    all_zero = np.nan_to_num(norms).max(axis=1) == 0
    decades = np.where((norms == 0) & ~all_zero[:, None], -np.inf, decades)
    decades[:, -2][norms[:, -2] > 0] = 0.0
    return GradientRatio(tuple(run.layers[i] for i in indices), indices, decades, rows, counts, all_zero)


def known_layers(run: Run, values: FloatArray) -> NDArray[np.int64]:
    """Return the indices of the main layers with a value in more than half of the rows that have any, input first."""
    known = ~np.isnan(values)
    held = known.any(axis=1)
    if not held.any():
        return np.empty(0, dtype=np.int64)
    often = known[held].mean(axis=0) > 0.5
    return np.array([i for i in run.main_layers() if often[i]], dtype=np.int64)


def finite_rows(
    run: Run, metric: str, rows: slice = ALL_ROWS
) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.float64]]:
    """Return a metric's finite values by rows; in a long run by chunks of rows.

    Returns:
        (T, L) values, NaN where nothing is known, a value is not finite, or the step was skipped by a GradScaler; in a
        chunk the mean, or 0 where more than half of the values are exactly 0. (T,) the row, or the first row, of each.
        (T,) how many rows each stands for. Rows without any value are left out.
    """
    start, stop, _ = rows.indices(len(run.steps))
    if is_long(run, rows):
        chunks = long_chunks(run, metric, rows)
        values = np.where(chunks.zeros > chunks.count, 0.0, chunks.mean)
        at = np.asarray(chunks.edges[:-1])
        counts = (chunks.count + chunks.zeros).max(axis=1)
    else:
        values = layer_values(run, metric, rows)
        skipped = np.asarray(run.scalars.get("skipped", np.zeros(len(run.steps))))[start:stop] == 1
        values = np.where(np.isfinite(values) & ~skipped[:, None], values, np.nan)
        at, counts = np.arange(start, stop), np.ones(stop - start)
    known = ~np.isnan(values).all(axis=1) if values.size else np.zeros(len(values), dtype=bool)
    return values[known], at[known], counts[known]


def over_seeds(decades: Sequence[float]) -> float:
    """Return the typical ratio of several seeds: their mean; the median where one of them is exactly 0.

    What is not known is left out; NaN where nothing is.
    """
    known = np.array([value for value in decades if not math.isnan(value)], dtype=np.float64)
    if len(known) and np.isfinite(known).all():
        return float(known.mean())
    return float(median(known))


def fate_of(decades: float) -> Fate:
    """Name what becomes of a gradient from the last hidden layer to the first."""
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
    """Say what becomes of a gradient, without calling it a fault."""
    return FATES[fate_of(decades)]


def say_all_zero(ratio: GradientRatio, rows: int) -> str:
    """Say in how many of so many rows nothing can be compared, as all gradients are exactly 0; "" where in none."""
    zero = ratio.rows_all_zero
    return f"all gradients are exactly 0 in {say_rows(zero, rows)}" if zero else ""


def say_ratio(first: str, last: str, decades: float, words: Mapping[str, str] = RATIOS) -> str:
    """Say how the gradient norm at one layer compares with that at another: a number for people, then the power.

    Args:
        first: The one layer's name.
        last: The other's.
        decades: log10 of the ratio.
        words: The sentences of ``RATIOS``, in any language.
    """
    form, number = _for_people(decades)
    return words[f"ratio {form}"].format(first=first, last=last, number=number, power=say_power(decades))


def _for_people(decades: float) -> tuple[str, str]:
    """Return which of the sentences suits a ratio, and its number: two or three digits, none beyond a million."""
    if not abs(decades) < 6:
        return {-math.inf: "zero", math.inf: "inf"}.get(decades, "power"), ""
    number = 10.0 ** abs(decades)
    if number < 10:
        return "times", f"{10.0**decades:.2g}"
    digits = math.floor(math.log10(number)) - (2 if decades > 0 else 1)
    return ("times" if decades > 0 else "part"), f"{round(number, -max(digits, 0)):,.0f}"


def say_power(decades: float) -> str:
    """Write a ratio that is given in decades as a power of ten: ``10^2.4``; exactly 0 as ``0``."""
    if decades == -math.inf:
        return "0"
    return f"10^{decades:.1f}" if math.isfinite(decades) else "not known" if math.isnan(decades) else "inf"


def say_rows(known: int, total: int) -> str:
    """Say of how many rows something is the median."""
    return "all rows" if known == total else f"{known:,} of {total:,} rows"
