"""``gradlens diagnose``: formats, gates, rule packs, mistakes."""

from __future__ import annotations

import csv
import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest

from gradlens.cli import run_command
from gradlens.diagnosis.kinds import KINDS
from gradlens.terminal.junit import junit


@pytest.fixture
def two_runs(make_run) -> None:
    def change(grid: np.ndarray) -> np.ndarray:
        grid[7, :2] = np.inf
        return grid

    make_run("fine", decades=0.0)
    make_run("odd", decades=0.0, change=change)


@pytest.mark.usefixtures("two_runs")
def test_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["diagnose", "fine", "odd"]) == 0
    out = capsys.readouterr().out
    for said in ("fine", "healthy", "odd", "nonfinite", "confidence 1.00", "why ", "next ", "Evidence", "IEEE 754"):
        assert said in out
    assert run_command(["diagnose"]) == 0
    assert "odd" in capsys.readouterr().out


@pytest.mark.usefixtures("two_runs")
def test_json_and_csv(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["diagnose", "runs", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [item["kind"] for item in facts] == ["healthy", "nonfinite"]
    finding = facts[1]["findings"][0]
    assert (finding["first_step"], finding["first_layer"], finding["confidence"]) == (7, "stage0.1", 1.0)
    assert run_command(["diagnose", "runs", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["run"], row["kind"]) for row in rows] == [("fine", "healthy"), ("odd", "nonfinite")]
    assert rows[1]["layers"] == "stage0.1;stage0.0"


@pytest.mark.usefixtures("two_runs")
def test_junit(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["diagnose", "runs", "--format", "junit"]) == 0
    root = ElementTree.fromstring(capsys.readouterr().out)
    assert [(s.get("name"), s.get("tests"), s.get("failures")) for s in root] == [
        ("fine", "14", "0"),
        ("odd", "14", "1"),
    ]
    assert [case.get("name") for case in root[1]] == list(KINDS)
    failed = [case for case in root[1] if case.find("failure") is not None]
    assert [case.get("name") for case in failed] == ["nonfinite"]
    assert "threshold: any NaN" in (failed[0].find("failure").text or "")


def test_junit_of_odd_names_and_undecided_runs(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("few", steps=3)
    assert run_command(["diagnose", "few", "--format", "junit"]) == 0
    root = ElementTree.fromstring(capsys.readouterr().out)
    assert root.get("skipped") == "14"
    from gradlens.diagnosis.findings import Diagnosis

    assert ElementTree.fromstring(junit([Diagnosis("a\x00<b>&\u00e9", (), 0, "")]))[0].get("name") == "a?<b>&\u00e9"


@pytest.mark.usefixtures("two_runs")
@pytest.mark.parametrize(
    ("gates", "code"),
    [("nonfinite", 3), ("vanishing, nonfinite", 3), ("any", 3), ("vanishing", 0), ("undecided", 0)]
)  # fmt: skip
def test_gates(gates: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["diagnose", "runs", "--fail-on", gates]) == code
    assert ("odd is nonfinite" in capsys.readouterr().err) == (code == 3)


@pytest.mark.parametrize("gates", ["", " ", "vanishing,", ",", ",nonfinite", "vanishing, ,any"])
def test_a_gate_without_a_name_is_wrong_usage(gates: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As where a script's variable is not set; before any run is looked for."""
    assert run_command(["diagnose", "runs", "--fail-on", gates]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"--fail-on {gates!r}: a kind is missing; expected some of cut" in err
    assert err.rstrip().endswith("undecided, learning, any")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("two_runs")
def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["diagnose", "--fail-on", "sad"]) == 2
    assert "unknown kind 'sad'; expected some of cut" in capsys.readouterr().err
    assert run_command(["diagnose", "--rules", "none"]) == 2


@pytest.mark.usefixtures("two_runs")
@pytest.mark.parametrize("pack", ["smdebug", "autotrainer", "deepchecker", "deepdiagnosis"])
def test_rule_packs(pack: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["diagnose", "runs", "--rules", pack, "--fail-on", "nonfinite"]) == 3
    assert f"by the rules of {pack}" in capsys.readouterr().out
