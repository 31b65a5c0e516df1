"""The report as PDF: text and tables, then the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradlens.plots.pdf_pages import Pages
from gradlens.report.content import Facts, Row
from gradlens.report.figures import report_figures
from gradlens.report.html import title_of
from gradlens.report.html_sections import say_control
from gradlens.report.markdown import say_number
from gradlens.report.sentences import analysis, opening, say_seeds
from gradlens.report.translations import ENGLISH, words_of
from gradlens.studies import Judgement

MOST_COLUMNS = 4
"""Columns of a table in addition to its first; further columns go into another table below."""


def write_paper(facts: Facts, path: Path) -> None:
    """Write the report as PDF.

    Args:
        facts: What the report says.
        path: The PDF file.
    """
    figures = list(report_figures(facts.runs, facts.groups))
    with Pages(path, title=title_of(facts), subject=facts.command) as pages:
        pages.title(title_of(facts))
        pages.paragraph(" ".join(opening(facts, ENGLISH)))
        if facts.claims:
            _claims(pages, facts.claims)
        pages.heading(ENGLISH["Findings"])
        _findings(pages, facts)
        if facts.has_epochs:
            pages.heading(ENGLISH["Metric comparison"])
            _finals(pages, facts)
        pages.heading(ENGLISH["Brief analysis"])
        for sentence in analysis(facts, ENGLISH):
            pages.paragraph(f"• {sentence}")
        pages.heading(ENGLISH["Hyper-parameters"])
        _side_by_side(pages, facts.settings, facts.names)
        pages.paragraph(ENGLISH["differs"], faint=True)
        pages.heading(ENGLISH["Environment"])
        _side_by_side(pages, facts.environment, facts.names)
        pages.heading("How to read the figures")
        for kind, *_ in figures:
            pages.paragraph(f"{ENGLISH[kind]}. {ENGLISH[f'{kind} read']}")
        made = ", ".join(f"{name} {version}" for name, version in facts.made_with.items())
        pages.paragraph(f"{ENGLISH['made by']} {facts.command} ({made}).", faint=True)
        for _, figure, *_ in figures:
            pages.figure(figure)


def _claims(pages: Pages, judgement: Judgement) -> None:
    words = words_of("en")
    pages.heading(words["Claims"])
    pages.paragraph(judgement.explanation)
    rows = [
        [f"{judged.claim.key}. {judged.claim.text}", condition, found.verdict, found.why]
        for judged in judgement.claims
        for condition, found in judged.overall.items()
    ]
    pages.table([words[key] for key in ("claim", "condition", "verdict", "why")], rows, [3, 1.5, 1.2, 4])
    for text in (*map(say_control, judgement.controls), *judgement.notes):
        pages.paragraph(f"• {text}", faint=True)


def _findings(pages: Pages, facts: Facts) -> None:
    rows = []
    for item in facts.seen:
        run, where, what = item.each[0]
        place = f" ({where})" if where else ""
        rows.append(
            [item.group, f"{item.kind}, {say_seeds(item, ENGLISH)}", f"{run}{place}: {what}", item.remedy or "–"]
        )
    pages.table([ENGLISH[key] for key in ("group", "finding", "evidence", "next")], rows, [1.5, 1.5, 4, 2.5])


def _finals(pages: Pages, facts: Facts) -> None:
    columns = [key for key in facts.finals[0] if key not in ("quantity", "column")]
    labels = set(facts.names)
    for part in _parts(columns):
        rows = [[row["quantity"], *[say_number(row[name], ENGLISH) for name in part]] for row in facts.finals]
        pages.table([ENGLISH["quantity"], *part], rows, [1.4] + [2.4 if name in labels else 1 for name in part])
    more = f" {words_of('en')['published']}" if len(columns) > len(labels) else ""
    pages.paragraph(ENGLISH["last epoch"] + more, faint=True)


def _side_by_side(pages: Pages, rows: tuple[Row, ...], names: list[str]) -> None:
    for part in _parts(list(range(len(names)))):
        body = [[row.name.replace("_", " "), *[row.values[i] for i in part]] for row in rows]
        head = [ENGLISH["setting"], *[names[i] for i in part]]
        pages.table(head, body, [1.3] + [2.0] * len(part), [row.differs for row in rows])


def _parts(columns: list[Any]) -> list[list[Any]]:
    """Split columns into parts that fit the width of a page."""
    return [columns[start : start + MOST_COLUMNS] for start in range(0, len(columns), MOST_COLUMNS)]
