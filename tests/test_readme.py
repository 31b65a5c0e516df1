"""The README is the front door: short, its commands parse, its code runs, its card and its numbers are true."""

from __future__ import annotations

import importlib.util
import json
import re
import statistics
from pathlib import Path

import pytest

import gradlens
from tests.test_guides import parse, python_blocks, shell_lines, your_names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARDS = ROOT / "docs" / "symptoms" / "first-layers-do-not-learn.md"
RESULTS = ROOT / "experiments" / "beside" / "results.json"


def test_it_is_short() -> None:
    lines = README.splitlines()
    assert len(README.split()) <= 1200
    assert len(lines) <= 200
    assert statistics.median(len(line) for line in lines if line) <= 80


@pytest.mark.parametrize("line", shell_lines(ROOT / "README.md"))
def test_every_command_line_parses(line: str) -> None:
    parse(line)


def test_the_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (loop,) = python_blocks(ROOT / "README.md")
    names = your_names()
    exec(compile(loop, "README.md", "exec"), names)
    run = gradlens.read_run("run.h5")
    assert run.metric("activation_grad_norm").shape == (len(names["loader"]), 2)
    assert run.status == "complete"
    assert capsys.readouterr().out.startswith("run: undecided")


def test_the_card_is_the_one_that_the_program_of_the_page_prints() -> None:
    """``tests/test_symptoms.py`` runs that program."""
    (card,) = re.findall(r"^```text\n(.*?)^```$", README, flags=re.M | re.S)
    assert card in CARDS.read_text(encoding="utf-8")


def test_the_numbers_of_the_comparison_are_those_that_were_measured() -> None:
    rows = {row[0]: row[1:] for line in README.splitlines() if (row := [c.strip() for c in line.split("|")[1:-1]])}
    answers = list(json.loads(RESULTS.read_text(encoding="utf-8"))["answers"].values())
    left = next(row for title, row in rows.items() if title.startswith("killed after"))
    assert left == [str(answer["kill"]["rows"]) for answer in answers]
    moment = next(row for title, row in rows.items() if title.startswith("4 micro-batches"))
    assert [float(cell.split(",")[0]) for cell in moment] == [answer["moment"]["per_step"] for answer in answers]
    assert answers[0]["moment"]["largest_error"] < 1e-6
    cost = next(row for title, row in rows.items() if title.startswith("step time"))
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    for cell, name in zip(cost, ("gradlens, every step", "p.grad.norm", "wandb.watch", "TensorBoard"), strict=True):
        line = next(line for line in page.splitlines() if line.startswith("|") and name in line)
        for ratio in cell.split(", "):
            assert f" {ratio} (" in line, (ratio, line)


def test_the_comparison_can_be_measured_again() -> None:
    spec = importlib.util.spec_from_file_location("beside", RESULTS.with_name("measure.py"))
    assert spec is not None
    assert spec.loader is not None
    measure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measure)
    ours, by_hand = (measure.ask(way, parts=4, clip=True) for way in (measure.Gradlens, measure.ByHand))
    assert (ours["per_step"], by_hand["per_step"]) == (1, 4)
    assert ours["largest_error"] < 1e-6 < 0.1 < by_hand["largest_error"]
    assert measure.ask(measure.Gradlens, inner=True)["per_step"] == 1
    assert measure.ask(measure.Gradlens, nan=True)["at_nan"] == ["inf"]


def test_the_two_commands_stand_on_the_first_screen() -> None:
    first = README[:2000]
    assert "gradlens run plain34 && .venv/bin/gradlens heatmap" in first
    assert ".venv/bin/pytest" in first
    assert "<!-- the test command -->" in first


def test_every_link_leads_somewhere_and_every_figure_has_its_facts() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for figure in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / figure).with_suffix(".json").exists(), f"{figure}: no JSON beside it"
    for figure in (ROOT / "figures").glob("*.png"):
        assert figure.with_suffix(".json").exists(), figure.name
