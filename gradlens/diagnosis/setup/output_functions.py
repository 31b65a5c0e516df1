"""What is applied to outputs before the loss: a softmax twice, over the wrong dimension or not at all; dropout."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.setup.setup_findings import batch_sizes, named, setup_finding
from gradlens.format import plural

LOGITS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
NO_LOGS = ("Softmax", "Sigmoid", "Relu", "Tanh", "Addmm", "Mm", "Bmm", "Convolution")
"""Operations whose output is no log-probability; behind others (indexing, a sum of parts) there may be a logarithm."""
TAKES = {
    "LogSoftmax": ("cross entropy", "softmax"),
    "Softmax": ("a second softmax", "softmax"),
    "BinaryCrossEntropyWithLogits": ("binary cross entropy with logits", "sigmoid"),
}
DROPS = ("Mul", "NativeDropout", "FusedDropout")
"""Operations of dropout."""
LEAST_DRAWS = 2
"""Passes with a new mask of 0 and the same number above 1: dropout, whose factor is 1 / (1 - p)."""


def twice(rec: Recording) -> list[Finding]:
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


def no_logs(rec: Recording) -> list[Finding]:
    """Find a loss of log-probabilities that gets the output of a softmax or of a layer."""
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


def flat_derivative(rec: Recording) -> list[Finding]:
    """Find a second derivative through a piecewise linear function: it is 0 everywhere."""
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


def softmax_dim(rec: Recording) -> list[Finding]:
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


def dropped(rec: Recording) -> list[Finding]:
    """Find dropout as the last operation before the loss: it sets predictions to 0."""
    found = []
    for item in rec.setup.graph.entries("outputs"):
        layer, op = item.text("layer"), item.text("op")
        modes = [mode for mode in rec.setup.entries("modes") if layer in mode.texts("layers")]
        drops = any("Dropout" in kind for mode in modes for kind in mode.texts("kinds"))
        trains = any(mode.text("mode") == "train" for mode in modes)
        if item.text("loss") and ((drops and trains and op in DROPS) or (not layer and op in DROPS[1:])):
            found.append(_dropped(rec, item))
    masks = [item for item in rec.setup.graph.entries("masks") if item.whole("passes") >= LEAST_DRAWS]
    return found or [_dropped(rec, item) for item in masks[:1]]


def _dropped(rec: Recording, item: Entry) -> Finding:
    name = quoted(item.text("layer")) if item.text("layer") else "F.dropout"
    loss = f" ({item.text('loss')})" if item.text("loss") else ""
    return setup_finding(
        rec,
        item,
        f"dropout ({name}) is the last operation before the loss{loss}: it sets predictions to 0 at random and "
        "enlarges the others, which no weight can make up for",
        f"Remove {name} from the end of the model. Dropout belongs between hidden layers.",
        "dropout after the last layer",
        named(item),
    )
