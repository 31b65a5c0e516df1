"""Heatmaps prepared for drawing: layers, columns, drawn values and the colour scale.

Shapes: L layers, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.derived_metrics import check_metric
from gradlens.analysis.parts import parts_of
from gradlens.analysis.paths import hidden_layers
from gradlens.analysis.profile import HeatMatrix, heat_matrix, heat_rows, rows_within
from gradlens.errors import ConfigError
from gradlens.metrics import METRICS_OF_SOME_LAYERS, SHOWN_METRICS, is_linear
from gradlens.run import FloatArray, Layer, Run

Kind = Literal["magnitude", "ratio", "share", "signed", "difference"]
Span = tuple[int | None, int | None]
LEAST_QUIET = 1e-4
"""Smallest end of the linear part of a signed scale, as a share of the largest magnitude: four decades on each side are
enough."""


@dataclass(frozen=True)
class View:
    """The view of a metric that a heatmap shows.

    Args:
        metric: The metric's name.
        per_element: Divide norms by the square root of the number of elements: the root mean square.
        relative: Divide magnitudes by that of the last hidden layer in the same column.
        steps: First and last optimizer step, both included; None is the beginning, or the end.
    """

    metric: str
    per_element: bool = False
    relative: bool = False
    steps: Span = (None, None)


@dataclass(frozen=True)
class Panel:
    """One heatmap.

    Args:
        run: The run; in a difference, the first run.
        layers: (L,) the shown layers, input first.
        drawn: (L, C) the values that colours represent: log10 of a magnitude or of a ratio, else the value. NaN where
            nothing was recorded, -inf where a magnitude is exactly 0, inf where a gradient was not finite.
        edges: (C + 1,) edges of the columns, in optimizer steps.
        kind: "magnitude", "ratio" (of magnitudes, in decades), "share" (from 0 to a limit), "signed" (a magnitude with
            a sign), or "difference" (of linear metrics; also the scale of a cosine).
        view: The view of the metric.
        minus: The run that was subtracted, or None.
    """

    run: Run
    layers: tuple[Layer, ...]
    drawn: FloatArray
    edges: FloatArray
    kind: Kind
    view: View
    minus: Run | None = None
    starts: NDArray[np.int64] | None = None
    """(G,) index of the first layer of each row of ``drawn``, where several layers share a row."""
    ends: tuple[float, ...] = ()
    """The smallest and the largest finite value of single layers, where several share a row and there is one."""

    @property
    def is_empty(self) -> bool:
        """Whether no row has been recorded."""
        return bool(self.drawn.shape[1] == 0)


def make_panel(
    run: Run, view: View, *, columns: int, minus: Run | None = None, most_layers: int | None = None
) -> Panel:
    """Arrange a metric of a run, or its difference from that of another run, for a heatmap.

    Args:
        run: The run.
        view: The view of the metric.
        columns: Maximum number of columns; neighbouring rows are averaged.
        minus: Another run with the same layers, or None. The panel then shows log10 of the ratio for magnitudes and the
            difference for linear metrics, where both runs have a value; exact zeros cannot be compared.
        most_layers: Of more layers than this, neighbours share a row of ``drawn``, as in ``merge_layers``; None for a
            row for each. A difference has a row for each.

    Returns:
        The panel.

    Raises:
        ConfigError: A run lacks the metric or has no row between the steps; the runs have different layers or no steps
            in common; or relative values are requested for a metric that is not a magnitude.
    """
    for one in (run, minus) if minus else (run,):
        check_metric(one, view.metric)
    linear = is_linear(view.metric)
    if view.relative and linear:
        raise ConfigError(f"{view.metric} is not a magnitude: it has no relative values", tip="leave out --relative")
    if minus is not None:
        difference, matrix = _difference(run, minus, view, columns)
        if view.relative:
            difference = _relative(difference, difference[_last_hidden(run)])
        return _with_layers(Panel(run, run.layers, difference, matrix.steps, _kind(view, True), view, minus))
    rows = heat_rows(
        run, view.metric, columns=columns, per_element=view.per_element, rows=rows_within(run, *view.steps)
    )

    def of_layers(layers: slice | NDArray[np.int64]) -> FloatArray:
        return rows.of(layers) if linear else decades(rows.of(layers))

    last = of_layers(np.array([_last_hidden(run)]))[0] if view.relative else None

    def draw(layers: slice | NDArray[np.int64]) -> FloatArray:
        return of_layers(layers) if last is None else _relative(of_layers(layers), last)

    if most_layers is None or len(run.layers) <= most_layers:
        return _with_layers(Panel(run, run.layers, draw(slice(None)), rows.steps, _kind(view, False), view))
    return _with_few_rows(
        Panel(run, run.layers, np.empty((0, 0)), rows.steps, _kind(view, False), view), draw, most_layers
    )


def _with_layers(panel: Panel) -> Panel:
    """Return a panel of all layers with those that are drawn."""
    kept = _kept(panel, np.logical_not(np.isnan(panel.drawn).all(axis=1)))
    return replace(panel, layers=tuple(panel.layers[i] for i in kept), drawn=panel.drawn[kept])


def _with_few_rows(panel: Panel, draw: Callable[[slice | NDArray[np.int64]], FloatArray], most: int) -> Panel:
    """Return a panel of all layers with those that are drawn, neighbours in one row; a few are computed at a time."""
    columns = len(panel.edges) - 1
    parts = parts_of(len(panel.layers), columns)
    kept = _kept(panel, np.concatenate([~np.isnan(draw(part)).all(axis=1) for part in parts]))
    size = -(-len(kept) // most)
    starts = np.arange(0, len(kept), size)
    drawn, ends = [], list[float]()
    for part in parts_of(len(starts), size * columns):
        some = draw(kept[starts[part][0] : starts[part][-1] + size])
        finite = some[np.isfinite(some)]
        ends += [float(finite.min()), float(finite.max())] if len(finite) else []
        drawn.append(_merged(some, starts[part] - starts[part][0]))
    return replace(
        panel,
        layers=tuple(panel.layers[i] for i in kept),
        drawn=np.concatenate(drawn),
        starts=starts,
        ends=(min(ends), max(ends)) if ends else (),
    )


def _kept(panel: Panel, known: NDArray[np.bool_]) -> NDArray[np.int64]:
    known_only = panel.view.metric in METRICS_OF_SOME_LAYERS
    return np.array(drawn_layers(panel.layers, known, known_only=known_only), dtype=np.int64)


def _kind(view: View, minus: bool) -> Kind:
    metric = SHOWN_METRICS.get(view.metric)
    scale = metric.scale if metric else "log"
    if scale == "log":
        return "ratio" if minus or view.relative else "magnitude"
    if scale == "signed":
        return "signed"
    return "difference" if minus or (metric and metric.limits and metric.limits[0] < 0) else "share"


def drawn_layers(layers: Sequence[Layer], known: NDArray[np.bool_], *, known_only: bool = False) -> list[int]:
    """Return the layers to draw: without those that were never called and have no value.

    Args:
        layers: All layers.
        known: (L,) which of them have a value.
        known_only: Leave out every layer without a value.

    Returns:
        Their indices; all of them if none has a value and none was called.
    """
    always = [layer.calls > 0 and not known_only for layer in layers]
    kept = [i for i in range(len(layers)) if always[i] or known[i]]
    return kept or list(range(len(layers)))


def decades(values: FloatArray) -> FloatArray:
    """Return log10 of magnitudes, of any shape: -inf at exact zeros, inf where not finite, NaN where unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(values)


def _last_hidden(run: Run) -> int:
    """Return the index of the last hidden layer of the main path."""
    hidden = hidden_layers(run)
    if not len(hidden):
        raise ConfigError(f"run {run.name} has no hidden layer: there are no relative values")
    return int(hidden[-1])


def _relative(drawn: FloatArray, last: FloatArray) -> FloatArray:
    """Return decades relative to those of the last hidden layer, (C,)."""
    return np.where(np.isposinf(drawn), np.inf, drawn - np.where(np.isfinite(last), last, np.nan))


def _difference(run: Run, other: Run, view: View, columns: int) -> tuple[FloatArray, HeatMatrix]:
    """Return run minus other, (L, C), in the steps that both have, and the matrix of the first run."""
    mine, theirs = ([layer.name for layer in one.layers] for one in (run, other))
    if mine != theirs:
        raise ConfigError(f"{run.name} and {other.name} have different layers: they cannot be compared layer by layer")
    ends = [one.steps[[0, -1]] for one in (run, other) if len(one.steps)]
    if len(ends) < 2 or ends[0][0] > ends[1][1] or ends[1][0] > ends[0][1]:
        raise ConfigError(f"{run.name} and {other.name} have no steps in common")
    first = max(int(ends[0][0]), int(ends[1][0]), view.steps[0] or 0)
    last = min(int(ends[0][1]), int(ends[1][1]))
    last = last if view.steps[1] is None else min(last, view.steps[1])
    a, b = (
        heat_matrix(one, view.metric, columns=columns, per_element=view.per_element, rows=rows_within(one, first, last))
        for one in (run, other)
    )
    found = np.searchsorted(b.steps[:-1], (a.steps[:-1] + a.steps[1:]) / 2, side="right") - 1
    left, right = a.values, b.values[:, np.clip(found, 0, b.values.shape[1] - 1)]
    if not is_linear(view.metric):
        left, right = (np.where(values == 0, np.nan, decades(values)) for values in (left, right))
    with np.errstate(invalid="ignore"):
        drawn = left - right
    return np.where(np.isinf(left) | np.isinf(right), np.inf, drawn), a


@dataclass(frozen=True)
class Scale:
    """The mapping from drawn values to positions on a colour bar.

    Args:
        kind: As in ``Panel``.
        low: Value at the lower end.
        high: Value at the upper end.
        quiet: End of the linear part of a signed scale.
    """

    kind: Kind
    low: float
    high: float
    quiet: float = 0.0

    @property
    def is_diverging(self) -> bool:
        """Whether the scale diverges from a centre at 0."""
        return self.low < 0 < self.high and self.kind != "magnitude"

    def places(self, drawn: FloatArray) -> FloatArray:
        """Return positions on the colour bar.

        Args:
            drawn: Drawn values, of any shape.

        Returns:
            Positions from 0 to 1, of the same shape; NaN where a value is NaN.
        """
        ends = np.array([self.low, self.high])
        if self.kind == "signed":
            drawn, ends = self._bent(drawn), self._bent(ends)
        return np.asarray(np.clip((drawn - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0))

    def _bent(self, values: FloatArray) -> FloatArray:
        """Return values on a scale that is linear around 0 and logarithmic beyond.

        Source: Webber 2013, A bi-symmetric log transformation for wide-range data.
        """
        return np.asarray(np.sign(values) * np.log1p(np.abs(values) / self.quiet))


def common_scale(panels: Sequence[Panel]) -> Scale:
    """Return one scale for all panels of a metric; it contains all values, and 0 is the centre of a signed scale.

    Args:
        panels: Panels of one metric.
    """
    kind = panels[0].kind
    parts = [part for panel in panels for part in (panel.drawn[np.isfinite(panel.drawn)], np.array(panel.ends))]
    values = np.concatenate(parts) if parts else np.empty(0)
    metric = SHOWN_METRICS.get(panels[0].view.metric)
    limits = metric.limits if metric else None
    largest = float(np.abs(values).max()) if len(values) else 0.0
    if kind == "magnitude":
        low, high = (float(values.min()), float(values.max())) if len(values) else (-1.0, 0.0)
        return Scale(kind, low, high if high > low else low + 1)
    if kind == "share":
        return Scale(kind, *(limits or (min(0.0, float(values.min(initial=0))), largest or 1.0)))
    if kind == "signed":
        return Scale(kind, -(largest or 1.0), largest or 1.0, quiet_end(values))
    if limits and all(panel.minus is None for panel in panels):
        return Scale(kind, *limits)
    return Scale(kind, -(largest or 1.0), largest or 1.0)


def quiet_end(values: FloatArray) -> float:
    """Return the end of the linear part of a signed scale: the power of ten that nine in ten magnitudes exceed.

    Args:
        values: Signed magnitudes, of any shape.
    """
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if not len(sizes):
        return 1.0
    start = max(float(np.quantile(sizes, 0.1)), LEAST_QUIET * float(sizes.max()))
    return float(10.0 ** math.floor(math.log10(start)))


def merge_layers(panel: Panel, starts: Sequence[int]) -> Panel:
    """Merge neighbouring layers of a panel; drawn values are averaged.

    Args:
        panel: The panel.
        starts: Index of the first layer of each group, ascending.

    Returns:
        The panel with one layer per group; each has the name of the group's first layer.
    """
    at = np.asarray(starts, dtype=np.int64)
    return replace(panel, layers=tuple(panel.layers[i] for i in at), drawn=_merged(panel.drawn, at))


def _merged(drawn: FloatArray, at: NDArray[np.int64]) -> FloatArray:
    """Return the means of neighbouring rows, each from one of these rows on: (L, C) to (G, C)."""
    finite = np.isfinite(drawn)
    counts = np.add.reduceat(finite.astype(np.int64), at, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.add.reduceat(np.where(finite, drawn, 0.0), at, axis=0) / counts
    zero, broken = (np.logical_or.reduceat(test(drawn), at, axis=0) for test in (np.isneginf, np.isposinf))
    means = np.where(counts > 0, means, np.where(zero, -np.inf, np.nan))
    return np.where(broken, np.inf, means)
