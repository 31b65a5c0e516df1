"""The diagnosis of a run: which faults its rows show, with evidence, threshold, source and remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

import numpy as np
from numpy.typing import ArrayLike

from gradlens.analysis.gradient_ratio import LEAST_ROWS, say_ratio
from gradlens.diagnosis.dead import dead
from gradlens.diagnosis.exploding import exploding, swollen
from gradlens.diagnosis.findings import Diagnosis, Finding, make_diagnosis, quoted
from gradlens.diagnosis.frozen import frozen, slow
from gradlens.diagnosis.incoherent import incoherent
from gradlens.diagnosis.kinds import REGISTRY, Kind
from gradlens.diagnosis.nonfinite import first_broken_row, nonfinite
from gradlens.diagnosis.recorded_rows import PARAM_GRAD, RMS, ZEROS, Recording, run_of_arrays
from gradlens.diagnosis.saturated import saturated
from gradlens.diagnosis.uncleared import uncleared
from gradlens.diagnosis.unused import unused
from gradlens.diagnosis.vanishing import vanishing
from gradlens.run import Layer, Run


def diagnose(run: Run) -> Diagnosis:
    """Say what is wrong with a run.

    Judged are ratios, laws and what is exact, so that the size of the loss leaves the verdict: a net near convergence
    with tiny gradients everywhere is healthy, and so is one whose gradient grows towards the input as batch norm makes
    it grow. A fault must last over the later half or the last fifth of the rows, but for values that are not
    finite. Steps that a GradScaler skipped are left out. A running run may be diagnosed; a long one is read by blocks.

    Args:
        run: Read by ``gradlens.read_run``.

    Returns:
        The diagnosis; ``print`` shows it as a report. Its kind is "healthy" where no fault is seen, and "undecided"
        where the data do not suffice: fewer than ``LEAST_ROWS`` rows, or no gradients.
    """
    rec, notes = Recording(run), list[str]()
    findings = _of_the_signal(rec, notes)
    unmoved = [*frozen(rec), *unused(rec)]
    if not findings:
        findings = [*incoherent(rec), *([] if unmoved else slow(rec))]
    findings += _on_their_own(unmoved, findings, notes)
    findings += [finding for kind in REGISTRY if kind.on_its_own for finding in rule_of(kind)(rec)]
    if run.status == "running":
        notes.append("the run is still being written, or its writer was killed")
    if rec.skipped.any():
        notes.append(f"{int(rec.skipped.sum())} step(s) that the GradScaler skipped are left out")
    missing = "" if findings else _missing(rec)
    return make_diagnosis(run.name, findings, len(run.steps), missing, notes, _healthy(rec))


def rule_of(kind: Kind) -> Callable[[Recording], list[Finding]]:
    """Return the rule of a kind that is on its own: the function of its name in the file of its name."""
    rule: Callable[[Recording], list[Finding]] = getattr(import_module(f"gradlens.diagnosis.{kind.name}"), kind.name)
    return rule


def _of_the_signal(rec: Recording, notes: list[str]) -> list[Finding]:
    """Return what is wrong with gradients or outputs: first what breaks or explodes, of the ways to explode one."""
    row = first_broken_row(rec)
    loud = [*nonfinite(rec, row), *(uncleared(rec) or exploding(rec, row) or swollen(rec))]
    return [*loud, *_units_or_vanishing(rec, [*dead(rec), *saturated(rec)], vanishing(rec, notes), notes)]


def _units_or_vanishing(rec: Recording, units: list[Finding], way: list[Finding], notes: list[str]) -> list[Finding]:
    """Return units that are off and a gradient that vanishes; where one follows from the other it is a note."""
    if not way:
        return units
    late = [finding for finding in units if _came_later(rec, finding, way[0])]
    units = [finding for finding in units if finding not in late]
    if _explained(rec, way[0], units):
        late, way = way, []
    notes += [f"what follows from it: {finding}" for finding in late]
    return [*units, *way]


def _on_their_own(unmoved: Sequence[Finding], causes: Sequence[Finding], notes: list[str]) -> list[Finding]:
    """Return the layers that do not move for a reason of their own; the others are a note."""
    follow = [finding for finding in unmoved if finding.kind == "frozen" and _follows(finding, causes)]
    notes += [f"what follows from it: {finding}" for finding in follow]
    return [finding for finding in unmoved if finding not in follow]


def diagnose_arrays(
    metrics: Mapping[str, ArrayLike],
    layers: Sequence[str | Layer] | None = None,
    scalars: Mapping[str, ArrayLike] | None = None,
    steps: ArrayLike | None = None,
) -> Diagnosis:
    """Say what is wrong by arrays that were recorded in any way.

    Args:
        metrics: Name, as in ``gradlens.metrics``, to (T, L) values: rows by layers, input first.
        layers: (L,) names or descriptions.
        scalars: Name ("loss", "lr", "skipped") to (T,).
        steps: (T,) optimizer steps.

    Returns:
        The diagnosis, as ``diagnose`` returns it.

    Raises:
        ConfigError: There is no metric, or the arrays' shapes do not fit.
    """
    return diagnose(run_of_arrays(metrics, layers, scalars, steps))


def _explained(rec: Recording, way: Finding, units: Sequence[Finding]) -> bool:
    """Say whether a vanishing gradient follows from units that are off: they lie at or behind the layers concerned."""
    depth = {layer.name: layer.depth for layer in rec.run.layers}
    ends = [depth[name] for finding in units for name in finding.layers]
    return bool(ends) and max(ends) >= depth[way.layers[0]]


def _came_later(rec: Recording, units: Finding, way: Finding) -> bool:
    """Say whether units were still on when the gradient had vanished already: they are no cause of it then."""
    steps = rec.series(ZEROS if units.kind == "dead" else RMS).steps
    before = steps[steps < units.steps[0]]
    return bool(len(before) and before[-1] >= way.steps[0])


def _follows(finding: Finding, causes: Sequence[Finding]) -> bool:
    """Say whether layers stand still as their gradient is gone, or their weights are too large to be moved."""
    named = {name for cause in causes if cause.kind in ("vanishing", "exploding", "dead") for name in cause.layers}
    return set(finding.layers) <= named


def _missing(rec: Recording) -> str:
    """Return why the data do not suffice, or ""."""
    if rec.n_rows < LEAST_ROWS:
        return f"{rec.n_rows} row(s) are too few: at least {LEAST_ROWS} are needed"
    if not rec.gradient:
        return f"no gradients were recorded: activation_grad_norm or {PARAM_GRAD} is needed"
    series = rec.series(rec.gradient)
    if len(series) < LEAST_ROWS:
        return f"{rec.gradient} is known in {len(series)} row(s): at least {LEAST_ROWS} are needed"
    if not (series.values > 0).any():
        return "all gradients are exactly 0, and no loss tells whether there is anything left to learn"
    if rec.ratio is not None:
        known = int((~np.isnan(rec.ratio.decades[:, 0])).sum())
        if known < LEAST_ROWS:
            return f"the gradient at both ends is known in {known} row(s): at least {LEAST_ROWS} are needed"
    elif len(rec.run.main_layers()) >= 3:
        return f"the gradient of only {len(rec.path)} main layer(s) is known in most rows: at least 3 are needed"
    return ""


def _healthy(rec: Recording) -> str:
    """Return what speaks for a healthy run."""
    if rec.ratio is None:
        return "no fault is seen; with fewer than three layers there is no ratio of first to last to be judged"
    first, last = rec.ratio.first.name, rec.ratio.last.name
    return f"no fault is seen: {say_ratio(quoted(first), quoted(last), rec.ratio.typical())}"
