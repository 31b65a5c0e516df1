"""What one asks of runs in Python, and what a notebook shows of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradlens
from gradlens import notebook
from gradlens.analysis.compare import Comparison
from gradlens.analysis.groups import Group
from gradlens.cli import run_command
from gradlens.diagnosis.findings import Diagnosis, Finding
from gradlens.errors import ConfigError, GradlensError, NoRunError, RunExistsError
from gradlens.format import to_json
from gradlens.run import Layer, Run
from gradlens.study import Control, judge_claims
from tests.study.planted_claims import seeds

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'names' $x^2$"


class Parsed(HTMLParser):
    """Collects text and tags, and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text, self._open = "", list[str]()
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("img", "br"):
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def trained() -> list[Run]:
    """Return runs of both nets and of the controls."""
    controls = [*seeds("plain34-nobn-sigmoid", 2, decades=-18.0), *seeds("plain8", 2, decades=0.2)]
    return [*seeds("plain34", 3, decades=-5.0), *seeds("resnet34", 3), *controls]


def pictures(text: str) -> int:
    return len(re.findall(r'<img [^>]*src="data:image/png;base64,iVBOR', text))


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Run:
    """Return a run whose gradient does not reach the first two layers."""
    path = make_run(model="plain34", notes=("a note",), change=lambda grid: grid * (np.arange(grid.shape[1]) > 1))
    return gradlens.read_run(path)


# --- in Python ----------------------------------------------------------------------------------------------


def test_runs_are_named_in_any_way(make_run: Callable[..., Path], run: Run) -> None:
    other = make_run("other-s1", model="resnet34", seed=1)
    assert [one.name for one in gradlens.read_runs()] == ["net-s0", "other-s1"]
    assert [one.name for one in gradlens.read_runs("runs")] == ["net-s0", "other-s1"]
    assert [one.name for one in gradlens.read_runs("other-s1", run.path)] == ["other-s1", "net-s0"]
    for named in (run, "net-s0", run.path, [run]):
        assert gradlens.heatmap(named).axes
    figure = gradlens.heatmap([run, other], minus=None)
    titles = {axis.get_title("left").split("\n")[0] for axis in figure.axes}
    assert titles >= {"plain34, seed 0", "resnet34, seed 1"}
    with pytest.raises(NoRunError, match="nothing: there is no such run"):
        gradlens.profile("nothing")


def test_runs_below_a_folder_are_judged_together(make_run: Callable[..., Path]) -> None:
    for model in ("plain34", "resnet34"):
        for seed in (0, 1):
            make_run(f"{model}-s{seed}", folder=f"runs/{model}", model=model, seed=seed)
    make_run("plain8-s0", model="plain8")
    assert gradlens.claims("runs").runs == 5
    assert len(gradlens.read_runs("runs")) == len(gradlens.compare("runs").groups) + 2 == 5  # two groups of two seeds
    assert len(gradlens.read_runs("runs", deep=False)) == 1


def test_figures_are_of_matplotlib_and_show_themselves(run: Run) -> None:
    from matplotlib.figure import Figure

    for figure in (gradlens.heatmap(run), gradlens.profile(run, "param_grad_norm", per_element=True)):
        assert isinstance(figure, Figure)
        data, size = figure._repr_png_()
        assert data.startswith(b"\x89PNG")
        assert list(size.values()) == [round(96 * inches) for inches in figure.get_size_inches()]


def test_the_summary_is_that_of_the_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    summary = gradlens.summary(run)
    assert gradlens.summary().to_dict() == gradlens.summary("net-s0").to_dict() == summary.to_dict()
    assert run_command(["summary", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(to_json(summary.to_dict()))
    said = str(summary)
    for text in ("net-s0: zero_gradient", summary.notable[0], "note: a note"):
        assert text in said
    assert summary.notes == ("a note",)
    assert [row["layer"] for row in summary.layers] == [layer.name for layer in run.layers]


def test_a_summary_is_of_one_run(make_run: Callable[..., Path], run: Run) -> None:
    make_run("other-s1", seed=1)
    with pytest.raises(ConfigError, match="expected one run, got 2 in runs"):
        gradlens.summary("runs")


def test_a_report_is_written_and_named(run: Run) -> None:
    assert gradlens.report() == [Path("report.html")]
    assert "net-s0" in Path("report.html").read_text(encoding="utf-8")
    first, *figures = gradlens.report(run, "page.md", language="id")
    assert first == Path("page.md")
    assert figures
    assert all(path.exists() for path in figures)
    assert "gradien" in first.read_text(encoding="utf-8")
    Path("report.html").write_text("mine")
    with pytest.raises(RunExistsError, match=r"report\.html exists"):
        gradlens.report()
    gradlens.report(run, "page.html", language="id")
    assert '<html lang="id">' in Path("page.html").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown language 'de'"):
        gradlens.report(run, "page.html", language="de")


def test_an_export_is_that_of_the_command(make_run: Callable[..., Path], run: Run) -> None:
    other = make_run("other-s1", seed=1)
    path = gradlens.export(["net-s0", other], "both.csv", metrics=["param_norm"])
    assert path == Path("both.csv")
    assert run_command(["export", "net-s0", "other-s1", "-o", "again.csv", "--metric", "param_norm"]) == 0
    assert Path("again.csv").read_bytes() == path.read_bytes()
    assert gradlens.export("net-s0", table="epochs") == Path("exports/net-s0-epochs.csv")
    with pytest.raises(RunExistsError, match=r"both\.csv already exists"):
        gradlens.export(run, "both.csv")
    for wrong, said in [
        ({"to": "excel"}, "unknown format 'excel'"),
        ({"table": "rows"}, "unknown table 'rows'"),
        ({"output": "-"}, "expected the name of a file"),
    ]:
        with pytest.raises(ConfigError, match=said):
            gradlens.export(run, **wrong)


def test_files_are_recovered_also_beside_one_that_cannot_be(make_run: Callable[..., Path]) -> None:
    made = make_run(steps=20)
    (found,) = gradlens.recover()
    assert (found.path.resolve(), found.found, found.rows) == (made.resolve(), "whole", 20)
    Path("runs/broken.h5").write_text("no run")
    with pytest.raises(GradlensError, match=r"broken\.h5"):
        gradlens.recover("runs/broken.h5")
    with pytest.raises(GradlensError, match=r"1 file could not be recovered: .*broken\.h5"):
        gradlens.recover(["runs/broken.h5", made])


def test_the_laws_are_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradlens.probe import verify
    from gradlens.theory.laws import Check

    checks = [Check("law", "A 2020", "net", 2.0, 2.01, 0.01), Check("law", "B 2020", "net", 2.0, 3.0, 0.01)]
    monkeypatch.setattr(verify, "verify", lambda: iter(checks))
    assert gradlens.verify() == checks
    assert [check.passed for check in gradlens.verify()] == [True, False]


def test_a_difference_takes_one_run(make_run: Callable[..., Path], run: Run) -> None:
    make_run("other-s1", model="plain34", seed=1)
    assert "net-s0 over other-s1" in gradlens.heatmap(run, minus="other-s1").axes[-1].get_ylabel().replace("\n", " ")
    with pytest.raises(ConfigError, match="expected one run, got 2"):
        gradlens.heatmap(run, minus="runs")


def test_a_comparison_says_whom_it_left_out(make_run: Callable[..., Path], run: Run) -> None:
    make_run("again-s0", model="plain34")
    make_run("fresh-s0", model="resnet34", epochs=0)
    comparison = gradlens.compare([run, "again-s0", "fresh-s0"])
    assert [group.label for group in comparison.groups] == ["plain34"]
    assert repr(comparison) == "Comparison(plain34, 1 seed, 2 epochs)"
    said = str(comparison)
    assert said.splitlines()[:2] == [
        "last epoch  training accuracy  validation accuracy  training loss  validation loss",
        "plain34     0.500              0.400                0.500          1.000",
    ]
    assert "again-s0 repeats a seed" in said
    assert "fresh-s0 has not finished an epoch" in said
    assert next(row["quantity"] for row in comparison.table()) == "training accuracy"
    with pytest.raises(ConfigError, match="no run has finished an epoch"):
        gradlens.compare("fresh-s0", by="epoch")
    assert gradlens.compare("fresh-s0").unit == "step"


def test_reading_and_judging_load_no_plotting_library(run: Run) -> None:
    code = (
        "import sys, gradlens; run = gradlens.read_run(sys.argv[1]); gradlens.diagnose(run); "
        "gradlens.compare([run]); gradlens.claims([run]); print(run); assert 'matplotlib' not in sys.modules; "
        "run._repr_html_(); assert 'matplotlib' in sys.modules; gradlens.heatmap(run); "
        "assert 'torch' not in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- in a notebook ------------------------------------------------------------------------------------------


def test_a_run_shows_its_last_epoch_its_finding_and_a_heatmap(run: Run) -> None:
    card = run._repr_html_()
    text = Parsed(card).text
    for said in (
        "net-s0",
        "complete",
        "plain34 · seed 0 · 20 rows × 6 layers",
        "0.5000",
        "zero_gradient",
        "note: a note",
    ):
        assert said in text
    assert pictures(card) == 1


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_a_run_says_how_it_ended(make_run: Callable[..., Path], status: str) -> None:
    assert status in Parsed(gradlens.read_run(make_run(status=status))._repr_html_()).text


def test_a_run_without_rows_is_shown(make_run: Callable[..., Path]) -> None:
    card = gradlens.read_run(make_run(steps=0, epochs=0, status="running"))._repr_html_()
    text = Parsed(card).text
    assert "0 rows" in text
    assert "no epoch is finished" in text
    assert "undecided" in text
    assert pictures(card) == 0


def test_a_run_without_epochs_shows_its_last_step(make_run: Callable[..., Path]) -> None:
    text = Parsed(gradlens.read_run(make_run(steps=10, epochs=0))._repr_html_()).text
    assert "last steplosslr90.10.1" in text


def test_a_long_run_is_read_by_blocks(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlens.analysis.profile.EXACT_NUMBERS", 1000)
    run = gradlens.read_run(make_run(steps=20_000, layers=6, epochs=1))
    asked: list[int] = []
    read = type(run.metrics).read_rows

    def counted(self: Any, name: str, start: int, stop: int) -> Any:
        asked.append(stop - start)
        return read(self, name, start, stop)

    monkeypatch.setattr(type(run.metrics), "read_rows", counted)
    monkeypatch.setattr(type(run.metrics), "__getitem__", lambda *_: pytest.fail("the whole metric was read"))
    assert pictures(run._repr_html_()) == 1
    assert sum(asked) < 20_000


def test_a_diagnosis_shows_verdict_reasons_remedy_and_evidence(run: Run) -> None:
    diagnosis = gradlens.diagnose(run)
    shown = Parsed(diagnosis._repr_html_())
    main = diagnosis.findings[0]
    for said in ("zero_gradient", main.evidence, main.remedy, main.threshold, main.source, f"{main.confidence:.2f}"):
        assert said in shown.text
    assert "table" in shown.tags
    assert repr(diagnosis) == f"Diagnosis(net-s0: {', '.join(diagnosis.kinds)}, 20 rows)"
    known = Diagnosis("net", (), 30, "no fault is seen", ("noticed",), learning="yes")
    healthy = Parsed(known._repr_html_())
    assert "healthy" in healthy.text
    unknown = replace(known, learning="unknown")
    assert unknown.kind == "healthy"
    for said in (Parsed(unknown._repr_html_()).text, str(unknown), repr(unknown)):
        assert "no fault found, learning unknown" in said
        assert "healthy" not in said
    assert "no fault is seen" in healthy.text
    assert "table" not in healthy.tags


def test_a_comparison_shows_its_table_and_curves() -> None:
    comparison = gradlens.compare(trained()[:6])
    card = comparison._repr_html_()
    text = Parsed(card).text
    for said in ("plain34", "resnet34", "3 seeds, 3 epochs", "validation accuracy", "0.600 ± 0.000"):
        assert said in text
    assert pictures(card) == 1
    one = comparison.groups[0]._repr_html_()
    assert "resnet34" not in Parsed(one).text
    assert pictures(one) == 1


def test_a_judgement_shows_verdicts_explanation_controls_and_numbers() -> None:
    judgement = judge_claims(trained())
    shown = Parsed(judgement._repr_html_())
    for judged in judgement.claims:
        assert judged.claim.text in shown.text
        for verdict in judged.overall.values():
            assert verdict.verdict in shown.text
    assert judgement.explanation in shown.text
    assert "positive control" in shown.text
    assert shown.tags.count("details") == 2
    assert repr(judgement).startswith("Judgement(10 runs; with batch norm: A supported, B ")


def hostile_objects() -> dict[str, Any]:
    """Return one of each with a name of ill will everywhere."""
    layers = tuple(Layer(f"{HOSTILE}{i}", HOSTILE, "main", i + 1, 10, 10) for i in range(4))
    base = seeds("plain34", 2)
    grads = np.geomspace(1e-6, 1, 4) * np.ones((30, 1))
    runs = [
        replace(
            one, name=f"{HOSTILE}{i}", layers=layers, metrics={"activation_grad_norm": grads, HOSTILE: grads},
            steps=np.arange(30), epoch_of_step=np.zeros(30, np.int32), scalars={HOSTILE: np.ones(30)}, status=HOSTILE,
            epochs={**one.epochs, HOSTILE: np.ones(len(one.epochs["epoch"]))},
            info={**one.info, "model": HOSTILE, "notes": [HOSTILE]},
        )
        for i, one in enumerate(base)
    ]  # fmt: skip
    finding = Finding("dead", (HOSTILE,), (0, 3), HOSTILE, HOSTILE, HOSTILE, HOSTILE, 0.9)
    judgement = judge_claims(trained())
    control = Control(HOSTILE, HOSTILE, 1, True, HOSTILE)
    return {
        "run": runs[0],
        "diagnosis": Diagnosis(HOSTILE, (finding, replace(finding, kind=HOSTILE)), 30, HOSTILE, (HOSTILE,)),
        "group": Group(HOSTILE, HOSTILE, tuple(runs)),
        "comparison": Comparison((Group(HOSTILE, HOSTILE, tuple(runs)),), (runs[0],), (runs[1],)),
        "judgement": replace(judgement, explanation=HOSTILE, notes=(HOSTILE,), controls=(control,)),
    }


@pytest.mark.parametrize("kind", ["run", "diagnosis", "group", "comparison", "judgement"])
def test_what_comes_from_files_is_shown_as_text(kind: str) -> None:
    card = hostile_objects()[kind]._repr_html_()
    shown = Parsed(card)
    assert "script" not in shown.tags
    assert {name for name, _ in shown.attributes} <= {"style", "class", "src", "alt"}
    assert HOSTILE in shown.text
    assert "tex2jax_ignore" in card


def test_every_class_finds_its_function() -> None:
    for kind, shown in hostile_objects().items():
        assert callable(getattr(notebook, f"{kind}_card"))
        assert shown._repr_html_().startswith("<div")


@pytest.mark.parametrize("broken", ["draw_small_heatmap", "draw_small_curves", "png"])
def test_a_picture_that_fails_leaves_the_tables(broken: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradlens import plots

    def fail(*_: Any) -> None:
        raise RuntimeError(f"no font <b>{broken}</b>")

    monkeypatch.setattr(plots, broken, fail)
    shown = run if broken != "draw_small_curves" else gradlens.compare(run)
    card = shown._repr_html_()
    text = Parsed(card).text
    assert f"the figure cannot be shown: no font <b>{broken}</b>" in text
    assert "train" in text
    assert pictures(card) == 0


def test_a_part_that_fails_leaves_the_rest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "diagnose", lambda _: 1 / 0)
    card = run._repr_html_()
    assert "this cannot be shown: division by zero" in Parsed(card).text
    assert pictures(card) == 1


def test_a_loss_that_began_high_does_not_hide_the_rest(make_run: Callable[..., Path]) -> None:
    from gradlens.plots import draw_small_curves

    calm = gradlens.compare(make_run(epochs=5))
    high = [
        replace(run, epochs={**run.epochs, "val_loss": np.array([90.0, 1, 1, 1, 1])}) for run in calm.groups[0].runs
    ]
    scales = [
        [axis.get_yscale() for axis in draw_small_curves(gradlens.compare(runs).groups).axes]
        for runs in (calm.groups[0].runs, high)
    ]
    assert scales == [["linear"] * 4, ["linear", "linear", "linear", "log"]]
    (legend,) = draw_small_curves(calm.groups).legends
    assert [text.get_text() for text in legend.get_texts()] == [calm.groups[0].label]


def test_a_run_is_diagnosed_by_its_file_or_its_name(make_run: Callable[..., Path]) -> None:
    path = make_run("net-s0")
    expected = gradlens.diagnose(gradlens.read_run(path)).to_dict()
    assert gradlens.diagnose(path).to_dict() == gradlens.diagnose("net-s0").to_dict() == expected
    with pytest.raises(NoRunError):
        gradlens.diagnose("nothing")
    make_run("net-s1", seed=1)
    with pytest.raises(ConfigError, match="expected one run, got 2 in runs"):
        gradlens.diagnose("runs")


def test_something_else_than_a_run_is_refused_in_a_sentence(make_run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run("mine")
    with pytest.raises(ConfigError, match="expected one run, its file or its name, got list"):
        gradlens.diagnose(["mine"])  # type: ignore[arg-type]
    with pytest.raises(NoRunError, match=r"the run of this name is runs/mine\.h5"):
        gradlens.read_run("mine")


def test_a_summary_is_a_card_with_a_row_per_layer_and_one_line_of_text(make_run) -> None:
    summary = gradlens.summary(make_run())
    assert re.fullmatch(r"Summary\(Run\(net-s0: .*\), \w+\)", repr(summary))
    card = Parsed(summary._repr_html_()).text
    assert "median of each metric at 6 layers" in card
    assert all(str(row["layer"]) in card for row in summary.layers)
