"""Judge a probe: find faults of a model at initialisation and compare it with theory.

A fault is reported if more than half of the samples of weights show it. Its confidence is (k + 1) / (n + 2) if k of n
samples show it: the probability by Laplace's rule of succession that another sample shows it too. The thresholds are
those of ``diagnose``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gradlens.analysis.depth import fit_depth, theil_sen
from gradlens.analysis.gradient_ratio import say_fate, say_power
from gradlens.analysis.stats import median
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.kinds import KINDS
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.format import plural, say_share, say_signed
from gradlens.metrics import ACTIVATION_GRAD_NORM
from gradlens.probe import faults
from gradlens.probe.faults import say_parameters
from gradlens.probe.plan import BF16_NORMAL, FP16_LOST, FP16_NORMAL, FP16_TOP, Entries, Probe, WeightSample, add_up
from gradlens.run import FloatArray, Layer
from gradlens.theory.predict import Prediction, deviation, first_predicted, predicted_profile, say_deviation

APART = 3.0
"""Standard deviations, as predicted by theory, beyond which a model does not match the theory's assumptions."""
LOSS_APART = 0.5
"""Nats above ln(classes) beyond which scores are called too large. Scores that are independent of the input raise the
loss by half of their variance, so their standard deviation is then about 1."""
LIFTED = 0.999
"""Share of the entries that a loss scale must lift into float16's normal range."""
FP16_MANY = 0.01
"""Share of entries rounded to 0 by float16 above which there is a remark."""
MOST_DEAD = 0.5
"""Share of dead units in a layer from which there is a remark, as in smdebug's DeadRelu."""


@dataclass(frozen=True)
class Judged:
    """A judged probe.

    Shapes: S samples of weights, M main layers.

    Args:
        probe: The probe.
        layers: (M,) main layers, input first.
        profile: (S, M) log10 of the gradient norm over that of the last hidden layer; -inf at exact zeros, NaN where
            not known.
        decades: (S,) log10 of the gradient norm of the first layer with a known gradient over the last hidden layer's.
        ends: The names of these two layers; empty for fewer than three layers.
        slopes: (S,) decades per layer toward the input (Theil-Sen).
        prediction: The theory's prediction; None if there is none for this model.
        findings: Faults, the main one first.
        remarks: Observations that are not faults.
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
        """The kind of the main fault, or "trainable"; "undecided" if the backward pass cannot be judged."""
        if self.findings:
            return self.findings[0].kind
        return "trainable" if self.ends else "undecided"

    @property
    def ratio(self) -> float:
        """Decades of the first layer over the last hidden layer, lower median over samples; NaN if not known."""
        return float(median(self.decades))

    @property
    def slope(self) -> float:
        """Decades per layer, lower median over samples."""
        return float(median(self.slopes))

    @property
    def loss(self) -> float:
        """The mean loss over samples, in nats."""
        return float(np.mean([sample.loss for sample in self.probe.samples]))

    @cached_property
    def deviations(self) -> FloatArray | None:
        """(S, M) deviation from theory, in predicted standard deviations."""
        return None if self.prediction is None else np.array([deviation(self.prediction, row) for row in self.profile])

    @cached_property
    def theory(self) -> TheoryHere | None:
        """Theory at the first layer with a prediction; None if there is no prediction."""
        prediction, deviations = self.prediction, self.deviations
        at = -1 if prediction is None else first_predicted(prediction)
        if prediction is None or deviations is None or at < 0:
            return None
        known = np.isfinite(prediction.decades[:-1])
        medians = median(deviations, axis=0)
        worst = int(np.argmax(np.nan_to_num(np.abs(medians), nan=-1.0)))
        return TheoryHere(
            self.layers[at].name,
            float(prediction.decades[at]),
            float(median(self.profile[:, at])),
            float(medians[at]),
            float(theil_sen(prediction.decades[None, :-1][:, known])[0]),
            float(median(theil_sen(self.profile[:, :-1][:, known]))),
            self.layers[worst].name,
            float(medians[worst]),
        )

    @property
    def outputs(self) -> Entries:
        """Entries of the gradients of all recorded outputs, all samples together."""
        return add_up([part for sample in self.probe.samples for part in sample.outputs.values()])

    @property
    def parameters(self) -> Entries:
        """Entries of the gradients of all parameters, all samples together."""
        return add_up([sample.all_parameters for sample in self.probe.samples])

    @property
    def units(self) -> tuple[float, int]:
        """The number of dead units, mean over samples, and the number of all units with a known activation function."""
        dead = [sum(dead for dead, _ in sample.units.values()) for sample in self.probe.samples]
        return float(np.mean(dead)), sum(units for _, units in self.probe.samples[0].units.values())

    def __repr__(self) -> str:
        """Return the verdict in one line; ``print`` shows the facts, too."""
        return f"Judged({self.probe.plan.model}: {say_verdict(self)})"

    def __str__(self) -> str:
        """Return the verdict, what to do, the remarks and the facts, as the command prints them above the profile."""
        lines = [f"{self.probe.plan.model}: {say_verdict(self)}", *(text for text, _ in say_next(self))]
        lines += [f"note  {remark}" for remark in self.remarks]
        return "\n".join(lines + [f"{name:12}  {text}" for name, text in say_facts(self)])


@dataclass(frozen=True)
class TheoryHere:
    """Theory and measurement, median over the samples, in decades.

    Args:
        layer: The layer nearest the input that has a prediction.
        predicted: Its predicted gradient norm over the last hidden layer's.
        measured: The measured value.
        away: The deviation of the measurement, in predicted standard deviations.
        slope: Predicted decades per layer, over the layers with a prediction.
        measured_slope: The measured value.
        worst: The layer with the largest deviation.
        worst_away: Its deviation, in predicted standard deviations.
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
    """Find the faults of a model at initialisation.

    Args:
        probe: The measurements.

    Returns:
        The findings, remarks and numbers of the model.
    """
    samples = probe.samples
    run = samples[0].run
    profile = np.array([_profile(sample) for sample in samples])
    ratios = [Recording(sample.run).ratio for sample in samples]
    judged = all(ratio is not None for ratio in ratios)
    ends = (ratios[0].first.name, ratios[0].last.name) if judged and ratios[0] is not None else ()
    decades = np.array([math.nan if ratio is None else ratio.typical() for ratio in ratios])
    fits = [fit_depth(sample.run, ACTIVATION_GRAD_NORM) if judged else [] for sample in samples]
    slopes = np.array([fit[0].slope.value if fit else math.nan for fit in fits])
    found = [faults.nonfinite(samples), faults.dead(samples), faults.unused(samples)]
    if judged:
        found += [faults.exploding(samples), faults.vanishing(samples, decades, ends)]
    order = {kind: i for i, kind in enumerate(KINDS)}
    findings = sorted((f for f in found if f is not None), key=lambda f: order[f.kind])
    main = tuple(run.layers[i] for i in run.main_layers())
    made = Judged(probe, main, profile, decades, ends, slopes, predicted_profile(run), tuple(findings), ())
    return Judged(probe, main, profile, decades, ends, slopes, made.prediction, tuple(findings), tuple(_remarks(made)))


def _profile(sample: WeightSample) -> FloatArray:
    """Return (M,) decades over the last hidden layer with a gradient, NaN where not known."""
    main = sample.run.main_layers()
    found = np.full(len(main), math.nan)
    ratio = Recording(sample.run).ratio
    if ratio is not None:
        found[[int(np.flatnonzero(main == i)[0]) for i in ratio.indices]] = ratio.decades[0]
    return found


# --- remarks ----------------------------------------------------------------------------------------------


def _remarks(judged: Judged) -> list[str]:
    samples, remarks = judged.probe.samples, list[str]()
    first = samples[0]
    if first.reinitialised:
        remarks.append(
            f"the weights of {quoted(first.reinitialised)}, the output layer, are all 0 and pass no gradient in the "
            "first step; everything but the loss is measured with PyTorch's default weights there"
        )
    if text := say_loss(judged):
        remarks.append(text)
    dead = [(d / n, name) for name, (d, n) in first.units.items() if n and MOST_DEAD <= d / n < 1]
    if dead:
        share, name = max(dead)
        remarks.append(
            f"{share:.0%} of the units after {quoted(name)} are dead; {plural(len(dead), 'layer')} with at least half "
            "dead units"
        )
    theory = judged.theory
    if theory is not None and abs(theory.worst_away) > APART:
        side = "above" if theory.worst_away > 0 else "below"
        remarks.append(
            f"{quoted(theory.worst)} is {abs(theory.worst_away):.1f} standard deviations {side} theory: the weights or "
            "the structure differ from the theory's assumptions"
        )
    if text := say_scale(judged.outputs + judged.parameters):
        remarks.append(text)
    return remarks


def say_loss(judged: Judged) -> str:
    """Explain a loss above ln(classes); "" if there is nothing to explain."""
    sample = judged.probe.samples[0]
    above = judged.loss - sample.expected_loss
    if not above > LOSS_APART:
        return ""
    spread = float(np.sqrt(np.mean([d.spread**2 for d in judged.probe.samples])))
    text = f"the loss starts {above:.2g} nats above ln({max(sample.scores, 2)})"
    if sample.scores > 1:
        text += f": the scores of an example have a standard deviation of {spread:.2g} before any training"
    return f"{text}; scale the output layer down, or normalise before it"


def say_scale(entries: Entries) -> str:
    """Describe the entries that float16 loses without a loss scale, and the scale that keeps them; "" for few."""
    if not entries.known or entries.share_below(FP16_LOST) <= FP16_MANY:
        return ""
    power, lifted = loss_scale(entries)
    lost = f"float16 rounds {say_share(entries.share_below(FP16_LOST))} of the gradients' entries to 0"
    if lifted >= LIFTED:
        return f"{lost}; a loss scale of 2^{power} lifts {100 * LIFTED:.1f} % of all into its normal range"
    remaining = say_share(entries.share_below(FP16_LOST - power))
    return (
        f"{lost}, and still {remaining} with the largest loss scale that does not overflow, 2^{power}: bfloat16 has "
        "enough range"
    )


def loss_scale(entries: Entries) -> tuple[int, float]:
    """Choose a loss scale for float16.

    Args:
        entries: The sizes of the gradients' entries.

    Returns:
        The smallest power of two that lifts enough entries into float16's normal range, and the share of entries in
        that range. The largest entry times the scale stays below 2^15, and so below float16's largest number; if this
        leaves too many entries below the range, the power is the largest one that is allowed.
    """
    top = entries.largest
    most = 0 if top is None else max(min(FP16_TOP - top, FP16_NORMAL - BF16_NORMAL), 0)
    for power in range(most + 1):
        lifted = 1 - entries.share_below(FP16_NORMAL - power) if entries.known else 1.0
        if lifted >= LIFTED:
            break
    return power, lifted


def say_verdict(judged: Judged) -> str:
    """Return the verdict in a sentence."""
    kinds = [finding.kind for finding in judged.findings]
    if not kinds or kinds == ["unused"]:
        if not judged.ends:
            text = "no fault is found; a backward pass through fewer than three layers cannot be judged"
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


def say_next(judged: Judged) -> list[tuple[str, bool]]:
    """Return what to do about each finding: lines, with whether a line is a finding that the verdict leaves out."""
    lines = []
    for finding in judged.findings:
        if finding is not judged.findings[0] and finding.evidence not in say_verdict(judged):
            lines.append((f"also {finding.kind}: {finding.evidence}", True))
        lines.append((f"next  {finding.remedy}  (confidence {finding.confidence:.2f}; {finding.threshold})", False))
    return lines


def say_facts(judged: Judged) -> list[tuple[str, str]]:
    """Return what is known of a model, a name and a line each."""
    probe, sample = judged.probe, judged.probe.samples[0]
    plan, rows = probe.plan, list[tuple[str, str]]()
    initialisation = f", {plan.init} initialisation" if plan.spec.source == "registry" else ""
    rows.append(("model", f"{plural(sample.numel, 'parameter')} in {plural(sample.tensors, 'tensor')}{initialisation}"))
    rows.append(("probed", f"{plan.say_samples()}, {probe.seconds:.1f} s"))
    if judged.ends:
        first, last = map(quoted, judged.ends)
        text = f"{first} / {last}: {say_power(judged.ratio)}{_range(judged)}"
        text += "" if math.isnan(judged.slope) else f", {say_signed(judged.slope, 3)} decades per layer"
        rows.append(("gradient", text))
    rows.append(("theory", say_theory(judged)))
    logits = f"; scores' standard deviation {float(median(np.array([d.spread for d in probe.samples]))):.2g}"
    logits = logits if sample.scores > 1 else ""
    expected = f", ln({max(sample.scores, 2)}) = {sample.expected_loss:.3f}{logits}" if sample.scores else ""
    rows.append(("loss", f"{judged.loss:.3f}{expected}"))
    dead, units = judged.units
    text = f"{dead:.0f} of {units:,} behind activation functions that can be 0" if units else "no such activation seen"
    rows.append(("dead units", text))
    for name, entries in (("dL/d output", judged.outputs), ("dL/d weights", judged.parameters)):
        rows.append((name, say_entries(entries)))
    for name, names in (("unused", sample.unused), ("frozen", sample.frozen)):
        if names:
            rows.append((name, f"{plural(len(names), 'parameter')} without a gradient: {say_parameters(names)}"))
    if sample.shared:
        rows.append(("shared", "; ".join(" = ".join(group) for group in sample.shared)))
    return rows


def say_theory(judged: Judged) -> str:
    """Say what theory predicts and how far the model is from it."""
    theory, prediction = judged.theory, judged.prediction
    if theory is None or prediction is None:
        return "none for this build (plain and resnet, torchvision:resnet18 and 34, Sequential stacks)"
    text = f"{quoted(theory.layer)} {say_power(theory.predicted)}, measured {say_power(theory.measured)}"
    if math.isfinite(theory.away):
        text += f", {say_deviation(theory.away)}"
    slope, measured = say_signed(theory.slope, 3), say_signed(theory.measured_slope, 3)
    return f"{text}; {slope} per layer, measured {measured} ({prediction.source})"


def say_entries(entries: Entries) -> str:
    """Say which share of a gradient's entries low precision cannot hold."""
    if not entries.known:
        return f"all {entries.total:,} entries are 0"
    low = say_share(entries.share_below(FP16_NORMAL))
    text = f"under fp16's normal range {low}, to 0 {say_share(entries.share_below(FP16_LOST))}"
    scale, lifted = loss_scale(entries)
    text += f"; loss scale 2^{scale}" if scale and lifted >= LIFTED else ""
    zeros = f"; exactly 0: {say_share(entries.zeros / entries.total)}" if entries.zeros else ""
    return f"{text}; under bf16's {say_share(entries.share_below(BF16_NORMAL))}{zeros}"


def _range(judged: Judged) -> str:
    known = judged.decades[~np.isnan(judged.decades)]
    return f" ({say_power(known.min())} to {say_power(known.max())})" if len(known) > 1 else ""
