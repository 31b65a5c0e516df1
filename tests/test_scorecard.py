"""The score card counts right, and its harness runs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gradlens
from tests.processes import PATIENCE

CARD = Path(__file__).parent.parent / "experiments" / "scorecard"


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(CARD))
    monkeypatch.delitem(sys.modules, "score", raising=False)
    module = importlib.import_module("score")
    monkeypatch.delitem(sys.modules, "score")
    return module


def test_wilson_intervals_by_hand(counting: ModuleType) -> None:
    # 8 of 10 at z = 1.96: (0.8 + 0.19208 +- 1.96 sqrt(0.016 + 0.0096040)) / 1.38416
    assert counting.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert counting.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert counting.wilson(10, 10)[1] == pytest.approx(1.0)
    assert counting.wilson(0, 0) == (0.0, 1.0)


def test_scores_by_hand(counting: ModuleType) -> None:
    def answer(truth: str, findings: list[tuple[str, str]], layers: str = "", early: dict | None = None) -> object:
        kept = {rows: tuple(kinds) for rows, kinds in (early or {}).items()}
        return counting.Answer("s", 0, "t", frozenset(truth.split()), frozenset(layers.split()), tuple(findings), kept)

    score = counting.score(
        [
            answer("dead", [("dead", "a")], "a b", {10: ["vanishing"], 20: ["dead"], 30: ["dead"]}),
            answer("vanishing", [("dead", "a"), ("vanishing", "c")], "a"),  # kind only beside another, layer wrong
            answer("frozen unused", [("unused", "x")], "", {10: ["unused"]}),
            answer("exploding", []),  # missed
            answer("", [], "", {10: ["dead"], 20: []}),  # an alarm that passes
            answer("", [("frozen", "a")]),
            answer("", []),
        ]
    )
    counted = {name: (share.hits, share.of) for name, share in vars(score).items() if name != "steps"}
    assert counted == {
        "precision": (3, 4), "strict_precision": (2, 4), "recall": (3, 4), "strict_recall": (2, 4), "any_kind": (3, 4),
        "first_layer": (1, 2), "false_alarms": (1, 3), "false_alarms_early": (2, 3), "in_time": (2, 4),
    }  # fmt: skip
    assert score.steps == 15  # of 20 and 10
    assert math.isnan(counting.score([]).precision.value)


def test_what_a_fault_costs(counting: ModuleType) -> None:
    assert counting.lost(1.5, 1.0, 2.0) == pytest.approx(0.5)
    assert counting.lost(1.0, 1.0, 2.0) == 0
    assert counting.lost(math.nan, 1.0, 2.0) == math.inf


@pytest.mark.slow
def test_the_harness_runs_and_takes_up_what_is_there(tmp_path: Path) -> None:
    command = [sys.executable, str(CARD / "card.py"), "--seeds", "0,3", "--steps", "60", "--jobs", "1"]
    command += ["--subject", "linear-regression", "frozen-stem", "stem", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(
        [*command, "-o", str(tmp_path)], capture_output=True, text=True, timeout=3 * PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "## tuning seeds 0: 1 faulty runs, 2 healthy ones" in done.stdout
    assert "## held-out seeds 3" in done.stdout
    kept = json.loads((tmp_path / "scorecard.json").read_text(encoding="utf-8"))
    recall = kept["scores"]["tuning seeds 0"]["gradlens"]["recall"]
    assert recall[:2] == [0, 1]  # a stem frozen by the user is a note now; the truth of this card was written before
    assert len(kept["answers"]) == 3 * 2 * 5
    assert all(run["end"] < run["start"] for run in kept["runs"].values())
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(times) == 6
    again = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE, check=False)
    assert again.stdout == done.stdout
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}


@pytest.mark.slow
def test_each_fault_has_a_twin_and_a_reason() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import faults; from healthy import BOOK\n"
    code += "kinds = set('vanishing exploding incoherent dead saturated nonfinite frozen unused'.split())\n"
    code += "all_of = BOOK.subjects.values(); bad = [s for s in all_of if s.faulty]\n"
    code += "assert all(s.kinds <= kinds and not BOOK.subjects[s.twin].faulty and len(s.why) > 20 for s in bad)\n"
    code += "assert len(bad) >= 16 and len(all_of) - len(bad) >= 12"
    done = subprocess.run([sys.executable, "-c", code, str(CARD)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


PROGRAMS = CARD / "programs"


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("programs_card", PROGRAMS / "card.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "programs_card", module)
    monkeypatch.syspath_prepend(str(CARD))
    spec.loader.exec_module(module)
    return module


def test_every_program_has_its_truth(programs: ModuleType) -> None:
    items = programs.programs()
    assert {item.script for item in items} == {*PROGRAMS.glob("faults/*.py"), *PROGRAMS.glob("works/*.py")}
    names = [(item.name, item.variant) for item in items]
    assert len(names) == len(set(names))
    faults = [item for item in items if item.variant == programs.FAULTY]
    assert len(faults) >= 60
    assert len(items) - len(faults) >= 100
    for item in faults:
        assert item.truth["thread"], item.name
        assert len(item.truth["cause"]) > 20, item.name
        assert not re.search(item.truth["says"], "healthy: no fault was found", re.I), item.name
    hard = [item for item in faults if item.truth.get("may_miss")]
    assert len(hard) <= len(faults) / 6
    held = [item for item in items if item.held_out]
    assert 0.3 < len(held) / len(items) < 0.7


def test_a_program_is_judged_by_its_truth(programs: ModuleType, tmp_path: Path) -> None:
    truth = {"says": "plateau", "first_layer": []}
    path = tmp_path / "run.h5"
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradlens.record(model, path, optimizer=optimizer) as recorder:
        for _ in range(150):
            optimizer.zero_grad()
            (model(torch.randn(4, 2)) * torch.randn(4, 1)).mean().backward()
            optimizer.step()
            recorder.log(loss=1 + 0.01 * float(torch.randn(())))
    faulty = programs.ask(programs.Item("a", programs.FAULTY, "x", truth), path, "gradlens")
    assert (faulty.kind, faulty.right, faulty.learning) == ("plateau", True, "no")
    wrong = programs.ask(programs.Item("a", programs.FAULTY, "x", {"says": "clip"}), path, "gradlens")
    assert wrong.alarm
    assert not wrong.right
    assert not programs.ask(programs.Item("a", programs.TWIN, "x", truth), path, "gradlens").right


@pytest.mark.slow
def test_the_card_of_programs_runs(tmp_path: Path) -> None:
    known = {path.stem for path in PROGRAMS.glob("works/*.py")}
    names = f"gradients_never_cleared,{sorted(known)[0]}"
    command = [sys.executable, str(PROGRAMS / "card.py"), "--jobs", "1", "--only", names]
    done = subprocess.run(
        [*command, "--runs", str(tmp_path / "runs"), "-o", str(tmp_path)],
        capture_output=True, text=True, timeout=6 * PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "programs.json").read_text(encoding="utf-8"))["answers"]
    ours = {(a["name"], a["variant"]): a for a in kept if a["tool"] == "gradlens"}
    assert ours["gradients_never_cleared", "faulty"]["right"]
    assert len(ours) == 3


@pytest.fixture
def remedies(programs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "card", programs)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("programs_remedies", PROGRAMS / "remedies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "programs_remedies", module)
    spec.loader.exec_module(module)
    return module


def test_what_advice_does_by_hand(remedies: ModuleType) -> None:
    assert remedies.judge(2.0, 0.1, 0.0, "loss") == ("cured", pytest.approx(0.95))
    assert remedies.judge(2.0, 1.0, 0.0, "loss")[0] == "helped"
    assert remedies.judge(2.0, 1.9, 0.0, "loss")[0] == "no effect"
    assert remedies.judge(2.0, 2.3, 0.0, "loss")[0] == "worse"
    assert remedies.judge(0.1, 0.9, 0.9, "accuracy")[0] == "cured"
    assert remedies.judge(2.0, math.nan, 0.0, "loss")[0] == "worse"
    assert remedies.judge(math.nan, math.nan, 0.0, "loss")[0] == "no effect"


def test_the_trial_of_the_remedies_is_the_one_that_is_shown(programs: ModuleType) -> None:
    entries = tomllib.loads((PROGRAMS / "remedies.toml").read_text(encoding="utf-8"))
    known = {item.name: item for item in programs.programs() if item.variant == programs.FAULTY and not item.held_out}
    for name, entry in entries.items():
        text = known[name.split(",")[0]].script.read_text(encoding="utf-8")
        assert text.count(entry["old"]) == 1, name
        assert entry["new"] != entry["old"]
    kept = json.loads((PROGRAMS / "results" / "remedies.json").read_text(encoding="utf-8"))
    assert {trial["name"].split(",")[0] for trial in kept} == set(known)
    assert {trial["name"] for trial in kept if trial["outcome"] != "no advice"} == set(entries)
    assert all(trial["said"] for trial in kept)
    shown = (PROGRAMS / "README.md").read_text(encoding="utf-8").partition("<!-- trial -->\n")[2]
    assert shown.startswith((PROGRAMS / "results" / "remedies.md").read_text(encoding="utf-8"))
