"""The figures of the Markdown and PDF report: a line of ``FIGURES`` each, with a module of ``gradlens.plots``.

The module has a function ``for_report(runs, groups)`` that returns the figure, its caption and the runs in it; None
where these runs do not allow the figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gradlens.analysis.groups import Group
from gradlens.diagnosis.kinds import REGISTRY
from gradlens.report.translator import localise, translate
from gradlens.run import Run


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report.

    Args:
        kind: Its name, and part of its file's name.
        module: The module of ``gradlens.plots`` that draws it.
        english: Its title, and how to read it.
        indonesian: The same in Indonesian.
    """

    kind: str
    module: str
    english: tuple[str, str]
    indonesian: tuple[str, str]


FIGURES = (
    ReportFigure(
        "curves",
        "compare",
        (
            "Accuracy and loss during training",
            "Lines are means over seeds for the epochs that all seeds have, bands are the 95 % interval of the "
            "mean, and thin lines are single seeds. Where no epochs were logged, the lines are logged values over "
            "steps, each the mean of the steps before it. Check whether the bands separate, and where validation "
            "departs from training.",
        ),
        (
            "Akurasi dan loss selama pelatihan",
            "Garis adalah rata-rata semua seed pada epoch yang dimiliki setiap seed, pita adalah interval "
            "kepercayaan 95 % dari rata-rata, garis tipis adalah tiap seed. Jika epoch tidak dicatat, garis adalah "
            "nilai tercatat per iterasi, masing-masing rata-rata iterasi sebelumnya. Perhatikan apakah pita "
            "terpisah, dan di mana kurva validasi menjauh dari kurva pelatihan.",
        ),
    ),
    ReportFigure(
        "heatmap",
        "heatmap",
        (
            "Gradient norm, layers by steps",
            "Each row is a layer, with the input at the top; each column is a step. The colour is log10 of the "
            "gradient norm with respect to the layer's output, on one scale for all heatmaps. A vanishing gradient "
            "gets darker toward the top.",
        ),
        (
            "Norma gradien per lapisan dan iterasi",
            "Setiap baris adalah satu lapisan dengan masukan di atas, setiap kolom adalah satu iterasi. Warna "
            "adalah log10 norma gradien terhadap keluaran lapisan, pada satu skala untuk semua heatmap. Vanishing "
            "gradient tampak sebagai warna yang makin gelap ke atas.",
        ),
    ),
    ReportFigure(
        "profile",
        "profile",
        (
            "Gradient norm over depth",
            "The median over steps for each layer, input at the left. A line that falls to the left shows a "
            "gradient that shrinks in the backward pass. Where a theory of initialisation makes a prediction, it "
            "is shown next to the first step.",
        ),
        (
            "Norma gradien terhadap kedalaman",
            "Median semua iterasi untuk setiap lapisan, masukan di kiri. Garis yang turun ke kiri menunjukkan "
            "gradien yang mengecil saat backpropagation. Jika teori inisialisasi memberikan prediksi, prediksi itu "
            "ditampilkan di samping iterasi pertama.",
        ),
    ),
)
"""The figures in the order of the report."""


def figure_words(language: str) -> dict[str, str]:
    """Return kind to title, and the kind with "read" to how to read it, in "en" or "id"."""
    texts = {figure.kind: figure.english if language == "en" else figure.indonesian for figure in FIGURES}
    return {key: text for kind, (title, read) in texts.items() for key, text in ((kind, title), (f"{kind} read", read))}


def report_figures(
    runs: Sequence[Run], groups: Sequence[Group], words: Mapping[str, str] | None = None, width: str = "screen"
) -> Iterator[tuple[str, Any, str, list[Run]]]:
    """Draw the report's figures one by one, without captions, in the language of the report.

    Args:
        runs: The runs of the report.
        groups: Their groups.
        words: The words of the language; English by default.
        width: "screen", or "two" for a page of paper.

    Yields:
        Kind, figure, caption, and the runs that the figure shows.
    """
    from gradlens.plots.style import drawn_with, make_look

    for figure in FIGURES:
        with drawn_with(make_look("light", width, caption=False)):
            drawn = import_module(f"gradlens.plots.{figure.module}").for_report(runs, groups)
        if drawn is not None:
            translate_figure(drawn[0], words)
            yield figure.kind, drawn[0], _say(drawn[1], words), drawn[2]


def translate_figure(figure: Any, words: Mapping[str, str] | None) -> None:
    """Translate the texts of a figure, and give its numbers the decimal mark of the language."""
    if words is not None and words["language"] != "en":
        from gradlens.plots.texts import rewrite

        kinds = {kind.name: words[f"kind {kind.name}"] for kind in REGISTRY}
        rewrite(figure, lambda text: _say(text, words), localise, kinds)


def _say(text: str, words: Mapping[str, str] | None) -> str:
    return "\n".join(translate(line, words["language"]) for line in text.split("\n")) if words else text
