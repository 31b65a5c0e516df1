"""A rank that goes its own way is named, and holds nobody up for long (rank_fault_cases.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

import gradlens
from gradlens.errors import ConfigError
from gradlens.recorder.ranks.distributed import TIMEOUT, find_patience
from tests.processes import PATIENCE
from tests.recorder.rank_fault_cases import FAULT, PATIENCE_S, STEPS, TASKS, WORLD

ROOT = Path(__file__).parents[2]
slow = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not hasattr(os, "fork"), reason="no gloo"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    command = [sys.executable, "-m", "tests.recorder.rank_fault_cases", str(folder), *TASKS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class TestFaults:
    pytestmark = slow

    def test_all_ranks_train_to_the_end(self, folder: Path) -> None:
        for rank in range(WORLD):
            found = json.loads((folder / f"rank{rank}.json").read_text())
            wanted = dict.fromkeys(TASKS, STEPS) | {"join-none": 0 if rank == 1 else STEPS}
            assert {task: found[task]["steps"] for task in TASKS} == wanted
            assert all(not found[task]["said"] for task in ("right", "bypassed", "other-rate"))
            assert all(found[task]["seconds"] < 15 * PATIENCE_S for task in TASKS)

    def test_ranks_that_agree_give_no_finding(self, folder: Path) -> None:
        run = gradlens.read_run(folder / "right.h5")
        assert run.facts["ranks"] == {"world": WORLD, "compared": 2}
        assert run.status == "complete"
        assert "out_of_sync" not in gradlens.diagnose(run).kinds

    @pytest.mark.parametrize(("task", "who"), [("bypassed", []), ("other-rate", [1])])
    def test_weights_that_differ_are_found_at_the_first_step(self, task: str, who: list[int], folder: Path) -> None:
        run = gradlens.read_run(folder / f"{task}.h5")
        found = run.facts["ranks"]["out_of_sync"]
        assert (found["step"], found["last_step"], found["rows"]) == (FAULT, STEPS - 1, STEPS - FAULT)
        assert found["ranks"] == who
        assert sorted(found["layers"]) == ["0", "3"]
        finding = gradlens.diagnose(run).of_kind("out_of_sync")[0]
        assert finding.layers == tuple(found["layers"])
        assert finding.steps == (FAULT, STEPS - 1)
        assert ("rank 1" in finding.evidence) == bool(who)

    def test_a_rank_that_ends_its_recording_ends_that_of_the_others(self, folder: Path) -> None:
        run = gradlens.read_run(folder / "leaves.h5")
        assert run.steps.tolist() == list(range(FAULT))
        assert run.info["notes"][0].startswith(
            f"recording ended at step {FAULT}: another rank has ended, or has ended its recording ("
        )

    @pytest.mark.parametrize("task", ["skips"])
    def test_a_silent_rank_ends_the_recording_and_not_the_training(self, task: str, folder: Path) -> None:
        run = gradlens.read_run(folder / f"{task}.h5")
        assert run.status == "failed"
        assert run.steps.tolist() == list(range(FAULT))
        assert run.info["notes"] == [
            f"recording ended at step {FAULT}: rank 1 did not bring this row within {PATIENCE_S:g} s ({TIMEOUT}): it "
            "skipped optimizer.step(), is slow, or has ended"
        ]
        finding = gradlens.diagnose(run).of_kind("out_of_sync")[0]
        assert finding.steps == (FAULT, FAULT)
        assert "rank 1" in finding.evidence

    def test_join_is_refused_in_one_line(self, folder: Path) -> None:
        for rank in range(WORLD):
            found = json.loads((folder / f"rank{rank}.json").read_text())["join"]
            assert found["seconds"] < PATIENCE_S
            assert found["said"] == [
                "gradlens: recording ended at step 0, training goes on: DistributedDataParallel.join() lets the ranks "
                "take different numbers of steps, so no row has all of them"
            ]

    def test_a_rank_without_a_step_in_join_holds_nobody_up(self, folder: Path) -> None:
        for rank in range(WORLD):
            found = json.loads((folder / f"rank{rank}.json").read_text())["join-none"]
            assert found["seconds"] < PATIENCE_S
            wanted = "no row was recorded" if rank == 1 else "DistributedDataParallel.join() lets the ranks take"
            assert len(found["said"]) == 1
            assert wanted in found["said"][0]

    def test_a_recorder_on_one_rank_alone_is_refused_in_time(self, folder: Path) -> None:
        said = json.loads((folder / "rank0.json").read_text())["alone"]["said"]
        assert len(said) == 1
        assert said[0].startswith(f"RecorderError: the {WORLD} processes that train the model could not connect within")
        assert not (folder / "alone.h5").exists()


@pytest.mark.parametrize("text", ["0", "-1", "soon", "inf", "nan"])
def test_the_time_limit_is_a_number_of_seconds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT, text)
    with pytest.raises(ConfigError, match="must be a number of seconds above 0"):
        find_patience()
