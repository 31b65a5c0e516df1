"""A diagnosis as a card: the verdict, why, what to do next, and the evidence as a table."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gradlens.analysis.findings import HEALTHY, UNDECIDED, Diagnosis, finding_row, say_layers, say_steps

VERDICT_STYLE = {HEALTHY: "bold green", UNDECIDED: "bold yellow"}


def print_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """Print the card of a run, and its evidence below."""
    console.print(_card(diagnosis))
    if diagnosis.findings:
        console.print(_evidence(diagnosis))


def _card(diagnosis: Diagnosis) -> Panel:
    text = Text()
    text.append(diagnosis.kind, VERDICT_STYLE.get(diagnosis.kind, "bold red"))
    if len(diagnosis.kinds) > 1:
        text.append(f", also {', '.join(diagnosis.kinds[1:])}")
    text.append(f" · {diagnosis.rows} rows")
    if diagnosis.findings:
        main = diagnosis.findings[0]
        text.append(f" · confidence {main.confidence:.2f}\nwhy   {main.evidence}\nnext  {main.remedy}")
    else:
        text.append(f"\nwhy   {diagnosis.reason}")
    for note in diagnosis.notes:
        text.append(f"\nnote  {note}", style="dim")
    title = Text(diagnosis.run, style="bold")
    return Panel(text, title=title, title_align="left", box=box.ROUNDED, padding=(0, 1))


def _evidence(diagnosis: Diagnosis) -> Table:
    table = Table(title="Evidence", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("finding", no_wrap=True)
    for name in ("where", "evidence", "threshold and its source"):
        table.add_column(name, overflow="fold")
    for finding in diagnosis.findings:
        kind = Text(finding.kind, "bold red").append(f"\n{finding.confidence:.2f}", "dim")
        where = Text(say_layers(finding.layers)).append(f"\n{say_steps(finding.steps)}", "dim")
        line = Text(finding.threshold).append(f"\n{finding.source}", "dim")
        table.add_row(kind, where, Text(finding.evidence), line)
    return table


def diagnosis_facts(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis as plain values, for JSON."""
    return {
        "run": diagnosis.run,
        "kind": diagnosis.kind,
        "rows": diagnosis.rows,
        "reason": diagnosis.reason,
        "notes": list(diagnosis.notes),
        "findings": [finding_row(diagnosis.run, finding) for finding in diagnosis.findings],
    }


def diagnosis_rows(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """Return a row per finding, for CSV; where there is none, one with the verdict."""
    rows = [finding_row(diagnosis.run, finding) for finding in diagnosis.findings]
    if not rows:
        return [{"run": diagnosis.run, "kind": diagnosis.kind, "evidence": diagnosis.reason}]
    return [{**row, "layers": ";".join(row["layers"])} for row in rows]
