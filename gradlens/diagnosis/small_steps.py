"""Steps that are far too small to learn: the gradients agree, or the loss falls along a straight line."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.analysis.stats import median, median_of_all
from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.learning import ERRORS, LEAST_STEPS, Losses, guessing_of, trained_before
from gradlens.diagnosis.loss import HALVED, loss_fell
from gradlens.diagnosis.network import Network, usual_update
from gradlens.diagnosis.recorded_rows import BATCHES, COHERENCE, LEAST_VALUES, UPDATE, Recording, share_beyond

SMALL_STEP = 1e-4
"""Ben Braiek & Khomh 2023, TheDeepChecker: log10 of update / weight is healthy in [-4, -1]."""
MOVED = 0.05
"""Where all steps together change a layer by less than this share of its norm, little can have been learnt."""
LEFT = 0.75
"""Share of the first loss that must be left: a loss that falls by more in so few steps needs no other rate."""
STEADY = 0.5
"""A loss that falls at the end at half of its first pace or more follows a straight line rather than a curve."""
AGREE = 0.15
"""At a minimum the gradients of two halves of a batch cancel: small steps while the halves agree are not convergence.
Measured on experiments/scorecard, seeds 0 to 2: a cosine of -0.06 to 0.07 near convergence, 0.42 to 0.53 with a
learning rate 1,000 times too small; this is about the geometric mean of 0.07 and 0.42."""


def slow(rec: Recording) -> list[Finding]:
    """Find a learning rate that is far too small: weights hardly change although halves of the batch agree.

    The finding's kind is "frozen", because relative steps below 1e-4 teach next to nothing. The rule needs
    grad_coherence (which batch norm lowers) or batch_coherence, and the loss to exclude convergence, and a model that
    was not trained before: fine-tuning may want small steps. A learning rate that rises is a warm-up and is excluded.
    Confidence: the share of resampled medians of the cosine beyond the threshold.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    name = rec.coherence or COHERENCE
    if not (rec.has(UPDATE) and rec.has(name)) or _knew_before(rec):
        return []
    series, agreement = rec.series(UPDATE), rec.series(name)
    if min(len(series), len(agreement)) < LEAST_VALUES or _warms_up(rec):
        return []
    main = rec.run.main_layers()
    moving = series.positive[main]
    if not moving.any():
        return []
    step = float(median(series.typical[main][moving]))
    what = "two batches in succession" if name == BATCHES else "two halves of the batch"
    fell, cosines = loss_fell(rec), agreement.by_rows(lambda values: median(values[:, main]))
    if not (step < SMALL_STEP and median_of_all(cosines) > AGREE) or math.isnan(fell) or fell >= HALVED:
        return []
    return [
        Finding(
            "frozen",
            rec.names(rec.in_order(main[moving])),
            (int(series.steps[0]), rec.last_step),
            f"one step changes a layer by {step:.1e} of its norm (median over layers and rows), while the gradients of "
            f"{what} agree (cosine {median_of_all(cosines):.2f}) and the loss falls by only {max(fell, 0):.0%}",
            f"update_ratio below {SMALL_STEP:.0e}, a cosine above {AGREE}, and a loss that does not halve",
            "Ben Braiek & Khomh 2023, TheDeepChecker: log10 of update / weight in [-4, -1]; at a minimum the gradients "
            "of the halves cancel",
            Network(rec).speed_up(step),
            share_beyond(cosines, AGREE, below=False),
        )
    ]


def steady(rec: Recording) -> list[Finding]:
    """Find steps so small that the loss of an untrained model falls along a straight line to the end.

    Needs a reason to hold small steps against a model: a classifier that begins at the level of guessing, or a loss
    that is multiplied or divided by a number. Confidence: that of the fall, three standard errors.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    loss, step = rec.scalar("loss"), usual_update(rec)
    loss = loss[np.isfinite(loss)]
    if len(loss) < LEAST_STEPS or _warms_up(rec) or not step < SMALL_STEP or not step * rec.last_step < MOVED:
        return []
    scaled = [item for item in rec.setup.graph.entries("losses") if item.flag("scaled") and item.flag("alone")]
    guess = guessing_of(rec)
    if not scaled and (math.isnan(guess) or _knew_before(rec)):
        return []
    means = [float(part.mean()) for part in np.array_split(loss, 5)]
    falls = means[0] > means[-1] > LEFT * means[0] and (means[3] - means[4]) > STEADY * (means[0] - means[1])
    if not falls or not Losses(loss).falls:
        return []
    main = rec.run.main_layers()
    why = f"; {scaled[0].text('op')} is multiplied or divided by a number before the backward pass" if scaled else ""
    average = (
        "Do not divide a loss that is a mean already by the number of examples or elements again. " if scaled else ""
    )
    return [
        Finding(
            "frozen",
            rec.names(rec.in_order(main)),
            (int(rec.run.steps[0]), rec.last_step),
            f"one step changes a layer by {step:.1e} of its norm, all steps together by at most "
            f"{step * rec.last_step:.1%}, and the loss falls along a straight line: from {means[0]:.4g} to "
            f"{means[-1]:.4g} (first and last fifth){why}",
            f"update_ratio below {SMALL_STEP:.0e}, and a loss that falls in the last fifth at half of its first pace "
            "or more",
            "Ben Braiek & Khomh 2023, TheDeepChecker: log10 of update / weight in [-4, -1]",
            f"{average}{Network(rec).speed_up(step)}",
            0.997,
        )
    ]


def _knew_before(rec: Recording) -> bool:
    """Return whether the loss of a classifier lies below guessing in the first fifth already: such steps teach less."""
    loss, guess = rec.scalar("loss"), guessing_of(rec)
    first = loss[np.isfinite(loss)][: len(loss) // 5]
    if math.isnan(guess) or len(first) < LEAST_ROWS:
        return bool(trained_before(rec))
    means = np.array([part.mean() for part in np.array_split(first, 5)])
    return bool(means.mean() + ERRORS * means.std(ddof=1) / math.sqrt(len(means)) < guess)


def _warms_up(rec: Recording) -> bool:
    """Return whether the learning rate rises from the middle of the rows to the end."""
    lr = rec.scalar("lr")
    lr = lr[~np.isnan(lr)]
    return bool(len(lr) > 1 and lr[-1] > lr[len(lr) // 2])
