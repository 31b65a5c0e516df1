"""The report on paper, as PDF or for Word: the answer and its figure first, each figure at its place, settings last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gradlens.report.content import Facts, Row, split_settings
from gradlens.report.html import title_of
from gradlens.report.html_sections import say_control
from gradlens.report.markdown import claim_rows, finding_rows, first_kind, say_number
from gradlens.report.sentences import Words, analysis, answers, opening, say, say_name, say_setting
from gradlens.studies import Judgement

MOST_COLUMNS = 4
"""Columns of a table in addition to its first; further columns go into another table below."""
ITEM = "• "
"""How an item of a list begins."""


class Paper(Protocol):
    """What a report is written on, from the top to the bottom."""

    def title(self, text: str) -> None:
        """Write the title."""

    def heading(self, text: str) -> None:
        """Write a heading."""

    def paragraph(self, text: str, *, faint: bool = False) -> None:
        """Write a paragraph, or an item of a list if it begins with ``ITEM``."""

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], shares: Sequence[float], marked: Sequence[bool] = ()
    ) -> None:
        """Write a table; shares are relative widths of columns, and marked rows are bold."""

    def figure(self, figure: Any, title: str = "", text: str = "") -> None:
        """Place a figure with its title above it and a text below."""

    def footer(self, text: str) -> None:
        """Write the last lines."""


def fill(pages: Paper, facts: Facts, figures: Mapping[str, Any], words: Words) -> None:
    """Write everything that a report says.

    Args:
        pages: Takes it.
        facts: What the report says.
        figures: Kind to figure.
        words: The words of the language.
    """
    title = title_of(facts, words)
    pages.title(title)
    for sentence in answers(facts, words):
        pages.paragraph(f"{ITEM}{sentence}")
    _figure(pages, figures, first_kind(facts), words)
    pages.paragraph(" ".join(opening(facts, words)[:2]))
    if facts.claims and facts.claims_first:
        _claims(pages, facts.claims, words)
    if facts.has_epochs:
        pages.heading(words["Metric comparison"])
        _finals(pages, facts, words)
    for kind in figures:
        if kind != first_kind(facts):
            _figure(pages, figures, kind, words)
    pages.heading(words["Brief analysis"])
    for sentence in analysis(facts, words):
        pages.paragraph(f"{ITEM}{sentence}")
    pages.heading(words["Findings"])
    head = [words[key] for key in ("group", "finding", "evidence", "next")]
    pages.table(head, finding_rows(facts, words), [1.5, 2.1, 3.9, 2.2])
    pages.paragraph(words["judged alone"], faint=True)
    if facts.claims and not facts.claims_first:
        _claims(pages, facts.claims, words)
    first, rest = split_settings(facts.settings)
    pages.heading(words["Hyper-parameters"])
    _side_by_side(pages, first, facts.names, words)
    pages.paragraph(words["differs"], faint=True)
    if rest:
        pages.heading(words["more settings"].capitalize())
        _side_by_side(pages, rest, facts.names, words)
    pages.heading(words["Environment"])
    _environment(pages, facts.environment, facts.names, words)
    made = ", ".join(f"{name} {version}" for name, version in facts.made_with.items())
    pages.footer(f"{words['made by']} {facts.command} ({made}).")


def _figure(pages: Paper, figures: Mapping[str, Any], kind: str, words: Words) -> None:
    if kind in figures:
        pages.figure(figures[kind], words[kind], words[f"{kind} read"])


def _claims(pages: Paper, judgement: Judgement, words: Words) -> None:
    pages.heading(words["Claims"])
    if judgement.explanation:
        pages.paragraph(say(judgement.explanation, words))
    pages.table([words[key] for key in ("claim", "condition", "verdict", "why")], claim_rows(judgement, words),
                [3, 1.5, 1.2, 4])  # fmt: skip
    for judged in judgement.claims:
        key = judged.claim.key
        if why := words.get(f"explain {key}", ""):
            pages.paragraph(f"{key}. {why} {words[f'next {key}']}")
    for text in (*map(say_control, judgement.controls), *judgement.remarks):
        pages.paragraph(f"{ITEM}{say(text, words)}", faint=True)
    if judgement.next_steps:
        pages.heading(words["next experiments"])
        for text in judgement.next_steps:
            pages.paragraph(f"{ITEM}{say(text, words)}")


def _finals(pages: Paper, facts: Facts, words: Words) -> None:
    columns = [key for key in facts.finals[0] if key not in ("quantity", "column")]
    labels = set(facts.names)
    for part in _parts(columns):
        rows = [
            [words.get(row["quantity"], row["quantity"]), *[say_number(row[name], words) for name in part]]
            for row in facts.finals
        ]
        heads = [name if name in labels else words.get(f"reference {name}", name) for name in part]
        pages.table([words["quantity"], *heads], rows, [1.4] + [2.4 if name in labels else 1 for name in part])
    more = f" {words['published']}" if len(columns) > len(labels) else ""
    pages.paragraph(words["last epoch"] + more, faint=True)


def _side_by_side(pages: Paper, rows: Sequence[Row], names: list[str], words: Words, *, numbers: bool = True) -> None:
    """Write a table with one column per experiment; where all have the same value, it is written once."""
    if len(names) > 1:
        equal = [row for row in rows if not row.differs and len(set(row.values)) == 1]
        rows = [row for row in rows if row not in equal]
        body = [[say_name(row, words), say_setting(row.values[0], words, numbers=numbers)] for row in equal]
        if body:
            pages.table([words["setting"], words["all experiments"]], body, [1.3, 4.0])
    for part in _parts(list(range(len(names)))) if rows else []:
        body = [
            [say_name(row, words), *[say_setting(row.values[i], words, numbers=numbers) for i in part]] for row in rows
        ]
        head = [words["setting"], *[names[i] for i in part]]
        pages.table(head, body, [1.3] + [2.0] * len(part), [row.differs for row in rows])


def _environment(pages: Paper, rows: Sequence[Row], names: list[str], words: Words) -> None:
    """Write what all experiments have in common as a paragraph, and a table of the rest."""
    equal = [row for row in rows if len(set(row.values)) == 1]
    said = [
        f"{say_name(row, words)} {say_setting(row.values[0], words, numbers=False)}"
        for row in equal
        if row.values[0] != "–"
    ]
    if said:
        pages.paragraph("; ".join(said) + ".", faint=True)
    _side_by_side(pages, [row for row in rows if row not in equal], names, words, numbers=False)


def _parts(columns: list[Any]) -> list[list[Any]]:
    """Split columns into parts of about one size that fit the width of a page."""
    size = math.ceil(len(columns) / max(math.ceil(len(columns) / MOST_COLUMNS), 1))
    return [columns[start : start + size] for start in range(0, len(columns), max(size, 1))]
