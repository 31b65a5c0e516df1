"""Test the HTML page: its sections, escaped texts of runs, and no access to a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import gradlens
from gradlens import read_run
from gradlens.errors import ConfigError
from gradlens.format import visible
from gradlens.report import collect
from gradlens.report.content import MOST_SETTINGS, split_settings
from gradlens.report.html import ECHARTS, fill, library_code, make_page
from gradlens.report.html_data import payload, safe_json
from gradlens.report.html_sections import claims_table
from gradlens.report.markdown import make_markdown
from gradlens.report.sentences import analysis, answers, compared_groups, opening
from gradlens.report.translations import ENGLISH
from gradlens.study import Claim, Control, Evidence, JudgedClaim, Judgement, Verdict, judge_claims
from tests.conftest import SAMPLE
from tests.report.hostile import ATTACK, ATTACKS, write_hostile

VENDOR = Path(gradlens.__file__).parent / "report" / "vendor" / "echarts"


class Reader(HTMLParser):
    """Take a page apart as a browser does: elements with their attributes, visible text, scripts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


def page_of(*paths: Path) -> str:
    return make_page(collect([read_run(path) for path in paths], command="gradlens report"))


def test_the_texts_of_a_hostile_run_stay_texts(tmp_path: Path) -> None:
    page = page_of(*(write_hostile(tmp_path / "runs" / f"h-s{seed}.h5", seed) for seed in (0, 1)))
    reader = Reader(page)
    assert [tag for tag, _ in reader.elements if tag in ("script", "img", "iframe", "link", "object")] == ["script"] * 3
    assert reader.scripts[1] == library_code()
    assert "alert" not in reader.scripts[2]
    for text in (ATTACK, ATTACKS[1], ATTACKS[2]):
        assert text in reader.text
        assert text not in page
    assert reader.data["layers"][0]["names"] == [visible(f"{text}.{i}") for i, text in enumerate(ATTACKS)]
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]


def test_scripts_run_only_as_they_were_written(make_run) -> None:
    reader = Reader(page_of(make_run()))
    policy = next(a["content"] for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    assert allowed == {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in reader.scripts[1:]}
    assert policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy
    assert not re.search(r"script-src[^;]*unsafe-inline", policy)


def test_nothing_is_fetched(make_run) -> None:
    reader = Reader(page_of(make_run()))
    for tag, attributes in reader.elements:
        assert "src" not in attributes, tag
        assert attributes.get("href", "#").startswith("#"), attributes
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(|url\(", reader.scripts[2])


def test_the_sections_are_in_order(make_run) -> None:
    runs = [
        make_run(f"{model}-s{seed}", model=model, seed=seed, config={"lr": lr, "optimizer": "adam"})
        for model, lr in (("plain34", 0.1), ("resnet34", 0.2))
        for seed in (0, 1)
    ]
    reader = Reader(page_of(*runs))
    heads = [a["id"] for tag, a in reader.elements if tag == "h2"]
    assert heads == ["summary", "findings", "metrics", "heatmaps", "curves", "settings", "environment"]
    assert "original study, plain34" in reader.text
    assert "0.6712" in reader.text
    assert "4 runs of 2 settings" in reader.text
    marked = [i for i, (tag, a) in enumerate(reader.elements) if tag == "tr" and a.get("class") == "differs"]
    assert len(marked) == 2  # the model and the learning rate
    assert {a["href"] for tag, a in reader.elements if tag == "a"} == {f"#{head}" for head in heads} | {"#main"}
    data = reader.data
    assert [run["label"] for run in data["runs"]] == [f"{m}, seed {s}" for m in ("plain34", "resnet34") for s in (0, 1)]
    assert data["second"] == 2
    assert {curve["unit"] for curve in data["curves"]} == {"epoch"}
    assert [curve["title"] for curve in data["curves"]][:2] == ["training accuracy", "validation accuracy"]
    assert set(data["metrics"]) == {"activation_grad_norm", "param_grad_norm", "param_norm", "update_ratio"}


def test_claims_come_first_where_a_plain_and_a_residual_net_were_trained_alike(make_run) -> None:
    runs = [make_run(f"{m}-s{seed}", model=m, seed=seed) for m in ("plain34", "resnet34") for seed in (0, 1)]
    reader = Reader(page_of(*runs))
    assert next(a["id"] for tag, a in reader.elements if tag == "h2") == "claims"
    for judged in judge_claims([read_run(run) for run in runs]).claims:
        assert judged.claim.text in reader.text
        assert judged.claim.supports in reader.text
        assert all(verdict.why in reader.text for verdict in judged.overall.values())
    assert "positive control missing" in reader.text
    alone = Reader(page_of(*runs[:2]))
    assert "claims" not in [a.get("id") for _, a in alone.elements]


def test_claims_that_runs_leave_undecided_come_after_the_answer_about_the_runs(make_run) -> None:
    runs = [make_run(f"{m}-s0", model=m, seed=0) for m in ("plain34", "resnet34")]
    facts = collect([read_run(run) for run in runs], command="gradlens report")
    assert facts.claims is not None
    assert not facts.claims.is_decided
    reader = Reader(make_page(facts))
    heads = [a["id"] for tag, a in reader.elements if tag == "h2"]
    assert heads[0] == "summary"
    assert heads.index("findings") < heads.index("claims") < heads.index("settings")
    text = make_markdown(facts, {}, "en")
    assert text.index("### Findings") < text.index("## The original study's claims") < text.index("## Hyper-parameter")


def test_the_texts_of_a_judgement_are_escaped() -> None:
    claim = Claim(ATTACK, ATTACKS[1], ATTACKS[1], ATTACKS[1], ATTACKS[1])
    evidence = Evidence(ATTACK, 155.0, 100.0, 200.0, ATTACK, 5, ATTACKS[1])
    verdict = Verdict("with <b>", ATTACK, "supported", ATTACK, (evidence,))
    control = Control(ATTACK, ATTACKS[1], 0, None, ATTACKS[2])
    judgement = Judgement((JudgedClaim(claim, {"with <b>": verdict}, (verdict,)),), (control,), ATTACK, (ATTACK,), 2)
    markup = claims_table(judgement)
    assert not re.search("<(script|img|b>b)", markup)
    assert ATTACK in Reader(markup).text


def test_a_run_without_epochs_and_one_without_rows(make_run) -> None:
    reader = Reader(page_of(make_run(epochs=0)))
    heads = [a["id"] for tag, a in reader.elements if tag == "h2"]
    assert heads == ["summary", "findings", "heatmaps", "curves", "settings", "environment"]
    with pytest.raises(ConfigError, match="nothing to report: expected a run with rows or epochs, got empty"):
        page_of(make_run("empty", steps=0, epochs=0))


def test_the_page_of_a_real_run_is_small() -> None:
    page = page_of(SAMPLE)
    assert len(page.encode()) < 2_000_000
    assert Reader(page).data["runs"][0]["label"] == "plain34, seed 0"


def test_paths_are_those_that_the_user_gave(make_run, tmp_path: Path) -> None:
    make_run()
    page = page_of(Path("runs/net-s0.h5"))
    assert "runs/net-s0.h5" in page
    assert str(tmp_path) not in page


def test_no_absolute_path_is_on_the_page_in_markdown_or_beside_a_figure(make_run, tmp_path: Path) -> None:
    config = {
        "data": "folder:/home/me/photos of food/train",
        "cache": ["/scratch/me/x"],
        "other": {"path": "/data/a/b"},
    }
    run = read_run(make_run(config=config).resolve())
    assert run.path.is_absolute()
    facts = collect([run], command=f"gradlens report {run.path} -o /tmp/out/report.html")
    for text in (make_page(facts), make_page(facts, "id"), make_markdown(facts, {}, "en")):
        shown = Reader(text).text if text.startswith("<!doctype") else text
        assert not re.findall(r"(?<![\w.<])/(?:[\w.-]+/)+[\w.-]*", shown)
        assert "gradlens report net-s0.h5 -o report.html" in shown
        assert str(tmp_path) not in text


@pytest.mark.parametrize(("language", "number"), [("en", "1,234,560"), ("id", "1.234.560")])
def test_thousands_are_separated(language: str, number: str, make_run) -> None:
    run = read_run(make_run(config={"warm_up": 1234560, "seed_of_data": 20000}))
    text = Reader(make_page(collect([run], command="gradlens report"), language)).text
    assert number in text
    assert not re.findall(r"(?<![\w.,-])\d{5,}(?![\w.-])", text)


def test_twelve_rows_of_settings_are_shown_and_the_others_are_folded(make_run) -> None:
    config = {f"setting_{i}": i for i in range(30)} | {"lr": 0.1, "batch_size": 32, "image_size": 64}
    runs = [read_run(make_run(f"{m}-s0", model=m, config=config | {"setting_7": m})) for m in ("a", "b")]
    facts = collect(runs, command="gradlens report")
    first, rest = split_settings(facts.settings)
    assert len(first) == MOST_SETTINGS == 12
    names = [row.name for row in first]
    assert {"model", "setting_7", "lr", "batch_size", "image_size"} <= set(
        names
    )  # those that differ, and the usual ones
    assert len(rest) == len(facts.settings) - 12
    page = make_page(facts)
    assert page.index("batch size (images)") < page.index('<details class="folded">') < page.index("setting 3")


def test_a_network_that_does_not_generalise_is_not_called_healthy(make_run) -> None:
    run = read_run(make_run(steps=60, epochs=4, decades=-0.2))
    classes = {"data_facts": {"classes": list("abcde")}}
    for train, val, said in (
        (0.95, 0.39, "it does not generalise: training accuracy 0.95, validation accuracy 0.39"),
        (0.41, 0.39, "it has learnt little: validation accuracy 0.39, where guessing gives 0.20"),
        (0.95, 0.93, "it learns: validation accuracy 0.93"),
    ):
        epochs = dict(run.epochs) | {"train_accuracy": np.full(4, train), "val_accuracy": np.full(4, val)}
        info = dict(run.info) | {"config": classes}
        facts = collect([replace(run, epochs=epochs, info=info)], command="gradlens report")
        assert facts.seen[0].kind == "healthy"
        found = "its gradients are healthy" if val > 0.9 else "no fault was found in its gradients"
        assert answers(facts, ENGLISH) == [f"net: {found}; {said}."]
        reader = Reader(make_page(facts))
        assert said in reader.text
        assert ("kind healthy" in [a.get("class") for _, a in reader.elements]) == (val > 0.9)
        assert ("healthy gradients" in reader.text) == (val > 0.9)
        assert ("healthy gradients" in make_markdown(facts, {}, "en")) == (val > 0.9)


def test_a_run_of_which_learning_is_unknown_is_not_called_healthy(make_run) -> None:
    facts = collect([read_run(make_run(steps=15, epochs=0, decades=-0.2))], command="gradlens report")
    assert facts.seen[0].kind == "healthy"
    assert not facts.seen[0].learns
    assert answers(facts, ENGLISH)[0].startswith("net: no fault was found in its gradients; it is unknown whether it")
    assert "healthy gradients" not in make_markdown(facts, {}, "en")


def test_a_heatmap_on_the_first_screen_is_there_for_wide_and_narrow_windows(make_run) -> None:
    one = page_of(make_run("a", seed=-1))
    assert re.findall(r'<figure class="(answer[^"]*)"', one) == ["answer wide", "answer narrow"]
    two = page_of(make_run("b", seed=-1), make_run("c", seed=-1))
    assert re.findall(r'<figure class="(answer[^"]*)"', two) == ["answer"]


def test_the_first_screen_has_the_answer_and_a_figure_in_the_colours_of_the_page(make_run) -> None:
    page = page_of(make_run())
    assert page.index('<ul class="lead">') < page.index("<svg ") < page.index("<nav ")
    figure = page[page.index("<svg ") : page.index("</svg>")]
    assert "var(--ink)" in figure
    assert "#222222" not in figure
    assert "<metadata" not in figure
    assert "<svg " not in page_of(make_run("none", change=lambda grid: grid * np.nan))


def test_the_library_is_as_published_and_its_licence_travels_with_it() -> None:
    readme = (VENDOR / "README.md").read_text()
    code = gzip.decompress((VENDOR / "echarts.min.js.gz").read_bytes())
    assert hashlib.sha256(code).hexdigest() in readme
    assert f"Apache ECharts {ECHARTS}," in readme
    assert f'version="{ECHARTS}"'.encode() in code
    assert "Apache License" in (VENDOR / "LICENSE").read_text()[:200]
    assert "Apache ECharts" in (VENDOR / "NOTICE").read_text()
    assert "</script" not in library_code()
    assert "<!--" not in library_code()


def test_what_fills_a_place_is_not_filled_again() -> None:
    assert fill("{{a}}-{{b}}", {"a": "{{b}}", "b": r"\1"}) == r"{{b}}-\1"


@pytest.mark.parametrize("text", [*ATTACKS, "<!--", "]]>", "\u2029"])
def test_json_in_a_page_holds_no_markup(text: str) -> None:
    encoded = safe_json({text: text})
    assert not set("<>&\u2028\u2029") & set(encoded)
    assert json.loads(encoded) == {text: text}


def test_plain_and_residual_groups_of_equal_depth_are_compared(make_run) -> None:
    runs = [
        read_run(make_run(f"{model}{depth}-s{seed}", model=f"{model}{depth}", seed=seed, accuracy=accuracy))
        for model, accuracy in (("plain", 0.5), ("resnet", 0.75))
        for depth in (20, 32, 44)
        for seed in (0, 1)
    ]
    facts = collect(runs, command="gradlens report")
    assert [(a.model, b.model) for a, b in compared_groups(facts)] == [
        (f"plain{d}", f"resnet{d}") for d in (20, 32, 44)
    ]
    assert sum("+0.250 [+0.250, +0.250]" in sentence for sentence in analysis(facts, ENGLISH)) == 3
    assert opening(facts, ENGLISH)[0] == "12 runs of 6 settings and 6 models."
    assert "between 0.400 (plain20) and 0.600 (resnet44)" in opening(facts, ENGLISH)[1]
    others = collect([read_run(make_run(name, model=name)) for name in ("a", "b")], command="gradlens report")
    assert [(a.model, b.model) for a, b in compared_groups(others)] == [("a", "b")]
    alone = collect(runs[:2], command="gradlens report")
    assert compared_groups(alone) == []


def test_the_first_runs_of_two_settings_are_shown_together_even_if_one_recorded_nothing(make_run) -> None:
    runs = [make_run(f"{model}-s{seed}", model=model, seed=seed) for model in ("a", "b") for seed in (0, 1)]
    runs[1] = make_run("a-s1", folder="empty", model="a", seed=1, change=lambda grid: grid * np.nan)
    found = payload(collect([read_run(run) for run in runs], command="gradlens report"))
    labels = [run["label"] for run in found["runs"]]
    assert labels[0] == "a, seed 0"
    assert labels[found["second"]] == "b, seed 0"
    assert found["last_step"] == 19
    one = payload(collect([read_run(runs[0])], command="gradlens report"))
    assert one["second"] == -1


def test_where_no_epochs_were_logged_the_curves_are_scalars_over_steps(make_run) -> None:
    runs = [read_run(make_run(f"net-s{seed}", seed=seed, steps=40, epochs=0)) for seed in (0, 1)]
    reader = Reader(make_page(collect(runs, command="gradlens report"), "en"))
    loss = reader.data["curves"][0]
    assert (loss["title"], loss["unit"], loss["places"]) == ("loss", "step", list(range(40)))
    (group,) = loss["groups"]
    assert len(group["mean"]) == len(group["said"]) == 40
    assert group["mean"][0] == pytest.approx(np.mean([run.scalars["loss"][0] for run in runs]), abs=1e-4)
    assert "loss over steps" in [attributes.get("aria-label") for _, attributes in reader.elements]
