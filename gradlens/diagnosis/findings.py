"""Findings with their evidence, and the diagnosis that lists them and prints as a report."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any, Literal

from gradlens.diagnosis.kinds import HEALTHY, KINDS, NOT_KNOWN, UNDECIDED
from gradlens.lazy import shown_by

WIDTH = 100
SCHEMA = 1
"""Version of the JSON (docs/diagnosis.md): it rises when a key changes its meaning or goes, not when one is added."""
Verdict = Literal["yes", "no", "unknown"]
"""Whether a model learns."""
EXACT = "exact: read from the training itself, with no threshold"
"""The threshold of findings that follow from facts."""
FACTS = "the recorder's facts (docs/facts.md)"
"""Their source."""


@dataclass(frozen=True)
class Finding:
    """One fault, with its evidence.

    Args:
        kind: One of ``KINDS``.
        layers: Names of the affected layers; the one where the fault starts comes first.
        steps: The first and the last optimizer step at which the fault was seen.
        evidence: What was measured, in a sentence with numbers.
        threshold: The threshold that is passed, in words.
        source: The reason for the threshold: author, year and section, or a measurement.
        remedy: What to do, in one sentence.
        confidence: In (0, 1]: how certain it is that the threshold is passed, not that the cause is right; 1 where it
            is exact. Each rule documents its computation.
        cause: The mechanism, where it is known exactly; else "".
    """

    kind: str
    layers: tuple[str, ...]
    steps: tuple[int, int]
    evidence: str
    threshold: str
    source: str
    remedy: str
    confidence: float
    cause: str = ""

    def __str__(self) -> str:
        """Return the finding in one line."""
        return f"{self.kind} at {say_layers(self.layers)}, from step {self.steps[0]}: {self.evidence}"


@dataclass(frozen=True)
class Diagnosis:
    """The faults of a run, the most important first.

    Args:
        run: The run's name.
        findings: The faults; the first is the main one.
        rows: Number of rows in the run.
        reason: Why the run is healthy or undecided.
        notes: Observations that are not faults of their own, and limits of the diagnosis.
        undecided: Whether the data do not suffice for the verdict "healthy".
        learning: Whether the model learns: "yes", "no" or "unknown".
        learning_evidence: The reason for that, in a sentence.
    """

    run: str
    findings: tuple[Finding, ...]
    rows: int
    reason: str
    notes: tuple[str, ...] = ()
    undecided: bool = False
    learning: Verdict = "unknown"
    learning_evidence: str = ""

    @property
    def kind(self) -> str:
        """The main finding's kind, "healthy" or "undecided"."""
        if self.findings:
            return self.findings[0].kind
        return UNDECIDED if self.undecided else HEALTHY

    @property
    def verdict(self) -> str:
        """The kind in words: a run of which it is unknown whether the model learns is not called healthy."""
        return self.kind if self.kind != HEALTHY or self.learning == "yes" else NOT_KNOWN

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of all findings without repeats, the main one first."""
        return tuple(dict.fromkeys(finding.kind for finding in self.findings))

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        """Return the findings of a kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain values, as ``gradlens diagnose --format json`` prints it."""
        return {
            "schema": SCHEMA,
            "run": self.run,
            "kind": self.kind,
            "learning": self.learning,
            "learning_evidence": self.learning_evidence,
            "rows": self.rows,
            "reason": self.reason,
            "notes": list(self.notes),
            "findings": [finding_row(self.run, finding) for finding in self.findings],
        }

    def __repr__(self) -> str:
        """Return the verdict in one line; ``print`` shows the report."""
        return f"Diagnosis({self.run}: {', '.join(self.kinds) or self.verdict}, {self.rows} rows)"

    def __str__(self) -> str:
        """Return a short report."""
        lines = [f"{self.run}: {self.verdict} ({self.rows} rows)"]
        if not self.findings:
            lines += _wrapped(self.reason, "  ")
        for i, finding in enumerate(self.findings, 1):
            lines.append(f"{i}. {finding.kind}, {say_confidence(finding)}")
            lines += _wrapped(f"where: {say_layers(finding.layers)}; {say_steps(finding.steps)}", "   ")
            lines += _wrapped(f"evidence: {finding.evidence}", "   ")
            lines += _wrapped(f"threshold: {finding.threshold} ({finding.source})", "   ")
            lines += _wrapped(f"next: {finding.remedy}", "   ")
        if self.learning_evidence:
            lines += _wrapped(f"does it learn? {self.learning}: {self.learning_evidence}", "  ")
        for note in self.notes:
            lines += _wrapped(f"note: {note}", "  ")
        return "\n".join(lines)

    _repr_html_ = shown_by("diagnosis_card")


def make_diagnosis(
    run: str, findings: list[Finding], rows: int, missing: str, notes: list[str], healthy: str
) -> Diagnosis:
    """Make a diagnosis with its findings in order of importance.

    Args:
        run: The run's name.
        findings: The findings in any order.
        rows: Number of rows in the run.
        missing: Why the data do not suffice; "" where they do.
        notes: Observations that are not faults.
        healthy: The reason to give where there are no findings.

    Returns:
        The diagnosis.
    """
    order = {kind: i for i, kind in enumerate(KINDS)}
    ordered = sorted(findings, key=lambda finding: (not finding.cause, order[finding.kind]))
    reason = missing or ("" if ordered else healthy)
    return Diagnosis(run, tuple(ordered), rows, reason, tuple(notes), bool(missing))


def exact_finding(
    kind: str, layers: tuple[str, ...], steps: tuple[int, int], evidence: str, remedy: str, cause: str
) -> Finding:
    """Return a finding that follows from facts of the set-up, without a threshold.

    Args:
        kind: One of ``KINDS``.
        layers: Names of the affected layers.
        steps: The first and the last optimizer step.
        evidence: What was read, in a sentence.
        remedy: What to do.
        cause: The mechanism.
    """
    return Finding(kind, layers, steps, evidence, EXACT, FACTS, remedy, 1.0, cause)


def finding_row(run: str, finding: Finding) -> dict[str, Any]:
    """Return a finding as plain values, for JSON and CSV."""
    return {
        "run": run,
        "kind": finding.kind,
        "cause": finding.cause,
        "confidence": round(finding.confidence, 4),
        "first_layer": finding.layers[0] if finding.layers else "",
        "layers": list(finding.layers),
        "first_step": finding.steps[0],
        "last_step": finding.steps[1],
        "evidence": finding.evidence,
        "threshold": finding.threshold,
        "source": finding.source,
        "remedy": finding.remedy,
    }


def say_confidence(finding: Finding) -> str:
    """Return how certain a finding is: an exact cause, or the confidence that its threshold is passed."""
    if finding.cause:
        return f"exact cause: {finding.cause}"
    return f"confidence {finding.confidence:.2f} that the threshold is passed"


def say_layers(names: tuple[str, ...], most: int = 3) -> str:
    """Return the names of layers for a sentence: "conv1, conv2, conv3 and 4 more".

    Args:
        names: The layers' names.
        most: Maximum number of names.
    """
    if not names:
        return "no particular layer"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(quoted(name) for name in names[:most]) + more


def quoted(name: str) -> str:
    """Return a layer's name for a sentence: ``layer '3'`` where the bare name looks like a number."""
    return f"layer {name!r}" if name.replace(".", "").isdigit() else name


def say_steps(steps: tuple[int, int]) -> str:
    """Return the steps of a finding as text: "step 3" or "steps 3 to 9"."""
    return f"step {steps[0]}" if steps[0] == steps[1] else f"steps {steps[0]} to {steps[1]}"


def _wrapped(text: str, indent: str) -> list[str]:
    hanging = indent + "  "
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    )
