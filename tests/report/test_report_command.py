"""Test ``gradlens report``: four formats, two languages, named and default files, and errors in one line."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from gradlens import read_run
from gradlens.cli import run_command
from gradlens.plots.pdf_pages import Pages
from gradlens.report import collect
from gradlens.report.docx import Document
from gradlens.report.markdown import code, finals, make_markdown, plain, say_setting
from gradlens.report.sentences import analysis, opening
from gradlens.report.translations import LANGUAGES, words_of
from tests.report.english_words import english_in
from tests.report.hostile import ATTACK, write_hostile

SECTIONS = {
    "en": ["Metric comparison", "Simple graph", "Brief analysis", "Hyper-parameter configuration"],
    "id": ["Perbandingan Metrik", "Grafik Sederhana", "Analisis Singkat", "Konfigurasi Hyperparameter"],
}


@pytest.fixture
def study(make_run) -> None:
    for model, accuracy, lr in (("plain34", 0.5, 0.1), ("resnet34", 0.9, 0.1)):
        for seed in (0, 1):
            make_run(f"{model}-s{seed}", model=model, seed=seed, accuracy=accuracy + 0.01 * seed, config={"lr": lr})


def test_by_default_it_reports_all_runs_as_a_page(study, capsys) -> None:
    assert run_command(["report"]) == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert "4 runs of 2 settings" in page
    out, err = capsys.readouterr()
    assert (out, err) == ("", "wrote report.html\n")
    names = {path.name for path in Path().iterdir()} - {"cache"}  # matplotlib keeps its list of fonts there
    assert names == {"report.html", "runs"}
    assert run_command(["report"]) == 0  # its own page is replaced


def test_files_of_others_are_kept(study, capsys) -> None:
    Path("report.html").write_text("mine")
    assert run_command(["report"]) == 1
    assert "Error: report.html exists and was not written by gradlens report" in capsys.readouterr().err
    assert Path("report.html").read_text() == "mine"
    assert run_command(["report", "-o", "report.html"]) == 0  # its name was asked for
    Path("r-curves.png").write_text("mine")
    assert run_command(["report", "-o", "r.md"]) == 1
    assert Path("r-curves.png").read_text() == "mine"
    assert not Path("r.md").exists()


@pytest.mark.parametrize("language", [pytest.param("en", marks=pytest.mark.slow), "id"])
def test_markdown_has_the_reports_own_sections_filled(language: str, study, capsys) -> None:
    assert run_command(["report", "--lang", language, "-o", "new/r.md"]) == 0
    assert capsys.readouterr().err == "wrote new/r.md and 3 figures\n"
    text = Path("new/r.md").read_text(encoding="utf-8")
    heads = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert heads[-4:] == SECTIONS[language]
    assert heads[0].startswith(words_of(language)["Claims"])
    for kind in ("curves", "heatmap", "profile"):
        assert f"](r-{kind}.png)" in text
        assert Path(f"new/r-{kind}.png").read_bytes().startswith(b"\x89PNG")
        assert json.loads(Path(f"new/r-{kind}.json").read_text())["command"].startswith("gradlens")
    mark = "," if language == "id" else "."
    assert f"+0{mark}400" in text  # the difference of the two models' training accuracies
    assert f"0{mark}6712" in text
    assert "| **plain34** | **resnet34** |" in text
    assert f"0{mark}505 ± 0{mark}007" in text


@pytest.mark.parametrize("language", ["en", "id"])
def test_numbers_have_the_decimal_mark_of_the_language_and_names_keep_their_dots(language: str, make_run) -> None:
    runs = [read_run(make_run(f"net-s{seed}", model="net", seed=seed, accuracy=0.5 + seed / 100)) for seed in (0, 1)]
    facts = collect(runs, command="gradlens report")
    words = words_of(language)
    found = " ".join([*opening(facts, words), *analysis(facts, words), finals(facts, words)])
    assert "stage0.0" in found
    numbers = re.sub(r"stage\d\.\d", "", found)
    right, wrong = (",", ".") if language == "id" else (".", ",")
    assert re.search(rf"\d\{right}\d", numbers)
    assert not re.search(rf"\d\{wrong}\d", numbers)


def test_settings_and_values_have_indonesian_words() -> None:
    words = words_of("id")
    cases = {
        "3 to 5": "3 sampai 5",
        "16 to 25 epochs": "16 sampai 25 epoch",
        "1 epoch": "1 epoch",
        "yes": "ya",
        "complete": "selesai",
        "0.1": "0,1",
        "1,234,560": "1.234.560",
        "step:6,0.1": "step:6,0.1",
    }
    assert {value: say_setting(value, words) for value in cases} == cases
    assert all(say_setting(value, words_of("en")) == value for value in cases)
    assert say_setting("3.11", words, numbers=False) == "3.11"  # a version


def test_both_languages_say_the_same_things() -> None:
    english, indonesian = LANGUAGES["en"], LANGUAGES["id"]
    assert english.keys() <= indonesian.keys()
    for key, text in english.items():
        places = {part.split("}")[0] for part in text.split("{")[1:]}
        assert places == {part.split("}")[0] for part in indonesian[key].split("{")[1:]}, key


@pytest.mark.slow
def test_a_pdf_has_a_cover_and_the_figures(study, capsys) -> None:
    assert run_command(["report", "-o", "r.pdf"]) == 0
    data = Path("r.pdf").read_bytes()
    assert data.startswith(b"%PDF")
    pages = data.count(b"/Type /Page ") + data.count(b"/Type /Page\n")
    assert 3 <= pages <= 6
    assert data.count(b"/Subtype /Image") >= 3
    assert {path.name for path in Path().iterdir()} - {"cache"} == {"r.pdf", "runs"}


@pytest.mark.slow
def test_a_document_for_word_is_whole_in_indonesian(study, capsys) -> None:
    docx = pytest.importorskip("docx", reason="needs python-docx")
    assert run_command(["report", "--lang", "id", "-o", "r.docx"]) == 0
    document = docx.Document("r.docx")
    parts = [child for child in document.element.body if child.tag.endswith(("}p", "}tbl"))]
    kinds = ["figure" if part.findall(".//{*}blip") else part.tag.rpartition("}")[2] for part in parts]
    assert kinds.count("figure") == 3
    assert kinds.index("figure") < kinds.index("tbl")  # the answer and its figure first
    texts = [paragraph.text for paragraph in document.paragraphs]
    cells = [cell.text for table in document.tables for row in table.rows for cell in row.cells]
    assert len(cells) > 50
    for text in [*texts[:-1], *cells]:  # the last one names the command
        assert not english_in(text.replace("Vanishing gradient", "")), text
    assert document.core_properties.language == "id-ID"
    alone = [shape._inline.docPr.get("descr") for shape in document.inline_shapes]
    assert all(len(text) > 50 for text in alone)


def test_a_document_for_word_holds_any_text() -> None:
    docx = pytest.importorskip("docx", reason="needs python-docx")
    page = Document("a\x00b", ATTACK, "en-GB")
    page.paragraph(f"{ATTACK} \x1b[1m \ufffe")
    page.table(["a\x08", "b"], [[ATTACK, "c"]], [1, 2])
    out = io.BytesIO()
    page.save(out)
    read = docx.Document(out)
    assert read.paragraphs[0].text == f"{ATTACK} \ufffd[1m \ufffd"
    assert read.tables[0].cell(1, 0).text == ATTACK


def test_what_a_document_for_word_needs_is_said_at_once(study, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "docx", None)
    assert run_command(["report", "-o", "r.docx"]) == 1
    assert "pip install 'gradlens-toolkit[docx]'" in " ".join(capsys.readouterr().err.split())
    assert not Path("r.docx").exists()


@pytest.mark.slow
def test_several_forms_at_once(study, capsys) -> None:
    assert run_command(["report", "runs/plain34-s0.h5", "-o", "a.html", "-o", "a.pdf"]) == 0
    assert capsys.readouterr().err == "wrote a.html\nwrote a.pdf\n"


@pytest.mark.parametrize(
    ("arguments", "code_", "message"),
    [
        (["-o", "r.odt"], 2, "expected a name that ends in .html, .md, .pdf, .docx, got '.odt'"),
        (["-o", "r"], 2, "got ''"),
        (["--lang", "de", "-o", "r.md"], 2, "'de' is not one of"),
        (["nothing"], 1, "nothing: there is no such run"),
        (["-o", "runs/plain34-s0.h5/r.html"], 1, "cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_is_one_line(arguments: list[str], code_: int, message: str, study, capsys) -> None:
    assert run_command(["report", *arguments]) == code_
    err = capsys.readouterr().err
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_no_runs_and_empty_runs(make_run, capsys) -> None:
    assert run_command(["report"]) == 1
    assert "there is no folder runs" in capsys.readouterr().err
    make_run(steps=0, epochs=0)
    assert run_command(["report"]) == 2
    assert "nothing to report: expected a run with rows or epochs, got net-s0" in capsys.readouterr().err
    assert not Path("report.html").exists()


def test_a_repeated_seed_is_left_out_and_reported(make_run, capsys) -> None:
    make_run()
    make_run("copy")
    assert run_command(["report"]) == 0
    assert "runs/net-s0.h5 repeats a seed of the same model and settings: it is left out" in capsys.readouterr().err


def test_the_texts_of_a_hostile_run_stay_texts_in_markdown(tmp_path: Path) -> None:
    runs = [read_run(write_hostile(tmp_path / "runs" / f"h-s{seed}.h5", seed)) for seed in (0, 1)]
    text = make_markdown(collect(runs, command=f"gradlens report `{ATTACK}`"), {}, "en")
    assert "<script>" not in text.replace(f"`` gradlens report `{ATTACK}` ``", "")
    assert "<img" not in text
    assert {line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("| model")} == {3}


@pytest.mark.slow
def test_a_hostile_run_has_a_pdf(tmp_path: Path, capsys) -> None:
    write_hostile(tmp_path / "runs" / "h-s0.h5")
    assert run_command(["report", "-o", "h.pdf"]) == 0
    assert Path("h.pdf").read_bytes().startswith(b"%PDF")


def test_markdown_shows_texts_as_they_are() -> None:
    assert plain("a_b *c* | <d> & `e`\n# f") == "a\\_b \\*c\\* \\| &lt;d&gt; &amp; \\`e\\` \\# f"
    assert code("a `b`") == "`` a `b` ``"
    assert code("gradlens report") == "`gradlens report`"


def test_a_table_that_goes_on_has_the_titles_of_its_columns_on_each_page(tmp_path: Path, monkeypatch) -> None:
    written = []
    monkeypatch.setattr(Pages, "_text", lambda self, page, x, text, *_: written.append((self.count, text)))
    with Pages(tmp_path / "long.pdf", title="t", subject="s") as pages:
        pages.paragraph("before")
        pages.table(["layer", "norm"], [[f"layer {i}", str(i)] for i in range(90)], [1, 1])
    assert [page for page, text in written if text == "norm"] == list(range(pages.count))
    assert pages.count > 1
