"""Several processes record together what one records of the whole batch (distributed_recording_cases.py)."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

import gradlens
from gradlens.metrics import METRICS
from gradlens.run import Run
from tests.processes import PATIENCE
from tests.recorder.distributed_recording_cases import CASES, FAILING, STEPS, build, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not hasattr(os, "fork"), reason="no gloo"),
    pytest.mark.usefixtures("one_thread"),
]

ROOT = Path(__file__).parents[2]
QUICK = (
    "ddp-unused", "ddp-clip-late", "ddp-scaler-first", "fsdp-clip-parts", "static-clip", "view-clip-parts", "ddp-zero",
)  # fmt: skip
COUNTED = ("ddp-count-scaler", "fsdp-count-clip-parts")
ERRORS = ("ddp-error-hook-warn-1", "fsdp-error-columns-raise-1")
MORE_ERRORS = (
    "ddp-error-hook-raise-1", "ddp-error-hook-raise-0", "ddp-error-read-warn-0", "ddp-error-columns-raise-1",
    "ddp-error-sink-warn-0", "ddp-error-sink-raise-0", "ddp-error-epoch-raise-0", "ddp-error-weights-raise-1",
    "fsdp-error-hook-raise-0", "fsdp-error-weights-warn-1", "fsdp-error-read-raise-1",
)  # fmt: skip
QUICK_DEATH = "ddp-die-1"
DEATHS = ("ddp-die-0", "fsdp-die-0", "fsdp-die-1")
DEATHS_OF_FOUR = ("ddp-die-3", "fsdp-die-2")
ALL = tuple(f"{kind}-{name}" for kind in ("ddp", "fsdp") for name in CASES if (kind, name) != ("fsdp", "zero"))
OF_FOUR = ALL[::3]
"""Every third training, of both kinds: four processes take long on two cores."""


class Together:
    """What several processes made of some trainings."""

    def __init__(self, folder: Path, world: int, tasks: tuple[str, ...]) -> None:
        self.folder, self.world = folder, world
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.recorder.distributed_recording_cases", str(folder), str(world), *tasks]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=3 * PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr

    def read(self, task: str, folder: str = "") -> Run:
        return gradlens.read_run(self.folder / folder / "of-rank-0" / f"{task}.h5")

    def codes(self, folder: str = "") -> list[int]:
        codes: list[int] = json.loads((self.folder / folder / "codes.json").read_text())
        return codes

    @functools.cached_property
    def found(self) -> list[dict[str, Any]]:
        said = [(self.folder / f"rank{rank}.txt").read_text() for rank in range(self.world)]
        assert self.codes() == [0] * self.world, said
        return [json.loads((self.folder / f"rank{rank}.json").read_text()) for rank in range(self.world)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Together:
    return Together(tmp_path_factory.mktemp("two"), 2, (*QUICK, *COUNTED, *ERRORS, QUICK_DEATH))


@pytest.fixture(scope="module")
def all_of_two(tmp_path_factory: pytest.TempPathFactory) -> Together:
    return Together(tmp_path_factory.mktemp("all"), 2, (*ALL, *MORE_ERRORS, *DEATHS))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Together:
    return Together(tmp_path_factory.mktemp("four"), 4, (*OF_FOUR, *COUNTED, *ERRORS, *MORE_ERRORS, *DEATHS_OF_FOUR))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that trains in one process, on the whole batch."""
    folder = tmp_path_factory.mktemp("alone")

    @functools.cache
    def train(name: str) -> Run:
        options = {"every": 1} if CASES[name].every == "auto" else {}
        run(CASES[name], build(CASES[name]), folder / f"{name}.h5", **options)
        return gradlens.read_run(folder / f"{name}.h5")

    return train


def assert_same_metric(kind: str, metric: str, got: Run, whole: Run, rows: Any) -> None:
    expected = whole.metric(metric)[rows]
    if metric == "zero_fraction" and kind == "fsdp":  # it puts operations of its own behind functional activations
        expected = np.where(np.isnan(got.metric(metric)), np.nan, expected)
    np.testing.assert_allclose(got.metric(metric), expected, rtol=1e-5, err_msg=metric)


def assert_equal(task: str, together: Together, whole: Run) -> None:
    got = together.read(task)
    kind, _, name = task.partition("-")
    case = CASES[name]
    assert got.status == "complete"
    assert got.layers == whole.layers
    assert [layer.name for layer in got.layers][:2] == ["conv1", "stage.0"]
    assert got.info["environment"]["world_size"] == together.world
    assert got.model == "net"
    assert list(got.metrics) == list(whole.metrics)
    assert [found[task] for found in together.found] == [[len(got.steps), case.steps]] * together.world
    rows = np.searchsorted(whole.steps, got.steps)
    np.testing.assert_array_equal(whole.steps[rows], got.steps)
    for metric in got.metrics:
        if case.every == "auto" and METRICS[metric].every > 1:
            continue  # every so many rows, and these are other rows
        assert_same_metric(kind, metric, got, whole, rows)
    for name in ("lr", "skipped"):
        if name in whole.scalars:
            np.testing.assert_array_equal(got.scalars[name], whole.scalars[name][rows])
    if case.clip >= 0:  # unknown until it is seen that something clips
        # A list-wise operation on sharded gradients leaves no trace but their values: looked at every 16th row.
        known = (16 if kind == "fsdp" else case.clip + 1) if case.clip else 0
        coefficients = whole.scalars["clip_coefficient"][known:]
        assert (coefficients < 0.999).all()
        found_coefficients = got.scalars.get("clip_coefficient", np.full(case.steps, np.nan))
        np.testing.assert_allclose(found_coefficients[known:], coefficients, rtol=1e-5)
    else:
        assert "clip_coefficient" not in got.scalars or (got.scalars["clip_coefficient"] == 1).all()


@pytest.mark.parametrize("task", QUICK)
def test_two_ranks_record_what_one_process_records_of_the_whole_batch(task: str, two: Together, alone) -> None:
    assert_equal(task, two, alone(task.partition("-")[2]))


@pytest.mark.slow
@pytest.mark.parametrize(("world", "task"), [*(("all_of_two", t) for t in ALL), *(("four", t) for t in OF_FOUR)])
def test_all_trainings_on_two_and_four_ranks(task: str, world: str, alone, request: pytest.FixtureRequest) -> None:
    assert_equal(task, request.getfixturevalue(world), alone(task.partition("-")[2]))


def assert_few_collectives(task: str, together: Together) -> None:
    for found in together.found:
        (without, in_passes), (with_, in_passes_too) = found[task]["without"], found[task]["with"]
        assert in_passes == without > 0
        assert in_passes_too == in_passes  # none in a hook of forward or backward pass
        assert with_ - without == found[task]["rows"] == STEPS


@pytest.mark.parametrize("task", COUNTED)
def test_a_row_costs_one_collective_and_a_hook_none(task: str, two: Together) -> None:
    assert_few_collectives(task, two)


@pytest.mark.slow
@pytest.mark.parametrize("task", COUNTED)
def test_a_row_of_four_ranks_costs_one_collective(task: str, four: Together) -> None:
    assert_few_collectives(task, four)


def test_rank_0_writes_and_no_other(two: Together) -> None:
    assert two.found
    assert [path.name for path in two.folder.glob("of-rank-*")] == ["of-rank-0"]
    files = {path.name for path in (two.folder / "of-rank-0").iterdir()}
    assert files == {f"{task}.h5" for task in (*QUICK, *COUNTED, *ERRORS) if "weights" not in task}


def ended_at(end: Mapping[str, Any]) -> int:
    """Return the step at which a recording ended: of its warning, else that of the error, the last one."""
    return int(re.findall(r"at step (\d+)", end["said"][0])[0]) if end["said"] else end["steps"] - 1


def assert_ended_together(task: str, together: Together) -> None:
    _, _, where, on_error, broken_rank = task.split("-")
    local, elsewhere = "OSError: no space left", "recording failed on another rank"
    steps = {"weights": 0, "epoch": 5}.get(where, 3)  # an epoch's end waits for the writing thread
    if where == "sink":  # the writing thread fails on the fourth row at the earliest; the end of the epoch waits for it
        steps = ended_at(together.found[0][task])
        assert steps in (4, 5)
    for rank, found in enumerate(together.found):
        end, reason = found[task], local if rank == int(broken_rank) else elsewhere
        assert not end["hooked"]
        if on_error == "warn":
            assert end["steps"] == FAILING.steps
            assert end["said"] == [f"gradlens: recording ended at step {steps}, training goes on: {reason}"]
        else:
            assert end["raised"] == (reason if reason == local else f"RecorderError: {reason}")
            assert end["steps"] == steps + 1
    if where in ("weights", "sink"):  # nothing was written before the error
        assert not (together.folder / "of-rank-0" / f"{task}.h5").exists()
        return
    run = together.read(task)
    assert run.status == "failed"
    assert run.steps.tolist() == list(range(steps))
    if where != "epoch":  # there it is the file that failed
        reason = local if broken_rank == "0" else elsewhere
        assert run.info["notes"] == [f"recording ended at step {steps}: {reason}"]


@pytest.mark.parametrize("task", ERRORS)
def test_an_error_on_one_rank_ends_the_recording_of_all(task: str, two: Together) -> None:
    assert_ended_together(task, two)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "world"), [*((e, "all_of_two") for e in MORE_ERRORS), *((e, "four") for e in (*ERRORS, *MORE_ERRORS))]
)
def test_more_errors_on_one_rank(task: str, world: str, request: pytest.FixtureRequest) -> None:
    assert_ended_together(task, request.getfixturevalue(world))


def assert_readable(task: str, together: Together, whole: Run) -> None:
    dying = int(task.rpartition("-")[2])
    codes = together.codes(task)
    assert codes[dying] == -9
    assert 0 not in codes
    got = together.read(task, task)
    rows = 11 if dying == 0 else 12  # the last row is open until the next, for scalars
    assert got.status == ("interrupted" if dying == 0 else "failed")
    assert got.steps.tolist() == list(range(rows))
    for metric in got.metrics:
        assert_same_metric(task.partition("-")[0], metric, got, whole, slice(rows))


def test_a_rank_that_is_killed_leaves_a_readable_file(two: Together, alone) -> None:
    assert_readable(QUICK_DEATH, two, alone("adam"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "world"), [*((task, "all_of_two") for task in DEATHS), *((task, "four") for task in DEATHS_OF_FOUR)]
)
def test_any_rank_may_be_killed(task: str, world: str, alone, request: pytest.FixtureRequest) -> None:
    assert_readable(task, request.getfixturevalue(world), alone("adam"))
