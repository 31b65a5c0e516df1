"""Depth profiles prepared for drawing: the seeds of one model in one curve, with theory for the first step.

Shapes: T rows, L layers, M main layers, S seeds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.bootstrap import Estimate
from gradlens.analysis.depth import DepthFit, SeedFit, fit_depth, over_seeds
from gradlens.analysis.derived_metrics import check_metric, with_derived
from gradlens.analysis.gradient_ratio import over_seeds as ratio_over_seeds
from gradlens.analysis.gradient_ratio import say_fate, say_power, say_ratio, say_times
from gradlens.analysis.groups import group_runs, label_runs
from gradlens.analysis.parts import by_layers, over_layers
from gradlens.analysis.paths import Section, find_sections, main_section
from gradlens.analysis.profile import element_scale, rows_within, say_layer, typical_held
from gradlens.analysis.stats import Interval, mean_interval, median_of_all
from gradlens.errors import ConfigError
from gradlens.format import plain, plural
from gradlens.metrics import ACTIVATION_GRAD_NORM, GRADIENT_NORMS, METRICS_OF_SOME_LAYERS, is_linear
from gradlens.run import FloatArray, Layer, Run
from gradlens.theory.predict import (
    Prediction,
    deviation,
    first_predicted,
    first_profile,
    predicted_profile,
    say_deviation,
)

Steps = tuple[int | None, int | None]


@dataclass(frozen=True)
class Theory:
    """The first step compared with theory, in decades relative to the last hidden layer.

    Args:
        prediction: The prediction for the first run; it is the same for every seed.
        decades: (M,) predicted values, as L2 norms or per element.
        measured: (S, M) measured values, one row per seed.
    """

    prediction: Prediction
    decades: FloatArray
    measured: FloatArray

    @property
    def spread(self) -> FloatArray:
        """(M,) predicted standard deviation between seeds, in decades."""
        return self.prediction.spread

    def deviations(self) -> FloatArray:
        """Return measured minus predicted values, (S, M), in predicted standard deviations."""
        shift = self.decades - self.prediction.decades
        return np.array([deviation(self.prediction, row - shift) for row in self.measured])


@dataclass(frozen=True)
class Curve:
    """The profile of one run, or of several seeds of one model.

    Args:
        label: Label of the curve.
        runs: The runs, one per seed.
        metric: The metric's name.
        layers: (M,) the layers of the main path, input first, or of another section; for a metric of residual blocks,
            those at which a block begins.
        centre: (M,) log10 of a magnitude, else the metric itself. For one run it is the median over rows, for several
            seeds the mean of these medians. -inf where a magnitude is exactly 0 (in most seeds), NaN where unknown.
        low: (M,) lower end of the band: for one run the 10 % quantile over rows, for several seeds the lower end of the
            95 % interval of the mean.
        high: (M,) upper end of the band: the 90 % quantile, or the upper end of the interval.
        fits: The sections of each run; empty lists for a metric that is not a magnitude.
        seeds: The sections over seeds.
        theory: The first step compared with theory; None where there is no prediction, or no first step.
        places: (M,) where the layers lie over depth, from 1: layers of another section lie between those of the main
            path that run before and after them.
    """

    label: str
    runs: tuple[Run, ...]
    metric: str
    layers: tuple[Layer, ...]
    centre: FloatArray
    low: FloatArray
    high: FloatArray
    fits: list[list[DepthFit]]
    seeds: list[SeedFit]
    theory: Theory | None
    places: FloatArray


def make_curves(
    runs: Sequence[Run], metric: str, *, per_element: bool = False, steps: Steps = (None, None)
) -> list[Curve]:
    """Group runs by model and settings, and compute the profile of each group.

    Args:
        runs: The runs. Where several repeat a seed, only the first is used.
        metric: A metric, or a derived metric, that every run has.
        per_element: Use the root mean square per element instead of the L2 norm.
        steps: First and last optimizer step; None is the beginning, or the end.

    Returns:
        One curve per group: the main path. A single group also has the other sections of ``gradlens.analysis.paths``:
        the layers of each kind in a transformer, and other paths.

    Raises:
        ConfigError: There are no runs, or a run lacks the metric or has no row of it between the steps.
    """
    if not runs:
        raise ConfigError("a profile needs at least one run")
    runs = [with_derived(run) for run in runs]
    for run in runs:
        check_metric(run, metric)
    grouped: list[tuple[str, tuple[Run, ...]]] = []
    for group in group_runs(list(runs)):
        alike = len({tuple(layer.name for layer in run.layers) for run in group.runs}) == 1
        grouped += [(group.label, group.runs)] if alike else [(run.name, (run,)) for run in group.runs]
    singles = label_runs([members[0] for _, members in grouped])
    labels = [label if len(members) > 1 else single for (label, members), single in zip(grouped, singles, strict=True)]
    curves = [
        _curve(label, members, metric, per_element, steps, main_section(members[0]))
        for label, (_, members) in zip(labels, grouped, strict=True)
    ]
    if len(grouped) == 1 and metric not in METRICS_OF_SOME_LAYERS:
        members = grouped[0][1]
        curves += [
            _curve(f"{labels[0]}, {section.name}", members, metric, per_element, steps, section)
            for section in find_sections(members[0])
            if _is_known(members, metric, steps, section)
        ]
    return curves


def _is_known(runs: Sequence[Run], metric: str, steps: Steps, section: Section) -> bool:
    """Return whether every run has a value of a section's layers."""
    return all(
        not np.isnan(typical_held(run, metric, rows_within(run, *steps))[:, section.layers]).all() for run in runs
    )


def _curve(label: str, runs: tuple[Run, ...], metric: str, per_element: bool, steps: Steps, section: Section) -> Curve:
    is_main, main = not section.name, section.layers
    fits, centres, quantiles = [], [], []
    for run in runs:
        rows = rows_within(run, *steps)
        hidden = None if is_main else section.hidden
        fits.append([] if is_linear(metric) else fit_depth(run, metric, rows, per_element=per_element, layers=hidden))
        low, centre, high = _quantiles(run, metric, rows, per_element, main)
        centres.append(centre)
        quantiles.append((low, high))
    if len(runs) == 1:
        centre, (low, high) = centres[0], quantiles[0]
    else:
        over = [mean_interval(column) for column in np.array(centres).T]
        most_zero = np.isneginf(centres).sum(axis=0) * 2 > len(runs)
        centre = np.where(most_zero, -np.inf, [interval.mean for interval in over])
        low, high = (np.array([getattr(interval, end) for interval in over]) for end in ("low", "high"))
    kept = ~np.isnan(centre) if metric in METRICS_OF_SOME_LAYERS else np.ones(len(main), dtype=bool)
    layers = tuple(runs[0].layers[i] for i in main[kept])
    at_start = is_main and metric == ACTIVATION_GRAD_NORM and not (steps[0] or 0)
    theory = _theory(runs, per_element, main) if at_start else None
    seeds = over_seeds(fits) if len(runs) > 1 else []
    path = main_section(runs[0]).layers
    places = np.arange(1.0, kept.sum() + 1) if is_main else np.interp(main, path, np.arange(1.0, len(path) + 1))
    return Curve(label, runs, metric, layers, centre[kept], low[kept], high[kept], fits, seeds, theory, places)


def _quantiles(run: Run, metric: str, rows: slice, per_element: bool, layers: NDArray[np.int64]) -> FloatArray:
    """Return the 10 %, 50 % and 90 % quantiles over rows for some layers, (3, M); magnitudes in decades."""
    values = typical_held(run, metric, rows)
    scale = element_scale(run, metric) if per_element else np.ones(len(run.layers))
    if by_layers(lambda some: np.isnan(some).all(axis=0), values)[layers].all():
        raise ConfigError(f"no row of {metric} has been recorded yet in {run.name}")

    def quantiles(part: slice) -> FloatArray:
        some = values[:, layers[part]].astype(np.float64) / scale[layers[part]]
        finite = np.where(np.isfinite(some), some, np.nan)
        if is_linear(metric):
            return np.asarray(np.nanquantile(finite, [0.1, 0.5, 0.9], axis=0))
        return np.asarray(np.nanquantile(np.log10(finite), [0.1, 0.5, 0.9], axis=0, method="inverted_cdf"))

    with np.errstate(divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a layer without any value
        return over_layers(quantiles, len(layers), len(values))


def _theory(runs: tuple[Run, ...], per_element: bool, layers: NDArray[np.int64]) -> Theory | None:
    """Return the comparison with theory for the runs that recorded the first step."""
    prediction = predicted_profile(runs[0])
    firsts = [first for run in runs if (first := first_profile(run, per_element=per_element)) is not None]
    if prediction is None or not firsts or first_predicted(prediction) < 0:
        return None
    if not np.array_equal(prediction.layers, layers):
        return None
    decades = prediction.per_element(runs[0]) if per_element else prediction.decades
    return Theory(prediction, decades, np.array(firsts))


def slope_rows(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return a table of slopes: one row per run and section, then one per section for the mean over seeds.

    Args:
        curves: The curves.

    Returns:
        Rows of plain values, for JSON and CSV; slopes are in decades per layer toward the input.
    """
    rows = []
    for curve in curves:
        for i, run in enumerate(curve.runs):
            for fit in curve.fits[i]:
                numbers = {"slope": fit.slope, "decades": fit.decades}
                rows.append(
                    _head(curve, run.seed if run.seed >= 0 else None, run.name, fit.section, len(fit.layers))
                    | _plain(numbers)
                )
                rows[-1] |= {"rows": fit.slope.rows, "zero_layers": fit.zeros, "unknown_layers": fit.left_out}
        for seed_fit in curve.seeds:
            layers = next(len(fit.layers) for fit in curve.fits[0] if fit.section == seed_fit.section)
            means = {"slope": seed_fit.slope, "decades": seed_fit.decades}
            rows.append(_head(curve, None, None, seed_fit.section, layers) | _plain(means))
            rows[-1] |= {"seeds": seed_fit.slope.n}
    return rows


def _head(curve: Curve, seed: int | None, run: str | None, section: str, layers: int) -> dict[str, Any]:
    return {"model": curve.label, "run": run, "seed": seed, "section": section, "layers": layers}


def _plain(numbers: Mapping[str, Estimate | Interval]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in numbers.items():
        centre = value.value if isinstance(value, Estimate) else value.mean
        found |= {name: plain(centre), f"{name}_low": plain(value.low), f"{name}_high": plain(value.high)}
    return found


def layer_rows(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return a table of profiles: one row per curve and layer, with its centre, band and prediction.

    Args:
        curves: The curves.

    Returns:
        Rows of plain values, for JSON and CSV; magnitudes are in decades, ``deviation`` is in predicted standard
        deviations.
    """
    rows = []
    for curve in curves:
        theory = curve.theory
        measured = _mean(theory.measured) if theory else None
        deviations = _mean(theory.deviations()) if theory else None
        for i, layer in enumerate(curve.layers):
            row = {"model": curve.label, "layer": layer.name, "stage": layer.stage, "depth": layer.depth}
            name = curve.metric if is_linear(curve.metric) else "log10"
            row |= {name: plain(curve.centre[i]), "low": plain(curve.low[i]), "high": plain(curve.high[i])}
            if theory is not None and measured is not None and deviations is not None:
                row |= {
                    "first_step_decades": plain(measured[i]),
                    "predicted_decades": plain(theory.decades[i]),
                    "predicted_spread": plain(theory.spread[i]),
                    "deviation": plain(deviations[i]),
                }
            rows.append(row)
    return rows


def _mean(values: FloatArray) -> FloatArray:
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # a layer without any value
        return np.asarray(np.nanmean(values, axis=0))


def say_curve(curve: Curve, metric: str) -> str:
    """Return a sentence that summarises a profile.

    Args:
        curve: The curve.
        metric: The metric's name.
    """
    if is_linear(metric):
        return _say_values(curve)
    if not curve.fits[0]:
        return f"{curve.label}: no slope, because there are fewer than three hidden layers"
    estimate: Estimate | Interval
    if curve.seeds:
        estimate, total, seeds = curve.seeds[0].slope, _total(curve), f" ({plural(len(curve.runs), 'seed')})"
        slope = estimate.mean
    else:
        fit = curve.fits[0][0]
        estimate, slope, total, seeds = fit.slope, fit.slope.value, fit.decades.value, ""
    first, last = (say_layer(curve.runs[0].layers[i]) for i in curve.fits[0][0].ends)
    if metric in GRADIENT_NORMS:
        said = say_fate(total) + (f"; {say_ratio(first, last, total)}" if np.isfinite(total) else "")
    else:
        said = f"{first} / {last} is {say_times(total)}"
    return f"{curve.label}{seeds}: {said}{_say_steep(slope, estimate, total)}"


def _say_steep(slope: float, estimate: Estimate | Interval, total: float) -> str:
    """Return by how much each layer toward the input multiplies the value; "" where that is not known.

    Args:
        slope: Decades per layer toward the input.
        estimate: The slope with its interval.
        total: Decades from the last hidden layer to the first.
    """
    if not (np.isfinite(slope) and np.isfinite(total)):
        return ""
    low, high = (10.0**end if np.isfinite(end) else end for end in (estimate.low, estimate.high))
    interval = f" [{low:.3g}, {high:.3g}]" if np.isfinite(low) and np.isfinite(high) else ""
    return f"; each layer toward the input multiplies it by {10.0**slope:.3g}{interval}"


def _total(curve: Curve) -> float:
    """Return the ratio of the first layer to the last hidden layer in decades, over seeds where there are several."""
    return ratio_over_seeds([fits[0].decades.value for fits in curve.fits])


def _say_values(curve: Curve) -> str:
    """Return a sentence with the smallest and the largest value, and the number of bands on each side of 0."""
    known = np.flatnonzero(np.isfinite(curve.centre))
    if not len(known):
        return f"{curve.label}: no values are known"
    low, high = (known[pick(curve.centre[known])] for pick in (np.argmin, np.argmax))
    ends = (f"{curve.centre[i]:+.3g} ({curve.layers[i].name})" for i in (low, high))
    above, below = (int((side > 0).sum()) for side in (curve.low[known], -curve.high[known]))
    signs = f"; the band lies above 0 at {above} of {plural(len(known), 'layer')} and below 0 at {below}"
    return (
        f"{curve.label}: from {' to '.join(ends)}, median over layers {median_of_all(curve.centre[known]):+.3g}{signs}"
    )


def say_theory(curve: Curve) -> str:
    """Return a sentence that compares the first step's profile with theory; "" where there is no prediction.

    Args:
        curve: The curve.
    """
    theory = curve.theory
    if theory is None:
        return ""
    at = first_predicted(theory.prediction)
    measured, deviations = _mean(theory.measured), _mean(theory.deviations())
    first, last = curve.layers[at].name, curve.layers[-2].name
    text = f"{curve.label}, first step, {first} / {last}: theory {say_power(float(theory.decades[at]))}"
    if np.isnan(deviations[at]):
        return f"{text}, not measured"
    return f"{text}, measured {say_power(float(measured[at]))}, {say_deviation(float(deviations[at]))}"


def say_curves(curves: Sequence[Curve]) -> str:
    """Return a sentence that summarises many profiles: ratios for magnitudes, else medians over layers.

    Args:
        curves: The curves; all are of one metric.
    """
    if is_linear(curves[0].metric):
        medians = (f"{curve.label} {median_of_all(curve.centre):+.3g}" for curve in curves)
        return f"Median over layers of {curves[0].metric}: {', '.join(medians)}"
    ratios = [f"{curve.label} {say_power(_total(curve))}" for curve in curves if curve.fits[0]]
    return f"First layer / last hidden layer: {', '.join(ratios)}"


def say_farthest(curves: Sequence[Curve]) -> str:
    """Return a sentence that names the profile with the largest deviation from theory; "" without predictions.

    Args:
        curves: The curves.
    """
    found = {}
    for curve in curves:
        if curve.theory is not None:
            value = _mean(curve.theory.deviations())[first_predicted(curve.theory.prediction)]
            if np.isfinite(value):
                found[curve.label] = float(value)
    if not found:
        return ""
    farthest = max(found, key=lambda label: abs(found[label]))
    return (
        f"First step, first layer / last hidden layer: {farthest} is farthest from theory among "
        f"{plural(len(found), 'profile')}, {say_deviation(found[farthest])}"
    )
