"""Published copies: whole at every moment, the last state at the end, and no error of theirs ends a recording."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradlens
from gradlens import read_run
from gradlens.cli import run_command
from gradlens.engines.jobs import make_jobs
from gradlens.errors import GradlensWarning, RunExistsError, RunFileError
from gradlens.experiment import read_experiment
from gradlens.run import Header, Row
from gradlens.storage import FileSink, Publisher, follow_run, publish
from gradlens.terminal.listing import folder_rows
from tests.conftest import make_layers

LAYERS = 3


def row(step: int) -> Row:
    return Row(step, 0, {"param_grad_norm": np.full(LAYERS, step + 1.0)}, {"loss": float(step)})


def begin(tmp_path: Path, **options: object) -> tuple[FileSink, Publisher]:
    publisher = Publisher(tmp_path / "shared" / "lab", **options)  # type: ignore[arg-type]
    sink = FileSink(tmp_path / "run.h5", flush_seconds=0, publisher=publisher)
    sink.open(Header(make_layers(LAYERS), {"param_grad_norm": 1}))
    return sink, publisher


def assert_whole(path: Path) -> int:
    run = read_run(path)
    expected = np.repeat(run.steps[:, None] + 1.0, LAYERS, axis=1)
    np.testing.assert_array_equal(run.metric("param_grad_norm"), expected)
    return len(run.steps)


def test_readers_see_whole_copies_that_grow_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "PUBLISH_S", 0.02)
    sink, _ = begin(tmp_path)
    there = tmp_path / "shared" / "lab" / "run.h5"
    seen: list[int] = []
    steps: list[int] = []
    sink.write_row(row(0))
    end = time.monotonic() + 60
    while not there.exists():
        assert time.monotonic() < end
        time.sleep(0.01)

    def follow() -> None:
        for new in follow_run(there, poll=0.01):
            steps.extend(new.steps)

    follower = threading.Thread(target=follow)
    follower.start()
    for step in range(1, 40):
        sink.write_row(row(step))
        seen.append(assert_whole(there))
        time.sleep(0.005)
    assert read_run(there).status == "running"
    assert folder_rows(there.parent)[0]["status"] == "running"
    sink.close("failed")  # as after an exception
    follower.join(60)
    assert sorted(seen) == seen
    assert len(set(seen)) > 2  # the copies grew on the way
    assert steps == list(range(40))  # each row once, however often the file was replaced
    assert (assert_whole(there), read_run(there).status) == (40, "failed")
    assert there.read_bytes() == (tmp_path / "run.h5").read_bytes()
    assert [path.name for path in tmp_path.rglob(".*")] == []


def test_copies_are_seldom_but_for_epochs_and_never_take_more_than_their_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, publisher = begin(tmp_path)
    starts = []
    monkeypatch.setattr(publisher, "_start", lambda copy, remove: (starts.append(copy.name), copy.unlink()))
    for step in range(10):
        sink.write_row(row(step))
    assert len(starts) == 1
    sink.write_epoch({"epoch": 1})
    assert len(starts) == 2
    publisher._cost = 1.0  # at 5 %: the next one in 20 s
    sink.write_epoch({"epoch": 2})
    assert len(starts) == 2
    publisher._began -= 20
    sink.write_epoch({"epoch": 3})
    assert len(starts) == 3
    monkeypatch.undo()
    sink.close("complete")


@pytest.mark.parametrize("fault", ["full", "gone", "silent", "full here"])
def test_a_copy_that_cannot_be_published_is_one_warning_and_the_run_is_whole(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "PUBLISH_S", 0.0)
    monkeypatch.setattr(publish, "SILENT_S", 0.3)
    told: list[str] = []
    sink, publisher = begin(tmp_path, tell=told.append)
    again = threading.Event()
    sync = os.fsync

    def fail(handle: int) -> None:
        if threading.current_thread().name != "gradlens publisher":
            sync(handle)
        elif fault == "silent":
            again.wait(60)
        elif fault == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    if fault == "gone":
        publisher._target = tmp_path / "run.h5" / "below" / "run.h5"
    if fault == "full here":
        monkeypatch.setattr(publish.shutil, "copyfile", refuse)
    begun = time.monotonic()
    for step in range(20):
        sink.write_row(row(step))
        time.sleep(0.005)
    sink.close("complete")
    assert time.monotonic() - begun < 30
    again.set()
    assert publisher._thread is not None
    publisher._thread.join(60)
    assert (assert_whole(tmp_path / "run.h5"), read_run(tmp_path / "run.h5").status) == (20, "complete")
    assert len(told) == 1
    assert "run.h5 cannot be published: " in told[0]
    said = {"full": "No space left", "full here": "No space left", "silent": "no answer for 0.3 seconds"}
    assert said.get(fault, "Not a directory") in told[0]
    if fault == "full here":  # there was room again at the end
        assert assert_whole(publisher._target) == 20


def test_a_recorder_publishes_after_an_exception_and_goes_on_after_a_failure(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(steps: int, **options: object) -> None:
        with gradlens.record(model, tmp_path / "job.h5", optimizer=optimizer, **options):  # type: ignore[arg-type]
            for _ in range(steps):
                optimizer.zero_grad()
                model(torch.ones(3, 4)).sum().backward()
                optimizer.step()
            raise KeyError("stop")

    with pytest.raises(KeyError):
        train(5, publish=tmp_path / "shared")
    run = read_run(tmp_path / "shared" / "job.h5")
    assert (len(run.steps), run.status) == (5, "failed")
    with pytest.raises(KeyError):
        train(4, publish=tmp_path / "shared", resume=True)
    assert len(read_run(tmp_path / "shared" / "job.h5").steps) == 9
    (tmp_path / "job.h5").unlink()
    with pytest.raises(RunExistsError, match=r"job\.h5 already exists; nothing was overwritten"):
        train(1, publish=tmp_path / "shared")
    with pytest.raises(RunFileError, match="is the folder of the run itself"):
        train(1, publish=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunFileError, match="nothing can be published there: Not a directory"):
        train(1, publish=tmp_path / "file" / "below")
    (tmp_path / "other" / "job.h5").mkdir(parents=True)  # a rename onto it fails
    with pytest.warns(GradlensWarning, match="cannot be published") as warned, pytest.raises(KeyError):
        train(3, publish=tmp_path / "other", overwrite=True)
    assert len(warned) == 1
    assert len(read_run(tmp_path / "job.h5").steps) == 3


def test_an_experiment_publishes_in_a_folder_per_group(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text('question = "?"\nseeds = [0]\n[group.small]\nmodels = ["plain8"]\n')
    experiment = read_experiment(tmp_path / "tiny.toml")
    folder = experiment.folder(tmp_path / "shared")
    (job,) = make_jobs(experiment.plan(tmp_path / "runs", {}), overwrite=False, publish=folder)
    assert list(job.command[-3:]) == ["--publish", str(tmp_path / "shared" / "tiny" / "small"), "--resume"]


@pytest.mark.slow
def test_the_command_publishes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--image-size", "16", "--epochs", "1", "--batch-size", "200"]
    assert run_command(["run", "plain8", *quick, "--publish", "shared"]) == 0
    assert (tmp_path / "shared" / "plain8-s0.h5").read_bytes() == (tmp_path / "runs" / "plain8-s0.h5").read_bytes()
    assert run_command(["summary", "shared/plain8-s0.h5"]) == 0
    capsys.readouterr()
    assert run_command(["run", "plain8", *quick, "--publish", "shared", "--out", "more"]) == 1
    assert "shared/plain8-s0.h5 already exists" in capsys.readouterr().err.replace("\n", "")
