"""Rule packs: the verdicts of earlier tools on the same recording, by their own absolute thresholds.

They are for comparison with ``gradlens.diagnose``. Thresholds are facts about those tools. None of the tools reads
gradlens recordings, so each pack documents how its numbers are computed here, and which of its rules cannot be applied.
Two substitutes are shared:

* mean |g| over the entries of a layer's gradient: replaced by the root mean square,
  ``param_grad_norm / sqrt(param_numel)`` (for activations ``activation_grad_norm / sqrt(out_numel)``). It is an upper
  bound of mean |g|; for normally distributed entries, mean |g| is 0.80 of it.
* accuracy: taken from the table of epochs where the run has one, else from a scalar "accuracy"; without either,
  accuracy counts as low.

Unlike a diagnosis, a pack judges each row alone, as those tools do: a fault is reported if it is seen in one row, or in
as many rows in succession as the tool requires.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.parts import over_layers
from gradlens.diagnosis.findings import Diagnosis, Finding, make_diagnosis
from gradlens.diagnosis.recorded_rows import PARAM_GRAD, RMS, UPDATE, ZEROS, Recording
from gradlens.metrics import ACTIVATION_GRAD_NORM, NONFINITE_COUNT
from gradlens.run import FloatArray, Run

Grid = NDArray[np.bool_]
DEAD_RELU = 0.5 * 0.99 + 0.5 * 0.5
"""Share of zeros in a layer in which half of the units are 0 in 99 % of cases, and the other half in 50 %, as in a
healthy ReLU; the share per unit is not recorded."""
DEAD_UNITS = 0.5 * 0.95 + 0.5 * 0.5
"""The same with 95 %."""


def smdebug(run: Run) -> list[Finding]:
    """Apply the built-in rules of SageMaker Debugger.

    VanishingGradient (mean |g| < 1e-7, by the substitute), ExplodingTensor (any NaN or Inf), WeightUpdateRatio (outside
    1e-8 to 10), UnchangedTensor (3 recorded steps with update_ratio 0), DeadRelu (more than 50 % of the units active
    less than 1 % of the time: zero_fraction above ``DEAD_RELU``, where it was recorded). Not applied:
    SaturatedActivation, PoorWeightInitialization and AllZero, because values of single units and tensors are not
    recorded; LossNotDecreasing and Overfit, because they are not gradient faults.

    Args:
        run: Any run.

    Returns:
        One finding per rule that fires.
    """
    rec, found, source = Recording(run), [], "SageMaker Debugger, smdebug"
    found += _named(
        rec, "vanishing", _gradient_is(rec, lambda size: size < 1e-7), "mean |g| < 1e-7", f"{source}, VanishingGradient"
    )
    found += _named(rec, "nonfinite", _infinite(rec), "any NaN or Inf", f"{source}, ExplodingTensor")
    high, low = (
        _metric_is(rec, UPDATE, lambda ratio: ratio > 10),
        _metric_is(rec, UPDATE, lambda ratio: (ratio < 1e-8) & (ratio != 0)),
    )
    found += _named(rec, "exploding", high, "update / weight > 10", f"{source}, WeightUpdateRatio")
    found += _named(rec, "vanishing", low, "update / weight < 1e-8", f"{source}, WeightUpdateRatio")
    known = _metric_is(rec, UPDATE, lambda ratio: ~np.isnan(ratio)).any(axis=1)

    def unchanged(ratio: FloatArray) -> Grid:
        grid = np.zeros(ratio.shape, dtype=bool)
        grid[known] = _lasting(ratio[known] == 0, 3)
        return grid

    found += _named(
        rec, "frozen", _metric_is(rec, UPDATE, unchanged), "unchanged over 3 steps", f"{source}, UnchangedTensor"
    )
    dead = _metric_is(rec, ZEROS, lambda zeros: zeros > DEAD_RELU)
    return found + _named(rec, "dead", dead, "half of the units dead", f"{source}, DeadRelu")


def autotrainer(run: Run) -> list[Finding]:
    """Apply the rules of AutoTrainer (Zhang et al. 2021, ICSE).

    Vanishing: |g_first| / |g_last| < 1e-3 and |g_first| < 1e-4. Exploding: the ratio > 70, or NaN. Dying ReLU: at least
    70 % of the gradient's entries are 0; zero_fraction is the substitute. Each applies only while accuracy is below
    0.6. |g| is a mean absolute value; the root mean square is the substitute. First and last are the first and the last
    main layer. Not applied: oscillating loss and slow convergence, because they are not gradient faults.

    Args:
        run: Any run.

    Returns:
        One finding per rule that fires.
    """
    rec, source = Recording(run), "Zhang et al. 2021, AutoTrainer, ICSE"
    main, layers = rec.run.main_layers(), len(rec.run.layers)
    found = list[Finding]()
    if _rows(rec) and len(main) > 1:
        low = _low_accuracy(rec, 0.6)
        first, last = (mean_gradient(rec, slice(i, i + 1))[:, 0] for i in (int(main[0]), int(main[-1])))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = first / last
        vanishes = (ratio < 1e-3) & (first < 1e-4) & low
        explodes = (ratio > 70) & low
        rule = "|g_first| / |g_last| < 1e-3, |g_first| < 1e-4, accuracy < 0.6"
        found += _named(rec, "vanishing", _only(vanishes, int(main[0]), layers), rule, source)
        rule = "|g_first| / |g_last| > 70, accuracy < 0.6"
        found += _named(rec, "exploding", _only(explodes, int(main[0]), layers), rule, source)
        dead = _metric_is(rec, ZEROS, lambda zeros: (zeros >= 0.7) & low[:, None])
        found += _named(rec, "dead", dead, "at least 70 % zeros, accuracy < 0.6", source)
    return [*found, *_named(rec, "nonfinite", _infinite(rec), "a gradient or loss that is NaN", source)]


def deepchecker(run: Run) -> list[Finding]:
    """Apply the rules of TheDeepChecker (Ben Braiek & Khomh 2023).

    Vanishing: mean |g| < 1e-6, or it falls to half or less in each of 5 rows. Exploding: mean |g| > 1e6, or it more
    than doubles in each of 5 rows. log10 of update / weight below -4 (reported as vanishing) or above -1 (exploding).
    Dead: more than 50 % of the units with a 95th percentile < 1e-5; zero_fraction above ``DEAD_UNITS`` is the
    substitute. Not applied: a standard deviation of activations outside 0.5 to 2, because nothing is recorded after the
    activation function; its checks of data, weights and loss.

    Args:
        run: Any run.

    Returns:
        One finding per rule that fires.
    """
    rec, source = Recording(run), "Ben Braiek & Khomh 2023, TheDeepChecker"
    vanishes = _gradient_is(rec, lambda size: (size < 1e-6) | _lasting(_changes(size) <= 0.5, 5))
    explodes = _gradient_is(rec, lambda size: (size > 1e6) | _lasting(_changes(size) > 2, 5))
    small = _metric_is(rec, UPDATE, lambda ratio: _decades(ratio) < -4)
    large = _metric_is(rec, UPDATE, lambda ratio: _decades(ratio) > -1)
    dead = _metric_is(rec, ZEROS, lambda zeros: zeros > DEAD_UNITS)
    found = _named(rec, "vanishing", vanishes, "mean |g| < 1e-6, or halved 5 times in a row", source)
    found += _named(rec, "exploding", explodes, "mean |g| > 1e6, or doubled 5 times in a row", source)
    found += _named(rec, "vanishing", small, "log10 of update / weight < -4", source)
    found += _named(rec, "exploding", large, "log10 of update / weight > -1", source)
    found += _named(rec, "nonfinite", _infinite(rec), "any NaN or Inf", source)
    return found + _named(rec, "dead", dead, "half of the units at 0 in 95 %", source)


def _changes(size: FloatArray) -> FloatArray:
    """Return each row over the row before, (B, L); NaN in the first."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.concatenate([np.full_like(size[:1], np.nan), size[1:] / size[:-1]])


def _decades(ratio: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log10(ratio))


def deepdiagnosis(run: Run) -> list[Finding]:
    """Apply the rules of DeepDiagnosis (Wardat et al. 2022, ICSE).

    Vanishing: mean |g| < 1e-7. Dead: at least 70 % of the outputs <= 0; zero_fraction is the substitute. Saturated:
    more than 50 % of the inputs of tanh or sigmoid beyond +-5; this holds for normally distributed numbers with a root
    mean square above 5 / 0.6745 = 7.4. Update: lr |dW| / |W| more than a factor of 100 away from 1e-3; update_ratio is
    the substitute. Not applied: its checks of loss and accuracy.

    Args:
        run: Any run.

    Returns:
        One finding per rule that fires.
    """
    rec, source = Recording(run), "Wardat et al. 2022, DeepDiagnosis, ICSE"
    bounded = str(run.config.get("activation", "")).lower() in ("tanh", "sigmoid")
    small, large = (
        _metric_is(rec, UPDATE, lambda ratio: ratio < 1e-5),
        _metric_is(rec, UPDATE, lambda ratio: ratio > 1e-1),
    )
    dead = _metric_is(rec, ZEROS, lambda zeros: zeros >= 0.7)
    beyond = _metric_is(rec, RMS, lambda size: (size > 5 / 0.6745) & bounded)
    found = _named(rec, "vanishing", _gradient_is(rec, lambda size: size < 1e-7), "mean |g| < 1e-7", source)
    found += _named(rec, "dead", dead, "at least 70 % of the outputs are 0", source)
    found += _named(rec, "saturated", beyond, "beyond +-5 in more than 50 %", source)
    found += _named(rec, "exploding", large, "update / weight > 1e-1", source)
    found += _named(rec, "vanishing", small, "update / weight < 1e-5", source)
    return found + _named(rec, "nonfinite", _infinite(rec), "any NaN or Inf", source)


PACKS: dict[str, Callable[[Run], list[Finding]]] = {
    "smdebug": smdebug,
    "autotrainer": autotrainer,
    "deepchecker": deepchecker,
    "deepdiagnosis": deepdiagnosis,
}


def diagnose_by(run: Run, pack: str) -> Diagnosis:
    """Diagnose a run by a rule pack.

    Args:
        run: Any run; a long one is read in chunks of rows.
        pack: One of ``PACKS``.

    Returns:
        The diagnosis, with at most one finding of each kind.
    """
    rec = Recording(run)
    findings = _once(PACKS[pack](run))
    missing = "" if findings or rec.n_rows else "there are no rows"
    healthy = f"no rule of {pack} fires"
    return make_diagnosis(
        run.name, findings, len(run.steps), missing, [f"by the rules of {pack}, not those of gradlens"], healthy
    )


def _once(findings: list[Finding]) -> list[Finding]:
    """Return one finding per kind: the one that is seen in the largest share of rows."""
    best: dict[str, Finding] = {}
    for finding in findings:
        if finding.kind not in best or finding.confidence > best[finding.kind].confidence:
            best[finding.kind] = finding
    return list(best.values())


# --- shared by the packs ----------------------------------------------------------------------------------


def _base(rec: Recording, name: str = "") -> str:
    """Return the metric on whose rows all are judged: the gradient, or where none was recorded the given one."""
    return PARAM_GRAD if rec.has(PARAM_GRAD) else rec.gradient or name


def _rows(rec: Recording) -> int:
    """Return the number of rows of the gradient; 0 where none was recorded."""
    return len(rec.series(_base(rec))) if _base(rec) else 0


def mean_gradient(rec: Recording, layers: slice) -> FloatArray:
    """Return the substitute for mean |g|: the root mean square of the gradient's entries.

    Args:
        rec: The recording.
        layers: Some of its layers.

    Returns:
        (B, l) w.r.t. parameters where recorded, else w.r.t. outputs; no rows where neither was recorded.
    """
    name = _base(rec)
    if not name:
        return np.empty((0, len(rec.run.layers[layers])))
    key = "param_numel" if name == PARAM_GRAD else "out_numel"
    numel = np.array([max(getattr(layer, key), 1) for layer in rec.run.layers[layers]], dtype=np.float64)
    return np.asarray(_grid(rec, name, layers) / np.sqrt(numel))


def _grid(rec: Recording, name: str, layers: slice) -> FloatArray:
    """Return a metric on the rows of the gradient, (B, l), NaN where it was not recorded; all grids have these rows."""
    base = rec.series(_base(rec, name))
    grid = np.full((len(base), len(rec.run.layers[layers])), np.nan)
    if rec.has(name):
        series = rec.series(name)
        place = np.searchsorted(base.rows, series.rows)
        fits = (place < len(base)) & (base.rows[np.minimum(place, len(base) - 1)] == series.rows)
        grid[place[fits]] = series.values[fits, layers]
    return grid


def _gradient_is(rec: Recording, test: Callable[[FloatArray], Grid]) -> Grid:
    """Return where the substitute for mean |g| passes a test, (B, L), a few layers at a time."""
    return over_layers(lambda part: test(mean_gradient(rec, part)), len(rec.run.layers), _rows(rec))


def _metric_is(rec: Recording, name: str, test: Callable[[FloatArray], Grid]) -> Grid:
    """Return where a metric passes a test, (B, L), a few layers at a time."""
    return over_layers(
        lambda part: test(_grid(rec, name, part)), len(rec.run.layers), len(rec.series(_base(rec, name)))
    )


def _infinite(rec: Recording) -> Grid:
    """Return where a gradient is not finite, (T, L), on all rows."""
    grid = np.zeros((len(rec.run.steps), len(rec.run.layers)), dtype=bool)
    for name in (ACTIVATION_GRAD_NORM, PARAM_GRAD, NONFINITE_COUNT):
        for row in rec.broken_rows(name):
            grid[row] |= rec.broken(name, int(row), int(row) + 1)[0]
    return grid


def _low_accuracy(rec: Recording, line: float) -> Grid:
    """Return in which rows accuracy is below a threshold, (B,); True where it is unknown."""
    rows = rec.series(_base(rec)).rows
    accuracy = rec.run.epochs.get("train_accuracy", np.empty(0))
    if len(accuracy):
        epoch = np.minimum(rec.run.epoch_of_step[rows], len(accuracy) - 1)
        return np.asarray(~(accuracy[epoch] >= line))
    scalar = rec.scalar("accuracy")
    return np.asarray(~(scalar[rows] >= line)) if len(scalar) else np.ones(len(rows), dtype=bool)


def _only(rows: Grid, layer: int, layers: int) -> Grid:
    grid = np.zeros((len(rows), layers), dtype=bool)
    grid[:, layer] = rows
    return grid


def _lasting(grid: Grid, times: int) -> Grid:
    """Return where a condition holds for the given number of consecutive rows, ending in this row."""
    if len(grid) < times:
        return np.zeros_like(grid)
    lasting = np.zeros_like(grid)
    lasting[times - 1 :] = np.all([grid[i : len(grid) - times + 1 + i] for i in range(times)], axis=0)
    return lasting


def _named(rec: Recording, kind: str, grid: Grid, threshold: str, source: str) -> list[Finding]:
    """Return the finding of a rule that fires; its confidence is the share of rows in which it does."""
    rows = np.flatnonzero(grid.any(axis=1)) if grid.size else np.empty(0, dtype=np.int64)
    if not len(rows):
        return []
    layers = rec.in_order(np.flatnonzero(grid.any(axis=0)))
    infinite = len(grid) == len(rec.run.steps)
    base = rec.series(_base(rec)) if rec.gradient and not infinite else None
    steps = rec.run.steps if base is None else base.steps
    return [
        Finding(
            kind,
            rec.names(layers),
            (int(steps[rows[0]]), int(steps[rows[-1]])),
            f"the rule fires in {len(rows)} of {len(grid)} rows, at {len(layers)} of {len(rec.run.layers)} layers",
            threshold,
            source,
            "Compare this with the diagnosis by gradlens: these thresholds are absolute.",
            len(rows) / len(grid),
        )
    ]
