"""Weights that something besides the optimizer writes between steps, and what the loss does then."""

from __future__ import annotations

import itertools

import numpy as np

from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.findings import Finding, exact_finding, say_layers
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.format import plural

LEAST_WRITES = 2
"""Times that weights must be written between steps."""
UNDONE = 0.1
"""Share of each step that is left when the next one begins, below which the steps are undone; an average over several
models keeps more of them. No outside source."""
LEAST_STEPS = 3
"""Steps in succession that must be undone."""
LITTLE = 0.1
"""Share of a rise that steps between the writes may make; no outside source."""
OVERLAP = 2
"""Rows on both sides of a write whose loss is compared."""


def rises_at_writes(rec: Recording) -> tuple[str, str] | None:
    """Say that a loss rises where weights are written between steps, and hardly else, and what to look at.

    The loss is followed in logarithms, which add up to its whole rise: the changes from the rows before a write to
    those after it make up nine tenths of it or more. Then the steps of the optimizer are not what makes it rise.

    Args:
        rec: The recording.

    Returns:
        A sentence and a remedy; None where weights are not written, or the loss rises otherwise.
    """
    written = rec.setup.entry("written_between")
    loss = rec.scalar("loss")
    if not written.flag("all") or written.whole("count") != len(written.numbers("steps")) or not len(loss):
        return None
    rows = np.searchsorted(rec.run.steps, written.numbers("steps"))
    rows = rows[(rows > 0) & (rows < len(loss))]
    if len(rows) < LEAST_WRITES or len(rows) > len(loss) / OVERLAP or not (loss > 0).all():
        return None
    edges = [0, *rows.tolist(), len(loss)]
    parts = [np.log(loss[a:b]) for a, b in itertools.pairwise(edges) if b > a]
    inside = sum(median_of_all(part[-OVERLAP:]) - median_of_all(part[:OVERLAP]) for part in parts)
    whole = median_of_all(parts[-1][-OVERLAP:]) - median_of_all(parts[0][:OVERLAP])
    if not whole > 0 or inside > LITTLE * whole:
        return None
    layers = written.texts("layers")
    return (
        f"it rises where something besides the optimizer writes the weights of {say_layers(layers)} between steps "
        f"({plural(len(rows), 'time')}, first before step {int(rec.run.steps[rows[0]])}): from one such write to the "
        "next it hardly rises, so that the optimizer's steps are not its cause",
        "Look at what is written there (load_state_dict, copy_, an average over models or clients): its weights must "
        "add up to 1, and a sum must begin at 0 each time. Compare the norm of the weights before and after. ",
    )


def undone_steps(rec: Recording, learning: Learning) -> list[Finding]:
    """Find that something takes back what the optimizer does, step by step, in a model that is not seen to learn.

    Args:
        rec: The recording.
        learning: Whether the model learns: clients of federated learning begin anew in each step, and the average of
            what they learnt is kept elsewhere.

    Returns:
        The finding; an empty list where there is no such fault.
    """
    left = rec.setup.entry("written_between").numbers("left")
    if len(left) < LEAST_STEPS or max(left) >= UNDONE or learning.verdict == "yes":
        return []
    states = rec.setup.states(requires_grad=True, in_optimizer=True)
    layers = tuple(dict.fromkeys(name for item in states for name in item.texts("layers")))
    first = rec.setup.whole("first_step")
    return [
        exact_finding(
            "setup",
            layers,
            (first, rec.last_step),
            f"something other than the optimizer writes the weights of {say_layers(layers)} after each step: of "
            f"{plural(len(left), 'step')} in succession, at most {max(left):.0%} was left when the next one began",
            "Look for what is copied into the model after the step: a soft update with the two models in the wrong "
            "order (the target is to get tau * learner + (1 - tau) * target, and the learner is not to be written), "
            "load_state_dict of an old state, or a copy that is written back.",
            "the optimizer's steps are undone",
        )
    ]
