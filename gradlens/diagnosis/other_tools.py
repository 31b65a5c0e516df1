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
    size = mean_gradient(rec)
    found += _named(rec, "vanishing", size < 1e-7, "mean |g| < 1e-7", f"{source}, VanishingGradient")
    found += _named(rec, "nonfinite", _infinite(rec), "any NaN or Inf", f"{source}, ExplodingTensor")
    ratio = _grid(rec, UPDATE)
    found += _named(rec, "exploding", ratio > 10, "update / weight > 10", f"{source}, WeightUpdateRatio")
    zero = ratio == 0
    found += _named(rec, "vanishing", (ratio < 1e-8) & ~zero, "update / weight < 1e-8", f"{source}, WeightUpdateRatio")
    known = ~np.isnan(ratio).all(axis=1)
    unchanged = np.zeros_like(zero)
    unchanged[known] = _lasting(zero[known], 3)
    found += _named(rec, "frozen", unchanged, "unchanged over 3 steps", f"{source}, UnchangedTensor")
    found += _named(rec, "dead", _grid(rec, ZEROS) > DEAD_RELU, "half of the units dead", f"{source}, DeadRelu")
    return found


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
    size, main = mean_gradient(rec), rec.run.main_layers()
    found = list[Finding]()
    if size.size and len(main) > 1:
        low = _low_accuracy(rec, 0.6)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = size[:, main[0]] / size[:, main[-1]]
        vanishes = (ratio < 1e-3) & (size[:, main[0]] < 1e-4) & low
        explodes = (ratio > 70) & low
        rule = "|g_first| / |g_last| < 1e-3, |g_first| < 1e-4, accuracy < 0.6"
        found += _named(rec, "vanishing", _only(vanishes, int(main[0]), size.shape[1]), rule, source)
        rule = "|g_first| / |g_last| > 70, accuracy < 0.6"
        found += _named(rec, "exploding", _only(explodes, int(main[0]), size.shape[1]), rule, source)
        dead = (_grid(rec, ZEROS) >= 0.7) & low[:, None]
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
    size = mean_gradient(rec)
    with np.errstate(divide="ignore", invalid="ignore"):
        change = size[1:] / size[:-1] if len(size) else size
        decades = np.log10(_grid(rec, UPDATE))
    first = np.zeros((min(len(size), 1), size.shape[1]), dtype=bool)
    falls, grows = (_lasting(np.concatenate([first, found]), 5) for found in (change <= 0.5, change > 2))
    found = _named(rec, "vanishing", (size < 1e-6) | falls, "mean |g| < 1e-6, or halved 5 times in a row", source)
    found += _named(rec, "exploding", (size > 1e6) | grows, "mean |g| > 1e6, or doubled 5 times in a row", source)
    found += _named(rec, "vanishing", decades < -4, "log10 of update / weight < -4", source)
    found += _named(rec, "exploding", decades > -1, "log10 of update / weight > -1", source)
    found += _named(rec, "nonfinite", _infinite(rec), "any NaN or Inf", source)
    return found + _named(rec, "dead", _grid(rec, ZEROS) > DEAD_UNITS, "half of the units at 0 in 95 %", source)


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
    ratio = _grid(rec, UPDATE)
    found = _named(rec, "vanishing", mean_gradient(rec) < 1e-7, "mean |g| < 1e-7", source)
    found += _named(rec, "dead", _grid(rec, ZEROS) >= 0.7, "at least 70 % of the outputs are 0", source)
    bounded = str(run.config.get("activation", "")).lower() in ("tanh", "sigmoid")
    beyond = (_grid(rec, RMS) > 5 / 0.6745) & bounded
    found += _named(rec, "saturated", beyond, "beyond +-5 in more than 50 %", source)
    found += _named(rec, "exploding", ratio > 1e-1, "update / weight > 1e-1", source)
    found += _named(rec, "vanishing", ratio < 1e-5, "update / weight < 1e-5", source)
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


def mean_gradient(rec: Recording) -> FloatArray:
    """Return the substitute for mean |g|: the root mean square of the gradient's entries.

    Args:
        rec: The recording.

    Returns:
        (B, L) w.r.t. parameters where recorded, else w.r.t. outputs; no rows where neither was recorded.
    """
    name = PARAM_GRAD if rec.has(PARAM_GRAD) else rec.gradient
    if not name:
        return np.empty((0, len(rec.run.layers)))
    key = "param_numel" if name == PARAM_GRAD else "out_numel"
    numel = np.array([max(getattr(layer, key), 1) for layer in rec.run.layers], dtype=np.float64)
    return np.asarray(_grid(rec, name) / np.sqrt(numel))


def _grid(rec: Recording, name: str) -> FloatArray:
    """Return a metric on the rows of the gradient, (B, L), NaN where it was not recorded; all grids have one shape."""
    base = rec.series(PARAM_GRAD if rec.has(PARAM_GRAD) else rec.gradient or name)
    grid = np.full((len(base), len(rec.run.layers)), np.nan)
    if rec.has(name):
        series = rec.series(name)
        place = np.searchsorted(base.rows, series.rows)
        fits = (place < len(base)) & (base.rows[np.minimum(place, len(base) - 1)] == series.rows)
        grid[place[fits]] = series.values[fits]
    return grid


def _infinite(rec: Recording) -> Grid:
    """Return where a gradient is not finite, (T, L), on all rows."""
    grid = np.zeros((len(rec.run.steps), len(rec.run.layers)), dtype=bool)
    for name in (ACTIVATION_GRAD_NORM, PARAM_GRAD, NONFINITE_COUNT):
        for row in rec.broken_rows(name):
            grid[row] |= rec.broken(name, int(row), int(row) + 1)[0]
    return grid


def _low_accuracy(rec: Recording, line: float) -> Grid:
    """Return in which rows accuracy is below a threshold, (B,); True where it is unknown."""
    rows = rec.series(PARAM_GRAD if rec.has(PARAM_GRAD) else rec.gradient).rows
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
    sums = np.cumsum(np.concatenate([np.zeros((1, grid.shape[1]), dtype=np.int64), grid.astype(np.int64)]), axis=0)
    lasting = np.zeros_like(grid)
    lasting[times - 1 :] = sums[times:] - sums[:-times] == times
    return lasting


def _named(rec: Recording, kind: str, grid: Grid, threshold: str, source: str) -> list[Finding]:
    """Return the finding of a rule that fires; its confidence is the share of rows in which it does."""
    rows = np.flatnonzero(grid.any(axis=1)) if grid.size else np.empty(0, dtype=np.int64)
    if not len(rows):
        return []
    layers = rec.in_order(np.flatnonzero(grid.any(axis=0)))
    infinite = len(grid) == len(rec.run.steps)
    base = rec.series(PARAM_GRAD if rec.has(PARAM_GRAD) else rec.gradient) if rec.gradient and not infinite else None
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
