"""The report as PDF."""

from __future__ import annotations

from pathlib import Path

from gradlens.plots.pdf_pages import Pages
from gradlens.report.content import Facts
from gradlens.report.figures import report_figures
from gradlens.report.html import title_of
from gradlens.report.printed import fill
from gradlens.report.translations import words_of


def write_paper(facts: Facts, path: Path, language: str = "en") -> None:
    """Write the report as PDF.

    Args:
        facts: What the report says.
        path: The PDF file.
        language: "en" or "id".
    """
    words = words_of(language)
    figures = {kind: figure for kind, figure, *_ in report_figures(facts.runs, facts.groups, words, "two")}
    with Pages(path, title=title_of(facts, words), subject=facts.command) as pages:
        fill(pages, facts, figures, words)
