"""The report's claims in a terminal: verdicts first, then what ties them together, then the evidence."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradlens.analysis.claims import Control, JudgedClaim, Judgement, Verdict, say
from gradlens.terminal.console import has_colour

STYLES = {
    "supported": "bold green",
    "not supported": "bold dark_orange3",
    "mixed": "bold yellow",
    "undecided": "dim",
    "withheld": "bold red",
}


def print_claims(console: Console, judgement: Judgement, *, detail: bool = False) -> None:
    """Print controls, a table of verdicts, the explanation, and each claim's reasons.

    Args:
        console: Where to.
        judgement: What was found.
        detail: Also print each setting's verdict, what would count, and all numbers.
    """
    for control in judgement.controls:
        console.print(_control(console, control))
    console.print()
    console.print(_matrix(console, judgement))
    console.print(Padding(Text(judgement.explanation), (0, 0, 1, 0)))
    for note in judgement.notes:
        console.print(Text(f"note: {note}"))
    for judged in judgement.claims:
        _print_claim(console, judged, detail)


def _styled(console: Console, verdict: str) -> Text:
    return Text(verdict, style=STYLES[verdict] if has_colour(console) else "")


def _matrix(console: Console, judgement: Judgement) -> Table:
    table = Table(
        title=f"The report's claims, by {judgement.runs} runs",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    table.add_column("claim")
    for condition in judgement.conditions:
        table.add_column(condition, min_width=13)
    for judged in judgement.claims:
        cells = [
            _styled(console, judged.overall[one].verdict) if one in judged.overall else Text("not trained")
            for one in judgement.conditions
        ]
        table.add_row(judged.claim.key, Text(judged.claim.text), *cells)
    return table


def _control(console: Console, control: Control) -> Text:
    outcome = {True: "passed", False: "FAILED", None: "missing"}[control.passed]
    style = {True: "green", False: "bold red", None: "yellow"}[control.passed] if has_colour(console) else ""
    line = Text(f"{control.key} control ").append(outcome, style=style)
    return line.append(f": {control.text}; {control.detail}")


def _print_claim(console: Console, judged: JudgedClaim, detail: bool) -> None:
    console.print()
    console.print(Text(f"{judged.claim.key}  {judged.claim.text}", style="bold" if has_colour(console) else ""))
    if detail:
        for name, text in (
            ("for", judged.claim.supports),
            ("against", judged.claim.refutes),
            ("why there", judged.claim.reason),
        ):
            console.print(Padding(Text(f"{name}: {text}"), (0, 0, 0, 3)))
    if not detail:
        _print_verdicts(console, [(condition, verdict) for condition, verdict in judged.overall.items()], numbers=False)
        return
    rows = [(f"{verdict.condition}, {verdict.setting}", verdict) for verdict in judged.verdicts]
    _print_verdicts(console, rows, numbers=True)


def _print_verdicts(console: Console, rows: list[tuple[str, Verdict]], *, numbers: bool) -> None:
    for name, verdict in rows:
        line = Text(f"{name}: ").append_text(_styled(console, verdict.verdict)).append(f"; {verdict.why}")
        console.print(Padding(line, (0, 0, 0, 3)))
        for one in verdict.evidence if numbers else ():
            note = f" ({one.note})" if one.note else ""
            console.print(Padding(Text(f"{one.name}: {say(one)}, n = {one.n}{note}"), (0, 0, 0, 6)))
