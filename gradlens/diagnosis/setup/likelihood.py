"""Losses of probabilities whose sign or input is wrong: exact, read from the graph of the loss and its values."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import named, setup_finding
from gradlens.format import plural

FAR_BELOW = 10.0
"""A loss so many times its first size below 0 has no bound there; no outside source."""
OFTEN = 0.1
"""Share of the rows in which a loss must be below 0."""


def likelihood(rec: Recording) -> list[Finding]:
    """Find a likelihood that is made smaller, and a negative log-likelihood below 0, which no probabilities have.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    rules = (
        _without_minus, _below_zero, _without_square, _overlap_made_small, _divergence_grows, _advantage_trains,
    )  # fmt: skip
    return [finding for rule in rules for finding in rule(rec)]


def maximizes(rec: Recording) -> bool:
    """Return whether an optimizer makes its loss larger.

    Args:
        rec: The recording.
    """
    groups = [group for item in rec.setup.entries("optimizers") for group in item.entries("groups")]
    return any(group.entry("settings").flag("maximize") for group in groups)


def _without_minus(rec: Recording) -> list[Finding]:
    return [
        setup_finding(
            rec,
            item,
            f"from step {item.whole('since')} on, the loss is the mean of log-probabilities, without a minus: an "
            "optimizer that makes it smaller makes the right answers less likely, without bound",
            "Put a minus before the mean of the log-probabilities, or use F.cross_entropy (or "
            "F.binary_cross_entropy_with_logits) on the logits.",
            "the sign of the loss is wrong",
            named(item),
        )
        for item in rec.setup.graph.entries("likelihoods")[:1]
        if not maximizes(rec)
    ]


def _overlap_made_small(rec: Recording) -> list[Finding]:
    return [
        setup_finding(
            rec,
            item,
            f"from step {item.whole('since')} on, the loss is an overlap of outputs and targets (Dice, or IoU), and "
            "nothing else: an optimizer that makes it smaller takes the outputs away from the targets",
            "Subtract the overlap from 1 (loss = 1 - dice).",
            "the sign of the loss is wrong",
            named(item),
        )
        for item in rec.setup.graph.entries("overlaps")[:1]
        if not maximizes(rec)
    ]


def _below_zero(rec: Recording) -> list[Finding]:
    losses, loss = rec.setup.graph.entries("losses"), rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    below = int((loss < 0).sum())
    known = rec.setup.graph.entries("probabilities_as_logs")
    if len(losses) != 1 or not losses[0].text("op").startswith("NllLoss") or losses[0].flag("alone") is not True:
        return []
    if below < max(OFTEN * len(loss), 1) or known:
        return []
    return [
        setup_finding(
            rec,
            losses[0],
            f"the negative log-likelihood is below 0 in {plural(below, 'row')} (down to {float(loss.min()):.3g}): what "
            "it gets lies above 0, and logarithms of probabilities do not",
            "Use F.cross_entropy on the logits, or apply log_softmax once, directly before this loss.",
            "no log-softmax before the loss",
        )
    ]


def _divergence_grows(rec: Recording) -> list[Finding]:
    """Find a divergence with a minus in a loss that falls below 0, which reconstruction and divergence never do."""
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    late = median_of_all(loss[-max(len(loss) // 5, 1) :]) if len(loss) else 0.0
    return [
        setup_finding(
            rec,
            item,
            "the loss holds minus an exponential and minus a square of what the model computes, and falls to "
            f"{late:.3g}: a divergence (KL) with the wrong sign is made larger, without bound",
            "Add the divergence to the reconstruction error: KL = -0.5 * sum(1 + logvar - mu**2 - exp(logvar)), loss = "
            "error + KL.",
            "the divergence has the wrong sign",
            named(item),
        )
        for item in rec.setup.graph.entries("maximized_divergences")[:1]
        if late < 0 and not maximizes(rec)
    ]


def _advantage_trains(rec: Recording) -> list[Finding]:
    """Find a policy gradient whose advantage has a graph: the policy's loss trains the critic, too."""
    return [
        setup_finding(
            rec,
            item,
            f"from step {item.whole('since')} on, log-probabilities of actions are multiplied by a difference that has "
            f"a graph and holds the output of {quoted(item.text('layer'))}: the policy's loss trains that critic, too, "
            "and moves its values to where the loss is small, not to the returns",
            "Detach the advantage, (returns - values).detach(), and train the critic by its own loss alone.",
            "the advantage is not detached",
            (item.text("layer"),),
        )
        for item in rec.setup.graph.entries("trained_advantages")[:1]
    ]


def _without_square(rec: Recording) -> list[Finding]:
    """Find a signed error that falls without bound; around 0 it may be one term of several, or meant."""
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    late = median_of_all(loss[-max(len(loss) // 5, 1) :]) if len(loss) else 0.0
    if not late < -FAR_BELOW * float(np.abs(loss[:3]).max(initial=0.0)) or not late < -1:
        return []
    return [
        setup_finding(
            rec,
            item,
            f"the loss is the mean of the output minus the target, with its sign, and falls to {late:.3g}: errors "
            "below 0 count as gains, without bound",
            "Square the difference or take its absolute value before the mean (F.mse_loss, F.l1_loss).",
            "a signed error for a loss",
            named(item),
        )
        for item in rec.setup.graph.entries("signed_errors")[:1]
    ]


def negated(rec: Recording) -> list[Finding]:
    """Find a loss that is minus an error, while the optimizer makes the loss smaller."""
    return [
        setup_finding(
            rec,
            item,
            f"the loss is minus {item.text('op')} and nothing else, from step {item.whole('since')} on: an optimizer "
            "that makes it smaller makes the error larger, without bound",
            "Remove the minus sign before the loss (or set maximize=True in the optimizer instead, not both).",
            "the sign of the loss is wrong",
        )
        for item in rec.setup.graph.entries("losses")
        if item.flag("negated") is True and not maximizes(rec)
    ]
