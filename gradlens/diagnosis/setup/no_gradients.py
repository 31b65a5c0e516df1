"""An optimizer that steps without any gradient: no backward pass, or the gradients of another model."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.setup.setup_findings import layers_of, setup_finding
from gradlens.format import plural

ANOTHER_MODEL = "another model is trained than the optimizer has"


def no_backward(rec: Recording) -> list[Finding]:
    """Find that the optimizer steps although no parameter ever had a gradient: no backward pass, or another model's."""
    states = rec.setup.states(in_optimizer=True, requires_grad=True)
    graph = rec.setup.graph
    if not states or any(item.texts("seen") != ("none",) for item in states):
        return []
    if graph.text("source") == "backward":
        return _another_model(rec, states)
    return [
        setup_finding(
            rec,
            states[0],
            f"the optimizer steps, and none of {plural(sum(item.whole('count') for item in states), 'parameter')} has "
            "a gradient in any step: no backward pass was seen",
            "Call loss.backward() before optimizer.step().",
            "no backward pass",
            layers_of(list(states)),
        )
    ]


def _another_model(rec: Recording, states: list[Entry]) -> list[Finding]:
    """Find that the model with the optimizer never runs, while the loss depends on parameters of another one."""
    graph = rec.setup.graph
    others = [item for item in graph.entries("unregistered") if item.flag("parameter") and not item.text("held_in")]
    if not others or graph.entry("modules").whole("ran", 1):
        return []
    return [
        setup_finding(
            rec,
            states[0],
            f"the model that the optimizer trains never runs with a graph, and the loss depends on "
            f"{plural(others[0].whole('count'), 'parameter')} with {others[0].whole('numel'):,} elements of another "
            "model, which no optimizer has",
            "Train the model of which the optimizer was made: make the model once, before the optimizer and outside "
            "the loop (a copy, a model made anew, or one that was loaded needs an optimizer of its own).",
            ANOTHER_MODEL,
            layers_of(list(states)),
        )
    ]
