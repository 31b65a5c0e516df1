"""Gradients of several backward passes that are added up for a step, of a loss that is an average: from facts."""

from __future__ import annotations

from dataclasses import replace

from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.network import LARGE_STEP, Network
from gradlens.diagnosis.recorded_rows import Recording

CAUSED_BY_LARGE_STEPS = ("exploding", "nonfinite", "dead", "saturated", "zero_gradient", "vanishing", "plateau")
"""Kinds that steps which are too large can cause."""


def passes_added_up(rec: Recording) -> int:
    """Return of how many backward passes a step adds up the gradients, where their loss is an average; 0 if unknown.

    Only where one loss is seen, which nothing multiplies or divides, and where larger gradients make larger steps.

    Args:
        rec: The recording.
    """
    graph, network = rec.setup.graph, Network(rec)
    losses, looks = graph.entries("losses"), graph.whole("last_step") - graph.whole("step") + 1
    if len(losses) != 1 or len(network.optimizers) != 1 or network.rescales or rec.combines_by_hand:
        return 0
    item, passes = losses[0], losses[0].whole("passes")
    if item.text("reduction") != "mean" or item.flag("scaled") or not item.flag("alone") or len(rec.scalar(LOST)):
        return 0
    return passes // looks if looks > 0 and passes % looks == 0 and passes > looks else 0


LOST = "discarded_passes"


def with_passes(rec: Recording, finding: Finding) -> Finding:
    """Add to a finding that its large steps are sums over several passes, and say so first.

    Args:
        rec: The recording.
        finding: The finding.

    Returns:
        The same, or one with the number of passes in its evidence and remedy.
    """
    may_be = finding.kind in CAUSED_BY_LARGE_STEPS and (finding.kind == "dead" or not finding.cause)
    count = passes_added_up(rec) if may_be else 0
    if not count or not Network(rec).first_update() > LARGE_STEP:
        return finding
    said = (
        f"each step adds up the gradients of {count} backward passes of a loss that is an average and is not divided "
        f"by {count}: it is {count} times as large as the step of their mean"
    )
    fix = f"Divide the loss by {count}, the number of micro-batches, before backward()."
    return replace(finding, evidence=f"{finding.evidence}; {said}", remedy=f"{fix} {finding.remedy}")
