"""The claims of a study in a terminal: a card with the decision and its reason, the verdicts, and the evidence."""

from __future__ import annotations

import re

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradlens.format import plural
from gradlens.studies import Control, JudgedClaim, Judgement, Verdict
from gradlens.terminal.cards import BAD, GOOD, OPEN, Card, evidence_table, heading, print_card
from gradlens.terminal.console import has_colour

STYLES = {
    "supported": "bold green",
    "refuted": "bold dark_orange3",
    "mixed": "bold yellow",
    "undecided": "dim",
    "withheld": "bold red",
}
SENTENCE_BREAK = r"(?<=\.) (?=[A-Z])"


def print_claims(console: Console, judgement: Judgement, *, detail: bool = False) -> None:
    """Print the card, a table of verdicts, and the reasons for each verdict.

    Args:
        console: The console to print to.
        judgement: The verdicts on the claims.
        detail: Also print the verdict of each setting, the criteria, and all numbers.
    """
    print_card(console, claims_card(judgement))
    console.print(_matrix(console, judgement))
    console.print(heading("Evidence"), end="")
    for judged in judgement.claims:
        _print_claim(console, judged, detail)


def claims_card(judgement: Judgement) -> Card:
    """Return the card: the decided claims, the reason, what would decide the others, and the controls."""
    keys_of = {one: judgement.decided(one) for one in judgement.conditions}
    decided = "; ".join(f"{keys} {condition}" for condition, keys in keys_of.items() if keys)
    verdicts = [one.verdict for judged in judgement.claims for one in judged.overall.values()]
    if "withheld" in verdicts:
        verdict, style = "no verdict: the instrument fails its controls", BAD
    else:
        verdict, style = (decided, "bold") if decided else ("nothing is decided", OPEN)
    undecided = verdicts.count("undecided")
    beside = [f"{undecided} of {len(verdicts)} undecided"] if undecided else []
    lines: list[tuple[str, str | Text]] = [("check", _control(control)) for control in judgement.controls]
    lines += [("why", sentence) for sentence in filter(None, re.split(SENTENCE_BREAK, judgement.explanation))]
    lines += [("next", text) for text in judgement.next_steps]
    lines += [("note", note) for note in judgement.remarks]
    return Card(f"{judgement.title}, by {plural(judgement.runs, 'run')}", verdict, style, beside, lines)


def _styled(console: Console, verdict: str) -> Text:
    return Text(verdict, style=STYLES[verdict] if has_colour(console) else "")


def _matrix(console: Console, judgement: Judgement) -> Table:
    table = evidence_table("Verdicts")
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


def _control(control: Control) -> Text:
    outcome = {True: "passed", False: "FAILED", None: "missing"}[control.passed]
    style = {True: GOOD, False: BAD, None: OPEN}[control.passed]
    line = Text(f"{control.key} control ").append(outcome, style=style)
    return line.append(f": {control.text}; {control.detail}")


def _print_claim(console: Console, judged: JudgedClaim, detail: bool) -> None:
    console.print()
    console.print(Text(f"{judged.claim.key}  {judged.claim.text}", style="bold" if has_colour(console) else ""))
    if detail:
        for name, text in (
            ("for", judged.claim.supports),
            ("against", judged.claim.refutes),
            ("reason", judged.claim.reason),
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
            console.print(Padding(Text(f"{one.name}: {one}, n = {one.n}{note}"), (0, 0, 0, 6)))
