"""What a diagnosis says: findings with their evidence, and the report made of them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from gradlens.diagnosis.kinds import HEALTHY, KINDS, UNDECIDED
from gradlens.lazy import shown_by

WIDTH = 100


@dataclass(frozen=True)
class Finding:
    """One fault, with what speaks for it.

    Args:
        kind: One of ``KINDS``.
        layers: Names of the layers concerned; the one where it starts comes first.
        steps: The first and the last optimizer step at which it was seen.
        evidence: What was measured, in a sentence with its numbers.
        threshold: The line that it is beyond, in words.
        source: Why the line is where it is: author, year and section, or what was measured.
        remedy: What to do, in one sentence.
        confidence: In (0, 1]: how sure the evidence is that the line is passed; how it is reckoned stands at each rule.
    """

    kind: str
    layers: tuple[str, ...]
    steps: tuple[int, int]
    evidence: str
    threshold: str
    source: str
    remedy: str
    confidence: float

    def __str__(self) -> str:
        """Return the finding in a line."""
        return f"{self.kind} at {say_layers(self.layers)}, from step {self.steps[0]}: {self.evidence}"


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a run, most important first.

    Args:
        run: Its name.
        findings: The faults; the first is the main one.
        rows: How many rows there are.
        reason: Why it is healthy or undecided, or what could not be looked at.
        notes: What was noticed and is no fault, and what could not be looked at.
    """

    run: str
    findings: tuple[Finding, ...]
    rows: int
    reason: str
    notes: tuple[str, ...] = ()
    undecided: bool = False

    @property
    def kind(self) -> str:
        """The main finding's kind, "healthy" or "undecided"."""
        if self.findings:
            return self.findings[0].kind
        return UNDECIDED if self.undecided else HEALTHY

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of all findings, main one first, each once."""
        return tuple(dict.fromkeys(finding.kind for finding in self.findings))

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        """Return the findings of a kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain values, as ``gradlens diagnose --format json`` prints it."""
        return {
            "run": self.run,
            "kind": self.kind,
            "rows": self.rows,
            "reason": self.reason,
            "notes": list(self.notes),
            "findings": [finding_row(self.run, finding) for finding in self.findings],
        }

    def __repr__(self) -> str:
        """Return the verdict in a line; ``print`` shows the report."""
        return f"Diagnosis({self.run}: {', '.join(self.kinds) or self.kind}, {self.rows} rows)"

    def __str__(self) -> str:
        """Return a short report."""
        lines = [f"{self.run}: {self.kind} ({self.rows} rows)"]
        if not self.findings:
            lines += _wrapped(self.reason, "  ")
        for i, finding in enumerate(self.findings, 1):
            lines.append(f"{i}. {finding.kind}, confidence {finding.confidence:.2f}")
            lines += _wrapped(f"where: {say_layers(finding.layers)}; {say_steps(finding.steps)}", "   ")
            lines += _wrapped(f"evidence: {finding.evidence}", "   ")
            lines += _wrapped(f"threshold: {finding.threshold} ({finding.source})", "   ")
            lines += _wrapped(f"next: {finding.remedy}", "   ")
        for note in self.notes:
            lines += _wrapped(f"note: {note}", "  ")
        return "\n".join(lines)

    _repr_html_ = shown_by("diagnosis_card")


def make_diagnosis(
    run: str, findings: list[Finding], rows: int, missing: str, notes: list[str], healthy: str
) -> Diagnosis:
    """Put findings in order.

    Args:
        run: The run's name.
        findings: In any order.
        rows: How many rows the run has.
        missing: Why the data do not suffice; "" where they do.
        notes: What is worth a line without being a fault.
        healthy: What speaks for a healthy run.
    """
    order = {kind: i for i, kind in enumerate(KINDS)}
    ordered = sorted(findings, key=lambda finding: order[finding.kind])
    reason = missing or ("" if ordered else healthy)
    return Diagnosis(run, tuple(ordered), rows, reason, tuple(notes), bool(missing))


def finding_row(run: str, finding: Finding) -> dict[str, Any]:
    """Return a finding as plain values, for JSON and CSV."""
    return {
        "run": run,
        "kind": finding.kind,
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


def say_layers(names: tuple[str, ...], most: int = 3) -> str:
    """Name layers, not too many."""
    if not names:
        return "no layer in particular"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(quoted(name) for name in names[:most]) + more


def quoted(name: str) -> str:
    """Write a layer's name so that it cannot be taken for a number."""
    return f"layer {name!r}" if name.replace(".", "").isdigit() else name


def say_steps(steps: tuple[int, int]) -> str:
    """Name the steps of a finding."""
    return f"step {steps[0]}" if steps[0] == steps[1] else f"steps {steps[0]} to {steps[1]}"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False)
