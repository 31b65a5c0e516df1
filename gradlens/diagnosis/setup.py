"""Faults of the set-up that are read from the training itself: the loss, its inputs, modes, clearing and the scaler."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.alike_places import alike_places
from gradlens.diagnosis.broadcast import broadcast
from gradlens.diagnosis.class_dims import class_dims
from gradlens.diagnosis.collapsed import collapsed
from gradlens.diagnosis.copies import copies
from gradlens.diagnosis.divided import divided
from gradlens.diagnosis.exponents import exponents
from gradlens.diagnosis.findings import Finding, exact_finding, quoted, say_layers
from gradlens.diagnosis.gradless import gradless
from gradlens.diagnosis.labels import labels
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.likelihood import likelihood, maximizes
from gradlens.diagnosis.logit_range import logit_range
from gradlens.diagnosis.loop import THROWN_AWAY, loop
from gradlens.diagnosis.loss import loss_halved
from gradlens.diagnosis.other_weights import other_weights
from gradlens.diagnosis.own_targets import own_targets
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.same_outputs import bent_logits, same_for_all
from gradlens.diagnosis.sequences import sequences
from gradlens.diagnosis.terms import collapsed_posterior, outweighed
from gradlens.diagnosis.unfit import (
    FIT_MEAN,
    FIT_VARIANCE,
    alike,
    batch_second,
    batch_sizes,
    constant_data,
    dropped,
    few_values,
    is_far,
    layers_of,
    minimax,
    mixed_views,
    named,
    normalised_output,
    one_class,
    only_class,
    out_of_range,
    overwritten,
    rounded_weights,
    same_batch,
    setup_finding,
)
from gradlens.diagnosis.weighting import weighting
from gradlens.diagnosis.written_weights import undone_steps
from gradlens.diagnosis.wrong_arguments import wrong_arguments
from gradlens.format import plural

MOST = 0.5
"""Share of the optimizer's parameters that must be in a state before it counts as the state of the training."""
MOSTLY_LOST = 0.9
"""Share of the rows in which as many passes are lost: the last step of an epoch may have fewer."""
ANOTHER_MODEL = "another model is trained than the optimizer has"
CLEARED = "gradients are cleared before the step"
"""This explains backward passes that are thrown away."""
OFTEN_KEPT = 3
"""Steps that were looked at in which gradients of the step before were still there."""
LOGITS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
NO_LOGS = ("Softmax", "Sigmoid", "Relu", "Tanh", "Addmm", "Mm", "Bmm", "Convolution")
"""Operations whose output is no log-probability; behind others (indexing, a sum of parts) there may be a logarithm."""
TAKES = {
    "LogSoftmax": ("cross entropy", "softmax"),
    "BinaryCrossEntropyWithLogits": ("binary cross entropy with logits", "sigmoid"),
}

TARGETS_OF_TWO = (
    "Give this loss targets from 0 to 1: divide images by 255; for more than two classes use F.cross_entropy with an "
    "output per class."
)


def setup(rec: Recording, learning: Learning) -> list[Finding]:
    """Find faults of the set-up that need no threshold.

    Args:
        rec: The recording.
        learning: Whether the model learns.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    rules = (
        _no_backward, _negated, _twice, _no_logs, _flat_derivative, _outside, out_of_range, _softmax_dim, dropped,
        broadcast, mixed_views, batch_second, _cleared, _kept, alike, _momentum, _evaluates, _scaled, same_batch,
        minimax, collapsed_posterior, outweighed, _accumulates_nothing, _weights_in_buffers, rounded_weights,
        class_dims, logit_range, likelihood, weighting, sequences, wrong_arguments, own_targets, bent_logits, copies,
        gradless, labels, divided, alike_places, other_weights, exponents,
    )  # fmt: skip
    found = [finding for rule in rules for finding in rule(rec)]
    found += [finding for rule in AFTER_LEARNING for finding in rule(rec, learning)]
    causes = {finding.cause for finding in found}
    return [finding for finding in found if not (CLEARED in causes and finding.cause == THROWN_AWAY)]


AFTER_LEARNING = (
    collapsed, few_values, one_class, only_class, overwritten, constant_data, normalised_output, loop, same_for_all,
    undone_steps,
)  # fmt: skip
"""Rules that also ask whether the model learns."""


def _no_backward(rec: Recording) -> list[Finding]:
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


def _outside(rec: Recording) -> list[Finding]:
    """Find a binary cross entropy below 0, which no targets between 0 and 1 can give."""
    beyond = [
        item
        for item in rec.setup.graph.entries("targets")
        if item.text("op").startswith("BinaryCrossEntropy") and (item.number("largest") > 1 or item.number("least") < 0)
    ]
    if beyond:
        return [
            setup_finding(
                rec,
                beyond[0],
                f"the loss is a binary cross entropy, and its targets go from {beyond[0].number('least'):.3g} to "
                f"{beyond[0].number('largest'):.3g}: they must lie from 0 to 1, or it falls without bound",
                TARGETS_OF_TWO,
                "targets outside 0 to 1",
            )
        ]
    loss = rec.scalar("loss")
    below = int((np.nan_to_num(loss) < 0).sum())
    if not below or below < len(loss) / 10:
        return []
    return [
        setup_finding(
            rec,
            item,
            f"the loss is a binary cross entropy, and below 0 in {plural(below, 'row')} (down to "
            f"{float(np.nanmin(loss)):.3g}): only targets outside 0 to 1 do that, and it then falls without bound",
            TARGETS_OF_TWO,
            "targets outside 0 to 1",
        )
        for item in rec.setup.graph.entries("losses")
        if item.text("op").startswith("BinaryCrossEntropy") and item.flag("alone") is True
    ]


def _negated(rec: Recording) -> list[Finding]:
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


def _twice(rec: Recording) -> list[Finding]:
    """Find a softmax or sigmoid before a loss that applies its own; a log-softmax applied twice changes nothing."""
    found = []
    for item in rec.setup.graph.entries("softmax_twice"):
        op, loss = LOGITS.get(item.text("op"), ""), TAKES.get(item.text("loss"))
        if not op or loss is None:
            continue
        where = f" ({quoted(item.text('layer'))})" if item.text("layer") else ""
        evidence = (
            f"{plural(1, op)[2:]} is applied twice: the model ends with a {op}{where}, and the loss ({loss[0]}) "
            f"applies {'its own' if op == loss[1] else 'a ' + loss[1]} to what should be logits"
        )
        remedy = (
            f"Remove the {op}{where} from the model while it trains: the loss expects logits. Apply it in prediction."
        )
        found.append(
            setup_finding(rec, item, evidence, remedy, f"{op} before a loss that applies its own", named(item))
        )
    return found


def _no_logs(rec: Recording) -> list[Finding]:
    return [
        setup_finding(
            rec,
            item,
            f"the loss ({item.text('loss')}) expects log-probabilities (at most 0), and gets the output of "
            f"{item.text('op') or 'a layer'}",
            "Use F.cross_entropy on the logits, or apply log_softmax before this loss.",
            "no log-softmax before the loss",
            named(item),
        )
        for item in rec.setup.graph.entries("probabilities_as_logs")
        if item.text("op") in NO_LOGS
    ]


def _flat_derivative(rec: Recording) -> list[Finding]:
    return [
        setup_finding(
            rec,
            item,
            f"the loss holds a second derivative through {item.text('op')}, which is exactly 0 everywhere: this term "
            "is the same for all weights and gives no gradient",
            "Use an activation function that bends everywhere (tanh, SiLU, softplus or sine) in a network that is "
            "differentiated twice with respect to its input.",
            "second derivative of a piecewise linear network",
            named(item),
        )
        for item in rec.setup.graph.entries("curvature")[:1]
    ]


def _softmax_dim(rec: Recording) -> list[Finding]:
    """Find a softmax over the batch, or over the only element of the model's output."""
    found, batches = [], batch_sizes(rec)
    for item in rec.setup.graph.entries("softmax_dims"):
        shape, elements = item.numbers("shape"), item.whole("elements")
        said = " x ".join(f"{size:.0f}" for size in shape)
        where = f" in {quoted(item.text('layer'))}" if item.text("layer") else ""
        if item.whole("dim", -1) == 0 and len(shape) > 2 and elements in batches:
            what = (
                f"a softmax{where} runs over the first dimension of {said}: over the {elements} examples of the batch"
            )
            fix = (
                "Let the softmax run over the last dimension (dim=-1): examples of a batch may not share probabilities."
            )
            found.append(setup_finding(rec, item, what, fix, "softmax over the batch", named(item)))
        elif item.text("op") == "LogSoftmax" and item.whole("dim", -1) == 0 and _goes_into_nll(rec, shape):
            what = (
                f"the log-softmax{where} runs over the first dimension of {said}, and the loss (NllLoss) takes the "
                "second one for the classes"
            )
            fix = "Let the log-softmax run over the classes (dim=1 for outputs of batch x classes)."
            found.append(setup_finding(rec, item, what, fix, "softmax over the wrong dimension", named(item)))
        elif elements == 1 and any(out.text("op") == item.text("op") for out in rec.setup.graph.entries("outputs")):
            what = f"the model's output is a softmax{where} over one element ({said}): it is always exactly 1"
            fix = "Use a sigmoid, or binary_cross_entropy_with_logits on the logit, for a single output."
            found.append(setup_finding(rec, item, what, fix, "softmax over one element", named(item)))
    return found


def _goes_into_nll(rec: Recording, shape: tuple[float, ...]) -> bool:
    """Return whether an output of this shape is the input of a negative log-likelihood."""
    outputs, losses = rec.setup.graph.entries("outputs"), rec.setup.graph.entries("losses")
    made = any(out.text("op") == "LogSoftmax" and out.text("loss").startswith("NllLoss") for out in outputs)
    return made and len(shape) > 1 and any(tuple(loss.numbers("shape")) == tuple(shape) for loss in losses)


def _share(rec: Recording, gradient: str) -> tuple[list[Entry], float]:
    """Return the parameters of the optimizers whose gradient is in a state, and their share of the elements."""
    states = rec.setup.states(in_optimizer=True, requires_grad=True)
    found = [item for item in states if item.text("gradient") == gradient]
    total = sum(item.whole("numel") for item in states)
    return found, sum(item.whole("numel") for item in found) / total if total else 0.0


def _cleared(rec: Recording) -> list[Finding]:
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


def _kept(rec: Recording) -> list[Finding]:
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


def _accumulates_nothing(rec: Recording) -> list[Finding]:
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


def _weights_in_buffers(rec: Recording) -> list[Finding]:
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


def _momentum(rec: Recording) -> list[Finding]:
    norms = [item for item in rec.setup.entries("batch_norm") if item.flag("tracks") and item.number("momentum") == 0]
    far = [item for item in norms if is_far(item, FIT_MEAN, FIT_VARIANCE)]
    if not far:
        return []  # statistics that fit may be kept on purpose, with a pretrained model
    return [
        setup_finding(
            rec,
            far[0],
            f"batch norm has momentum 0 at {say_layers(_norm_names(norms))}: its running statistics stay as they were "
            f"made, and the model evaluates with them ({say_statistics(far[0])})",
            "Set momentum to 0.1 (torch's default): it is the weight of the new batch, 1 minus what other frameworks "
            "call momentum.",
            "running statistics of batch norm are never updated",
            _norm_names(norms),
        )
    ]


def _norm_names(items: list[Entry]) -> tuple[str, ...]:
    return tuple(item.text("layer") for item in items)


def say_statistics(item: Entry) -> str:
    """Return how far the running statistics of a batch norm are from those of the batch.

    Args:
        item: One of ``batch_norm`` in docs/facts.md.
    """
    return (
        f"at {quoted(item.text('layer'))} the running mean is {item.number('mean_distance'):.2g} standard deviations "
        f"off, and the running variance is {item.number('variance_ratio'):.2g} times that of the batch"
    )


def _evaluates(rec: Recording) -> list[Finding]:
    """Find that all modules that behave otherwise in evaluation are in eval mode in steps that train."""
    modes = rec.setup.entries("modes")
    if not modes or any(item.text("mode") != "eval" for item in modes):
        return []
    switched = [item for item in modes if "train" in item.texts("seen")]
    far = [item for item in rec.setup.entries("batch_norm") if item.flag("tracks") and is_far(item)]
    only_norms = all("Norm" in kind for item in modes for kind in item.texts("kinds"))
    if (not far and (only_norms or not switched)) or (not switched and not _learns(rec, far)):
        return []  # batch norms whose statistics fit are often frozen on purpose
    item = (switched or list(modes))[0]
    names = item.texts("layers")
    since = f"since step {item.whole('since')}" if switched else "from the first step on"
    statistics = f"; {say_statistics(far[0])}" if far else ""
    return [
        setup_finding(
            rec,
            item,
            f"{say_layers(names)} ({', '.join(dict.fromkeys(item.texts('kinds')))}) "
            f"{'is' if len(names) == 1 else 'are'} in eval mode in steps that train, {since}{statistics}",
            "Call model.train() at the beginning of each epoch, and after every validation that calls model.eval().",
            "the model trains in eval mode",
            names,
        )
    ]


def _learns(rec: Recording, norms: list[Entry]) -> bool:
    """Return whether norms have parameters that require a gradient."""
    return bool(set(_norm_names(norms)).intersection(rec.setup.layers_of(requires_grad=True)))


def _scaled(rec: Recording) -> list[Finding]:
    scaling = rec.setup.entry("scaling")
    if not scaling.flag("scaler_seen") or scaling.flag("scaler_given") is not False:
        return []
    scale = f" of {scaling.number('scale'):,.0f}" if np.isfinite(scaling.number("scale")) else ""
    return [
        setup_finding(
            rec,
            scaling,
            f"a GradScaler steps the optimizer, and the recorder does not know it: activation gradients are recorded "
            f"multiplied by the loss scale{scale}, and skipped steps are not recognised",
            "Pass the scaler to the recorder: gradlens.record(model, path, optimizer=optimizer, scaler=scaler).",
            "the loss scale is not known to the recorder",
        )
    ]
