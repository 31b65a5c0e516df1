"""``gradlens claims``: the table, formats, folders in folders, mistakes."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from gradlens.cli import run_command


@pytest.fixture
def study(make_run) -> None:
    """Two seeds of both nets and of each control, below folders of an experiment."""
    for model, decades, folder in (
        ("plain34", 2.0, "report/grouped"),
        ("resnet34", 1.0, "report/grouped"),
        ("plain34-nobn", -6.0, "norm/he"),
        ("plain34-nobn-sigmoid", -20.0, "controls/positive"),
        ("plain8", 0.0, "controls/negative"),
    ):
        for seed in (0, 1):
            path = make_run(
                f"{model}-s{seed}", model=model, seed=seed, decades=decades * 1.25
            )  # of all layers; the last hidden one is the fifth of six
            target = Path("runs") / folder / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)


@pytest.mark.usefixtures("study")
def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(["claims"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    row = next(line for line in out.splitlines() if line.startswith((" A", "A ")))
    assert re.search(r"refuted\s+supported", row)
    assert out.count("control passed") == 2
    words = " ".join(out.replace("│", " ").split())
    assert out.startswith("╭─ The original study's claims, by 10 runs ─")
    assert "│ A, C and D refuted with batch norm; A supported without batch norm · " in out
    order = [" check positive control", " why ", " next ", " Verdicts ", " Evidence "]
    assert sorted(order, key=words.index) == order
    assert words.count("gradlens run cause") == 1
    for said in ("10^2.0", "10^-6.0", "shortcut_grad_norm"):
        assert said in out
    assert run_command(["claims", "--detail"]) == 0
    out = capsys.readouterr().out
    for said in ("for: ", "against: ", "reason: ", "AutoTrainer", "n = 2"):
        assert said in out


@pytest.mark.usefixtures("study")
def test_json_and_csv(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["claims", "runs/report", "runs/norm", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == 6
    assert [one["key"] for one in found["claims"]] == list("ABCDE")
    assert found["claims"][0]["overall"]["without batch norm"]["verdict"] == "supported"
    assert [control["passed"] for control in found["controls"]] == [None, None]
    assert run_command(["claims", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["claim"] for row in rows} == set("ABCDE")
    first = rows[0]
    assert (first["verdict"], first["unit"], first["n"]) == ("refuted", "decades", "2")
    assert float(first["value"]) == pytest.approx(2.0, abs=0.05)


def test_runs_of_other_nets_are_a_clear_mistake(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("mine", model="mine")
    assert run_command(["claims", "mine"]) == 2
    err = capsys.readouterr().err
    assert "no complete run of a plain or residual network, such as plain34 and resnet34, is among 1 run" in err
    assert "Traceback" not in err
    assert run_command(["claims", "nowhere"]) == 1
    assert "there is no such run" in capsys.readouterr().err


@pytest.mark.usefixtures("study")
def test_a_folder_of_folders_stands_for_all_runs_below(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["diagnose", "runs/report", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4
    hidden = Path("runs/report/.trash")
    hidden.mkdir()
    shutil.copy("runs/report/grouped/plain34-s0.h5", hidden)
    assert run_command(["diagnose", "runs/report", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4


@pytest.mark.usefixtures("study")
def test_runs_in_folders_below_are_listed_by_the_name_that_finds_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(["ls", "--format", "csv"]) == 0
    names = [row["run"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert "report/grouped/plain34-s0" in names
    assert run_command(["summary", names[0]]) == 0
    assert run_command(["ls"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "controls/positive/plain34-nobn-s" in out
    for wanted in ("plain34-s0", "grouped/plain34-s0", "plain34-s0.h5"):
        assert run_command(["summary", wanted]) == 1
        err = capsys.readouterr().err
        assert "there is no such run" in err
        assert "in folders below runs there is report/grouped/plain34-s0" in err
    shutil.copytree("runs/report", "runs/again")
    assert run_command(["summary", "plain34-s0"]) == 1
    assert "there are again/grouped/plain34-s0, report/grouped/plain34-s0" in capsys.readouterr().err
