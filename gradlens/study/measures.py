"""Measures of single runs for the claims: plain numbers, NaN where not known."""

from __future__ import annotations

import math
import warnings

import numpy as np

from gradlens.analysis.gradient_ratio import gradient_ratio
from gradlens.analysis.profile import layer_values
from gradlens.analysis.stats import Interval, mean_interval, t_975
from gradlens.metrics import METRICS_OF_PATHS
from gradlens.run import FloatArray, Run
from gradlens.study.criteria import FLOAT32_DECADES

LAST_EPOCHS = 5
"""Number of epochs at the end over which the fall of the training loss is measured."""


def diverged(run: Run) -> bool:
    """Return whether a run ended because its loss was not finite."""
    loss = np.asarray(run.scalars.get("loss", np.empty(0)), dtype=np.float64)
    return run.status == "failed" and len(loss) > 0 and not np.isfinite(loss[-1])


def typical_ratio(run: Run) -> float:
    """Return log10 of the gradient norm at the first layer's output over that at the last hidden layer's.

    This is the median over rows, see ``gradlens.analysis.gradient_ratio``. It is NaN if the ratio is unknown in most
    rows, because gradients were not recorded, not finite, or exactly 0 in all layers.
    """
    ratio = gradient_ratio(run)
    if ratio is None or ratio.rows_known * 2 <= len(run.steps):
        return math.nan
    return ratio.typical()


def cut_decades(decades: float) -> float:
    """Cut a ratio at float32's resolution."""
    return min(max(decades, -FLOAT32_DECADES), FLOAT32_DECADES) if not math.isnan(decades) else decades


def shortcut_share(run: Run) -> float:
    """Return the share of the gradient at a residual block's input that came through its shortcut.

    The result is the median over blocks of the median over rows. Let S and B be the norms of the parts through shortcut
    and branch, and c their cosine. The sum of both has the squared norm S^2 + B^2 + 2cSB. The projection of the
    shortcut's part on the sum contributes S^2 + cSB to it. Both shares add up to 1; a share is above 1 if the other
    part points against the sum.
    """
    if not all(name in run.metrics for name in METRICS_OF_PATHS):
        return math.nan
    short, branch, cosine = (layer_values(run, name) for name in METRICS_OF_PATHS)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # layers that are in no block
        largest = np.maximum(short, branch)
        short, branch = short / largest, branch / largest  # squares of tiny norms would underflow
        whole = short**2 + branch**2 + 2 * cosine * short * branch
        shares = np.where(whole > 0, (short**2 + cosine * short * branch) / whole, np.nan)
        blocks = np.nanmedian(shares, axis=0) if len(shares) else np.empty(0)
    known = blocks[np.isfinite(blocks)]
    return float(np.median(known)) if len(known) else math.nan


def final(run: Run, column: str) -> float:
    """Return a column's value in the last epoch; for a run that diverged, chance as accuracy and NaN as loss."""
    if diverged(run):
        return chance(run) if column.endswith("accuracy") else math.nan
    values = run.epochs.get(column, np.empty(0))
    return float(values[-1]) if len(values) else math.nan


def n_epochs(run: Run) -> int:
    """Return the number of epochs of a run."""
    return len(run.epochs.get("train_accuracy", ()))


def mean_accuracy(run: Run, epochs: int) -> float:
    """Return the area under the training accuracy over the first epochs, divided by their number.

    A run that diverged counts with chance for the missing epochs.
    """
    values = np.asarray(run.epochs.get("train_accuracy", np.empty(0)), dtype=np.float64)[:epochs]
    if diverged(run):
        values = np.append(values, np.full(epochs - len(values), chance(run)))
    return float(values.mean()) if len(values) == epochs and epochs else math.nan


def epochs_to(run: Run, accuracy: float) -> float:
    """Return the first epoch, counted from 1, that reaches a training accuracy; inf if none does."""
    values = np.asarray(run.epochs.get("train_accuracy", np.empty(0)), dtype=np.float64)
    reached = np.flatnonzero(values >= accuracy)
    return float(reached[0] + 1) if len(reached) else math.inf


def chance(run: Run) -> float:
    """Return the accuracy of guessing; 0 if the number of classes is unknown."""
    facts = run.config.get("data_facts", {})
    classes = facts.get("classes", ()) if isinstance(facts, dict) else ()
    classes = classes if isinstance(classes, list | tuple) else ()
    return 1 / len(classes) if classes else 0.0


def gap(run: Run) -> float:
    """Return the final training accuracy minus the final validation accuracy."""
    return final(run, "train_accuracy") - final(run, "val_accuracy")


def end_loss(run: Run) -> float:
    """Return the training loss at the end: the median of the last epochs."""
    losses = np.asarray(run.epochs.get("train_loss", np.empty(0)), dtype=np.float64)[-LAST_EPOCHS:]
    return float(np.median(losses)) if len(losses) and not diverged(run) else math.nan


def still_falls(run: Run) -> float:
    """Return the fall of the training loss per epoch over the last epochs: 0 on a plateau.

    A plateau can mean that nothing is left to learn, that nothing can be learnt, or that the learning rate became
    small. It is therefore reported together with the loss.
    """
    losses = np.asarray(run.epochs.get("train_loss", np.empty(0)), dtype=np.float64)[-LAST_EPOCHS:]
    return float((losses[0] - losses[-1]) / (len(losses) - 1)) if len(losses) > 1 else math.nan


def slope_over(depths: FloatArray, values: FloatArray) -> float:
    """Return the least-squares slope per ten layers.

    Args:
        depths: (D,) numbers of layers.
        values: (D,) one value per depth.

    Returns:
        The slope; NaN if a value is not finite or there are fewer than two different depths.
    """
    depths, values = np.asarray(depths, dtype=np.float64) / 10, np.asarray(values, dtype=np.float64)
    if len(set(depths.tolist())) < 2 or not np.isfinite(values).all():
        return math.nan
    away = depths - depths.mean()
    return float((away * values).sum() / (away**2).sum())


def fieller(part: FloatArray, whole: FloatArray) -> Interval:
    """Return the ratio of two means of paired values with its 95 % interval.

    The interval contains every ratio r for which mean(part - r whole) does not differ from 0 by Student's t test. It is
    infinite if ``whole`` is not shown to differ from 0.

    Args:
        part: (S,) one value per seed.
        whole: (S,) values of the same seeds.

    Returns:
        The ratio with its interval; the standard deviation is NaN.

    Source: Fieller 1954, Some Problems in Interval Estimation, J. R. Stat. Soc. B 16.
    """
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    known = np.isfinite(part) & np.isfinite(whole)
    part, whole, left_out = part[known], whole[known], int((~known).sum())
    n = len(part)
    ratio = float(part.mean() / whole.mean()) if n and whole.mean() != 0 else math.nan
    if n < 2 or math.isnan(ratio):
        return Interval(ratio, math.nan, math.nan, math.nan, n, left_out)
    scale = t_975(n - 1) ** 2 / n
    cov = np.cov(part, whole, ddof=1) * scale
    a = whole.mean() ** 2 - cov[1, 1]
    b = part.mean() * whole.mean() - cov[0, 1]
    c = part.mean() ** 2 - cov[0, 0]
    if a <= 0:
        return Interval(ratio, math.nan, -math.inf, math.inf, n, left_out)
    root = math.sqrt(max(b * b - a * c, 0.0))
    return Interval(ratio, math.nan, float((b - root) / a), float((b + root) / a), n, left_out)


def paired(first: dict[int, float], second: dict[int, float]) -> Interval:
    """Return the mean of second minus first over the common seeds, with its 95 % interval."""
    seeds = sorted(first.keys() & second.keys())
    with np.errstate(invalid="ignore"):
        return mean_interval(np.array([second[seed] - first[seed] for seed in seeds], dtype=np.float64))
