"""What counts how much in a loss: classes, examples, and scores of attention. Exact, from the graph of the loss."""

from __future__ import annotations

import math

import numpy as np

from gradlens.diagnosis.findings import Finding, quoted, say_layers
from gradlens.diagnosis.recorded_rows import Recording, words_of
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.setup.setup_findings import LEAST_CALLS, named, setup_finding
from gradlens.run import FloatArray

SCARCE = 3.0
"""Classes whose numbers differ by less may be weighted for any reason."""
LEAST_COUNTED = 5
"""Examples of the rarest class that tell its share to within a half (standard error 1 / sqrt(5))."""
AS_COUNTS = (0.5, 1.5)
"""Weights go as a power of the counts between these: the balance has -1, its inversion 1."""
REWARDS = {"reward", "rewards", "return", "returns", "score"}
"""Words in names of what a policy is to make large."""
ONE_SCORE = "softmax over one element"
"""This explains a gradient of 0 at the layers that make the scores."""


def weighting(rec: Recording) -> list[Finding]:
    """Find weights that do the opposite of their purpose, or nothing.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    rules = (_inverted, _too_late, _copies_of_one, _single_score, _penalty_without_graph, _entropy_made_small)
    return [finding for rule in rules for finding in rule(rec)]


def _inverted(rec: Recording) -> list[Finding]:
    """Find weights of classes that grow with the number of their examples."""
    for item in rec.setup.graph.entries("class_weights"):
        weights, counts = np.array(item.numbers("weights")), np.array(item.numbers("counts"))
        if len(weights) != len(counts) or not _go_as_counts(weights, counts):
            continue
        kept = np.flatnonzero((weights > 0) & (counts > 0))
        often, rare = kept[counts[kept].argmax()], kept[counts[kept].argmin()]
        name = "pos_weight" if item.text("op").startswith("Binary") else "weight"
        return [
            setup_finding(
                rec,
                item,
                f"the loss ({item.text('op')}) gives class {often} with {counts[often] / counts.sum():.0%} of the "
                f"targets the weight {weights[often]:.3g}, and class {rare} with {counts[rare] / counts.sum():.1%} "
                f"the weight {weights[rare]:.3g}: the weights make rare classes rarer",
                f"Turn the weights round: {name} is to be large for rare classes (total / count of each class, "
                "in the order of the class indices), or leave it out.",
                "class weights favour the frequent classes",
            )
        ]
    return []


def _go_as_counts(weights: FloatArray, counts: FloatArray) -> bool:
    """Return whether weights are about proportional to the counts, where these differ by far."""
    kept = (weights > 0) & (counts > 0)  # a class of weight 0 is left out on purpose
    if kept.sum() < 2 or counts[kept].min() < LEAST_COUNTED:
        return False
    x, y = np.log(counts[kept]), np.log(weights[kept])
    if not np.ptp(x) > math.log(SCARCE) or not np.ptp(y) > 0:
        return False
    power = float(np.polyfit(x, y, 1)[0])
    return AS_COUNTS[0] <= power <= AS_COUNTS[1] and float(np.corrcoef(x, y)[0, 1]) > 0.9


def _too_late(rec: Recording) -> list[Finding]:
    """Find weights of examples that multiply their average."""
    return [
        setup_finding(
            rec,
            item,
            f"{item.whole('count')} examples are averaged ({item.text('op')}) before {item.whole('count')} weights "
            "multiply them: each weight multiplies the same number, so that no example counts more than another",
            "Multiply element by element, and average afterwards: reduction='none' (or the log-probabilities of all "
            "actions) times the weights, then mean().",
            "weights come after the average",
        )
        for item in rec.setup.graph.entries("late_weights")[:1]
        if item.whole("passes") >= rec.setup.graph.whole("passes")
    ]


def _copies_of_one(rec: Recording) -> list[Finding]:
    """Find batches that hold one example many times, another one in each step."""
    graph = rec.setup.graph
    data = [
        item for item in rec.setup.entries("inputs") if item.flag("data") and item.flag("examples_alike") is not None
    ]
    alike = [item for item in graph.entries("equal_examples") if item.whole("passes") >= graph.whole("passes")]
    if not data or not alike or graph.whole("passes") < LEAST_CALLS:
        return []
    if any(item.flag("same") or not item.flag("examples_alike") or item.whole("calls") < LEAST_CALLS for item in data):
        return []
    item = data[0]
    count = int(item.numbers("shape")[0])
    return [
        setup_finding(
            rec,
            item,
            f"in each of {item.whole('calls')} steps, all {count} examples that {quoted(item.text('layer'))} gets are "
            f"the same one, with the same target: the batch is worth one example",
            "Look at how batches are put together: a buffer that holds the same list or array many times (append a "
            "copy), or a data set that does not use its index.",
            "a batch holds one example many times",
            named(item),
        )
    ]


def _single_score(rec: Recording) -> list[Finding]:
    """Find scores of attention that a softmax over one element makes 1, so that what makes them gets no gradient."""
    for item in rec.setup.graph.entries("softmax_dims"):
        layer = item.text("layer") or item.text("behind")
        behind = tuple(dict.fromkeys(name for name in (item.text("behind"), item.text("layer")) if name))
        zero = _without_gradient(rec)
        first = [name for name in zero if any(_is_in(name, other) for other in behind)]
        is_output = any(out.text("op") == item.text("op") for out in rec.setup.graph.entries("outputs"))
        if item.whole("elements") != 1 or not first or is_output:
            continue
        layers = (*first, *(name for name in zero if name not in first))
        shape = " x ".join(f"{size:.0f}" for size in item.numbers("shape"))
        return [
            setup_finding(
                rec,
                item,
                f"the softmax behind {quoted(layer)} runs over one element (dimension {item.whole('dim')} of {shape}): "
                f"its result is always exactly 1, and the gradient of {quoted(layers[0])} exactly 0",
                "Let the softmax run over what is to be weighed against each other, such as the positions of a "
                "sequence: give it that dimension, before a view takes it away.",
                ONE_SCORE,
                layers,
            )
        ]
    return []


def _without_gradient(rec: Recording) -> tuple[str, ...]:
    """Return the layers in an optimizer whose gradient was exactly 0 at every look."""
    states: list[Entry] = rec.setup.states(in_optimizer=True, requires_grad=True)
    zero = dict.fromkeys(name for item in states if item.texts("seen") == ("zero",) for name in item.texts("layers"))
    others = {name for item in states if item.texts("seen") != ("zero",) for name in item.texts("layers")}
    return tuple(name for name in zero if name not in others)


def _is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _penalty_without_graph(rec: Recording) -> list[Finding]:
    """Find a penalty on a gradient that was taken without a graph: to the weights it is a number."""
    known = {layer.name for layer in rec.run.layers}
    for item in rec.setup.graph.entries("penalties"):
        layers = tuple(name for name in item.texts("layers") if name in known)
        if item.whole("passes") < rec.setup.graph.whole("passes") or not layers:
            continue
        return [
            setup_finding(
                rec,
                item,
                f"in each of {item.whole('passes')} passes, torch.autograd.grad takes a gradient through "
                f"{say_layers(layers)} without create_graph, and a term of the loss has no graph: it is a number that "
                "no weight can change",
                "Pass create_graph=True to torch.autograd.grad where its result goes into the loss (a gradient "
                "penalty, or the derivative in a differential equation).",
                "a term of the loss has no graph",
                layers,
            )
        ]
    return []


def _entropy_made_small(rec: Recording) -> list[Finding]:
    """Find a policy whose entropy the loss makes smaller, beside a logged reward."""
    graph, rewards = rec.setup.graph, [name for name in rec.run.scalars if words_of(name) & REWARDS]
    items = graph.entries("entropies")
    if (
        not rewards
        or len(items) != 1
        or items[0].number("sign") != 1
        or items[0].whole("passes") < graph.whole("passes")
    ):
        return []
    return [
        setup_finding(
            rec,
            items[0],
            f"the loss holds the entropy of the policy with a plus sign in each of {items[0].whole('passes')} passes: "
            "the optimizer makes it smaller, so that the policy settles on one action before it has tried the others",
            "Subtract the entropy from the loss (loss = policy_loss - coefficient * entropy), or give it a negative "
            "coefficient.",
            "the sign of the entropy is wrong",
        )
    ]
