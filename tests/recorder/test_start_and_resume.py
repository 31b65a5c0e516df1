"""What a user can ask of ``record``: start and close, append to a run, metrics that add, an interval per metric."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradlens
from gradlens.errors import ConfigError, GradlensWarning, RecorderError, RunExistsError, RunFileError
from gradlens.metrics import DEFAULT_METRICS, METRICS, choose_metrics
from gradlens.recorder import Recorder
from gradlens.recorder.schedule import AutoMetrics, Clock
from tests.processes import PATIENCE
from tests.recorder.small import backward, mlp


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, recorder: Recorder | None = None) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss = backward(model, step)
        optimizer.step()
        if recorder is not None:
            recorder.log(loss=loss)


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = mlp()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def whole_run(path: str, count: int) -> gradlens.Run:
    model, optimizer = parts()
    with gradlens.record(model, path, optimizer=optimizer) as recorder:
        train(model, optimizer, range(count), recorder)
    return gradlens.read_run(path)


def assert_same(left: gradlens.Run, right: gradlens.Run) -> None:
    assert left.steps.tolist() == right.steps.tolist()
    for name in ("activation_grad_norm", "param_grad_norm", "param_norm", "update_ratio"):
        np.testing.assert_array_equal(left.metric(name), right.metric(name))
    np.testing.assert_array_equal(left.scalars["loss"], right.scalars["loss"])


# --- start and close ----------------------------------------------------------------------------------------


def test_start_and_close_do_what_the_context_manager_does() -> None:
    model, optimizer = parts()
    recorder = gradlens.record(model, "b.h5", optimizer=optimizer).start()
    train(model, optimizer, range(4), recorder)
    recorder.close()
    recorder.close()
    assert gradlens.read_run("b.h5").status == "complete"
    assert_same(gradlens.read_run("b.h5"), whole_run("a.h5", 4))
    with pytest.raises(RecorderError, match="used once"):
        recorder.start()


def test_a_recorder_that_is_never_started_warns_once() -> None:
    model, optimizer = parts()
    with pytest.warns(GradlensWarning, match=r"recorder of Sequential was made and never started.*recorder.start\(\)"):
        gradlens.record(model, "a.h5", optimizer=optimizer).close()
    gradlens.record(model, "a.h5", optimizer=optimizer)
    with pytest.warns(GradlensWarning, match="never started") as caught:
        gc.collect()
    assert len(caught) == 1


@pytest.mark.slow
def test_it_warns_at_the_end_of_the_program_too() -> None:
    code = (
        "import gradlens, torch; model = torch.nn.Linear(2, 2)\n"
        "recorder = gradlens.record(model, 'a.h5', optimizer=torch.optim.SGD(model.parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stderr.count("never started") == 1


# --- resume -------------------------------------------------------------------------------------------------


def test_a_recorder_for_each_epoch_appends_to_one_run() -> None:
    model, optimizer = parts()
    for epoch in range(3):
        with gradlens.record(model, "b.h5", optimizer=optimizer, resume=True) as recorder:
            train(model, optimizer, range(4 * epoch, 4 * epoch + 4), recorder)
            recorder.log_epoch(epoch=epoch + 1, train_loss=1.0)
    run = gradlens.read_run("b.h5")
    assert run.status == "complete"
    assert run.steps.tolist() == list(range(12))
    assert run.epoch_of_step.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert run.epochs["epoch"].tolist() == [1, 2, 3]
    assert [note for note in run.info["notes"] if note.startswith("resumed")] == [
        "resumed at step 4", "resumed at step 8"
    ]  # fmt: skip
    whole = whole_run("a.h5", 12)
    for name in ("activation_grad_norm", "param_grad_norm", "param_norm"):
        np.testing.assert_array_equal(run.metric(name), whole.metric(name))


def test_what_was_stored_with_a_run_is_kept_and_what_is_given_now_is_added() -> None:
    model, optimizer = parts()
    first = {"model": "net", "seed": 3, "config": {"lr": 0.1, "batch_size": 4}, "data": "toys"}
    for info, steps in ((first, range(4)), (None, range(4, 8)), ({"config": {"lr": 0.2}}, range(8, 12))):
        with gradlens.record(model, "b.h5", optimizer=optimizer, info=info, resume=True) as recorder:
            train(model, optimizer, steps, recorder)
    run = gradlens.read_run("b.h5")
    assert (run.model, run.seed, len(run.steps)) == ("net", 3, 12)
    assert run.config == {"lr": 0.2, "batch_size": 4, "data": "toys"}


def test_rows_after_the_checkpoint_are_recorded_again() -> None:
    model, optimizer = parts()
    with gradlens.record(model, "b.h5", optimizer=optimizer) as recorder:
        for epoch in range(2):
            train(model, optimizer, range(3 * epoch, 3 * epoch + 3), recorder)
            recorder.log_epoch(epoch=epoch + 1)
            if epoch == 0:
                checkpoint = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(checkpoint)
    with gradlens.record(model, "b.h5", optimizer=optimizer, resume=True, first_step=3) as recorder:
        train(model, optimizer, range(3, 8), recorder)
    run = gradlens.read_run("b.h5")
    assert_same(run, whole_run("a.h5", 8))
    assert run.epochs["epoch"].tolist() == [1]
    with pytest.raises(ConfigError, match="first_step=0 leaves none of the 8 rows"):
        gradlens.record(model, "b.h5", optimizer=optimizer, resume=True, first_step=0)


def test_first_step_counts_from_a_checkpoint_in_a_new_run() -> None:
    model, optimizer = parts()
    with gradlens.record(model, "a.h5", optimizer=optimizer, resume=True, first_step=100, every=5) as recorder:
        train(model, optimizer, range(8), recorder)
    assert gradlens.read_run("a.h5").steps.tolist() == [100, 105]
    with pytest.raises(ConfigError, match="first_step must be a whole number from 0"):
        gradlens.record(model, "a.h5", first_step=-1)


KILLED = """
import os, signal, sys, torch, gradlens
from tests.recorder.test_start_and_resume import parts, train
model, optimizer = parts()
with gradlens.record(model, "b.h5", optimizer=optimizer) as recorder:
    train(model, optimizer, range(6), recorder)
    recorder.log_epoch(epoch=1)
    torch.save(model.state_dict(), "model.pt")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_run_whose_process_was_killed_goes_on() -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", KILLED], env={**os.environ, "PYTHONPATH": path}, timeout=PATIENCE, check=False
    )
    assert done.returncode == -signal.SIGKILL
    model, optimizer = parts()
    model.load_state_dict(torch.load("model.pt"))
    with gradlens.record(model, "b.h5", optimizer=optimizer, resume=True) as recorder:
        train(model, optimizer, range(6, 9), recorder)
    run = gradlens.read_run("b.h5")
    assert_same(run, whole_run("a.h5", 9))
    assert run.status == "complete"


def test_another_model_is_refused_before_training() -> None:
    whole_run("a.h5", 2)
    other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 3)))
    with pytest.raises(RunFileError, match=r"a\.h5 cannot be resumed: 2 of its layers .* file: 4; .* model: 3\.0"):
        gradlens.record(other, "a.h5", resume=True)
    assert len(gradlens.read_run("a.h5").steps) == 2


def test_the_tip_for_a_file_that_exists_appends_first() -> None:
    whole_run("a.h5", 2)
    with pytest.raises(RunExistsError) as caught:
        gradlens.record(mlp(), "a.h5")
    assert caught.value.tip is not None
    assert caught.value.tip.startswith("resume=True (--resume) appends to it")
    free = re.search(r"(\S+) is free", caught.value.tip)
    assert free is not None
    assert free[1] == "a-2.h5"
    whole_run(free[1], 2)
    with pytest.raises(RunExistsError) as caught:
        gradlens.record(nn.Linear(4, 3), "a.h5")
    assert caught.value.tip == "a-3.h5 is free; overwrite=True (--overwrite) replaces the file"
    with pytest.raises(ConfigError, match="choose one of them"):
        gradlens.record(mlp(), "a.h5", resume=True, overwrite=True)


# --- metrics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "more", "fewer"),
    [
        ((), (), ()),
        ("zero_fraction", ("zero_fraction",), ()),
        (["zero_fraction", "-update_ratio"], ("zero_fraction",), ("update_ratio",)),
        ("activation_rms, -param_norm", ("activation_rms",), ("param_norm",)),
        ("all", tuple(METRICS), ()),
        (("all", "-grad_coherence"), tuple(METRICS), ("grad_coherence",)),
    ],
)
def test_names_of_metrics_add_to_the_default_ones(
    given: str | list[str], more: tuple[str, ...], fewer: tuple[str, ...]
) -> None:
    expected = {*DEFAULT_METRICS, *more} - set(fewer)
    assert set(choose_metrics(given)) == expected
    model, optimizer = parts()
    with gradlens.record(model, "a.h5", optimizer=optimizer, metrics=given) as recorder:
        train(model, optimizer, range(1), recorder)
    assert set(gradlens.read_run("a.h5").metrics) == expected


def test_a_wrong_name_is_an_error_at_once() -> None:
    for wrong in ("zero", "-zero", ["all", "every"]):
        with pytest.raises(ConfigError, match="unknown metric"):
            gradlens.record(mlp(), "a.h5", metrics=wrong)
    with pytest.raises(ConfigError, match="every metric is left out"):
        gradlens.record(mlp(), "a.h5", metrics=[f"-{name}" for name in DEFAULT_METRICS])


# --- an interval for each metric ----------------------------------------------------------------------------


def rows_with(every: object, steps: int = 30, metrics: str = "", **given: object) -> dict[str, list[int]]:
    model, optimizer = parts()
    with gradlens.record(
        model, "a.h5", optimizer=optimizer, metrics=metrics, every=every, overwrite=True, **given
    ) as r:  # type: ignore[arg-type]
        train(model, optimizer, range(steps), r)
    run = gradlens.read_run("a.h5")
    found = {name: run.steps[~np.isnan(run.metric(name)).all(axis=1)].tolist() for name in run.metrics}
    return {**found, "rows": run.steps.tolist(), "every": run.info["every"]}


def test_each_metric_has_its_own_interval_in_steps() -> None:
    found = rows_with({"update_ratio": 10, "param_grad_norm": 3})
    assert found["rows"] == found["activation_grad_norm"] == found["param_grad_norm"] == list(range(0, 30, 3))
    assert found["update_ratio"] == [0, 12, 21]  # the first row at or after 0, 10 and 20
    assert found["param_norm"] == [0]  # every 25th row, as always
    expected = {
        "activation_grad_norm": 1,
        "param_grad_norm": 1,
        "param_norm": 25,
        "update_ratio": 4,
        "dead_fraction": 10,
    }
    assert found["every"] == expected


def test_a_metric_may_have_a_callable_and_the_rows_too() -> None:
    def odd(step: int) -> bool:
        return step % 2 == 1

    found = rows_with({"param_norm": lambda step: step in (2, 7), "zero_fraction": 1}, 9, "zero_fraction")
    assert found["rows"] == found["zero_fraction"] == list(range(9))
    assert found["param_norm"] == [2, 7]
    found = rows_with({"activation_grad_norm": odd, "update_ratio": 1}, 9)
    assert found["rows"] == found["update_ratio"] == [1, 3, 5, 7]


def test_automatic_intervals_end_within_the_budget() -> None:
    assert rows_with({"param_grad_norm": "auto"})["rows"][0] == 0
    found = rows_with({"update_ratio": "auto"})
    assert found["rows"] == list(range(30))
    assert found["update_ratio"][:2] == [0, 2]
    clock = Clock()
    rule, chosen = AutoMetrics(clock, budget=0.01), []
    for step in range(2000):  # a row costs 1 % of a step, and 5 % where the metrics are measured
        chosen.append(rule(step))
        cost = 0.05 if chosen[-1] else 0.01
        clock.add_step(1.0 + cost, cost)
        clock.add_row(cost)
    assert np.mean(chosen[100:]) == pytest.approx(0.25, rel=0.05)  # an added cost of 4 % in each 4th step


@pytest.mark.parametrize(
    ("every", "message"),
    [
        ({"zero_fraction": 3}, "zero_fraction is not recorded"),
        ({"zero": 3}, "unknown metric"),
        ({"param_norm": 0}, "every must be a whole number from 1"),
        ({"param_grad_norm": 2, "activation_grad_norm": 3}, "different intervals"),
    ],
)
def test_wrong_intervals_are_refused(every: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gradlens.record(mlp(), "a.h5", every=every)


# --- switched off -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1", "true"])
def test_recording_can_be_disabled(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    whole_run("a.h5", 2)
    before = Path("a.h5").read_bytes()
    monkeypatch.setenv("GRADLENS_DISABLED", value)
    model, optimizer = parts()
    state = torch.get_rng_state()
    with gradlens.record(nn.ReLU(), "a.h5", optimizer="none") as recorder:  # type: ignore[arg-type]
        assert torch.equal(state, torch.get_rng_state())
        train(model, optimizer, range(2), recorder)
        recorder.log_epoch(epoch=1)
        recorder.step()
        recorder.clipped(1.0)
    assert recorder.start() is recorder
    assert recorder.counts == (0, 0)
    assert recorder.last_row is None
    assert not recorder.has_failed
    assert repr(recorder) == "Recorder(disabled by the environment variable GRADLENS_DISABLED)"
    assert Path("a.h5").read_bytes() == before
    monkeypatch.setenv("GRADLENS_DISABLED", "0")
    with pytest.raises(RecorderError):
        gradlens.record(nn.ReLU(), "b.h5")


def test_only_a_torch_module_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model must be a torch\.nn\.Module, got str"):
        gradlens.record("mine", tmp_path / "x.h5")  # type: ignore[arg-type]
