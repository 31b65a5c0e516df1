"""Batches that teach nothing: constant data, one class, the same batch in every step, too few values for a norm."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.findings import Finding, quoted, say_layers
from gradlens.diagnosis.learning import Learning, guessing_of
from gradlens.diagnosis.loss import overfits
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import LEAST_CALLS, named, setup_finding
from gradlens.format import plural

FEW_VALUES = 4
"""Values per channel with which batch norm counts as a cause; with two of them each becomes 1 or -1 exactly."""
NOTHING_LEFT = 0.05
"""Share of the loss of guessing below which nothing is left to be learnt; no outside source."""
LEAST_EXAMPLES = 4
"""Examples of one class that are no chance."""


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


def only_value(rec: Recording) -> list[Finding]:
    """Find a binary classifier whose targets are all the same, and whose loss falls to nothing and stays there.

    A generator's targets are all 1, too: a loss that parameters of another model take part in is left out.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    targets = [item for item in rec.setup.graph.entries("targets") if item.text("op").startswith("BinaryCrossEntropy")]
    values = {item.number(key) for item in targets for key in ("least", "largest")}
    batches, count = (sum(item.whole(key) for item in targets) for key in ("passes", "count"))
    loss = rec.scalar("loss")
    late = loss[np.isfinite(loss)][len(loss) // 2 :]
    others = rec.setup.graph.entries("unregistered") or len(rec.setup.graph.entries("losses")) != 1
    if len(values) != 1 or others or batches < LEAST_CALLS or count < LEAST_EXAMPLES or not len(late):
        return []
    value = values.pop()
    if value not in (0, 1) or not late.max() < NOTHING_LEFT * math.log(2):
        return []
    return [
        setup_finding(
            rec,
            targets[0],
            f"all targets of the {plural(batches, 'batch', 'batches')} that were read are {value:.0f}, and the loss "
            f"stays below {float(late.max()):.2g}: the model learns a constant, because the targets have but one value",
            "Print the different targets (torch.unique). Negatives that are drawn get the target 0.",
            "all targets are the same",
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
