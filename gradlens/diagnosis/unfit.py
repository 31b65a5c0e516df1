"""Data, outputs and layers that do not fit each other: ranges, the order of dimensions, dropped or equal outputs.

These rules of the kind ``setup`` need no threshold, or only that of what rounding does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gradlens.analysis.gradient_ratio import FIRST_ROWS
from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.findings import Finding, exact_finding, quoted, say_layers
from gradlens.diagnosis.learning import Learning, guessing_of
from gradlens.diagnosis.loss import loss_halved, overfits
from gradlens.diagnosis.recorded_rows import PARAM_GRAD, Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.zero_gradient import flat_weights, pass_gradient, say_flat
from gradlens.format import plural

RANGES = {"Tanh": (-1.0, 1.0), "Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Relu": (0.0, math.inf)}
"""Ranges of the outputs of activation functions."""
MOST_APART: dict[str, Callable[[float], float]] = {
    "MseLoss": lambda apart: apart**2,
    "SmoothL1Loss": lambda apart: apart,
    "HuberLoss": lambda apart: apart**2,
    "L1Loss": lambda apart: apart,
}
"""Losses to their largest value where output and target are at most so far apart (for any width of Huber's)."""
NORMS = ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeLayerNorm", "NativeGroupNorm")
"""Operations of norms."""
MOST_NORMED = 3.0
"""Targets whose root mean square is so many standard deviations lie outside the output of a norm."""
DROPS = ("Mul", "NativeDropout", "FusedDropout")
"""Operations of dropout."""
LEAST_DRAWS = 2
"""Passes with a new mask of 0 and the same number above 1: dropout, whose factor is 1 / (1 - p)."""
ENOUGH_STEPS = 16
"""Steps after which units with another gradient have weights of their own."""
SATURATED = 0.02
"""Share of the first gradients below which a generator hardly learns any more; no outside source."""
OUTSIDE = 1.2
"""Targets whose root mean square is so many times the range's end lie outside it for the greater part."""
BELOW = 0.5
"""Targets that go so many times their root mean square below what an output can be lie there on purpose."""
FEW_VALUES = 4
"""Values per channel with which batch norm counts as a cause; with two of them each becomes 1 or -1 exactly."""
NOTHING_LEFT = 0.05
"""Share of the loss of guessing below which nothing is left to be learnt; no outside source."""
FAR_MEAN, FAR_VARIANCE = 1.0, 4.0
"""Running statistics are far from the batch's where the mean is off by one standard deviation, or the variance by a
factor of 4: the normalised values then lie outside the range in which the following layers were trained."""
FIT_MEAN, FIT_VARIANCE = 0.25, 2.0
"""Statistics that are never updated fit where the mean is off by less than a quarter, the variance by less than 2."""
LEAST_EXAMPLES = 4
"""Examples of one class that are no chance."""
LEAST_CALLS = 3
"""Steps whose data are compared."""


def setup_finding(
    rec: Recording, item: Entry, evidence: str, remedy: str, cause: str, layers: tuple[str, ...] = ()
) -> Finding:
    """Return a finding of the kind ``setup``, from the step since which the fact is so."""
    return exact_finding("setup", layers, (item.whole("since"), rec.last_step), evidence, remedy, cause)


def judged_by(finding: Finding, threshold: str, source: str) -> Finding:
    """Return a finding of facts that are judged by a threshold, with that threshold and its source."""
    return replace(finding, threshold=threshold, source=source)


def named(item: Entry, key: str = "layer") -> tuple[str, ...]:
    """Return the name of an entry's module, if there is one."""
    return (item.text(key),) if item.text(key) else ()


def batch_sizes(rec: Recording) -> set[int]:
    """Return the number of examples, from outputs of two dimensions; the first dimension of others may be time.

    Over the first of two dimensions a softmax may be meant: attention over a set.
    """
    shapes = [item.numbers("shape") for item in rec.setup.graph.entries("outputs")]
    return {int(shape[0]) for shape in shapes if len(shape) == 2 and shape[0] > 1}


def is_far(item: Entry, mean: float = FAR_MEAN, variance: float = FAR_VARIANCE) -> bool:
    """Return whether running statistics of a batch norm are far from those of the batch.

    Args:
        item: One of ``batch_norm`` in docs/facts.md.
        mean: Standard deviations from which on the mean is far.
        variance: Factor from which on the variance is far.
    """
    ratio = item.number("variance_ratio")
    off = abs(math.log(ratio)) > math.log(variance) if ratio > 0 else ratio == 0
    return item.number("mean_distance") > mean or off


def layers_of(items: list[Entry]) -> tuple[str, ...]:
    """Return the layers of parameters, each once."""
    return tuple(dict.fromkeys(name for item in items for name in item.texts("layers")))


def out_of_range(rec: Recording) -> list[Finding]:
    """Find a loss that a bounded output cannot have, however wrong it is, while targets lie in the same range."""
    loss = rec.scalar("loss")
    late = loss[np.isfinite(loss)][-max(len(loss) // 5, 1) :]
    graph, found = rec.setup.graph, []
    kinds = [item for item in graph.entries("losses") if item.flag("alone") and not item.flag("scaled")]
    for item in graph.entries("outputs"):
        low, high = RANGES.get(item.text("op"), (0.0, 0.0))
        most = MOST_APART.get(item.text("loss"))
        highest = most(high - low) if most else math.inf
        is_mean = any(kind.text("op") == item.text("loss") and kind.text("reduction") == "mean" for kind in kinds)
        beyond = _targets_beyond(rec, item.text("loss"), low, high)
        too_high = is_mean and len(late) and median_of_all(late) > highest
        if high <= low or not (beyond or too_high):
            continue
        why = beyond or (
            f"the loss stays at {median_of_all(late):.3g}: with targets in that range it is at most {highest:g}, so "
            "the targets lie outside"
        )
        op = item.text("op").lower()
        span = f"lies between {low:g} and {high:g}" if math.isfinite(high) else f"is never below {low:g}"
        scale = f"or scale the targets to {low:g} to {high:g}" if math.isfinite(high) else "or use targets above 0"
        found.append(
            setup_finding(
                rec,
                item,
                f"the model ends with a {op}, whose output {span}, before {item.text('loss')}, and {why}",
                f"Remove the {op} at the end of the model (an output layer has no activation function in regression), "
                f"{scale}.",
                "targets outside the range of the output",
                named(item),
            )
        )
    return found


def constant_data(rec: Recording, learning: Learning) -> list[Finding]:
    """Find data that are one and the same number everywhere, in each step, for a model that does not learn."""
    if learning.verdict != "no":
        return []  # a start token, or nodes of a graph without features, are constant on purpose
    data = [item for item in rec.setup.entries("inputs") if item.flag("data") and "least" in item.keys]
    flat = [item for item in data if item.number("least") == item.number("largest") and item.flag("same")]
    if not flat or len(flat) < len(data) or any(item.whole("calls") < LEAST_CALLS for item in flat):
        return []
    item, layer = flat[0], quoted(flat[0].text("layer"))
    return [
        setup_finding(
            rec,
            item,
            f"all the data that {layer} gets are {item.number('least'):g}, in each of {item.whole('calls')} steps "
            f"({' x '.join(f'{n:.0f}' for n in item.numbers('shape'))}, {item.text('dtype')}): every example looks the "
            "same",
            f"Look at the input of {layer}: normalised numbers that are cast with .long() or to uint8 become 0, a "
            "vocabulary that knows no word gives one index, and a mask or a division may take all.",
            "the data are constant",
            named(item),
        )
    ]


def normalised_output(rec: Recording, learning: Learning) -> list[Finding]:
    """Find a norm as the last operation before a loss on targets of another mean or size."""
    found = []
    weighted = set(rec.setup.layers_of(requires_grad=True))
    for item in rec.setup.graph.entries("outputs"):
        layer, loss = item.text("layer"), item.text("loss")
        made = [out for out in rec.setup.graph.entries("outputs") if out.text("loss") == loss]
        if item.text("op") not in NORMS or loss not in MOST_APART or len(made) != 1:
            continue
        fixed = layer not in weighted
        far = [
            target
            for target in rec.setup.graph.entries("targets")
            if target.text("op") == loss and target.number("rms") > MOST_NORMED
        ]
        if not (far and (fixed or learning.verdict == "no")) and not (fixed and learning.verdict == "no"):
            continue
        name = quoted(layer) if layer else "a norm"
        said = (
            f"the last operation before the loss ({loss}) normalises ({name}): the predictions of a batch have a mean "
            "and a size of their own, which no weight can change"
            if fixed
            else f"the last operation before the loss ({loss}) normalises ({name}): the predictions of a batch have a "
            "mean and a size of their own"
        )
        targets = f"; the targets go from {far[0].number('least'):.3g} to {far[0].number('largest'):.3g}" if far else ""
        found.append(
            setup_finding(
                rec,
                item,
                f"{said}{targets}",
                f"Remove {name} at the end of the model: an output layer of a regression has no norm. Scale the "
                "targets to mean 0 and standard deviation 1 instead.",
                "a norm after the last layer",
                named(item),
            )
        )
    return found


def _targets_beyond(rec: Recording, loss: str, low: float, high: float) -> str:
    """Say that most targets of a loss lie outside a range, or ""."""
    made = {item.text("op") for item in rec.setup.graph.entries("outputs") if item.text("loss") == loss}
    if loss not in MOST_APART or len(made) != 1:
        return ""  # of several outputs, the targets may be another one's
    for item in rec.setup.graph.entries("targets"):
        size, mean = item.number("rms"), item.number("mean")
        below = math.isinf(high) and low - item.number("least") > BELOW * size
        if item.text("op") == loss and (below or size > OUTSIDE * max(-low, high) or not low <= mean <= high):
            return (
                f"the targets go from {item.number('least'):.3g} to {item.number('largest'):.3g} (root mean square "
                f"{size:.3g})"
            )
    return ""


def few_values(rec: Recording, learning: Learning) -> list[Finding]:
    """Find batch norm over two values, which makes each of them 1 or -1; over four where the model does not learn."""
    norms = [item for item in rec.setup.entries("batch_norm") if item.text("mode") == "train"]
    few = [item for item in norms if 0 < item.whole("values") <= (FEW_VALUES if learning.verdict == "no" else 2)]
    if not few or (learning.verdict != "no" and len(few) < len(norms)):
        return []  # a single one of many, behind a global average, does little harm
    names = tuple(item.text("layer") for item in few)
    return [
        setup_finding(
            rec,
            few[0],
            f"batch norm at {say_layers(names)} normalises over {few[0].whole('values')} values per channel: its "
            "output tells hardly more than which is the larger, and its running statistics do not fit single examples",
            "Use larger batches (16 or more), or group norm or layer norm instead of batch norm. Accumulated gradients "
            "do not help.",
            "batch norm over a few values",
            names,
        )
    ]


def _forgets_classes(rec: Recording) -> bool:
    """Return whether a usually small loss rises above that of guessing again: the next class has come."""
    loss, guess = rec.scalar("loss"), guessing_of(rec)
    later = loss[np.isfinite(loss)][LEAST_CALLS:]
    return len(later) > LEAST_CALLS and bool(median_of_all(later) < guess / 2 and later.max() > guess)


def one_class(rec: Recording, learning: Learning) -> list[Finding]:
    """Find batches that hold one class each, where a model does not learn or learns and forgets by turns."""
    targets = [item for item in rec.setup.graph.entries("targets") if item.text("op") == "NllLoss"]
    batches = sum(item.whole("passes") for item in targets)
    if batches < LEAST_CALLS or (learning.verdict == "yes" and not _forgets_classes(rec)):
        return []
    if any(item.whole("distinct") != 1 or item.whole("count") < LEAST_EXAMPLES for item in targets):
        return []
    return [
        setup_finding(
            rec,
            targets[0],
            f"all {targets[0].whole('count')} targets of a batch are of one class, in each of the "
            f"{plural(batches, 'batch', 'batches')} that were read: the data are sorted by class, so that the "
            "model learns one class and forgets the others",
            "Shuffle the data (DataLoader(..., shuffle=True)), so that each batch has all classes.",
            "the data come in the order of their classes",
        )
    ]


def only_class(rec: Recording, learning: Learning) -> list[Finding]:
    """Find a classifier whose targets are all of one class, and whose loss falls to nothing and stays there."""
    targets = [item for item in rec.setup.graph.entries("targets") if item.text("op").startswith("NllLoss")]
    batches, count = (sum(item.whole(key) for item in targets) for key in ("passes", "count"))
    loss, guess = rec.scalar("loss"), guessing_of(rec)
    late = loss[np.isfinite(loss)][len(loss) // 2 :]
    heads = [item for item in rec.setup.graph.entries("outputs") if item.text("loss").startswith("NllLoss")]
    if batches < LEAST_CALLS or count < LEAST_EXAMPLES or not len(late) or not late.max() < NOTHING_LEFT * guess:
        return []
    if any(item.whole("distinct") != 1 for item in targets) or not all(item.text("layer") for item in heads):
        return []
    return [
        setup_finding(
            rec,
            targets[0],
            f"all targets of the {plural(batches, 'batch', 'batches')} that were read are of one class "
            f"({targets[0].number('largest'):.0f}), and the loss stays below {float(late.max()):.2g}: the model learns "
            "a constant, because the targets have but one value",
            "Print the different targets (torch.unique). Scaling or dividing labels before .long() makes them all 0; "
            "scale the inputs only, and number the classes from 0.",
            "all targets are the same",
        )
    ]


def mixed_views(rec: Recording) -> list[Finding]:
    """Find a view that should be a transposition: it keeps the order in memory, and so mixes examples or classes."""
    found = []
    for item in rec.setup.graph.entries("mixed_views")[:1]:
        shape, result = (" x ".join(f"{n:.0f}" for n in item.numbers(key)) for key in ("shape", "result"))
        name = quoted(item.text("layer")) if item.text("layer") else "the model"
        found.append(
            setup_finding(
                rec,
                item,
                f"view or reshape makes {result} of the output of {name} ({shape}): it does not swap dimensions, but "
                "cuts the same row of numbers elsewhere, so that different examples, places or classes are mixed",
                "Swap the dimensions with transpose or permute (for a state of directions x batch x features: "
                "h_n.transpose(0, 1).reshape(batch, -1), or torch.cat([h_n[0], h_n[1]], 1)).",
                "view in place of a transposition",
                named(item),
            )
        )
    return found


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


def batch_second(rec: Recording) -> list[Finding]:
    """Find a recurrent or attention layer that takes the batch for time: the loss has a row per step of its time."""
    if loss_halved(rec):
        return []
    rows = batch_sizes(rec)
    shapes = {item.numbers("shape") for item in rec.setup.graph.entries("outputs")}
    for item in rec.setup.entries("inputs"):
        first, shape = item.flag("batch_first"), item.numbers("shape")
        if first is None or len(shape) != 3:
            continue
        batch, time = (int(shape[0]), int(shape[1])) if first else (int(shape[1]), int(shape[0]))
        if rows != {time} or time == batch or batch < 2 or (float(time), float(batch)) in shapes:
            continue
        layer, said = item.text("layer"), " x ".join(f"{size:.0f}" for size in shape)
        other = "False" if first else "True"
        return [
            setup_finding(
                rec,
                item,
                f"{quoted(layer)} ({item.text('kind')}, batch_first={first}) gets inputs of shape {said} and reads "
                f"them as {batch} examples of {time} steps each, while the loss is over {time} examples: it takes the "
                "batch for time, and mixes examples",
                f"Give {quoted(layer)} batch_first={other}, or swap the first two dimensions of its input "
                "(transpose(0, 1)).",
                "batch and time are mixed up",
                (layer,),
            )
        ]
    return []


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
    are = "is" if len(layers) == 1 else "are"
    return [
        setup_finding(
            rec,
            states[0],
            f"all rows of the weights of {say_layers(layers)} {are} equal, still at step "
            f"{rec.setup.whole('last_step')}: every unit computes the same and gets the same gradient, so that a layer "
            "is worth a single unit (a constant initialisation, symmetry is not broken)",
            f"Initialise {say_layers(layers)} with random weights (torch's default, Glorot or He). A constant is for "
            "biases only.",
            "all units of a layer are the same",
            layers,
        )
    ]


def same_batch(rec: Recording) -> list[Finding]:
    """Find that every step has the same data, while the loss on other data gets worse."""
    data = [item for item in rec.setup.entries("inputs") if item.flag("data")]
    if not data or not all(item.flag("same") and item.whole("calls") >= LEAST_CALLS for item in data):
        return []
    said = overfits(rec, guessing_of(rec))
    if not said:
        return []
    return [
        setup_finding(
            rec,
            data[0],
            f"the first {plural(data[0].whole('calls'), 'step')} got the very same batch "
            f"({' x '.join(f'{n:.0f}' for n in data[0].numbers('shape'))}), and {said}: the model learns this batch by "
            "heart",
            "Iterate over the loader instead of calling next(iter(loader)) in every step, and let it shuffle. Where "
            "these are all the data there are, regularise: weight decay, dropout, a smaller model.",
            "every step has the same batch",
        )
    ]


def minimax(rec: Recording) -> list[Finding]:
    """Find a generator whose loss log(1 - D(G(z))) has hardly a slope left, because the discriminator rejects all."""
    games = rec.setup.graph.entries("minimax")
    if not games or not rec.has(PARAM_GRAD):
        return []
    series = rec.series(PARAM_GRAD)
    order = {layer.name: i for i, layer in enumerate(rec.run.layers)}
    for item in rec.setup.entries("optimizers"):
        names = [name for group in item.entries("groups") for name in group.texts("layers") if name in order]
        if any(game.text("behind") in names for game in games):
            continue  # the discriminator's
        places = [order[name] for name in dict.fromkeys(names)]
        if not places or len(series) < 3 * FIRST_ROWS:
            continue
        first, last = (series.median(part)[places] for part in (slice(FIRST_ROWS), slice(-(len(series) // 5), None)))
        left = median_of_all(np.where(first > 0, last / np.maximum(first, np.finfo(float).tiny), 1.0))
        if left < SATURATED:
            layers = tuple(dict.fromkeys(names))
            return [
                setup_finding(
                    rec,
                    games[0],
                    f"the gradients of {say_layers(layers)} fall to {left:.1g} of those in the first rows, and a loss "
                    "is the mean of log(1 - sigmoid(...)): where the discriminator is sure that its input is made "
                    "(D near 0), this loss of a generator has no slope",
                    "Use the non-saturating loss for the generator: minimise -log(D(G(z))), that is binary cross "
                    "entropy of D(G(z)) with targets of 1; or train the discriminator more slowly.",
                    "the generator's loss is saturated",
                    layers,
                )
            ]
    return []
