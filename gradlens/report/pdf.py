"""The report as PDF: the answer and its figure first, each figure at its place, further settings at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradlens.plots.pdf_pages import Pages
from gradlens.report.content import Facts, Row, split_settings
from gradlens.report.figures import report_figures
from gradlens.report.html import title_of
from gradlens.report.html_sections import say_control
from gradlens.report.markdown import claim_rows, finding_rows, first_kind, say_number
from gradlens.report.sentences import Words, analysis, answers, opening, say, say_name, say_setting
from gradlens.report.translations import words_of
from gradlens.studies import Judgement

MOST_COLUMNS = 4
"""Columns of a table in addition to its first; further columns go into another table below."""


def write_paper(facts: Facts, path: Path, language: str = "en") -> None:
    """Write the report as PDF.

    Args:
        facts: What the report says.
        path: The PDF file.
        language: "en" or "id".
    """
    words = words_of(language)
    figures = {kind: figure for kind, figure, *_ in report_figures(facts.runs, facts.groups, words, "two")}
    title = title_of(facts, words)
    with Pages(path, title=title, subject=facts.command) as pages:
        pages.title(title)
        for sentence in answers(facts, words):
            pages.paragraph(f"• {sentence}")
        _figure(pages, figures, first_kind(facts), words)
        pages.paragraph(" ".join(opening(facts, words)[:2]))
        if facts.claims:
            _claims(pages, facts.claims, words)
        if facts.has_epochs:
            pages.heading(words["Metric comparison"])
            _finals(pages, facts, words)
        for kind in figures:
            if kind != first_kind(facts):
                _figure(pages, figures, kind, words)
        pages.heading(words["Brief analysis"])
        for sentence in analysis(facts, words):
            pages.paragraph(f"• {sentence}")
        pages.heading(words["Findings"])
        head = [words[key] for key in ("group", "finding", "evidence", "next")]
        pages.table(head, finding_rows(facts, words), [1.2, 2.2, 4, 2.2])
        pages.paragraph(words["judged alone"], faint=True)
        first, rest = split_settings(facts.settings)
        pages.heading(words["Hyper-parameters"])
        _side_by_side(pages, first, facts.names, words)
        pages.paragraph(words["differs"], faint=True)
        if rest:
            pages.heading(words["more settings"].capitalize())
            _side_by_side(pages, rest, facts.names, words)
        pages.heading(words["Environment"])
        _side_by_side(pages, facts.environment, facts.names, words, numbers=False)
        made = ", ".join(f"{name} {version}" for name, version in facts.made_with.items())
        pages.footer(f"{words['made by']} {facts.command} ({made}).")


def _figure(pages: Pages, figures: dict[str, Any], kind: str, words: Words) -> None:
    if kind in figures:
        pages.figure(figures[kind], words[kind], words[f"{kind} read"])


def _claims(pages: Pages, judgement: Judgement, words: Words) -> None:
    pages.heading(words["Claims"])
    pages.paragraph(say(judgement.explanation, words))
    pages.table([words[key] for key in ("claim", "condition", "verdict", "why")], claim_rows(judgement, words),
                [3, 1.5, 1.2, 4])  # fmt: skip
    for judged in judgement.claims:
        key = judged.claim.key
        if why := words.get(f"explain {key}", ""):
            pages.paragraph(f"{key}. {why} {words[f'next {key}']}")
    for text in (*map(say_control, judgement.controls), *judgement.notes):
        pages.paragraph(f"• {say(text, words)}", faint=True)
    if judgement.next_steps:
        pages.heading(words["next experiments"])
        for text in judgement.next_steps:
            pages.paragraph(f"• {say(text, words)}")


def _finals(pages: Pages, facts: Facts, words: Words) -> None:
    columns = [key for key in facts.finals[0] if key not in ("quantity", "column")]
    labels = set(facts.names)
    for part in _parts(columns):
        rows = [[words[row["quantity"]], *[say_number(row[name], words) for name in part]] for row in facts.finals]
        heads = [name if name in labels else words.get(f"reference {name}", name) for name in part]
        pages.table([words["quantity"], *heads], rows, [1.4] + [2.4 if name in labels else 1 for name in part])
    more = f" {words['published']}" if len(columns) > len(labels) else ""
    pages.paragraph(words["last epoch"] + more, faint=True)


def _side_by_side(pages: Pages, rows: Sequence[Row], names: list[str], words: Words, *, numbers: bool = True) -> None:
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


def _parts(columns: list[Any]) -> list[list[Any]]:
    """Split columns into parts that fit the width of a page."""
    return [columns[start : start + MOST_COLUMNS] for start in range(0, len(columns), MOST_COLUMNS)]
