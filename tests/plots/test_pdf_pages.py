"""Lines of a PDF page fit its text, by the widths that the renderer itself gives."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gradlens.plots.pdf_pages import TEXT_IN, wrap

TEXTS = [
    "Setiap seed dinilai sendiri, pada paruh kedua iterasinya. Gradien sehat berarti tidak ada aturan diagnosis yang "
    "menemukan masalah padanya, bukan bahwa jaringannya baik; gradien yang membesar ke arah masukan bukan masalah.",
    "WWWW MMMM " * 30,
    "ill, fit: lift " * 30,
    "runs/" + "very_long_name_of_a_file_" * 12 + ".h5 and runs/other-name-of-a-run-s0.h5",
    "norma gradien lapisan '0' adalah 10^-6,1 kali norma gradien lapisan '22' (median), rata-rata 2 seed. " * 3,
]


@pytest.mark.parametrize("bold", [False, True])
@pytest.mark.parametrize(("width", "size"), [(TEXT_IN, 9.0), (1.3, 7.5), (TEXT_IN, 6.5)])
@pytest.mark.parametrize("text", TEXTS, ids=["caption", "wide", "narrow", "one word", "hyphens"])
def test_lines_are_as_wide_as_the_text_and_no_wider(text: str, width: float, size: float, bold: bool) -> None:
    figure = Figure(dpi=720)
    canvas = FigureCanvasAgg(figure)
    lines = wrap(text, width, size, bold=bold)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")

    def inches(line: str) -> float:
        drawn = figure.text(0, 0, line, fontsize=size, fontweight="bold" if bold else "normal")
        return float(drawn.get_window_extent(canvas.get_renderer()).width) / 720

    widths = [inches(line) for line in lines]
    assert max(widths) < width * 1.01
    for line, following, taken in zip(lines, lines[1:], widths, strict=False):
        word = following.split()[0]
        assert taken + inches(word) > width * 0.95 or inches(word) > width / 2, line


def test_no_line_ends_within_a_number() -> None:
    for width in (0.3, 0.5, 0.8, 1.2):
        assert not any(line.endswith("^-") for line in wrap("10^-6,1 kali, rata-rata 10^-3", width, 6.0))
