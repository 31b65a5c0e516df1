"""Diagnose a run: the faults that its rows show, with evidence, threshold, source and remedy."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gradlens.analysis.gradient_ratio import LEAST_ROWS, say_ratio
from gradlens.diagnosis.accumulated import with_passes
from gradlens.diagnosis.clipping import clipping
from gradlens.diagnosis.cut import DRAWN, MADE_ANEW, cut
from gradlens.diagnosis.dead import dead, say_dead_units
from gradlens.diagnosis.exploding import exploding, swollen
from gradlens.diagnosis.findings import Diagnosis, Finding, make_diagnosis, quoted, say_layers
from gradlens.diagnosis.frozen import RATE_ZERO, frozen, is_starved
from gradlens.diagnosis.incoherent import incoherent
from gradlens.diagnosis.intended import find_intended
from gradlens.diagnosis.kinds import REGISTRY, Kind
from gradlens.diagnosis.learning import Learning, judge_learning
from gradlens.diagnosis.loss import FELL, loss_fell, loss_halved
from gradlens.diagnosis.loss_notes import notes_on_left_out, notes_on_loss
from gradlens.diagnosis.lower_bound import with_lower_bound
from gradlens.diagnosis.network import Network
from gradlens.diagnosis.nonfinite import first_broken_row, nonfinite
from gradlens.diagnosis.number_notes import notes_on_numbers
from gradlens.diagnosis.plateau import plateau
from gradlens.diagnosis.program_notes import notes_on_program
from gradlens.diagnosis.recorded_rows import (
    PARAM_GRAD,
    RMS,
    ZEROS,
    Recording,
    run_of_arrays,
)
from gradlens.diagnosis.saturated import saturated
from gradlens.diagnosis.setup.labels import ZEROS as ZERO_LABELS
from gradlens.diagnosis.setup.no_gradients import ANOTHER_MODEL
from gradlens.diagnosis.setup.repeated_seed import note_on_repeated_seed
from gradlens.diagnosis.setup.rules import setup
from gradlens.diagnosis.setup.same_outputs import SAME
from gradlens.diagnosis.setup.sharp_attention import note_on_attention
from gradlens.diagnosis.setup.terms import POSTERIOR
from gradlens.diagnosis.setup.weighting import ONE_SCORE
from gradlens.diagnosis.small_steps import slow, steady
from gradlens.diagnosis.through_time import forgets, say_growth
from gradlens.diagnosis.uncleared import uncleared
from gradlens.diagnosis.unused import unused
from gradlens.diagnosis.vanishing import vanishing
from gradlens.diagnosis.weight_growth import weight_growth
from gradlens.diagnosis.written_weights import rises_at_writes
from gradlens.diagnosis.zero_gradient import beyond_clamp, is_satisfied, off_by_chance, rounded_off, zero_gradient
from gradlens.diagnosis.zero_loss import ZERO_LOSSES
from gradlens.errors import ConfigError
from gradlens.format import plural
from gradlens.run import Layer, Run

CAUSED_BY_DECAY = ("dead", "zero_gradient", "vanishing", "plateau")
"""Kinds that weights near 0 can cause."""
CAUSED_BY_GROWTH = ("plateau", "exploding", "vanishing", "dead", "saturated")
"""Kinds that weights which grow without end can cause: they saturate bounded functions, and switch units off."""
CAUSED_BY_INPUTS = (
    "exploding", "nonfinite", "dead", "saturated", "zero_gradient", "vanishing", "frozen", "plateau",
)  # fmt: skip
"""Kinds that data of a wrong scale can cause."""
OF_INITIAL_WEIGHTS = ("zero_gradient", "vanishing", "dead")
"""Kinds that only say how the weights were made, where these never change."""
BRINGS = {ANOTHER_MODEL: MADE_ANEW, DRAWN: POSTERIOR}
"""An exact cause, and the one that follows from it."""
WITHOUT_BOUND = ("the divergence has the wrong sign",)
"""Exact causes that make a loss fall without bound, so that outputs and gradients grow without bound."""
LOSES_SIGNAL = ("vanishing", "saturated", "dead", "zero_gradient", "nonfinite")
"""Kinds with which a model may return the same for all examples."""
CONSEQUENCE = "a consequence, not a separate fault"
"""The beginning of a note about a finding that another finding causes."""


def diagnose(run: Run | str | os.PathLike[str]) -> Diagnosis:
    """Diagnose a run: find its faults, with evidence, threshold, source and remedy.

    The rules judge ratios, laws and exact values, so that the verdict does not depend on the size of the loss. A model
    near convergence with tiny gradients everywhere is healthy. So is a model whose gradient grows toward the input
    within the law of batch norm. A fault must last over the later half or the last fifth of the rows; only non-finite
    values count at once. Steps that a GradScaler skipped are left out. A run that is still being written can be
    diagnosed; a long run is read in chunks of rows.

    Args:
        run: A run from ``gradlens.read_run``, a file, or a name under ``runs/``.

    Returns:
        The diagnosis; ``print`` shows it as a report. Its kind is "healthy" where no fault is found, and "undecided"
        where the data do not suffice: fewer than ``LEAST_ROWS`` rows, or no gradients.

    Raises:
        ConfigError: Something else was given, or a folder with several runs.
        NoRunError: The file or the folder is not there, or has no run.

    Example::

        print(gradlens.diagnose("runs/plain34-s0.h5"))
    """
    if isinstance(run, str | os.PathLike):
        run = _open(run)
    elif not isinstance(run, Run):
        raise ConfigError(f"expected one run, its file or its name, got {type(run).__name__}")
    rec, notes = Recording(run), list[str]()
    learning, intended = judge_learning(rec), find_intended(rec)
    exact = _exact_findings(rec, learning)
    explained = _explained_layers(rec, learning, notes)
    explained.update(*(item.layers for item in intended), *(finding.layers for finding in exact))
    findings = [_with_causes(rec, finding) for finding in _signal_findings(rec, learning, notes)]
    findings = _without_consequences(findings, exact, notes)
    exact = _without_same_outputs(exact, findings)
    learning = _unless_all_zero(learning, findings)
    unchanged = frozen(rec, explained)
    unchanged += unused(rec, explained.union(*(f.layers for f in unchanged if f.cause)))
    if unchanged and unchanged[0].cause == RATE_ZERO:  # nothing has moved: the rest shows the initial weights
        findings, unchanged = [*unchanged, *_move_to_notes(findings, OF_INITIAL_WEIGHTS, notes)], []
    if not findings and not exact:
        findings = _starved_by(rec, learning, unchanged)
    if any(finding.cause in ZERO_LOSSES for finding in findings):  # what it does not reach is no fault of its own
        notes += [str(finding) for finding in exact if finding.kind == "cut"]
        exact = [finding for finding in exact if finding.kind != "cut"]
    findings = [*exact, *findings, *_weight_findings(rec, unchanged, [*exact, *findings], findings, notes)]
    findings += [finding for kind in REGISTRY if kind.on_its_own for finding in rule_of(kind)(rec)]
    if not findings and (findings := forgets(rec, learning) or plateau(rec, learning)) and learning.verdict == "yes":
        learning = replace(learning, verdict="unknown", evidence=f"{learning.evidence}, and then it stays there")
    findings = [_with_wrong_sizes(rec, learning, finding) for finding in findings]
    notes += [item.said for item in intended]
    notes += _notes_on_run(rec, findings)
    missing = "" if findings else _missing(rec, explained)
    return replace(
        make_diagnosis(run.name, findings, len(run.steps), missing, notes, _healthy(rec)),
        learning=learning.verdict,
        learning_evidence=learning.evidence,
    )


def _starved_by(rec: Recording, learning: Learning, unchanged: Sequence[Finding]) -> list[Finding]:
    """Return a gradient that vanishes through time, where all that is unchanged are layers whose steps it takes.

    Returns:
        The finding with the names of these layers, too, in a list.
    """
    depth = {layer.name: layer.depth for layer in rec.run.layers}
    found = forgets(rec, learning) if unchanged else []
    for finding in found:
        last = max(depth[name] for name in finding.layers)
        if all(each.kind == "frozen" and not each.cause and is_starved(rec, each.layers) for each in unchanged):
            starved = tuple(name for each in unchanged for name in each.layers if depth[name] < last)
            if len(starved) == sum(len(each.layers) for each in unchanged):
                return [replace(finding, layers=(*finding.layers, *starved))]
    return []


def _explained_layers(rec: Recording, learning: Learning, notes: list[str]) -> set[str]:
    """Return layers whose gradient may be 0: behind a clamp, off by chance, or in a model whose loss is learnt."""
    clamped = beyond_clamp(rec) if learning.verdict != "no" else ()
    if clamped:
        notes.append(f"parameters of {say_layers(clamped)} lie outside the range of a clamp: their gradient is 0")
    chance = off_by_chance(rec) if learning.verdict != "no" else ()
    notes += _note_on_chance(rec, chance)
    explained = {*clamped, *chance}
    if is_satisfied(rec):
        explained |= set(rec.names(range(len(rec.run.layers))))
        notes.append("all gradients are exactly 0 at the end, and the loss is learnt")
    return explained


def _without_consequences(findings: list[Finding], exact: Sequence[Finding], notes: list[str]) -> list[Finding]:
    """Return the findings of gradients and outputs that no exact cause brings about; notes tell of the others."""
    caused: set[str] = set()
    if any(finding.cause == DRAWN for finding in exact):  # what comes before it has no gradient of the loss's own
        caused.add("vanishing")
    findings = _move_to_notes(findings, caused, notes)
    findings = _without_scores(findings, exact, notes)
    without_bound = any(finding.cause in WITHOUT_BOUND for finding in exact)
    return _move_to_notes(findings, CAUSED_BY_INPUTS if without_bound else (), notes)


def _move_to_notes(findings: list[Finding], kinds: Collection[str], notes: list[str]) -> list[Finding]:
    """Return the findings of other kinds; those of these kinds become notes."""
    notes += [f"{CONSEQUENCE}: {finding}" for finding in findings if finding.kind in kinds]
    return [finding for finding in findings if finding.kind not in kinds]


def _weight_findings(
    rec: Recording, unchanged: list[Finding], known: Sequence[Finding], causes: Sequence[Finding], notes: list[str]
) -> list[Finding]:
    """Return what is wrong with weights by itself, and steps without a direction or a size.

    Args:
        rec: The recording.
        unchanged: Weights that do not change, and layers without a gradient.
        known: All findings so far; steps are judged only where there are none.
        causes: Those of gradients and outputs.
        notes: Receive what another finding causes.
    """
    if known:
        return _independent(unchanged, causes, notes)
    steps = [*incoherent(rec), *([] if unchanged else slow(rec) or steady(rec))]
    return [*steps, *_independent(unchanged, steps, notes)]


def _with_wrong_sizes(rec: Recording, learning: Learning, finding: Finding) -> Finding:
    """Add to a finding what is known of weights, data and a loss of a wrong size."""
    finding = _with_first_weights(rec, _with_decay(rec, learning, finding))
    finding = with_lower_bound(rec, _with_inputs(rec, _with_growth_of_weights(rec, learning, finding)))
    return with_passes(rec, finding)


def _notes_on_run(rec: Recording, findings: Sequence[Finding]) -> list[str]:
    """Return notes on units, rows, losses, numbers and the program."""
    dead_units = [] if any(f.kind in ("dead", "zero_gradient") for f in findings) else say_dead_units(rec)
    rows = [*_notes_on_rows(rec), *notes_on_loss(rec, findings)]
    notes = [*dead_units, *rows, *notes_on_numbers(rec, findings), *notes_on_program(rec, findings)]
    notes += [*notes_on_left_out(rec), *note_on_repeated_seed(rec, findings)]
    return [*notes, *note_on_attention(rec, findings)]


def _exact_findings(rec: Recording, learning: Learning) -> list[Finding]:
    """Return the findings of exact causes, without those that another one of them brings about."""
    found = [*cut(rec, learning), *setup(rec, learning), *clipping(rec, learning)]
    brought = {BRINGS[finding.cause] for finding in found if finding.cause in BRINGS}
    return [finding for finding in found if finding.cause not in brought]


def _without_same_outputs(exact: list[Finding], findings: list[Finding]) -> list[Finding]:
    """Return the exact findings without outputs that are the same because no signal comes through the layers."""
    if not any(finding.kind in LOSES_SIGNAL for finding in findings):
        return exact
    return [finding for finding in exact if finding.cause != SAME]


def _note_on_chance(rec: Recording, layers: tuple[str, ...]) -> list[str]:
    """Return a note on layers whose gradient is 0 beside a shortcut, if there are any."""
    if not layers:
        return []
    return [
        f"the gradient is exactly 0 in every row at {plural(len(layers), 'layer')} of {len(rec.run.layers):,} "
        f"({say_layers(layers)}), and a shortcut passes the gradient by: all units of a narrow layer may be off by "
        "chance"
    ]


def _open(place: str | os.PathLike[str]) -> Run:
    from gradlens.storage import read_runs

    runs = read_runs(place)
    if len(runs) != 1:
        raise ConfigError(f"expected one run, got {len(runs)} in {place}")
    return runs[0]


def _unless_all_zero(learning: Learning, findings: Sequence[Finding]) -> Learning:
    """Return "no" where all gradients are exactly 0 while the loss does not fall: nothing can change any more."""
    if any(finding.kind == "zero_gradient" and "at all layers" in finding.evidence for finding in findings):
        return replace(learning, verdict="no", evidence=f"{learning.evidence}; all gradients are exactly 0 at the end")
    return learning


def _without_scores(findings: list[Finding], exact: Sequence[Finding], notes: list[str]) -> list[Finding]:
    """Return findings without a gradient of 0 that a softmax over one element or labels of 0 cause; a note tells."""
    single = any((finding.cause == ONE_SCORE and finding.layers) or finding.cause == ZERO_LABELS for finding in exact)
    caused = [finding for finding in findings if single and finding.kind == "zero_gradient" and not finding.cause]
    notes += [f"{CONSEQUENCE}: {finding}" for finding in caused]
    return [finding for finding in findings if finding not in caused]


def _notes_on_rows(rec: Recording) -> list[str]:
    """Return notes on a run that is not complete, and on rows that are left out."""
    notes = []
    if rec.run.status == "running":
        notes.append("the run is still being written, or its writer was killed")
    if rec.skipped.any():
        skipped = int(rec.skipped.sum())
        verb = "is" if skipped == 1 else "are"
        notes.append(f"{plural(skipped, 'step')} that the GradScaler skipped {verb} left out")
    return notes


def _with_causes(rec: Recording, finding: Finding) -> Finding:
    """Add to an explosion that weights are written, that the gradient grows through time, or that the loss is a sum."""
    if finding.kind not in ("exploding", "nonfinite"):
        return finding
    if writes := rises_at_writes(rec):
        return replace(finding, evidence=f"{finding.evidence}; the loss rises; {writes[0]}", remedy=writes[1].strip())
    if grows := say_growth(rec):
        fix = f"{Network(rec).clip()} Initialise the recurrent weights orthogonally."
        finding = replace(finding, evidence=f"{finding.evidence}; {grows}", remedy=fix)
    said = Network(rec).sum_of_losses()
    if not said:
        return finding
    fix = "Average the loss instead (reduction='mean'), or divide the learning rate by that number."
    return replace(finding, evidence=f"{finding.evidence}; {said}", remedy=f"{fix} {finding.remedy}")


def _with_decay(rec: Recording, learning: Learning, finding: Finding) -> Finding:
    """Add to a finding that weight decay took the weights of a model that does not learn."""
    if finding.kind not in CAUSED_BY_DECAY or learning.verdict != "no":
        return finding
    said, fix = Network(rec).shrunk()
    return (
        replace(finding, evidence=f"{finding.evidence}; {said}", remedy=f"{fix} {finding.remedy}") if said else finding
    )


def _with_growth_of_weights(rec: Recording, learning: Learning, finding: Finding) -> Finding:
    """Add to a finding that the weights of a model that does not learn grow by one factor per step."""
    if finding.cause or finding.kind not in CAUSED_BY_GROWTH or learning.verdict != "no":
        return finding
    said, fix = weight_growth(rec)
    return (
        replace(finding, evidence=f"{finding.evidence}; {said}", remedy=f"{fix} {finding.remedy}") if said else finding
    )


def _with_first_weights(rec: Recording, finding: Finding) -> Finding:
    """Add to a finding without an exact cause that the initial weights have a wrong size."""
    said, fix = Network(rec).first_weights()
    if finding.cause or finding.kind not in CAUSED_BY_INPUTS or not said:
        return finding
    return replace(finding, evidence=f"{finding.evidence}; {said}", remedy=f"{fix} {finding.remedy}")


def _with_inputs(rec: Recording, finding: Finding) -> Finding:
    """Add to a finding without an exact cause that the data are not normalised or not finite."""
    said, fix = Network(rec).inputs()
    if finding.cause or finding.kind not in CAUSED_BY_INPUTS or not said:
        return finding
    return replace(finding, evidence=f"{finding.evidence}; {said}", remedy=f"{fix} {finding.remedy}")


def rule_of(kind: Kind) -> Callable[[Recording], list[Finding]]:
    """Return the rule of a kind that is on its own: the function of its name in the file of its name."""
    rule: Callable[[Recording], list[Finding]] = getattr(import_module(f"gradlens.diagnosis.{kind.name}"), kind.name)
    return rule


def _signal_findings(rec: Recording, learning: Learning, notes: list[str]) -> list[Finding]:
    """Return the faults of gradients and outputs; at most one rule reports an explosion."""
    row = first_broken_row(rec)
    added_up = [] if rec.setup.known else uncleared(rec)  # the facts tell exactly
    grows = [] if len(rounded_off(rec)) else swollen(rec)  # outputs may grow once float16 lets a gradient pass
    broken = [*nonfinite(rec, row), *(added_up or exploding(rec, row) or grows)]
    vanishes = [*zero_gradient(rec, learning), *vanishing(rec, notes)]
    if row is not None:  # comparisons with NaN are false, and so is the slope of a ReLU
        step = int(rec.run.steps[row])
        later = [finding for finding in vanishes if finding.kind == "zero_gradient" and finding.steps[0] >= step]
        notes += [f"{CONSEQUENCE}: {finding}" for finding in later]
        vanishes = [finding for finding in vanishes if finding not in later]
    return [*broken, *_units_or_vanishing(rec, [*dead(rec, learning), *saturated(rec)], vanishes, notes)]


def _units_or_vanishing(
    rec: Recording, units: list[Finding], vanishes: list[Finding], notes: list[str]
) -> list[Finding]:
    """Return dead or saturated units and a gradient that is 0 or vanishes; one that another causes becomes a note."""
    if not vanishes:
        return units
    consequences = [finding for finding in units if _came_later(rec, finding, vanishes[0])]
    units = [finding for finding in units if finding not in consequences]
    if _explained(rec, vanishes[0], units):
        consequences, vanishes = vanishes, []
    notes += [f"{CONSEQUENCE}: {finding}" for finding in consequences]
    return [*units, *vanishes]


def _independent(unchanged: Sequence[Finding], causes: Sequence[Finding], notes: list[str]) -> list[Finding]:
    """Return the findings of unchanged weights that no other finding causes; the others become notes."""
    consequences = [finding for finding in unchanged if finding.kind == "frozen" and _follows(finding, causes)]
    notes += [f"{CONSEQUENCE}: {finding}" for finding in consequences]
    return [finding for finding in unchanged if finding not in consequences]


def diagnose_arrays(
    metrics: Mapping[str, ArrayLike],
    layers: Sequence[str | Layer] | None = None,
    scalars: Mapping[str, ArrayLike] | None = None,
    steps: ArrayLike | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Diagnose arrays that were recorded in any way.

    Args:
        metrics: Name, as in ``gradlens.metrics``, to (T, L) values: rows by layers, input first.
        layers: (L,) names or descriptions of the layers; None for "layer1", "layer2", ...
        scalars: Name ("loss", "lr", "skipped") to (T,) values.
        steps: (T,) optimizer steps; None for 0, 1, ...
        facts: Facts of the set-up, as in docs/facts.md.

    Returns:
        The diagnosis, as from ``diagnose``.

    Raises:
        ConfigError: There is no metric, or the arrays' shapes do not fit.
    """
    return diagnose(run_of_arrays(metrics, layers, scalars, steps, facts=facts))


def _explained(rec: Recording, vanishes: Finding, units: Sequence[Finding]) -> bool:
    """Return whether units cause a vanishing gradient: they are at its first layer or nearer the output."""
    depth = {layer.name: layer.depth for layer in rec.run.layers}
    ends = [depth[name] for finding in units for name in finding.layers]
    return not vanishes.cause and bool(ends) and max(ends) >= depth[vanishes.layers[0]]


def _came_later(rec: Recording, units: Finding, vanishes: Finding) -> bool:
    """Return whether the gradient vanished before the units died or saturated: then they are not its cause."""
    steps = rec.series(ZEROS if units.kind == "dead" else RMS).steps
    before = steps[steps < units.steps[0]]
    return bool(len(before) and before[-1] >= vanishes.steps[0])


def _follows(finding: Finding, causes: Sequence[Finding]) -> bool:
    """Return whether layers are frozen because their gradient is gone or NaN, or their weights are too large."""
    named = {
        name
        for cause in causes
        if cause.kind in ("vanishing", "exploding", "dead", "zero_gradient")
        for name in cause.layers
    }
    broken = any(cause.kind == "nonfinite" and cause.steps[0] <= finding.steps[0] for cause in causes)
    return set(finding.layers) <= named or broken


def _missing(rec: Recording, explained: Collection[str]) -> str:
    """Return why the data do not suffice, or ""; layers that a note explains need no gradient."""
    if rec.n_rows < LEAST_ROWS:
        steps = int(rec.run.steps[-1] - rec.run.steps[0]) + 1 if rec.n_rows > 1 else rec.n_rows
        if steps >= LEAST_ROWS:  # an interval as wide as that of every="auto" in a short training of fast steps
            return (
                f"too few rows: {rec.n_rows:,} of {steps:,} steps, but at least {LEAST_ROWS} are needed: "
                "record more steps, with a smaller every="
            )
        return f"too few rows: {rec.n_rows}, but at least {LEAST_ROWS} are needed"
    if not rec.gradient:
        return f"no gradients were recorded: activation_grad_norm or {PARAM_GRAD} is needed"
    series = rec.series(rec.gradient)
    if len(series) < LEAST_ROWS:
        return f"{rec.gradient} is known in {plural(len(series), 'row')}: at least {LEAST_ROWS} are needed"
    if not series.positive.any():
        return f"all gradients are exactly 0 in {plural(len(series), 'row')}; {_say_loss(rec)}"
    if rec.ratio is not None:
        known = int((~np.isnan(rec.ratio.first_decades)).sum())
        if known < LEAST_ROWS:
            found = f"the gradients of both the first and the last hidden layer are known in {plural(known, 'row')}"
            return f"{found}: at least {LEAST_ROWS} are needed"
    elif _has_unknown_layers(rec, explained):
        found = plural(len(rec.path), "main layer")
        return f"the gradient is known in most rows for {found} only: at least 3 are needed"
    return ""


def _has_unknown_layers(rec: Recording, explained: Collection[str]) -> bool:
    """Return whether of three main layers or more, without those that a note explains, hardly any gradient is known.

    Layers beside the longest path (heads) are known although they are not on it.
    """
    main = [int(i) for i in rec.run.main_layers() if rec.run.layers[i].name not in explained]
    known = rec.series(rec.gradient).by_layers(lambda values: (~np.isnan(values)).mean(axis=0) > 0.5)[main].sum()
    return len(main) >= 3 and known < 3


def _say_loss(rec: Recording) -> str:
    """Say what the loss tells of a run whose gradients are all exactly 0."""
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    if not len(loss):
        return "no loss was recorded that would tell whether anything is left to learn"
    if math.isnan(fell := loss_fell(rec)):
        return f"the loss ends at {loss[-1]:.3g}, and there are too few rows to see whether it falls"
    if loss_halved(rec) or fell >= FELL:
        return f"yet the loss falls, to {loss[-1]:.3g}: what lowers it is in no recorded gradient"
    return f"the loss stays at {loss[-1]:.3g}: nothing is learned, unless this is as low as it can be"


def _healthy(rec: Recording) -> str:
    """Return the reason for the verdict "healthy"."""
    if rec.ratio is None:
        few = "with a gradient at fewer than three layers there is no ratio of first to last hidden layer"
        return f"no fault was found; {few}"
    first, last = rec.ratio.first.name, rec.ratio.last.name
    return f"no fault was found: {say_ratio(quoted(first), quoted(last), rec.ratio.typical())}"
