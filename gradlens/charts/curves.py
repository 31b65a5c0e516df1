"""Depth profiles ready to be drawn: seeds of one model put together, beside what theory says of the first step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradlens.analysis.bootstrap import Estimate
from gradlens.analysis.compare import group_runs, label_runs
from gradlens.analysis.depth import DepthFit, SeedFit, fit_depth, over_seeds
from gradlens.analysis.derived_metrics import check_metric, with_derived
from gradlens.analysis.gradient_ratio import over_seeds as ratio_over_seeds
from gradlens.analysis.gradient_ratio import say_fate, say_power
from gradlens.analysis.profile import ACTIVATION_GRAD, rows_within, typical_values
from gradlens.analysis.stats import Interval, mean_interval
from gradlens.errors import ConfigError
from gradlens.format import plain
from gradlens.metrics import METRICS_OF_PATHS, is_linear
from gradlens.run import FloatArray, Layer, Run
from gradlens.theory.predict import Prediction, deviation, first_predicted, first_profile, predicted_profile

Steps = tuple[int | None, int | None]
GRADIENTS = (ACTIVATION_GRAD, "param_grad_norm")


@dataclass(frozen=True)
class Theory:
    """The first step beside theory, in decades relative to the last hidden layer.

    Args:
        prediction: Of the first run; that of every seed is the same.
        decades: (M,) what is predicted, as L2 norm or per element.
        measured: (S, M) a row per seed.
    """

    prediction: Prediction
    decades: FloatArray
    measured: FloatArray

    @property
    def spread(self) -> FloatArray:
        """(M,) the predicted standard deviation between seeds."""
        return self.prediction.spread

    def deviations(self) -> FloatArray:
        """Return (S, M) measured minus predicted, in units of the predicted spread."""
        shift = self.decades - self.prediction.decades
        return np.array([deviation(self.prediction, row - shift) for row in self.measured])


@dataclass(frozen=True)
class Curve:
    """The profile of one run, or of several seeds of one model.

    Args:
        label: What it is called.
        runs: Its runs.
        metric: What it is of.
        layers: Its main layers, input first; of a metric of residual blocks those that begin one.
        centre: (M,) log10 of a magnitude, else the metric itself: of a run the median over rows, of seeds the mean of
            these; -inf where a magnitude is exactly 0 (of most seeds), NaN where nothing is known.
        low: (M,) lower end of a band: of seeds the 95 % interval of the mean, of one run the rows' 10 % quantile.
        high: Its upper end, 90 %.
        fits: Per run, its sections; none of what is no magnitude.
        seeds: The sections over seeds.
        theory: What theory says of the first step; None where it says nothing, or where it was not asked.
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


def make_curves(
    runs: Sequence[Run], metric: str, *, per_element: bool = False, steps: Steps = (None, None)
) -> list[Curve]:
    """Group runs by model and settings, and profile each group.

    Args:
        runs: Those without a row in the span are refused; of those that repeat a seed the first counts.
        metric: A metric that every run holds, or of which every run holds the factors.
        per_element: The root mean square per element instead of the L2 norm.
        steps: First and last optimizer step; None is the beginning, or the end.

    Raises:
        ConfigError: A run lacks the metric, or has no row of it in the span.
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
    return [
        _curve(label if len(members) > 1 else single, members, metric, per_element, steps)
        for (label, members), single in zip(grouped, singles, strict=True)
    ]


def _curve(label: str, runs: tuple[Run, ...], metric: str, per_element: bool, steps: Steps) -> Curve:
    fits, centres, quantiles = [], [], []
    for run in runs:
        rows = rows_within(run, *steps)
        fits.append([] if is_linear(metric) else fit_depth(run, metric, rows, per_element=per_element))
        low, centre, high = _quantiles(run, metric, rows, per_element)
        centres.append(centre)
        quantiles.append((low, high))
    main = runs[0].main_layers()
    if len(runs) == 1:
        centre, (low, high) = centres[0], quantiles[0]
    else:
        over = [mean_interval(column) for column in np.array(centres).T]
        most_zero = np.isneginf(centres).sum(axis=0) * 2 > len(runs)
        centre = np.where(most_zero, -np.inf, [interval.mean for interval in over])
        low, high = (np.array([getattr(interval, end) for interval in over]) for end in ("low", "high"))
    kept = ~np.isnan(centre) if metric in METRICS_OF_PATHS else np.ones(len(main), dtype=bool)
    layers = tuple(runs[0].layers[i] for i in main[kept])
    theory = _theory(runs, per_element) if metric == ACTIVATION_GRAD and not (steps[0] or 0) else None
    seeds = over_seeds(fits) if len(runs) > 1 else []
    return Curve(label, runs, metric, layers, centre[kept], low[kept], high[kept], fits, seeds, theory)


def _quantiles(run: Run, metric: str, rows: slice, per_element: bool) -> FloatArray:
    """Return the 10 %, 50 % and 90 % quantiles over rows of the main layers, (3, M); of a magnitude in decades."""
    values = typical_values(run, metric, rows, per_element=per_element)[:, run.main_layers()]
    if np.isnan(values).all():
        raise ConfigError(f"no row of {metric} has been recorded yet in {run.name}")
    with np.errstate(divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a layer without any value
        finite = np.where(np.isfinite(values), values, np.nan)
        if is_linear(metric):
            return np.asarray(np.nanquantile(finite, [0.1, 0.5, 0.9], axis=0))
        return np.asarray(np.nanquantile(np.log10(finite), [0.1, 0.5, 0.9], axis=0, method="inverted_cdf"))


def _theory(runs: tuple[Run, ...], per_element: bool) -> Theory | None:
    """Return theory beside the first step of those runs that recorded it."""
    prediction = predicted_profile(runs[0])
    firsts = [first for run in runs if (first := first_profile(run, per_element=per_element)) is not None]
    if prediction is None or not firsts or first_predicted(prediction) < 0:
        return None
    decades = prediction.per_element(runs[0]) if per_element else prediction.decades
    return Theory(prediction, decades, np.array(firsts))


def slope_rows(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return a row per run and section, and after several seeds one of their mean."""
    rows = []
    for curve in curves:
        for i, run in enumerate(curve.runs):
            for fit in curve.fits[i]:
                numbers = {"slope": fit.slope, "decades": fit.decades}
                rows.append(_head(curve, run.seed, run.name, fit.section, len(fit.layers)) | _plain(numbers))
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
    """Return a row per curve and layer: its decades and band, and theory's for the first step."""
    rows = []
    for curve in curves:
        theory = curve.theory
        measured = _mean(theory.measured) if theory else None
        away = _mean(theory.deviations()) if theory else None
        for i, layer in enumerate(curve.layers):
            row = {"model": curve.label, "layer": layer.name, "stage": layer.stage, "depth": layer.depth}
            name = curve.metric if is_linear(curve.metric) else "log10"
            row |= {name: plain(curve.centre[i]), "low": plain(curve.low[i]), "high": plain(curve.high[i])}
            if theory is not None and measured is not None and away is not None:
                row |= {
                    "first_step_decades": plain(measured[i]),
                    "predicted_decades": plain(theory.decades[i]),
                    "predicted_spread": plain(theory.spread[i]),
                    "deviation": plain(away[i]),
                }
            rows.append(row)
    return rows


def _mean(values: FloatArray) -> FloatArray:
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # a layer without any value
        return np.asarray(np.nanmean(values, axis=0))


def say_curve(curve: Curve, metric: str) -> str:
    """Say in a sentence what a profile shows, from its numbers."""
    if is_linear(metric):
        return _say_values(curve)
    if not curve.fits[0]:
        return f"{curve.label}: fewer than three hidden layers, no slope"
    estimate: Estimate | Interval
    if curve.seeds:
        estimate, total, of = curve.seeds[0].slope, _total(curve), f", {len(curve.runs)} seeds"
        slope = estimate.mean
    else:
        fit = curve.fits[0][0]
        estimate, slope, total, of = fit.slope, fit.slope.value, fit.decades.value, ""
    first, last = (curve.runs[0].layers[i].name for i in curve.fits[0][0].ends)
    told = f": {say_fate(total)}" if metric in GRADIENTS else ""
    interval = f" [{estimate.low:+.3f}, {estimate.high:+.3f}]" if np.isfinite(estimate.low) else ""
    steep = f"; {slope:+.3f}{interval} decades per layer" if np.isfinite(slope) else ""
    return f"{curve.label}{told} ({first} / {last}: {say_power(total)}{steep}{of})"


def _total(curve: Curve) -> float:
    """Return the decades from the first layer to the last hidden one, over seeds where there are several."""
    return ratio_over_seeds([fits[0].decades.value for fits in curve.fits])


def _say_values(curve: Curve) -> str:
    """Say where what is no magnitude is least and largest, and on which side of 0 its bands are."""
    known = np.flatnonzero(np.isfinite(curve.centre))
    if not len(known):
        return f"{curve.label}: nothing is known"
    low, high = (known[pick(curve.centre[known])] for pick in (np.argmin, np.argmax))
    ends = (f"{curve.centre[i]:+.3g} ({curve.layers[i].name})" for i in (low, high))
    beyond = [int((side > 0).sum()) for side in (curve.low[known], -curve.high[known])]
    signs = f"; the band is above 0 at {beyond[0]} of {len(known)} layers and below at {beyond[1]}"
    return f"{curve.label}: from {' to '.join(ends)}, median layer {np.median(curve.centre[known]):+.3g}{signs}"


def say_theory(curve: Curve) -> str:
    """Say how the first step's profile agrees with theory; "" where there is none."""
    theory = curve.theory
    if theory is None:
        return ""
    at = first_predicted(theory.prediction)
    measured, away = _mean(theory.measured), _mean(theory.deviations())
    first, last = curve.layers[at].name, curve.layers[-2].name
    text = f"{curve.label}, first step, {first} / {last}: theory {say_power(float(theory.decades[at]))}"
    if np.isnan(away[at]):
        return f"{text}, not measured"
    return f"{text}, measured {say_power(float(measured[at]))}, {away[at]:+.1f} predicted spreads away"


def say_curves(curves: Sequence[Curve]) -> str:
    """Say in a sentence what many profiles show: of magnitudes the first layer over the last, else the median layer."""
    if is_linear(curves[0].metric):
        middles = (f"{curve.label} {np.nanmedian(curve.centre):+.3g}" for curve in curves)
        return f"Median layer of {curves[0].metric}: {', '.join(middles)}"
    told = []
    for curve in curves:
        if curve.fits[0]:
            told.append(f"{curve.label} {say_power(_total(curve))}")
    return f"First over last hidden layer: {', '.join(told)}"


def say_farthest(curves: Sequence[Curve]) -> str:
    """Say which of many profiles is farthest from theory at the first step; "" where there is none."""
    away = {}
    for curve in curves:
        if curve.theory is not None:
            value = _mean(curve.theory.deviations())[first_predicted(curve.theory.prediction)]
            if np.isfinite(value):
                away[curve.label] = float(value)
    if not away:
        return ""
    farthest = max(away, key=lambda label: abs(away[label]))
    return (
        f"First step, from end to end: of {len(away)} profiles {farthest} is farthest from theory, "
        f"{away[farthest]:+.1f} predicted spreads"
    )
