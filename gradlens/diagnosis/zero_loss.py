"""A loss that is exactly 0 and was not learnt: 0 from the first row on, or from one step to the next."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.gradient_ratio import FIRST_ROWS, LEAST_ROWS
from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.loss import loss_is_nothing
from gradlens.diagnosis.recorded_rows import Recording

LARGE_PART = 0.1
"""A loss that was never below this share of its first value and is 0 in the next step was not learnt; no outside
source."""
EMPTY, GONE = "the loss is exactly 0 in every row", "the loss becomes 0 from one step to the next"
ZERO_LOSSES = (EMPTY, GONE)


def zero_loss(rec: Recording) -> tuple[str, str, str] | None:
    """Return why a loss is exactly 0 although nothing was learnt, if it is.

    Args:
        rec: The recording.

    Returns:
        The cause, the evidence and a remedy; None where the loss is not 0, or fell to 0 little by little.
    """
    if loss_is_nothing(rec):
        return (
            EMPTY,
            "no term of the loss counts: no pair or triplet is selected, every margin is met, or every target is left "
            "out",
            "Print how many pairs, triplets or targets the loss selects. Look at the labels (is each example a class "
            "of its own?), the margin and the masks, and at infinite numbers among distances: a diagonal that is "
            "filled with -inf before the sign is turned round is the largest in every row.",
        )
    if (dropped := drops_to_zero(rec)) is None:
        return None
    step, before = dropped
    return (
        GONE,
        f"the loss is {before:.3g} up to step {step - 1}, and exactly 0 from step {step} on: no learning does that, "
        "because the gradient and with it the steps become smaller with the loss; something in the loss became 0 (a "
        "mask, a weight), or leaves out every element",
        "Print the mask or the weights that the loss is multiplied by, and their sum, in each step: a mask that is "
        "kept from batch to batch and written in place (mask[...] = 0) collects zeros, so copy it with clone() first; "
        "a weight may have been scheduled to 0; all targets may be the ignored class.",
    )


def drops_to_zero(rec: Recording) -> tuple[int, float] | None:
    """Return the step from which on the loss is exactly 0 to the end, and its level before, where it jumps there.

    Learning passes through what lies between: the less is left of a loss, the smaller are its gradient and the next
    step. So a loss that is a large part of its first value in one step and exactly 0 in the next one, for good, was
    made 0 by something else.

    Args:
        rec: The recording.

    Returns:
        The step and the median of the ten rows before it; None where the loss does not drop so, where it is 0 for
        fewer than ten rows, and where steps between these rows were not recorded.
    """
    loss = rec.scalar("loss")
    if len(loss) != len(rec.run.steps):
        return None
    known = np.isfinite(loss)
    values, steps = loss[known], rec.run.steps[known]
    above = np.flatnonzero(values != 0)
    start = int(above[-1]) + 1 if len(above) else 0
    if start < LEAST_ROWS or len(values) - start < LEAST_ROWS or steps[start] - steps[start - 1] != 1:
        return None
    first = median_of_all(values[:FIRST_ROWS])
    if not first > 0 or values[:start].min() < LARGE_PART * first:
        return None
    return int(steps[start]), median_of_all(values[start - LEAST_ROWS : start])
