"""A diagnosis as a card: the verdict, the reason, the next step; below it the evidence of each finding."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from gradlens.diagnosis.findings import Diagnosis, finding_row, say_confidence, say_layers, say_steps
from gradlens.format import plural
from gradlens.terminal.cards import BAD, Card, heading, labelled, print_card, verdict_style


def print_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """Print the card of a run, and below it the evidence."""
    print_card(console, diagnosis_card(diagnosis))
    if not diagnosis.findings:
        return
    console.print(heading("Evidence"))
    for number, finding in enumerate(diagnosis.findings):
        head = Text(finding.kind, BAD).append(f" · {say_confidence(finding)}", "default")
        console.print(head)
        # The card has the evidence and the remedy of the main finding already.
        details = [("measured", finding.evidence), ("next", finding.remedy)] if number else []
        where = f"{say_layers(finding.layers)}; {say_steps(finding.steps)}"
        lines = [
            ("where", where),
            *details[:1],
            ("threshold", finding.threshold),
            ("source", finding.source),
            *details[1:],
        ]
        console.print(labelled(lines, width=10))


def diagnosis_card(diagnosis: Diagnosis, title: str = "", beside: tuple[str, ...] = ()) -> Card:
    """Return the card of a diagnosis.

    Args:
        diagnosis: The diagnosis.
        title: The title; "" means the name of the run.
        beside: Further facts for the line of the verdict.
    """
    kinds = diagnosis.kinds or (diagnosis.verdict,)
    verdict = kinds[0] + (f", also {', '.join(kinds[1:])}" if len(kinds) > 1 else "")
    facts, lines = [f"{plural(diagnosis.rows, 'row')}"], [("why", diagnosis.reason)]
    if diagnosis.findings:
        main = diagnosis.findings[0]
        facts.append(say_confidence(main))
        lines = [("why", main.evidence), ("next", main.remedy)]
    if diagnosis.learning_evidence:
        lines.append(("learn", f"{diagnosis.learning}: {diagnosis.learning_evidence}"))
    lines += [("note", note) for note in diagnosis.notes]
    return Card(title or diagnosis.run, verdict, verdict_style(diagnosis.verdict), [*facts, *beside], lines)


def diagnosis_rows(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """Return a row per finding, for CSV; if there is none, one row with the verdict."""
    rows = [finding_row(diagnosis.run, finding) for finding in diagnosis.findings]
    if not rows:
        return [{"run": diagnosis.run, "kind": diagnosis.kind, "evidence": diagnosis.reason}]
    return [{**row, "layers": ";".join(row["layers"])} for row in rows]
