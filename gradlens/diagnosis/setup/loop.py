"""Mistakes in the order of the training loop: gradients thrown away, weights written anew, an optimizer that climbs."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.gradient_ratio import FIRST_ROWS
from gradlens.analysis.stats import median, median_of_all
from gradlens.diagnosis.findings import Finding, exact_finding, say_layers
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.format import plural

MANY = 4
"""Backward passes per step whose gradients are cleared. Methods that clear some on purpose make one (SAM), or reach
the input (adversarial training)."""
MOSTLY = 0.8
"""Share of the rows that must be so, and of the first loss to which a loss returns when weights are made anew."""
THROWN_AWAY = "most backward passes are thrown away"
MOST = 2.0
"""A loss that is more than so many times its first value is not that of weights that were made anew; no outside
source."""
LEAST_WRITES = 2
"""Times that weights must be written between steps."""
PLAIN = ("NllLoss", "NllLoss2D", "MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy")
"""Losses that are to become small."""


def loop(rec: Recording, learning: Learning) -> list[Finding]:
    """Find mistakes in the order of the training loop.

    Args:
        rec: The recording.
        learning: Whether the model learns.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    return [*_thrown_away(rec), *_written_anew(rec), *_climbs(rec, learning)]


def _thrown_away(rec: Recording) -> list[Finding]:
    """Find that most backward passes are cleared before a step: the step is outside the loop over batches."""
    thrown = np.nan_to_num(rec.scalar("discarded_passes"))
    strange = rec.setup.graph.entries("unregistered")
    if len(thrown) < FIRST_ROWS or strange or rec.combines_by_hand or (thrown[1:] >= MANY).mean() < MOSTLY:
        return []
    number = int(median_of_all(thrown[1:]))
    return [
        exact_finding(
            "setup",
            (),
            (int(rec.run.steps[0]), rec.last_step),
            f"before each optimizer step, the gradients of {plural(number, 'backward pass', 'backward passes')} are "
            "cleared unused, and the step gets those of the last pass alone: most batches are thrown away",
            "Call optimizer.step() inside the loop over batches, once after each loss.backward() (is it indented too "
            "little?). To accumulate over batches instead, call zero_grad() after the step only. Where these passes "
            "only measure something, such as how much gradients scatter, nothing is wrong.",
            THROWN_AWAY,
        )
    ]


def _written_anew(rec: Recording) -> list[Finding]:
    """Find that all weights are written between steps now and then, after which the loss is that of the first rows.

    A part may be made anew on purpose, as the last layer is in reinforcement learning (Nikishin et al. 2022).

    Returns:
        The finding, in a list.
    """
    written = rec.setup.entry("written_between")
    steps = np.array(written.numbers("steps"))
    loss = rec.scalar("loss")
    if (
        len(steps) < LEAST_WRITES
        or not written.flag("all")
        or len(loss) != len(rec.run.steps)
        or not np.isfinite(loss[:FIRST_ROWS]).any()
    ):
        return []
    rows = np.searchsorted(rec.run.steps, steps)
    rows = rows[(rows >= FIRST_ROWS) & (rows < len(loss))]
    first = median_of_all(loss[:FIRST_ROWS])
    before = np.array([median(loss[row - 3 : row]) for row in rows])
    after = np.array([median(loss[row : row + 2]) for row in rows])
    returns = (after > before) & (after >= MOSTLY * first) & (after <= MOST * first)
    if len(rows) < LEAST_WRITES or returns.mean() < MOSTLY or not median_of_all(before) < median_of_all(after):
        return []
    layers = written.texts("layers")
    return [
        exact_finding(
            "setup",
            layers,
            (int(steps[0]), rec.last_step),
            f"something other than the optimizer writes the weights of {say_layers(layers)} between steps, "
            f"{plural(written.whole('count'), 'time')}, first before step {int(steps[0])}; the loss is then "
            f"{median_of_all(after):.3g} again (in the first rows {first:.3g}), after "
            f"{median_of_all(before):.3g} just before: what was learnt is lost",
            "Look for an initialisation (reset_parameters, apply(init)), load_state_dict or a model made anew inside "
            "the loop over epochs, and call it once before the training.",
            "weights are made anew during the training",
        )
    ]


def _climbs(rec: Recording, learning: Learning) -> list[Finding]:
    """Find an optimizer with maximize=True on a loss that is to become small."""
    optimizers = rec.setup.entries("optimizers")
    climbing = [item for item in optimizers for group in item.entries("groups") if _maximizes(group)]
    losses = rec.setup.graph.entries("losses")
    plain = [item for item in losses if item.text("op").startswith(PLAIN) and item.flag("alone")]
    if not climbing or len(optimizers) != 1 or learning.verdict == "yes" or len(plain) != len(losses) or not plain:
        return []
    return [
        exact_finding(
            "setup",
            (),
            (int(rec.run.steps[0]), rec.last_step),
            f"{climbing[0].text('class')} has maximize=True, and the loss is {plain[0].text('op')} and nothing else: "
            f"each step makes the error larger ({learning.evidence})",
            f"Make {climbing[0].text('class')} without maximize=True.",
            "the optimizer makes the loss larger",
        )
    ]


def _maximizes(group: Entry) -> bool:
    return group.entry("settings").flag("maximize") is True
