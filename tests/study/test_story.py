"""The story of the study: each of its numbers is computed from values of single runs that are kept here."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from experiments.story.draw import draw
from experiments.story.values import FIGURES, RESULTS, ends_of, gain, needed, percent, share, story
from gradlens.cli import run_command
from gradlens.plots.style import house_style

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")


def the_story() -> str:
    found = re.search(r"kept here -->\n(.*)<!-- end of the story -->", PAGE, re.DOTALL)
    assert found
    return found[1]


def test_the_story_has_five_numbers_that_the_kept_runs_give() -> None:
    text = the_story()
    values = story()
    assert len(values) == 5
    bold = re.findall(r"\*\*([^*]*\d[^*]*)\*\*", " ".join(text.split()))
    assert sorted(bold) == sorted(values.values())
    assert len(text.split()) <= 300


def test_the_numbers_agree_with_a_second_way() -> None:
    """scipy's quantile and plain arithmetic, from the JSON files as they are."""
    runs = json.loads((FIGURES / "full-compare.json").read_text(encoding="utf-8"))["runs"]
    ends = {(run["model"], run["seed"]): run["last_epoch"]["val_accuracy"] for run in runs}
    gains = np.array([ends["resnet34", seed] - ends["plain34", seed] for seed in range(5)])
    half = t.ppf(0.975, 4) * gains.std(ddof=1) / np.sqrt(5)
    found = gain("full-compare")
    assert [found.mean, found.low, found.high] == pytest.approx(
        [gains.mean(), gains.mean() - half, gains.mean() + half]
    )
    means = {model: np.mean(list(ends_of("cause-compare").of(model, "val_loss").values()))
             for model in ("plain34", "resnet34-gradonly", "resnet34")}  # fmt: skip
    assert share("resnet34-gradonly", "val_loss").mean == pytest.approx(
        (means["resnet34-gradonly"] - means["plain34"]) / (means["resnet34"] - means["plain34"])
    )


def test_the_page_says_what_is_computed() -> None:
    table = PAGE[PAGE.index("## The halves of the shortcut") :]
    for column, name in (("val_accuracy", "final validation accuracy"), ("val_loss", "final validation loss")):
        halves = " | ".join(percent(share(f"resnet34-{half}only", column)) for half in ("grad", "value"))
        assert f"| {name} | {halves} |" in table
    for name, seeds in needed().items():
        (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {name}"))
        assert f"--seeds 10-{seeds + 9:.0f} DATA`: {seeds:.0f} seeds" in line  # 0 to 9 were looked at: PLAN.md


def test_the_figure_shows_the_shares() -> None:
    with house_style():
        (panel,) = draw().axes
    shown = [text.get_text() for text in panel.texts]
    assert shown[:6] == ["-27 %", "55 %", "37 %", "33 %", "48 %", "38 %"]
    assert json.loads((FIGURES / "story.json").read_text(encoding="utf-8"))["command"].startswith("python experiments/")


@pytest.mark.slow
def test_a_kept_ratio_is_measured_again(capsys: pytest.CaptureFixture[str]) -> None:
    with (RESULTS / "first-step.csv").open(encoding="utf-8") as file:
        (kept,) = (row for row in csv.DictReader(file) if (row["model"], row["seed"]) == ("plain34", "0"))
    assert run_command(["probe", "plain34", "--data", "patterns", "--seed", "0", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["decades"] == pytest.approx(float(kept["decades"]), abs=0.02)
