"""Faults of a model at initialisation, each counted over samples of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gradlens.analysis.gradient_ratio import VANISH_DECADES, say_power, say_ratio
from gradlens.analysis.stats import median
from gradlens.diagnosis.exploding import allowed_growth, grows_over_depth
from gradlens.diagnosis.findings import Finding, quoted, say_layers
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.format import plural
from gradlens.probe.plan import WeightSample
from gradlens.run import FloatArray

MOST_NAMES = 4
TOO_LARGE = "Use He initialisation (the weights are too large for their fan-in), add batch norm, or clip gradients."


def _counted(samples: Sequence[WeightSample], shows: Callable[[int], bool]) -> tuple[int, float]:
    """Return how many samples show a fault (0 if at most half do), and the confidence."""
    k, n = sum(map(shows, range(len(samples)))), len(samples)
    return (k if 2 * k > n else 0), (k + 1) / (n + 2)


def _of_samples(k: int, samples: Sequence[WeightSample]) -> str:
    return f"in {k} of {plural(len(samples), 'sample of weights', 'samples of weights')}"


def vanishing(samples: Sequence[WeightSample], decades: FloatArray, ends: tuple[str, ...]) -> Finding | None:
    """Return the finding if the first layer's gradient is less than a thousandth of the last hidden layer's."""
    k, confidence = _counted(samples, lambda i: bool(decades[i] < VANISH_DECADES))
    if not k:
        return None
    first, last = map(quoted, ends)
    i = int(np.flatnonzero(decades < VANISH_DECADES)[0])
    ratio = Recording(samples[i].run).ratio
    assert ratio is not None
    low = [
        layer.name for layer, value in zip(ratio.layers[:-1], ratio.decades[0], strict=False) if value < VANISH_DECADES
    ]
    zeros = int(np.isneginf(ratio.decades[0]).sum())
    evidence = f"{say_ratio(first, last, float(median(decades)))} {_of_samples(k, samples)}"
    if zeros:
        evidence += f"; exactly 0 at {plural(zeros, 'layer')}, by underflow of float32 or dead units"
    return Finding(
        "vanishing", tuple(low), (0, 0), evidence, "first / last hidden below 10^-3 at initialisation",
        "Zhang et al. 2021, AutoTrainer, ICSE: |g_first| / |g_last| < 1e-3",
        "Add batch norm or shortcuts, take ReLU and He initialisation, or use fewer layers.",
        confidence,
    )  # fmt: skip


def exploding(samples: Sequence[WeightSample]) -> Finding | None:
    """Return the finding if a gradient grows toward the input beyond what the depth allows."""
    tops, lines, sources = [], [], []
    for sample in samples:
        rec = Recording(sample.run)
        assert rec.ratio is not None
        line, source = allowed_growth(rec, len(rec.ratio.layers))
        early = np.nan_to_num(rec.ratio.decades[0, :-1], nan=-np.inf)
        top = int(np.argmax(early))
        highest = float(early[top]) if grows_over_depth(rec.ratio, early) else -math.inf
        tops.append((highest, rec.ratio.layers[top].name))
        lines.append(line)
        sources.append(source)
    k, confidence = _counted(samples, lambda i: tops[i][0] > lines[i])
    if not k:
        return None
    highest, name = max(tops)
    return Finding(
        "exploding", (name,), (0, 0),
        f"{say_ratio(quoted(name), 'the last hidden layer', highest)}, at most, {_of_samples(k, samples)}",
        f"a growth over depth beyond {say_power(lines[0])}", sources[0], TOO_LARGE, confidence,
    )  # fmt: skip


def nonfinite(samples: Sequence[WeightSample]) -> Finding | None:
    """Return the finding if an output, the loss or a gradient is NaN or infinite."""

    def shows(i: int) -> bool:
        sample = samples[i]
        broken = sample.all_parameters.nonfinite or any(part.nonfinite for part in sample.outputs.values())
        return bool(sample.broken or broken or not math.isfinite(sample.loss))

    k, confidence = _counted(samples, shows)
    if not k:
        return None
    sample = samples[next(i for i in range(len(samples)) if shows(i))]
    wrong = tuple(name for name, part in sample.parameters.items() if part.nonfinite)
    if sample.broken:
        evidence = (
            f"the forward pass breaks: the output of {quoted(sample.broken[0])} is the first with NaN or infinity"
        )
    elif not math.isfinite(sample.loss):
        evidence = f"the loss is {sample.loss}"
    else:
        evidence = "the backward pass breaks: gradients hold NaN or infinity, the outputs do not"
    return Finding(
        "nonfinite", sample.broken or wrong, (0, 0), f"{evidence} {_of_samples(k, samples)}", "any NaN or infinity",
        "exact: IEEE 754", "Scale the weights down (He initialisation), and look for log, sqrt and division by 0.",
        confidence,
    )  # fmt: skip


def dead(samples: Sequence[WeightSample]) -> Finding | None:
    """Return the finding if all units behind a layer are 0 for every example."""

    def dead_layers(sample: WeightSample) -> list[str]:
        return [name for name, (dead, units) in sample.units.items() if units and dead == units]

    k, confidence = _counted(samples, lambda i: bool(dead_layers(samples[i])))
    if not k:
        return None
    names = next(found for sample in samples if (found := dead_layers(sample)))
    return Finding(
        "dead", tuple(names), (0, 0),
        f"after {say_layers(tuple(names))} every unit is 0 for every example {_of_samples(k, samples)}",
        "all units of a layer dead in the whole batch", "exact: a unit that is 0 passes no gradient to its weights",
        "Check the biases and the scale of the input; LeakyReLU or GELU instead of ReLU have a slope everywhere.",
        confidence,
    )  # fmt: skip


def unused(samples: Sequence[WeightSample]) -> Finding | None:
    """Return the finding if parameters get no gradient in any sample."""
    always = set.intersection(*(set(sample.unused) for sample in samples))
    if not always:
        return None
    names = tuple(name for name in samples[0].unused if name in always)
    return Finding(
        "unused", names, (0, 0), f"no gradient reaches {plural(len(names), 'parameter')}: {say_parameters(names)}",
        "no gradient in any sample of weights", "exact: autograd leaves .grad at None without a path from the loss",
        "Use the layer's output in the loss (look for detach and branches not taken), or remove the layer.",
        (len(samples) + 1) / (len(samples) + 2),
    )  # fmt: skip


def say_parameters(names: Sequence[str]) -> str:
    """Name parameters by their modules; by outer modules if there are many."""
    owners: list[str] = []
    for parts in (1, 2, 3, 99):
        cut = [name.rsplit(".", min(parts, name.count(".")))[0] if "." in name else name for name in names]
        held = set(cut)
        owners = [
            name for name in dict.fromkeys(cut) if not any(name.startswith(f"{outer}.") for outer in held - {name})
        ]
        if len(owners) <= MOST_NAMES:
            return ", ".join(owners)
    return f"{', '.join(owners[:MOST_NAMES])} and {len(owners) - MOST_NAMES} more"
