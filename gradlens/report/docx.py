"""The report for Word (.docx), which a student hands in or goes on writing in. Needs python-docx."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from operator import methodcaller
from pathlib import Path
from typing import IO, Any

from gradlens.export.optional_libraries import optional
from gradlens.plots.figure import png
from gradlens.report.content import Facts
from gradlens.report.figures import report_figures
from gradlens.report.html import title_of
from gradlens.report.printed import ITEM, fill
from gradlens.report.translations import words_of

WIDTH_IN, HEIGHT_IN, MARGIN_IN = 8.27, 11.69, 0.8
"""A4."""
MOST_HIGH_IN = 8.2
"""Most height of a figure, so that its title and a text fit on the page."""
SHARPNESS = 2.1
"""200 pixels per inch."""
TEXT, CELL, FOOT = 10.0, 7.5, 7.0
"""Font sizes in points."""
GREY = 0x66
PLACE = "add_picture"
"""The method of python-docx that places a figure."""
LANGUAGES = {"en": "en-GB", "id": "id-ID"}
NO_XML = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ud800-\\udfff\\ufffe\\uffff]")
"""Characters that XML does not allow."""


def write_document(facts: Facts, path: Path, language: str = "en") -> None:
    """Write the report for Word.

    Args:
        facts: What the report says.
        path: The file.
        language: "en" or "id".

    Raises:
        MissingLibraryError: python-docx is not installed.
    """
    words = words_of(language)
    figures = {kind: figure for kind, figure, *_ in report_figures(facts.runs, facts.groups, words, "two")}
    document = Document(title_of(facts, words), facts.command, LANGUAGES[language])
    fill(document, facts, figures, words)
    with path.open("wb") as file:
        document.save(file)


class Document:
    """A document that is filled from the top to the bottom.

    Args:
        title: The title in its metadata.
        subject: The command that writes it, for the metadata.
        language: The language for the spelling check, "en-GB".

    Raises:
        MissingLibraryError: python-docx is not installed.
    """

    def __init__(self, title: str, subject: str, language: str) -> None:
        with optional("docx"):
            import docx
            from docx.oxml.ns import qn
            from docx.shared import Inches, Pt, RGBColor
        self._inches, self._points, self._grey = Inches, Pt, RGBColor(GREY, GREY, GREY)
        self._document = docx.Document()
        facts = self._document.core_properties
        facts.title, facts.subject, facts.author = _text(title)[:255], _text(subject)[:255], "gradlens"
        facts.language, facts.comments = language, ""
        (page,) = self._document.sections
        page.page_width, page.page_height = Inches(WIDTH_IN), Inches(HEIGHT_IN)
        page.left_margin = page.right_margin = page.top_margin = page.bottom_margin = Inches(MARGIN_IN)
        normal = self._document.styles["Normal"]
        normal.font.size, normal.font.name = Pt(TEXT), "Calibri"
        normal.element.get_or_add_rPr().get_or_add_rFonts().set(qn("w:eastAsia"), "Calibri")
        spoken = normal.element.rPr.makeelement(qn("w:lang"), {qn("w:val"): language})
        normal.element.rPr.append(spoken)

    def save(self, file: IO[bytes]) -> None:
        """Write the file."""
        self._document.save(file)

    def title(self, text: str) -> None:
        """Write the title."""
        self._document.add_heading(_text(text), 0)

    def heading(self, text: str) -> None:
        """Write a heading."""
        self._document.add_heading(_text(text), 1)

    def paragraph(self, text: str, *, faint: bool = False) -> None:
        """Write a paragraph, or an item of a list."""
        style = "List Bullet" if text.startswith(ITEM) else None
        self._shade(self._document.add_paragraph(_text(text.removeprefix(ITEM)), style), TEXT, faint=faint)

    def footer(self, text: str) -> None:
        """Write the last lines."""
        self._shade(self._document.add_paragraph(_text(text)), FOOT, faint=True)

    def _shade(self, paragraph: Any, size: float, *, faint: bool) -> None:
        for run in paragraph.runs:
            run.font.size = self._points(size)
            if faint:
                run.font.color.rgb = self._grey

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], shares: Sequence[float], marked: Sequence[bool] = ()
    ) -> None:
        """Write a table; its head is repeated on each page."""
        table = self._document.add_table(rows=0, cols=len(head), style="Table Grid")
        table.autofit = False
        widths = [self._inches((WIDTH_IN - 2 * MARGIN_IN) * share / sum(shares)) for share in shares]
        for column, width in zip(table.columns, widths, strict=True):
            column.width = width
        for i, texts in enumerate((head, *rows)):
            bold = i == 0 or (bool(marked) and marked[i - 1])
            row = table.add_row()
            self._mark(row, "cantSplit")
            for cell, width, text in zip(row.cells, widths, texts, strict=True):
                cell.width = width
                space = cell.paragraphs[0].paragraph_format
                space.space_before = space.space_after = self._points(1.5)
                run = cell.paragraphs[0].add_run(_text(text))
                run.bold, run.font.size = bold, self._points(CELL)
        self._mark(table.rows[0], "tblHeader")
        self._document.add_paragraph()

    @staticmethod
    def _mark(row: Any, name: str) -> None:
        """Give a row of a table a property: "tblHeader", repeated on each page; "cantSplit", on one page."""
        facts = row._tr.get_or_add_trPr()
        facts.append(facts.makeelement(f"{{{facts.nsmap['w']}}}{name}", {}))

    def figure(self, figure: Any, title: str = "", text: str = "") -> None:
        """Place a figure with its title above it and a text below."""
        if title:
            self._document.add_heading(_text(title), 2)
        wide, high = figure.get_size_inches()
        share = min((WIDTH_IN - 2 * MARGIN_IN) / wide, MOST_HIGH_IN / high, 1.0)
        place = methodcaller(PLACE, io.BytesIO(png(figure, SHARPNESS)), width=self._inches(wide * share))
        shape = place(self._document)
        shape._inline.docPr.set("descr", _text(f"{title}. {text}"))
        self._document.paragraphs[-1].paragraph_format.keep_with_next = bool(text)
        if text:
            self.paragraph(text, faint=True)


def _text(text: str) -> str:
    """Return a text on one line, without characters that XML does not allow."""
    return NO_XML.sub("\ufffd", " ".join(text.split()))
