"""Targets that do not fit the loss or the outputs: another range, another shape."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import named, setup_finding
from gradlens.format import plural

TARGETS_OF_TWO = (
    "Give this loss targets from 0 to 1: divide images by 255; for more than two classes use F.cross_entropy with an "
    "output per class."
)
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
OUTSIDE = 1.2
"""Targets whose root mean square is so many times the range's end lie outside it for the greater part."""
BELOW = 0.5
"""Targets that go so many times their root mean square below what an output can be lie there on purpose."""


def outside(rec: Recording) -> list[Finding]:
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
