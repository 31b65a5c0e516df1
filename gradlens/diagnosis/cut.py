"""A loss that does not reach what it should train: detached outputs, values taken out of the graph, hidden layers."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, exact_finding, quoted, say_layers
from gradlens.diagnosis.intended import side_branch
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.recurrent import recurrent
from gradlens.diagnosis.zero_gradient import pass_gradient, say_flat, zero_layers
from gradlens.format import plural

LEAST_PASSES = 2
"""Passes with new parameters from which on they count as made anew; a second model's parameters stay the same."""
RECURRENT = ("RNN", "LSTM", "GRU")
MADE_ANEW = "parameters are made in the forward pass"
DRAWN = "a drawn sample passes no gradient"
HOW = {
    "detached": "nothing uses its output, or it is taken out of the graph (.detach(), .data, .item(), .numpy() or a "
    "new tensor)",
    "no_grad": "it runs without a graph (torch.no_grad, inference_mode or requires_grad_(False) on what it gets)",
}
MEND = {
    "detached": "remove the detach(), .data, .item(), .numpy() or torch.tensor(...) there, or use it",
    "no_grad": "remove the no_grad or inference_mode around it, or the requires_grad_(False) on what it gets",
}


def cut(rec: Recording, learning: Learning) -> list[Finding]:
    """Find what the graph of the loss does not reach: everything, modules behind a cut, or layers in a plain list.

    A module counts as cut off only where its parameters are in an optimizer and never got a gradient: what is meant to
    stay as it is has no optimizer. Confidence: 1, because the graph was read.

    Args:
        rec: The recording.
        learning: Whether the model learns.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    rules = (_no_graph, _behind_a_cut, _not_registered, _made_anew, _drawn, _sampled)
    tensors = [] if learning.verdict == "yes" else _plain_tensors(rec)
    found = [*recurrent(rec, learning), *(finding for rule in rules for finding in rule(rec)), *tensors]
    found += [] if found else _state_detached(rec)
    return found or ([] if learning.verdict == "yes" else _another_loss(rec))


def _another_loss(rec: Recording) -> list[Finding]:
    """Find that ``backward`` is called on something that no output of the model takes part in, such as a penalty."""
    graph, modules = rec.setup.graph, rec.setup.graph.entry("modules")
    arrives = rec.setup.states(gradient="arriving")
    if graph.text("source") != "backward" or graph.flag("complete") is not True or not arrives:
        return []
    if not modules.whole("ran") or modules.whole("reached", 1) or graph.entry("no_graph"):
        return []
    if graph.entries("own_functions"):
        return []  # such a function may run the model inside it, and make the gradients itself
    return [
        exact_finding(
            "cut",
            (),
            (graph.whole("step"), rec.last_step),
            f"{plural(modules.whole('ran'), 'module')} ran with a graph, and what backward() was called on reaches the "
            f"output of none of them in {plural(graph.whole('passes'), 'pass', 'passes')}: it depends on the weights "
            "alone (a penalty on them), not on what the model computes",
            "Call backward() on the loss that compares the model's output with the targets, or on its sum with the "
            "penalty; look for two variables that are mixed up (loss, cost, total).",
            "backward is called on another loss",
        )
    ]


def _drawn(rec: Recording) -> list[Finding]:
    """Find layers on both sides of a normal sample that passes no gradient; zero gradients are another rule's."""
    zero = set(rec.names(zero_layers(rec)))
    return [
        exact_finding(
            "cut",
            (item.text("layer"),),
            (item.whole("since"), rec.last_step),
            f"from step {item.whole('since')} on, between {quoted(item.text('layer'))} and {quoted(item.text('next'))} "
            f"is {say_flat(item.text('op'))}: "
            "what follows cannot train what comes before",
            pass_gradient(item.text("op")),
            DRAWN,
        )
        for item in rec.setup.graph.entries("flat")[:1]
        if item.text("op") == "Normal" and item.text("layer") and item.text("next") and item.text("layer") not in zero
    ]


def _sampled(rec: Recording) -> list[Finding]:
    """Find a decoder that gets a sample without a graph, of the shape of what the divergence is computed from."""
    found = []
    inputs = {item.text("layer"): item for item in rec.setup.entries("inputs") if item.flag("data")}
    for item in rec.setup.graph.entries("terms_apart")[:1]:
        sample = inputs.get(item.text("after"))
        if sample is None or tuple(sample.numbers("shape")) not in item.lists("shapes"):
            continue
        others = [other for name, other in inputs.items() if name != item.text("after")]
        if any(all(other.number(key) == sample.number(key) for key in ("least", "largest", "rms")) for other in others):
            continue  # both parts of the model get the same data
        found.append(
            exact_finding(
                "cut",
                (item.text("before"), item.text("after")),
                (item.whole("since"), rec.last_step),
                f"{quoted(item.text('after'))} gets a tensor without a graph, of the shape of what the divergence is "
                f"computed from, and no term of the loss reaches both {quoted(item.text('before'))} and "
                f"{quoted(item.text('after'))}: the sample between them passes no gradient, so that the reconstruction "
                "does not train what comes before it",
                "Use rsample() in place of sample(), or mean + std * torch.randn_like(std): this reparametrization "
                "passes the gradient (Kingma & Welling 2014).",
                DRAWN,
            )
        )
    return found


def _ran_on(rec: Recording, layer: str, few: set[str]) -> bool:
    """Return whether a layer behind another one has outputs that no loss reaches, too."""
    names = [each.name for each in rec.run.layers]
    return not few.isdisjoint(names[names.index(layer) + 1 :])


def _state_detached(rec: Recording) -> list[Finding]:
    """Find a recurrent layer that ran many times in a pass of which the loss reaches only the last."""
    few = {item.text("layer"): item for item in rec.setup.graph.entries("unreached_calls")}
    others = set(rec.setup.layers_of(requires_grad=True, in_optimizer=True)) - set(few)
    recurrent = [
        layer.name for layer in rec.run.layers if layer.name in few and any(kind in layer.kind for kind in RECURRENT)
    ]
    if not recurrent or not others or _ran_on(rec, recurrent[0], set(few) - set(recurrent)):
        return []  # where layers behind it ran more often, too, passes were made that no loss used (to choose actions)
    calls, reached = few[recurrent[0]].whole("calls"), few[recurrent[0]].whole("reached")
    return [
        exact_finding(
            "cut",
            tuple(recurrent),
            (int(rec.run.steps[0]), rec.last_step),
            f"{quoted(recurrent[0])} ran {calls} times in the first steps, and the loss reaches {reached} of its "
            "outputs: its state is taken out of the graph (.detach(), .data or a new tensor) from call to call, so "
            "that nothing is learnt over more than one step of the sequence",
            "Keep the state in the graph within a sequence; detach it only between chunks of many steps (truncated "
            "backpropagation through time).",
            "the state is detached at each step",
        )
    ]


def _no_graph(rec: Recording) -> list[Finding]:
    none = rec.setup.graph.entry("no_graph")
    if not none or rec.setup.states(gradient="arriving"):
        return []
    return [
        exact_finding(
            "cut",
            rec.setup.layers_of(requires_grad=True) or rec.names(rec.run.main_layers()),
            (none.whole("since"), rec.last_step),
            f"the loss has no graph in {plural(none.whole('passes', 1), 'backward pass', 'backward passes')} that were "
            "read: it is a new tensor, made from a number, and no gradient reaches any parameter",
            "Compute the loss from the model's output without .item(), float(), .detach(), .numpy() or "
            "torch.tensor(...) in between: add up tensors, and call backward() on their sum.",
            "the loss is made from numbers",
        )
    ]


def _behind_a_cut(rec: Recording) -> list[Finding]:
    found = []
    copies = {item.text("layer") for item in rec.setup.entries("copies")}
    for item in rec.setup.graph.entries("cut"):
        layers = tuple(name for name in item.texts("layers") if _lost(rec, name) and name not in copies)
        if not layers or side_branch(rec, item):
            continue
        last, following = item.text("last") or layers[-1], item.text("next")
        before = f", before {quoted(following)}" if following else ""
        found.append(
            exact_finding(
                "cut",
                (last, *(name for name in layers if name != last)),
                (item.whole("since"), rec.last_step),
                f"no gradient reaches {say_layers(layers)} although the optimizer is to train "
                f"{'it' if len(layers) == 1 else 'them'}: the graph of the loss ends behind {quoted(last)}; "
                f"{HOW.get(item.text('how'), 'it is cut there')}",
                f"Look at what is done with the output of {quoted(last)}{before}: "
                f"{MEND.get(item.text('how'), MEND['detached'])}; if these parameters are not to learn, take them out "
                "of the optimizer.",
                f"cut behind {last}",
            )
        )
    return found


def _lost(rec: Recording, layer: str) -> bool:
    """Return whether a layer's parameters are in an optimizer and never got a gradient."""
    states = [item for item in rec.setup.entries("parameters") if layer in item.texts("layers")]
    known = [item for item in states if item.flag("requires_grad")]
    return bool(known) and all(item.number("optimizer") >= 0 and item.texts("seen") == ("none",) for item in known)


def _not_registered(rec: Recording) -> list[Finding]:
    lists = [item for item in rec.setup.graph.entries("unregistered") if _is_hidden(item)]
    return [
        exact_finding(
            "cut",
            (),
            (item.whole("since"), rec.last_step),
            f"the loss depends on {plural(item.whole('count'), 'parameter')} with {item.whole('numel'):,} elements "
            f"that are not registered in the model: they lie in its attribute {item.text('held_in')!r}, and no "
            "optimizer has them",
            f"Make {item.text('held_in')!r} an nn.ModuleList (or nn.ModuleDict, nn.ParameterList), so that "
            "model.parameters() has its layers, and make the optimizer after that.",
            "layers in a plain Python container",
        )
        for item in lists
    ]


def _plain_tensors(rec: Recording) -> list[Finding]:
    """Find tensors that require a gradient and lie in plain attributes: what code of one's own learns by hand."""
    strange = rec.setup.graph.entries("unregistered")
    held = [item for item in strange if item.text("held_in") and item.flag("parameter") is False]
    held = [item for item in held if item.flag("in_optimizer") is not True]
    if not held:
        return []
    names = ", ".join(dict.fromkeys(item.text("held_in") for item in held))
    return [
        exact_finding(
            "cut",
            (),
            (held[0].whole("since"), rec.last_step),
            f"the loss depends on {sum(item.whole('numel') for item in held):,} elements of plain tensors that require "
            f"a gradient ({names}): they are no parameters of the model, and no optimizer has them",
            f"Make {names} nn.Parameter in __init__ of their module, so that model.parameters() has them, and make the "
            "optimizer after that.",
            "weights are plain tensors",
        )
    ]


def _made_anew(rec: Recording) -> list[Finding]:
    """Find parameters of which each backward pass that was read has new ones: layers that are made in forward."""
    strange = [
        item
        for item in rec.setup.graph.entries("unregistered")
        if item.flag("parameter") is True and item.flag("in_optimizer") is not True and not item.text("held_in")
        if item.flag("inside") is not False  # another model may get this one's output
    ]
    passes = {item.whole("since") for item in strange}
    if len(passes) < LEAST_PASSES or len({(item.whole("count"), item.whole("numel")) for item in strange}) > 1:
        return []
    return [
        exact_finding(
            "cut",
            (),
            (min(passes), rec.last_step),
            f"in each of the {plural(len(passes), 'pass', 'passes')} that were read, the loss depends on "
            f"{plural(strange[0].whole('count'), 'new parameter')} with {strange[0].whole('numel'):,} elements that "
            "are not in the model and in no optimizer: layers or parameters are made anew in every forward pass",
            "Make these layers once, in __init__ of their module, and only call them in forward; make the optimizer "
            "after that.",
            MADE_ANEW,
        )
    ]


def _is_hidden(item: Entry) -> bool:
    return bool(item.text("held_in")) and item.flag("parameter") is True and item.flag("in_optimizer") is not True
