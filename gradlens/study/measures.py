"""Measures of single runs for the claims: plain numbers, NaN where not known."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.stats import Interval, mean_interval, median, median_of_all, t_975
from gradlens.run import FloatArray
from gradlens.study.criteria import FLOAT32_DECADES, GUESSING
from gradlens.study.study_run import StudyRun

LAST_EPOCHS = 5
"""Number of epochs at the end over which the fall of the training loss is measured."""


def typical_ratio(run: StudyRun) -> float:
    """Return log10 of the gradient norm at the first layer's output over that at the last hidden layer's.

    This is the median over rows, see ``gradlens.analysis.gradient_ratio``. It is NaN if the ratio is unknown in most
    rows, because gradients were not recorded, not finite, or exactly 0 in all layers.
    """
    found = run.gradients
    return math.nan if found is None or found.known * 2 <= found.rows else float(median(found.ratio))


def first_ratio(run: StudyRun) -> float:
    """Return the ratio before any training, at step 0; NaN where that step was not recorded."""
    found = run.gradients
    return math.nan if found is None or not len(found.steps) or found.steps[0] != 0 else float(found.ratio[0])


def last_live_ratio(run: StudyRun) -> float:
    """Return the ratio in the last row before the loss stays at the level of guessing.

    From the row after it, the loss is never again lower than that of guessing by ``GUESSING``, and later ratios are
    those of a network that has collapsed. For a loss that never was lower, it is the first row.

    Returns:
        The ratio in decades; NaN for a run that does not end at the level of guessing, and where the loss or the number
        of classes is not known.
    """
    found, guess = run.gradients, chance(run)
    if found is None or not len(found.loss) or not 0 < guess < 1 or np.isnan(found.loss).all():
        return math.nan
    below = np.flatnonzero(found.loss < -math.log(guess) - GUESSING)
    last = int(below[-1]) if len(below) else 0
    return math.nan if last == len(found.loss) - 1 else float(found.ratio[last])


def ratio_per_element(run: StudyRun) -> float:
    """Return the typical ratio of root mean squares per element instead of L2 norms."""
    found = run.gradients
    return math.nan if found is None else typical_ratio(run) + found.elements


def product_ratio(run: StudyRun) -> float:
    """Return the ratio of |W| |dL/dW|, the median over the rows in which it was recorded; see ``read_gradients``."""
    return math.nan if run.gradients is None else float(median(run.gradients.product))


def ratio_at_norms(run: StudyRun) -> float:
    """Return the ratio of gradients per element at the outputs of the first and last norm layer, median over rows.

    What a norm outputs is the same if the weights before it are multiplied by c, and so is the gradient there.
    """
    return math.nan if run.gradients is None else float(median(run.gradients.at_norms))


def cut_decades(decades: float) -> float:
    """Cut a ratio at float32's resolution."""
    return min(max(decades, -FLOAT32_DECADES), FLOAT32_DECADES) if not math.isnan(decades) else decades


def shortcut_share(run: StudyRun) -> float:
    """Return the share of the gradient at a residual block's input that came through its shortcut.

    The result is the median over blocks of the median over rows; see ``block_shares``.
    """
    return float(median(median(run.shares, axis=0))) if run.shares.size else math.nan


def least_share(run: StudyRun) -> float:
    """Return the share of the block whose shortcut passed least, the median over rows; 0 where one passes nothing."""
    return float(median(run.shares, axis=0).min()) if run.shares.size else math.nan


def shortcuts_alone(run: StudyRun) -> float:
    """Return log10 of the share of the first layer's gradient that came through shortcuts alone, through all blocks.

    The gradient before B blocks is the sum over 2^B paths. Where each block passes the gradient of any path on in the
    shares s_b of its shortcut and 1 - s_b of its branch, the path through shortcuts alone has the share s_1 s_2 ... s_B
    (Veit et al. 2016, Residual Networks Behave Like Ensembles of Relatively Shallow Networks, sec. 3 and 4.2). Recorded
    are the shares of the whole gradient, not of single paths, so the product is an estimate.

    Returns:
        Decades, the median over rows of the product; NaN where a product is not positive in most rows.
    """
    if not run.shares.size:
        return math.nan
    products = np.where((run.shares > 0).all(axis=1), run.shares.prod(axis=1), np.nan)
    if np.isnan(products).mean() > 0.5:
        return math.nan
    return math.log10(float(median(products)))


def final(run: StudyRun, column: str) -> float:
    """Return a column's value in the last epoch; for a run that diverged, chance as accuracy and NaN as loss."""
    if run.diverged:
        return chance(run) if column.endswith("accuracy") else math.nan
    values = run.epochs.get(column, np.empty(0))
    return float(values[-1]) if len(values) else math.nan


def n_epochs(run: StudyRun) -> int:
    """Return the number of epochs of a run."""
    return len(run.epochs.get("train_accuracy", ()))


def mean_accuracy(run: StudyRun, epochs: int) -> float:
    """Return the area under the training accuracy over the first epochs, divided by their number.

    A run that diverged counts with chance for the missing epochs.
    """
    values = np.asarray(run.epochs.get("train_accuracy", np.empty(0)), dtype=np.float64)[:epochs]
    if run.diverged:
        values = np.append(values, np.full(epochs - len(values), chance(run)))
    return float(values.mean()) if len(values) == epochs and epochs else math.nan


def epochs_to(run: StudyRun, accuracy: float) -> float:
    """Return the first epoch, counted from 1, that reaches a training accuracy; inf if none does."""
    values = np.asarray(run.epochs.get("train_accuracy", np.empty(0)), dtype=np.float64)
    reached = np.flatnonzero(values >= accuracy)
    return float(reached[0] + 1) if len(reached) else math.inf


def chance(run: StudyRun) -> float:
    """Return the accuracy of guessing; 0 if the number of classes is unknown."""
    facts = run.config.get("data_facts", {})
    classes = facts.get("classes", ()) if isinstance(facts, dict) else ()
    classes = classes if isinstance(classes, list | tuple) else ()
    return 1 / len(classes) if classes else 0.0


def gap(run: StudyRun) -> float:
    """Return the final training accuracy minus the final validation accuracy."""
    return final(run, "train_accuracy") - final(run, "val_accuracy")


def end_loss(run: StudyRun) -> float:
    """Return the training loss at the end: the median of the last epochs."""
    losses = np.asarray(run.epochs.get("train_loss", np.empty(0)), dtype=np.float64)[-LAST_EPOCHS:]
    return median_of_all(losses) if len(losses) and not run.diverged else math.nan


def still_falls(run: StudyRun) -> float:
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
