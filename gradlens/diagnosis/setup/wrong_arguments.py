"""Arguments that are repeated, swapped or something else: a tensor against itself, logs of logs, log variances, betas.

All but the betas and label smoothing are exact: the recorder reads them from the graph of the loss.
"""

from __future__ import annotations

import math

from gradlens.diagnosis.findings import Finding, exact_finding, quoted
from gradlens.diagnosis.network import Network
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import judged_by, named, setup_finding

MOST_SMOOTHING = 0.5
"""Label smoothing that takes more than half; Szegedy et al. 2016, section 7, who proposed it, use 0.1."""


def wrong_arguments(rec: Recording) -> list[Finding]:
    """Find arguments that are repeated or in the wrong order.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    return [*_with_itself(rec), *_logs_of_logs(rec), *_log_as_deviation(rec), *_smoothing(rec), *_betas(rec)]


def _with_itself(rec: Recording) -> list[Finding]:
    """Find a loss that compares a model's output with the same output."""
    return [
        setup_finding(
            rec,
            item,
            f"the loss compares what {quoted(item.text('layer'))} made with the very same tensor ({item.text('op')}): "
            "the difference is 0 whatever the weights are, and so is its gradient",
            "Compare it with the target, or with the output for another input: the anchor of a triplet with another "
            "example of its class, a prediction with its label.",
            "a tensor is compared with itself",
            named(item),
        )
        for item in rec.setup.graph.entries("with_itself")[:1]
    ]


def _logs_of_logs(rec: Recording) -> list[Finding]:
    """Find the logarithm of a logarithm of probabilities, which is never positive."""
    found = []
    for item in rec.setup.graph.entries("logs_of_logs")[:1]:
        divergence = item.text("op") == "Xlogy"
        evidence = (
            f"the target of the KL divergence is the output of {item.text('of')}, which is at most 0: its logarithm is "
            "NaN"
            if divergence
            else f"the loss takes the logarithm of the output of {item.text('of')}, which is at most 0: it is NaN"
        )
        remedy = (
            "F.kl_div(input, target) takes logarithms of the model's probabilities as input and the target's "
            "probabilities as target: swap the two, or give log_target=True if the target has logarithms."
            if divergence
            else "Take the logarithm once: log_softmax has it already."
        )
        cause = "the arguments of the KL divergence are swapped" if divergence else "a logarithm of a logarithm"
        found.append(setup_finding(rec, item, evidence, remedy, cause, named(item)))
    return found


def _log_as_deviation(rec: Recording) -> list[Finding]:
    """Find a log variance that is used as a standard deviation."""
    return [
        setup_finding(
            rec,
            item,
            f"the output of {quoted(item.text('layer'))} multiplies noise as it is, and the loss takes its "
            "exponential: as a logarithm of the variance it is no standard deviation, which is never below 0",
            f"Draw with the deviation: {quoted(item.text('mean'))} + torch.exp(0.5 * logvar) * noise.",
            "a log variance is used as a deviation",
            named(item),
        )
        for item in rec.setup.graph.entries("log_as_deviation")[:1]
    ]


def _smoothing(rec: Recording) -> list[Finding]:
    """Find label smoothing that takes away more than it leaves."""
    found = []
    for item in rec.setup.graph.entries("smoothing")[:1]:
        share, classes = item.number("share"), item.whole("classes")
        if classes < 2 or not share > MOST_SMOOTHING:
            continue
        smoothed = setup_finding(
            rec,
            item,
            f"label_smoothing={share:.3g} spreads that share of each target over all {classes} classes, which "
            f"leaves {1 - share + share / classes:.3g} for the right one",
            "Use label_smoothing=0.1: the number is the share that is taken away from the right class, and not the "
            "share that is left.",
            "label smoothing takes most of the target away",
        )
        source = "Szegedy et al. 2016, section 7, use 0.1; the threshold is this project's choice"
        found.append(judged_by(smoothed, "a share of more than 0.5", source))
    return found


def _betas(rec: Recording) -> list[Finding]:
    """Find an Adam that averages gradients for longer than their squares (Kingma & Ba 2015, Adam, theorem 4.1).

    Returns:
        The finding, where beta1 squared over the root of beta2 is not less than 1.
    """
    for item in Network(rec).optimizers:
        for group in item.entries("groups"):
            betas = group.entry("settings").numbers("betas")
            if len(betas) < 2 or not 0 < betas[1] < betas[0] < 1 or betas[0] ** 2 < math.sqrt(betas[1]):
                continue
            name = item.text("class")
            swapped = exact_finding(
                "setup",
                (),
                (int(rec.run.steps[0]), rec.last_step),
                f"{name} has betas=({betas[0]:g}, {betas[1]:g}): a step follows the mean of about "
                f"{1 / (1 - betas[0]):,.0f} gradients, and is divided by the size of the last "
                f"{1 / (1 - betas[1]):,.0f}: it goes on where gradients pointed long ago, the faster the smaller "
                "they are now",
                f"Swap them: {name}(..., betas=({betas[1]:g}, {betas[0]:g})); the second one is for the squares.",
                "the betas are swapped",
            )
            threshold = "beta1 squared over the root of beta2 is at least 1, and beta1 is larger than beta2"
            return [judged_by(swapped, threshold, "Kingma & Ba 2015, Adam, theorem 4.1")]
    return []
