"""A PDF of several pages: headings, paragraphs, tables and figures flow over the pages."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from gradlens.format import visible
from gradlens.plots.style import FAINT, INK, house_style

WIDTH_IN, HEIGHT_IN, MARGIN_IN = 8.27, 11.69, 0.7
TEXT_IN = WIDTH_IN - 2 * MARGIN_IN
POINTS = 72
SPACING = 1.4
"""Distance of lines over the font size."""
FOOT, FOOT_IN = 6.5, 0.4
"""Font size of the last lines, and how far they may reach into the margin, in inches."""
SHARP_DPI = 250
MOST_HIGH_IN = 7.5
"""Most height of a figure."""
MOST_TABLE_IN = 2.5
"""A table that is not higher than this is kept on one page."""
MOST_TOGETHER = 6
"""Most lines of a paragraph that are kept on one page."""
TEXT, CELL, HEAD, TITLE = 9.0, 7.5, 12.0, 17.0
"""Font sizes in points."""


class Pages:
    """A PDF file that is filled from the top to the bottom; a context manager.

    Args:
        path: The file.
        title: The title in its metadata.
        subject: The command that writes it, for the metadata.
    """

    def __init__(self, path: Path, *, title: str, subject: str) -> None:
        facts = {"Title": visible(title), "Subject": visible(subject), "Creator": "gradlens", "CreationDate": None}
        self._stream = path.open("wb")  # matplotlib would leave a file that it opened itself open when the disk is full
        self._file = PdfPages(self._stream, metadata=facts)
        self._page: Figure | None = None
        self._y = 0.0
        self._waiting: list[tuple[Figure, str, str, float]] = []
        self.count = 0

    def __enter__(self) -> Pages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream:
            if kind is None:
                self._finish_page()
                while self._waiting:
                    self._place(*self._waiting.pop(0))
                self._finish_page()
            self._file.close()  # type: ignore[no-untyped-call]

    def title(self, text: str) -> None:
        """Write the title."""
        self._lines(text, TITLE, weight="bold")
        self._y -= 0.08

    def heading(self, text: str) -> None:
        """Write a heading; it is never the last line of a page."""
        self._y -= 0.16
        self._page_with(1.7)
        self._lines(text, HEAD, weight="bold")
        self._y -= 0.04

    def footer(self, text: str) -> None:
        """Write the last lines, into the margin of the page rather than on a page of their own."""
        self._y += FOOT_IN
        self._page_with(FOOT_IN)
        self._y -= FOOT_IN
        page = self._page_with(-FOOT_IN)
        for line in wrap(text, TEXT_IN, FOOT):
            self._text(page, MARGIN_IN, line, FOOT, "normal", FAINT)
            self._y -= FOOT * SPACING / POINTS

    def paragraph(self, text: str, *, faint: bool = False) -> None:
        """Write a paragraph; a short one is not split between pages."""
        lines = len(wrap(text, TEXT_IN, TEXT))
        self._page_with(min(lines, MOST_TOGETHER) * TEXT * SPACING / POINTS)
        self._lines(text, TEXT, colour=FAINT if faint else INK)
        self._y -= 0.08

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], shares: Sequence[float], marked: Sequence[bool] = ()
    ) -> None:
        """Write a table, over several pages if it is long: each of them begins with the titles of the columns.

        Args:
            head: The titles of the columns.
            rows: The texts of the cells, row by row.
            shares: Relative widths of the columns.
            marked: For each row, whether it is bold.
        """
        whole = WIDTH_IN - 2 * MARGIN_IN
        widths = [whole * share / sum(shares) for share in shares]
        heights = [self._row_inches(cells, widths, bold=True) for cells in (head, *rows)]
        self._page_with(sum(heights) if sum(heights) < MOST_TABLE_IN else sum(heights[:2]))
        self._row(head, widths, bold=True, rule=0.8)
        for i, row in enumerate(rows):
            pages = self.count
            self._page_with(heights[i + 1])
            if self.count > pages:
                self._row(head, widths, bold=True, rule=0.8)
            self._row(row, widths, bold=bool(marked) and marked[i], rule=0.3)
        self._y -= 0.1

    def figure(self, figure: Figure, title: str = "", text: str = "") -> None:
        """Place a figure with its title above it and a text below: here, or at the top of the next page.

        What follows fills the current page.

        Args:
            figure: The figure; it is made smaller where it is wider than the text, or higher than most of a page.
            title: Its title.
            text: How to read it.
        """
        wide, high = figure.get_size_inches()
        share = min((WIDTH_IN - 2 * MARGIN_IN) / wide, MOST_HIGH_IN / high, 1.0)
        needed = high * share + 0.52 + (0.6 if text else 0.0)
        if self._page is not None and self._y - needed < MARGIN_IN:
            self._waiting.append((figure, title, text, share))
        else:
            self._place(figure, title, text, share)

    def _place(self, figure: Figure, title: str, text: str, share: float) -> None:
        width, height = (inches * share for inches in figure.get_size_inches())
        self._page_with(height + 0.52 + (0.6 if text else 0.0))
        self._y -= 0.12
        if title:
            self._lines(title, HEAD, weight="bold")
            self._y -= 0.04
        page = self._page_with(height)
        place = (MARGIN_IN / WIDTH_IN, (self._y - height) / HEIGHT_IN, width / WIDTH_IN, height / HEIGHT_IN)
        axes = page.add_axes(place)
        axes.imshow(_raster(figure, width), aspect="auto", interpolation="none")
        axes.axis("off")
        self._y -= height + 0.06
        if text:
            self.paragraph(text, faint=True)

    def _row_inches(self, cells: Sequence[str], widths: Sequence[float], *, bold: bool) -> float:
        lines = max(len(_wrap_cell(cell, width, bold)) for cell, width in zip(cells, widths, strict=True))
        return min(lines, 60) * CELL * SPACING / POINTS + 0.13

    def _row(self, cells: Sequence[str], widths: Sequence[float], *, bold: bool, rule: float) -> None:
        wrapped = [_wrap_cell(cell, width, bold) for cell, width in zip(cells, widths, strict=True)]
        step = CELL * SPACING / POINTS
        lines = max(map(len, wrapped))
        self._page_with(min(lines, 60) * step + 0.08)
        for i in range(lines):
            page = self._page_with(step)
            x = MARGIN_IN
            for texts, width in zip(wrapped, widths, strict=True):
                if i < len(texts):
                    self._text(page, x, texts[i], CELL, "bold" if bold else "normal", INK)
                x += width
            self._y -= step
        y = (self._y + 0.02) / HEIGHT_IN
        left, right = MARGIN_IN / WIDTH_IN, 1 - MARGIN_IN / WIDTH_IN
        self._page_with(0).add_artist(Line2D([left, right], [y, y], linewidth=rule, color=FAINT))
        self._y -= 0.05

    def _lines(self, text: str, size: float, *, weight: str = "normal", colour: str = INK) -> None:
        step = size * SPACING / POINTS
        for line in wrap(text, TEXT_IN, size, bold=weight == "bold"):
            self._text(self._page_with(step), MARGIN_IN, line, size, weight, colour)
            self._y -= step

    def _text(self, page: Figure, x: float, text: str, size: float, weight: str, colour: str) -> None:
        page.text(
            x / WIDTH_IN, self._y / HEIGHT_IN, text, fontsize=size, fontweight=weight, color=colour, va="top",
            parse_math=False,
        )  # fmt: skip

    def _page_with(self, height: float) -> Figure:
        """Return the current page if that many inches are free on it, else a new page."""
        if self._page is not None and self._y - height < MARGIN_IN:
            self._finish_page()
        if self._page is None:
            with house_style():
                self._page = Figure(figsize=(WIDTH_IN, HEIGHT_IN))
            self._y = HEIGHT_IN - MARGIN_IN
            if self._waiting:  # one figure for each page, and text between them
                self._place(*self._waiting.pop(0))
        return self._page

    def _finish_page(self) -> None:
        if self._page is not None:
            self._save(self._page)
            self._page = None

    def _save(self, figure: Figure) -> None:
        with house_style(), warnings.catch_warnings():
            mpl.rcParams["pdf.fonttype"] = (
                3  # of type 42, matplotlib 3.11 writes ligatures and bullets with a stray dash
            )
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
            self._file.savefig(figure, dpi=SHARP_DPI)  # type: ignore[no-untyped-call]
        self.count += 1


def _raster(figure: Figure, width_in: float) -> NDArray[np.uint8]:
    """Return a figure as an image that is sharp at a width in print."""
    out = io.BytesIO()
    with house_style():
        figure.savefig(out, format="png", dpi=SHARP_DPI * width_in / figure.get_figwidth())
    return np.asarray(Image.open(out).convert("RGB"))


def wrap(text: str, width: float, size: float, *, bold: bool = False) -> list[str]:
    """Split a text into lines that fit a width, by the widths of the letters in the font.

    Args:
        text: The text; a word that is wider than a line is split.
        width: In inches.
        size: Size of the font, in points.
        bold: Whether the letters are bold.

    Returns:
        The lines; one that is empty for an empty text.
    """
    room, lines = width * POINTS / size, [""]
    for word in text.split():
        space = " " if lines[-1] else ""
        for part in re.split(r"(?<=[^\W\d]-)(?=[^\W\d])", word):  # a line may end with the hyphen between two letters
            if lines[-1] and _ems(lines[-1] + space + part, bold) > room:
                lines.append("")
                space = ""
            lines[-1] += space
            space = ""
            for letter in part:
                if lines[-1] and _ems(lines[-1] + letter, bold) > room:
                    lines.append("")
                lines[-1] += letter
    return lines


def _wrap_cell(text: str, width: float, bold: bool) -> list[str]:
    return wrap(text, width - 0.08, CELL, bold=bold)


def _ems(text: str, bold: bool) -> float:
    """Return the width of a text over its font size."""
    return sum(_advance(letter, bold) for letter in text)


@lru_cache(maxsize=1024)
def _advance(letter: str, bold: bool) -> float:
    """Return the width of a letter over the font size."""
    font = get_font(findfont(FontProperties(weight="bold" if bold else "normal")))
    font.set_size(POINTS, POINTS)
    return float(font.load_char(ord(letter)).linearHoriAdvance) / (POINTS << 16)
