"""``--lang id`` is whole: no English sentence is left on the page, in Markdown, in figures, or in the catalogue."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.text import Text

from gradlens import read_run
from gradlens.metrics import SHOWN_METRICS
from gradlens.plots.figure import GradlensFigure
from gradlens.plots.texts import rewrite
from gradlens.report import collect
from gradlens.report.figures import report_figures
from gradlens.report.html import make_page
from gradlens.report.html_sections import say_control
from gradlens.report.markdown import make_markdown
from gradlens.report.translations import words_of
from gradlens.report.translator import Translator, read_pairs, translate
from gradlens.run import Run
from gradlens.study import OUTCOMES, judge_claims
from gradlens.study.criteria import CLAIMS
from tests.processes import some_slow
from tests.report.english_words import english_in, sentences_in
from tests.report.test_page import Reader
from tests.study.planted_claims import CONTROLS, FAST, SLOW, curves, ends, halves, over_depth, pair, seeds
from tests.study.test_readings_of_the_gradient import collapsing, with_weights

ROOT = Path(__file__).parents[2] / "gradlens"
FRAGMENTS = {
    "too few rows: conv1, but at least 7 are needed", "and 7 more", "steps 7 to conv1", "conv1: it conv1",
    "(it changes every 7)", "(in a recurrent network it grows with every time step)",
    "gradients arrive at conv1 of conv1",
    "(conv1 over conv1)", "(7 of them never called)", "and the loss falls by 7",
}  # fmt: skip
"""Parts of sentences, and sentences whose numbers stand in for names here: their wholes are in the catalogue."""


@pytest.fixture
def runs(make_run) -> list[Run]:
    study = [
        read_run(make_run(f"{model}-s{seed}", model=model, seed=seed, accuracy=accuracy, decades=decades, steps=40,
                          epochs=2, config={"lr": 0.001, "batch_size": 1024, "data": "folder:/home/me/food"}))
        for model, accuracy, decades in (("plain34", 0.4, -3.6), ("resnet34", 0.9, -0.1))
        for seed in (0, 1)
    ]  # fmt: skip
    odd = read_run(make_run("odd-s0", model="odd", steps=40, epochs=0, change=lambda grid: grid * 0))
    return [*study, odd]


@pytest.fixture
def runs_over_steps(make_run) -> list[Run]:
    """Runs without epochs, of different length and settings, of which one was interrupted."""
    return [
        read_run(make_run(f"{model}-s{seed}", model=model, seed=seed, steps=steps, epochs=0, status=status,
                          config={"batch_size": size}))
        for model, seed, steps, status, size in (
            ("plain34", 0, 40, "complete", 32), ("plain34", 1, 60, "complete", 32), ("resnet34", 0, 50, "failed", 64),
        )
    ]  # fmt: skip


OF_THE_TERMINAL = ("Diagnosis(", "where: ", "does it learn? ", "expected one run")
"""Beginnings of texts that are in no report."""
NOT_IN_REPORTS = {"explanations", "kinds", "other_tools", "recorded_rows", "recorded_setup"}
FOLDER = ROOT / "diagnosis"
MODULES = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for path in FOLDER.rglob("[a-z]*.py")
    if path.stem not in NOT_IN_REPORTS
)


@pytest.mark.parametrize("module", MODULES)
def test_every_sentence_of_the_diagnosis_has_a_translation(module: str) -> None:
    for text in sentences_in(FOLDER / f"{module}.py", least=4):
        if text not in FRAGMENTS and not text.startswith(
            ("Diagnosis(", "where: ", "does it learn? ", "expected one run")
        ):
            assert not english_in(translate(text, "id")), f"{text} -> {translate(text, 'id')}"


def test_claims_and_metrics_have_a_translation() -> None:
    texts = [text for claim in CLAIMS for text in (claim.supports, claim.refutes, claim.reason)]
    texts += [text for metric in SHOWN_METRICS.values() for text in (metric.title, metric.reading)]
    for text in texts:
        assert not english_in(translate(text, "id")), text


def _unseen(runs: list[Run]) -> list[Run]:
    """Let the halves of the shortcut close the gap in validation accuracy, too."""
    for run in runs:
        run.epochs["val_accuracy"][:] = run.epochs["train_accuracy"]
    return runs


SMALL = {"image_size": 32}
STUDIES = {
    "vanishes": lambda: [*pair({"decades": -9.0}, {"accuracy": FAST}, "-nobn"), *pair({"decades": 0.2}, {})],
    "grows": lambda: pair({"decades": 2.0}, {"share": 0.05}),
    "weakens": lambda: pair({"decades": -2.0}, {"share": 0.0}),
    "undecided": lambda: pair({"decades": [-2.0, -5.0, -1.0, -6.0, -3.0]}, {"share": [0.05, 0.2, 0.1, 0.0, 0.15]}),
    "one seed": lambda: pair({"decades": -9.0}, {}, count=1),
    "by rows": lambda: [*pair({}, {}), *(collapsing(seed, before=-0.6, after=-6.0) for seed in range(5))],
    "by measure": lambda: [with_weights(run, 1e5) for run in seeds("plain34", decades=[0.1, 0.2, 0.2, 0.3, 0.2])],
    "speed": lambda: pair({"accuracy": curves(SLOW)}, {"accuracy": curves(FAST)}),
    "slower": lambda: pair({"accuracy": curves(FAST)}, {"accuracy": curves(SLOW)}),
    "end": lambda: pair(ends(0.9, 0.6, 0.5, 1.0), ends(0.95, 0.7, 0.6, 0.9)),
    "depth": lambda: over_depth(-0.1, 0.0),
    "both cure": lambda: _unseen(halves(0.9, 0.9, plain=-6.0)),
    "gradient cures": lambda: halves(0.9, 0.0, plain=-6.0),
    "half": lambda: _unseen(halves(0.5, 0.0)),
    "control fails": lambda: [*halves(0.0, 0.6), *CONTROLS[2:], *seeds("plain34-nobn-sigmoid", 2)],
    "settings": lambda: [*halves(0.3, 0.9), *seeds("plain34", 3, decades=-5.0, settings=SMALL),
                         *seeds("resnet34", 3, share=0.02, settings=SMALL)],
}  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_a_judgement_has_no_english_sentence(name: str) -> None:
    found = judge_claims(STUDIES[name]())
    texts = [found.explanation, *found.notes, *found.next_steps, *map(say_control, found.controls)]
    for judged in found.claims:
        for verdict in (*judged.overall.values(), *judged.verdicts):
            texts += [verdict.why, verdict.setting, verdict.condition, verdict.verdict]
            texts += [said for one in verdict.evidence for said in (one.name, one.note, str(one))]
    for text in texts:
        said = translate(text, "id")
        assert not english_in(said), said
        assert not set(OUTCOMES) & set(re.findall(r"\w+", said)), said


def test_the_page_has_no_english_sentence(runs: list[Run]) -> None:
    reader = Reader(make_page(collect(runs, command="gradlens report --lang id"), "id"))
    assert dict(reader.elements)["html"] == {"lang": "id"}
    texts = [*reader.texts, *(a[key] for _, a in reader.elements for key in ("aria-label", "data-head") if key in a)]
    texts += list(reader.data["words"].values())
    texts += [text for metric in reader.data["metrics"].values() for text in (metric["title"], metric["reading"])]
    for text in texts:
        assert not english_in(text), text
    said = reader.text
    assert "jaringan plain" in said
    assert "0,001" in said
    said = re.sub(r"stage\d\.\d", "", said.rsplit("Lingkungan", 1)[0])  # versions have dots
    assert not re.findall(r"\S*\d\.\d(?!\d\d)\S*", said)


def test_markdown_has_no_english_sentence(runs: list[Run]) -> None:
    text = make_markdown(collect(runs, command="gradlens report"), {}, "id")
    for line in re.sub(r"</?(?:details|summary)>", "", text).splitlines():
        assert not english_in(line), line


@pytest.mark.parametrize("fixture", some_slow(["runs", "runs_over_steps"]))
def test_figures_have_no_english_text(request: pytest.FixtureRequest, fixture: str) -> None:
    facts = collect(request.getfixturevalue(fixture), command="gradlens report")
    for _, figure, caption, _ in report_figures(facts.runs, facts.groups, words_of("id")):
        texts = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
        cells = [cell.get_text().get_text() for a in figure.axes for t in a.tables for cell in t.get_celld().values()]
        assert not [text for text in cells if re.search(r"\d\.\d", text)]
        texts += cells
        for text in [*texts, caption]:
            assert not english_in(" ".join(text.split())), text
        formatters = [axes.yaxis.get_major_formatter() for axes in figure.axes]
        labels = [label for formatter in formatters for label in formatter.format_ticks([0.25, 0.5])]
        assert not [label for label in labels if re.search(r"\d\.\d", label)]


def test_a_place_takes_a_name_and_a_number_its_mark() -> None:
    say = Translator(read_pairs("{layer} has {n} rows\n= {layer} memiliki {n} baris\nwhy not\n= mengapa tidak\n"))
    assert say("layer1.0.conv has 1,250 rows") == "layer1.0.conv memiliki 1.250 baris"
    assert (
        say("Why not. Block has 2.5 rows (why not); x") == "Mengapa tidak. Block memiliki 2,5 baris (mengapa tidak); x"
    )
    assert say("a.b has no rows") == "a.b has no rows"
    assert say("Why not; conv1 has 2 rows. plain34 has 3 rows.") == (
        "Mengapa tidak; conv1 memiliki 2 baris. plain34 memiliki 3 baris."
    )
    said = translate("net: exactly 0; conv1 has about 1/250 (10^-2.4) of the gradient norm of fc", "id")
    assert said == "net: tepat 0; norma gradien conv1 sekitar 1/250 (10^-2,4) dari norma gradien fc"
    said = translate("layer '0.1', layer '2', layer '4' and 8 more", "id")
    assert said == "lapisan '0.1', lapisan '2', lapisan '4' dan 8 lainnya"
    assert say("+0.090 [-0.749, +0.929]") == "+0,090 [-0,749; +0,929]"
    assert translate("0.731 ± 0.012 (2 of 3)", "id") == "0,731 ± 0,012 (2 dari 3)"


def test_what_is_english_is_found() -> None:
    assert english_in("the gradient of conv1") == ["the", "gradient", "of"]
    assert not english_in("Panggil optimizer.zero_grad() sebelum loss.backward()")


def test_a_wrapped_title_is_translated_below_the_name_of_its_run() -> None:
    figure = GradlensFigure()
    title = figure.suptitle("plain34-nobn, seed 3\nfirst layer 1/400 of the\nlast")
    rewrite(figure, lambda text: translate(text, "id"), str, {})
    assert title.get_text() == "plain34-nobn, seed 3\nlapisan pertama 1/400 dari\nlapisan terakhir"


def test_sentences_that_follow_each_other_are_translated_one_by_one() -> None:
    """A place of one sentence does not take the half of a bracket, or the parts of a list of remedies before it."""
    evidence = (
        "layer '0' has about 1/13,000 (10^-4.1) of the gradient norm of layer '10' (median of the later half of the "
        "rows); one step changes layer '0' by 4.7e-03 of its norm, layer '10' by 1.0e-03; the loss is stuck (it falls "
        "by 0.0% after the first fifth of the rows)"
    )
    remedy = (
        "Normalise the layers' outputs (batch norm or layer norm), use ReLU with He initialisation instead of the "
        "sigmoid behind layer '0', layer '2', layer '4' and 3 more, add shortcuts, or use fewer than 7 layers."
    )
    assert not english_in(translate(evidence, "id"))
    assert translate(evidence, "id").endswith("loss tidak bergerak (hanya turun 0,0% setelah seperlima pertama baris)")
    assert "sebagai ganti sigmoid di belakang lapisan '0', lapisan '2'" in translate(remedy, "id")
