"""Weights that cannot learn: in a buffer, rounded, overwritten between steps, alike in all units."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, exact_finding, quoted, say_layers
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import LEAST_CALLS, layers_of, setup_finding
from gradlens.diagnosis.zero_gradient import flat_weights, pass_gradient, say_flat
from gradlens.format import plural

ENOUGH_STEPS = 16
"""Steps after which units with another gradient have weights of their own."""


def weights_in_buffers(rec: Recording) -> list[Finding]:
    """Find layers with parameters of their own, whose weights are a buffer: nothing trains them."""
    items = rec.setup.entries("buffers")
    if not items:
        return []
    layers = tuple(item.text("layer") for item in items)
    name, shape = items[0].text("name"), " x ".join(f"{size:.0f}" for size in items[0].numbers("shape"))
    return [
        exact_finding(
            "setup",
            layers,
            (int(rec.run.steps[0]), rec.last_step),
            f"{quoted(name)} ({shape}) of {say_layers(layers)} is a buffer and not a parameter: no optimizer changes "
            "it, and only the other parameters of the layer learn",
            f"Make it a parameter: self.{name} = nn.Parameter(...) instead of register_buffer. Where it is fixed on "
            "purpose (random features), set requires_grad to False on a parameter instead.",
            "weights are a buffer",
        )
    ]


def rounded_weights(rec: Recording) -> list[Finding]:
    """Find weights behind an operation without a derivative: their gradient is 0, and that of a bias is not."""
    zero, arriving = (rec.setup.states(gradient=state) for state in ("zero", "arriving"))
    op, layers = flat_weights(rec, set(layers_of(list(zero))) & set(layers_of(list(arriving))))
    if not layers:
        return []
    since = min(item.whole("since") for item in zero if set(item.texts("layers")) & set(layers))
    return [
        exact_finding(
            "zero_gradient",
            layers,
            (since, rec.last_step),
            f"the weights of {say_layers(layers)} get a gradient of exactly 0: they go through {say_flat(op)}",
            pass_gradient(op),
            f"{op.lower()} of the weights",
        )
    ]


def overwritten(rec: Recording, learning: Learning) -> list[Finding]:
    """Find parameters of the optimizer that something else changes in every step, in a model that does not learn."""
    if learning.verdict != "no":
        return []
    found = [item for item in rec.setup.entries("changed_outside") if item.flag("in_optimizer")]
    found = [item for item in found if item.whole("looks") >= rec.setup.whole("looks") - 2 > LEAST_CALLS]
    total = sum(item.whole("numel") for item in rec.setup.states(requires_grad=True, in_optimizer=True))
    if not total or sum(item.whole("numel") for item in found) < total / 2:
        return []
    layers = layers_of(found)
    return [
        exact_finding(
            "setup",
            layers,
            (found[0].whole("first_step"), rec.last_step),
            f"between two steps, something other than the optimizer changes the weights of {say_layers(layers)}, in "
            f"all {plural(found[0].whole('looks'), 'step')} that were compared: what a step learns is overwritten",
            "Look for an initialisation (reset_parameters, apply(init)), load_state_dict or an assignment to .data "
            "that runs in forward or in the loop, and call it once before the training.",
            "weights are overwritten between steps",
        )
    ]


def alike(rec: Recording) -> list[Finding]:
    """Find layers all of whose units have the same weights, still after steps."""
    if rec.setup.whole("last_step") - rec.setup.whole("first_step") < ENOUGH_STEPS:
        return []
    states = rec.setup.states(requires_grad=True, in_optimizer=True, rows_alike=True, gradient="arriving")
    order = {layer.name: layer for layer in rec.run.layers}
    layers = tuple(name for name in layers_of(states) if name in order and order[name].role in ("main", ""))
    hidden = {parent for layer in rec.run.layers for parent in layer.parents}
    layers = tuple(name for name in layers if list(order).index(name) in hidden or not hidden)
    if not layers:
        return []
    return [
        setup_finding(
            rec,
            states[0],
            f"all rows of the weights of {say_layers(layers)} are equal, still at step "
            f"{rec.setup.whole('last_step')}: every unit computes the same and gets the same gradient, so that a layer "
            "is worth a single unit (a constant initialisation, symmetry is not broken)",
            f"Initialise {say_layers(layers)} with random weights (torch's default, Glorot or He). A constant is for "
            "biases only.",
            "all units of a layer are the same",
            layers,
        )
    ]
