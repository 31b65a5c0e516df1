"""Gradients that are cleared at the wrong moment: before the step, too rarely, or after each of several passes."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.findings import Finding, say_layers
from gradlens.diagnosis.loss import loss_halved
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.setup.setup_findings import layers_of, setup_finding

MOST = 0.5
"""Share of the optimizer's parameters that must be in a state before it counts as the state of the training."""
MOSTLY_LOST = 0.9
"""Share of the rows in which as many passes are lost: the last step of an epoch may have fewer."""
CLEARED = "gradients are cleared before the step"
"""This explains backward passes that are thrown away."""
OFTEN_KEPT = 3
"""Steps that were looked at in which gradients of the step before were still there."""


def _share(rec: Recording, gradient: str) -> tuple[list[Entry], float]:
    """Return the parameters of the optimizers whose gradient is in a state, and their share of the elements."""
    states = rec.setup.states(in_optimizer=True, requires_grad=True)
    found = [item for item in states if item.text("gradient") == gradient]
    total = sum(item.whole("numel") for item in states)
    return found, sum(item.whole("numel") for item in found) / total if total else 0.0


def cleared(rec: Recording) -> list[Finding]:
    """Find gradients that are cleared between the backward pass and the step, which gets none."""
    found, share = _share(rec, "cleared")
    if share <= MOST:
        return []
    return [
        setup_finding(
            rec,
            found[0],
            f"the gradients of {say_layers(layers_of(found))} are cleared between the backward pass and the "
            "optimizer's step: the step gets no gradient",
            "Call optimizer.zero_grad() before loss.backward() or after optimizer.step(), not between them.",
            CLEARED,
            layers_of(found),
        )
    ]


def kept(rec: Recording) -> list[Finding]:
    """Find gradients that are never cleared, or too rarely, so that those of several steps add up."""
    found, share = _share(rec, "kept")
    lasting = [item for item in found if rec.setup.whole("last_step") - item.whole("since") >= 2]
    if share <= MOST or not lasting:
        return _kept_often(rec)
    return [
        setup_finding(
            rec,
            lasting[0],
            f"the gradients of {say_layers(layers_of(found))} are never cleared: since step "
            f"{lasting[0].whole('since')} each backward pass adds to the gradients of all steps before",
            "Call optimizer.zero_grad() once per step, before the backward pass.",
            "gradients are never cleared",
            layers_of(found),
        )
    ]


def _kept_often(rec: Recording) -> list[Finding]:
    """Find that gradients are cleared now and then, as once per epoch: most steps get a sum over steps before."""
    states = rec.setup.states(in_optimizer=True, requires_grad=True)
    found = [item for item in states if item.whole("kept") >= OFTEN_KEPT]
    total = sum(item.whole("numel") for item in states)
    if sum(item.whole("numel") for item in found) <= MOST * total or loss_halved(rec):
        return []
    return [
        setup_finding(
            rec,
            found[0],
            f"in {found[0].whole('kept')} of the {rec.setup.whole('looks')} steps that were looked at, the gradients "
            f"of {say_layers(layers_of(found))} were not cleared since the step before: the backward pass adds to "
            "those of earlier steps",
            "Call optimizer.zero_grad() once per step, before the backward pass, not once per epoch.",
            "gradients are cleared too rarely",
            layers_of(found),
        )
    ]


def accumulates_nothing(rec: Recording) -> list[Finding]:
    """Find gradients that are cleared after each of several backward passes of a step, whose loss is divided."""
    counts = rec.scalar("discarded_passes")
    counts = counts[np.isfinite(counts)]
    losses = rec.setup.graph.entries("losses")
    looks = rec.setup.graph.whole("last_step") - rec.setup.graph.whole("step") + 1
    lost = int(median_of_all(counts)) if len(counts) and not rec.combines_by_hand else 0
    if lost < 1 or (counts == lost).mean() < MOSTLY_LOST or len(losses) != 1 or losses[0].flag("scaled") is not True:
        return []
    if losses[0].whole("passes") != looks * (lost + 1):  # all passes of a step are of this loss
        return []
    return [
        setup_finding(
            rec,
            losses[0],
            f"each step has {lost + 1} backward passes of a loss that is multiplied or divided by a number, and the "
            f"gradients of {lost} of them are cleared before the step: only the last one is used, and nothing is "
            "accumulated",
            "Call optimizer.zero_grad() once per optimizer step (after optimizer.step()), not once per micro-batch.",
            "accumulated gradients are cleared",
        )
    ]
