"""The instrument works without its study: only what a study can say is missing then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gradlens.run import Run
from gradlens.storage import read_runs
from gradlens.studies import find_study, judge_pairs, pairs
from tests.processes import PATIENCE

HIDDEN = """
import json, sys
import gradlens

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "gradlens.study" or name.startswith("gradlens.study."):
            raise ModuleNotFoundError(f"No module named {name!r}", name="gradlens.study")

sys.meta_path.insert(0, Hide())
from gradlens.cli import run_command
codes = {" ".join(one): run_command(one) for one in json.loads(sys.argv[1])}
card = gradlens.read_run("runs/plain34-s0.h5")._repr_html_()
comparison = gradlens.compare("runs")._repr_html_()
assert not any(name.startswith("gradlens.study.") for name in sys.modules)
print("FOUND", json.dumps({"codes": codes, "cards": ["plain34" in card, "resnet34" in comparison]}))
"""
WORK = [
    ["ls"], ["summary"], ["diagnose"], ["compare", "--with-study"], ["profile"], ["heatmap"],
    ["report", "-o", "report.html", "-o", "report.md", "-o", "report.pdf"], ["report", "--lang", "id", "-o", "id.md"],
]  # fmt: skip


@pytest.fixture
def two_nets(make_run) -> list[Run]:
    for model in ("plain34", "resnet34"):
        make_run(f"{model}-s0", model=model, seed=0)
    return read_runs("runs")


@pytest.mark.slow
def test_without_the_study_all_else_works(two_nets: list[Run], tmp_path: Path) -> None:
    arguments = json.dumps([*WORK, ["claims"]])
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN, arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "FOUND" in done.stdout, done.stderr
    found = json.loads(done.stdout.rpartition("FOUND")[2])
    assert found["codes"] == {**{" ".join(one): 0 for one in WORK}, "claims": 2}, done.stderr
    assert found["cards"] == [True, True]
    assert "there are no claims to judge" in done.stderr
    for name in ("report.html", "report.md", "id.md"):
        assert "original study" not in (tmp_path / name).read_text(encoding="utf-8")
    assert (tmp_path / "report.pdf").stat().st_size > 1000


def test_the_study_says_what_it_compares(two_nets: list[Run]) -> None:
    study = find_study()
    assert study is not None
    assert [(a.model, b.model) for a, b in pairs(two_nets)] == [("plain34", "resnet34")]
    judgement = judge_pairs(two_nets)
    assert judgement is not None
    assert [one.claim.key for one in judgement.claims] == list("ABCDE")
    assert judge_pairs(two_nets[:1]) is None
    assert {reference.model for reference in study.references} == {"plain34", "resnet34"}
    assert study.words["en"].keys() <= study.words["id"].keys()
