"""The judgement of a probe: what a net at initialisation will have trouble with, beside what theory says of it.

A fault counts where more than half of the draws show it. Its confidence is (k + 1) / (n + 2) with k of n draws, by
Laplace's rule of succession: the chance that another draw shows it too. The thresholds are those of ``diagnose``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gradlens.analysis.depth import fit_depth, theil_sen
from gradlens.analysis.gradient_ratio import VANISH_DECADES, say_fate, say_power, say_ratio
from gradlens.analysis.profile import ACTIVATION_GRAD
from gradlens.analysis.stats import median
from gradlens.diagnosis.exploding import TOO_LARGE, allowed_growth
from gradlens.diagnosis.findings import Finding, quoted, say_layers
from gradlens.diagnosis.kinds import KINDS
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.format import plural, say_share
from gradlens.probe.plan import BF16_NORMAL, FP16_LOST, FP16_NORMAL, FP16_TOP, Draw, Entries, Probe, add_up
from gradlens.run import FloatArray, Layer
from gradlens.theory.predict import Prediction, deviation, first_predicted, predicted_profile

APART = 3.0
"""Predicted spreads away from theory: beyond, the net is not what theory takes it for."""
LOSS_APART = 0.5
"""Nats above ln(classes) from which the scores are called too large: independent of the input as they are, they then
have a standard deviation of about 1 (the loss grows by half of their variance)."""
LIFTED = 0.999
"""Share of the entries that a loss scale is to lift into float16's normal range."""
FP16_MANY = 0.01
"""Share of the entries that float16 rounds to 0, above which that is worth a remark."""
MOST_DEAD = 0.5
"""smdebug's DeadRelu speaks of a layer where half of its units are dead."""
MOST_NAMES = 4


@dataclass(frozen=True)
class Judged:
    """A probe, looked at.

    Shapes: S draws, M main layers.

    Args:
        probe: The probe.
        layers: (M,) main layers, input first.
        profile: (S, M) log10 of the gradient norm over that of the last hidden layer; -inf at exact zeros, NaN where it
            is not known.
        decades: (S,) of the first layer with a known gradient over the last hidden one.
        ends: The names of these two; empty where there are fewer than three layers.
        slopes: (S,) decades per layer towards the input (Theil-Sen).
        prediction: Theory; None where it says nothing of this build.
        findings: Faults, main one first.
        remarks: What is worth a line without being a fault.
    """

    probe: Probe
    layers: tuple[Layer, ...]
    profile: FloatArray
    decades: FloatArray
    ends: tuple[str, ...]
    slopes: FloatArray
    prediction: Prediction | None
    findings: tuple[Finding, ...]
    remarks: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The main fault's kind, or "trainable"; "undecided" where there is no way back to be judged."""
        if self.findings:
            return self.findings[0].kind
        return "trainable" if self.ends else "undecided"

    @property
    def ratio(self) -> float:
        """Decades of the first layer over the last hidden one, lower median over draws; NaN where not known."""
        return float(median(self.decades))

    @property
    def slope(self) -> float:
        """Decades per layer, lower median over draws."""
        return float(median(self.slopes))

    @property
    def loss(self) -> float:
        """The mean loss over draws, in nats."""
        return float(np.mean([draw.loss for draw in self.probe.draws]))

    @cached_property
    def deviations(self) -> FloatArray | None:
        """(S, M) predicted spreads away from theory."""
        return None if self.prediction is None else np.array([deviation(self.prediction, row) for row in self.profile])

    @cached_property
    def theory(self) -> TheoryHere | None:
        """Theory at the first layer that it speaks of; None where there is none."""
        prediction, away = self.prediction, self.deviations
        at = -1 if prediction is None else first_predicted(prediction)
        if prediction is None or away is None or at < 0:
            return None
        known = np.isfinite(prediction.decades[:-1])
        means = median(away, axis=0)
        worst = int(np.argmax(np.nan_to_num(np.abs(means), nan=-1.0)))
        return TheoryHere(
            self.layers[at].name,
            float(prediction.decades[at]),
            float(median(self.profile[:, at])),
            float(means[at]),
            float(theil_sen(prediction.decades[None, :-1][:, known])[0]),
            float(median(theil_sen(self.profile[:, :-1][:, known]))),
            self.layers[worst].name,
            float(means[worst]),
        )

    @property
    def outputs(self) -> Entries:
        """Entries of the gradients of all recorded outputs, all draws together."""
        return add_up([part for draw in self.probe.draws for part in draw.outputs.values()])

    @property
    def parameters(self) -> Entries:
        """Entries of the gradients of all parameters, all draws together."""
        return add_up([draw.all_parameters for draw in self.probe.draws])

    @property
    def units(self) -> tuple[float, int]:
        """Dead units, mean over draws, and all units whose activation function was seen."""
        dead = [sum(dead for dead, _ in draw.units.values()) for draw in self.probe.draws]
        return float(np.mean(dead)), sum(units for _, units in self.probe.draws[0].units.values())


@dataclass(frozen=True)
class TheoryHere:
    """Theory beside what was measured, middle of the draws, in decades.

    Args:
        layer: The layer nearest the input of which theory speaks.
        predicted: Its gradient norm over the last hidden layer's.
        measured: The same.
        away: Predicted spreads between them.
        slope: Predicted decades per layer, over the layers of which theory speaks.
        measured_slope: The same.
        worst: The layer farthest from theory.
        worst_away: Its predicted spreads.
    """

    layer: str
    predicted: float
    measured: float
    away: float
    slope: float
    measured_slope: float
    worst: str
    worst_away: float


def judge(probe: Probe) -> Judged:
    """Say what a net at initialisation will have trouble with."""
    draws = probe.draws
    run = draws[0].run
    profile = np.array([_profile(draw) for draw in draws])
    ratios = [Recording(draw.run).ratio for draw in draws]
    judged = all(ratio is not None for ratio in ratios)
    ends = (ratios[0].first.name, ratios[0].last.name) if judged and ratios[0] is not None else ()
    decades = np.array([math.nan if ratio is None else ratio.typical() for ratio in ratios])
    fits = [fit_depth(draw.run, ACTIVATION_GRAD) if judged else [] for draw in draws]
    slopes = np.array([fit[0].slope.value if fit else math.nan for fit in fits])
    found = [_nonfinite(draws), _dead(draws), _unused(draws)]
    if judged:
        found += [_exploding(draws), _vanishing(draws, decades, ends)]
    order = {kind: i for i, kind in enumerate(KINDS)}
    findings = sorted((f for f in found if f is not None), key=lambda f: order[f.kind])
    main = tuple(run.layers[i] for i in run.main_layers())
    made = Judged(probe, main, profile, decades, ends, slopes, predicted_profile(run), tuple(findings), ())
    return Judged(probe, main, profile, decades, ends, slopes, made.prediction, tuple(findings), tuple(_remarks(made)))


def _profile(draw: Draw) -> FloatArray:
    """Return (M,) decades over the last hidden layer with a gradient; of recognised nets, as ``first_profile`` does."""
    main = draw.run.main_layers()
    found = np.full(len(main), math.nan)
    ratio = Recording(draw.run).ratio
    if ratio is not None:
        found[np.isin(main, ratio.indices)] = ratio.decades[0]
    return found


# --- faults -----------------------------------------------------------------------------------------------


def _counted(draws: Sequence[Draw], shows: Callable[[int], bool]) -> tuple[int, float]:
    """Return how many draws show something, 0 where at most half do, and the confidence."""
    k, n = sum(map(shows, range(len(draws)))), len(draws)
    return (k if 2 * k > n else 0), (k + 1) / (n + 2)


def _of_draws(k: int, draws: Sequence[Draw]) -> str:
    return f"in {k} of {plural(len(draws), 'draw')}"


def _vanishing(draws: Sequence[Draw], decades: FloatArray, ends: tuple[str, ...]) -> Finding | None:
    k, confidence = _counted(draws, lambda i: bool(decades[i] < VANISH_DECADES))
    if not k:
        return None
    first, last = map(quoted, ends)
    i = int(np.flatnonzero(decades < VANISH_DECADES)[0])
    ratio = Recording(draws[i].run).ratio
    assert ratio is not None
    low = [
        layer.name for layer, value in zip(ratio.layers[:-1], ratio.decades[0], strict=False) if value < VANISH_DECADES
    ]
    zeros = int(np.isneginf(ratio.decades[0]).sum())
    said = f"{say_ratio(first, last, float(median(decades)))} {_of_draws(k, draws)}"
    if zeros:
        said += f"; exactly 0 at {plural(zeros, 'layer')}, by underflow of float32 or dead units"
    return Finding(
        "vanishing", tuple(low), (0, 0), said, "first / last hidden below 10^-3 at initialisation",
        "Zhang et al. 2021, AutoTrainer, ICSE: |g_first| / |g_last| < 1e-3",
        "Add batch norm or shortcuts, take ReLU and He initialisation, or use fewer layers.",
        confidence,
    )  # fmt: skip


def _exploding(draws: Sequence[Draw]) -> Finding | None:
    tops, lines, sources = [], [], []
    for draw in draws:
        rec = Recording(draw.run)
        assert rec.ratio is not None
        line, source = allowed_growth(rec, len(rec.ratio.layers))
        early = np.nan_to_num(rec.ratio.decades[0, :-1], nan=-np.inf)
        top = int(np.argmax(early))
        tops.append((float(early[top]), rec.ratio.layers[top].name))
        lines.append(line)
        sources.append(source)
    k, confidence = _counted(draws, lambda i: tops[i][0] > lines[i])
    if not k:
        return None
    highest, name = max(tops)
    return Finding(
        "exploding", (name,), (0, 0),
        f"{say_ratio(quoted(name), 'the last hidden layer', highest)}, at most, {_of_draws(k, draws)}",
        f"a growth over depth beyond {say_power(lines[0])}", sources[0], TOO_LARGE, confidence,
    )  # fmt: skip


def _nonfinite(draws: Sequence[Draw]) -> Finding | None:
    def shows(i: int) -> bool:
        draw = draws[i]
        broken = draw.all_parameters.nonfinite or any(part.nonfinite for part in draw.outputs.values())
        return bool(draw.broken or broken or not math.isfinite(draw.loss))

    k, confidence = _counted(draws, shows)
    if not k:
        return None
    draw = draws[next(i for i in range(len(draws)) if shows(i))]
    wrong = tuple(name for name, part in draw.parameters.items() if part.nonfinite)
    if draw.broken:
        said = f"the forward pass breaks: the output of {quoted(draw.broken[0])} is the first with NaN or infinity"
    elif not math.isfinite(draw.loss):
        said = f"the loss is {draw.loss}"
    else:
        said = "the backward pass breaks: gradients hold NaN or infinity, the outputs do not"
    return Finding(
        "nonfinite", draw.broken or wrong, (0, 0), f"{said} {_of_draws(k, draws)}", "any NaN or infinity",
        "exact: IEEE 754", "Scale the weights down (He initialisation), and look for log, sqrt and division by 0.",
        confidence,
    )  # fmt: skip


def _dead(draws: Sequence[Draw]) -> Finding | None:
    def gone(draw: Draw) -> list[str]:
        return [name for name, (dead, units) in draw.units.items() if units and dead == units]

    k, confidence = _counted(draws, lambda i: bool(gone(draws[i])))
    if not k:
        return None
    names = next(found for draw in draws if (found := gone(draw)))
    return Finding(
        "dead", tuple(names), (0, 0),
        f"behind {say_layers(tuple(names))} every unit is 0 for every example {_of_draws(k, draws)}",
        "all units of a layer dead in the whole batch", "exact: a unit that is 0 passes no gradient to its weights",
        "Look at biases and at the scale of the input; LeakyReLU or GELU in place of ReLU keeps a slope everywhere.",
        confidence,
    )  # fmt: skip


def _unused(draws: Sequence[Draw]) -> Finding | None:
    always = set.intersection(*(set(draw.unused) for draw in draws))
    if not always:
        return None
    names = tuple(name for name in draws[0].unused if name in always)
    return Finding(
        "unused", names, (0, 0), f"no gradient reaches {plural(len(names), 'parameter')}: {say_parameters(names)}",
        "no gradient in any draw", "exact: autograd leaves .grad at None where no path leads from the loss",
        "Use the layer's output in the loss (look for detach and branches not taken), or take the layer out.",
        (len(draws) + 1) / (len(draws) + 2),
    )  # fmt: skip


def say_parameters(names: Sequence[str]) -> str:
    """Name parameters by the modules that hold them, by outer ones where there are many."""
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


# --- remarks ----------------------------------------------------------------------------------------------


def _remarks(judged: Judged) -> list[str]:
    draws, said = judged.probe.draws, list[str]()
    first = draws[0]
    if first.redrawn:
        said.append(
            f"the weights of {quoted(first.redrawn)}, the output layer, are all 0, so that in the first step no "
            "gradient comes through it; all but the loss is shown for PyTorch's default weights there"
        )
    if text := say_loss(judged):
        said.append(text)
    dead = [(d / n, name) for name, (d, n) in first.units.items() if n and MOST_DEAD <= d / n < 1]
    if dead:
        share, name = max(dead)
        said.append(
            f"{share:.0%} of the units behind {quoted(name)} are dead, at least half at {plural(len(dead), 'layer')}"
        )
    theory = judged.theory
    if theory is not None and abs(theory.worst_away) > APART:
        said.append(
            f"{quoted(theory.worst)} is {theory.worst_away:+.1f} predicted spreads away from theory: other weights "
            "than it takes them for, or another build"
        )
    if text := say_scale(judged.outputs + judged.parameters):
        said.append(text)
    return said


def say_loss(judged: Judged) -> str:
    """Say why the loss is not ln(classes), if it is not."""
    draw = judged.probe.draws[0]
    above = judged.loss - draw.expected_loss
    if not above > LOSS_APART:
        return ""
    spread = float(np.sqrt(np.mean([d.spread**2 for d in judged.probe.draws])))
    text = f"the loss starts {above:.2g} nats above ln({max(draw.scores, 2)})"
    if draw.scores > 1:
        text += f": an example's scores differ by {spread:.2g} (standard deviation), and know nothing yet"
    return f"{text}; scale the output layer down, or normalise before it"


def say_scale(entries: Entries) -> str:
    """Say what float16 loses of the entries without a loss scale, and which power of two keeps it; "" if little."""
    if not entries.known or entries.share_below(FP16_LOST) <= FP16_MANY:
        return ""
    power, lifted = loss_scale(entries)
    lost = f"float16 rounds {say_share(entries.share_below(FP16_LOST))} of the gradients' entries to 0"
    if lifted >= LIFTED:
        return f"{lost}; a loss scale of 2^{power} lifts {100 * LIFTED:.1f} % of all into its normal range"
    gone = say_share(entries.share_below(FP16_LOST - power))
    return (
        f"{lost}, and with the largest loss scale that the largest entry bears, 2^{power}, still {gone}: bfloat16 has "
        "the range"
    )


def loss_scale(entries: Entries) -> tuple[int, float]:
    """Return the least power of two by which enough entries come into float16's normal range, and their share.

    The largest entry times the scale stays below 2^15, and so below float16's largest number; where that leaves too
    many under the range, it is the largest such power.
    """
    top = entries.largest
    most = 0 if top is None else max(min(FP16_TOP - top, FP16_NORMAL - BF16_NORMAL), 0)
    for power in range(most + 1):
        lifted = 1 - entries.share_below(FP16_NORMAL - power) if entries.known else 1.0
        if lifted >= LIFTED:
            break
    return power, lifted


def say_verdict(judged: Judged) -> str:
    """Say in a sentence what becomes of the net."""
    kinds = [finding.kind for finding in judged.findings]
    if not kinds or kinds == ["unused"]:
        if not judged.ends:
            text = "no fault is seen; with fewer than three layers there is no way back to be judged"
        else:
            text = f"looks trainable; {say_fate(judged.ratio)}"
        return f"{text}; but {judged.findings[0].evidence}" if kinds else text
    main = judged.findings[0]
    head = {
        "vanishing": "vanishes: ",
        "exploding": "explodes: ",
        "nonfinite": "not finite: ",
        "dead": "dead: ",
    }.get(main.kind, "")
    return f"{head}{main.evidence}"
