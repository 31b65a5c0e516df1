"""A run that is killed at any moment and resumed equals one that was never broken; a wrong splice is refused."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradlens import read_run
from gradlens.config import RunConfig, make_config
from gradlens.errors import ConfigError, RunFileError
from gradlens.events import EpochDone
from gradlens.models import build_model
from gradlens.train import train_run
from gradlens.train.checkpoint import checkpoint_path, load_checkpoint, remove_stale, save_checkpoint
from gradlens.train.rng_state import read_generators, restore_generators, seed_generators
from tests.train.resume_cases import DEEP_MODELS, HERE, cases
from tests.train.test_train import assert_equal_runs

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
DRAWING = f"{HERE}:Drawing"


@pytest.fixture(autouse=True)
def few_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlens.data.patterns.TRAIN_IMAGES", 40)
    monkeypatch.setattr("gradlens.data.patterns.VAL_IMAGES", 10)


def config(model: str = DRAWING, **options: Any) -> RunConfig:
    return make_config(model, **{"image_size": 16, "batch_size": 10, "epochs": 3, **options})


class StopAfter:
    """Interrupt when an epoch's checkpoint is written."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, event: object) -> None:
        if isinstance(event, EpochDone) and event.epoch == self.epoch:
            raise KeyboardInterrupt


def stopped(path: Path, epoch: int = 2, **options: Any) -> dict[str, Any]:
    """Train until an epoch is done, and return the checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        train_run(config(**options), path, listener=StopAfter(epoch))
    return load_checkpoint(checkpoint_path(path))


def assert_whole(path: Path, whole_path: Path) -> None:
    killed, whole = read_run(path), read_run(whole_path)
    assert_equal_runs(killed, whole)
    assert set(killed.metrics) == set(whole.metrics)
    assert set(killed.scalars) == set(whole.scalars)
    assert killed.status == whole.status == "complete"


# --- kills ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_fork
def test_a_run_killed_at_every_point_goes_on_to_the_bits_of_an_unbroken_one(tmp_path: Path) -> None:
    found = cases(tmp_path, "points")
    assert found["codes"] == [0, *[-9] * 7, 0]
    assert found["left"] == ["killed.h5", "whole.h5"]  # no checkpoint, nothing half written
    assert_whole(tmp_path / "killed.h5", tmp_path / "whole.h5")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("deep")
    return folder, cases(folder, "deep")


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("model", DEEP_MODELS)
def test_a_deep_net_killed_at_random_goes_on_to_the_bits_of_an_unbroken_one(
    model: str, deep: tuple[Path, dict[str, Any]]
) -> None:
    """All augmentations, a schedule; without workers, and with some, which outlive their process."""
    folder, found = deep
    assert found[f"{model}-whole"]["codes"] == [0]
    for workers, kills in ((0, 6), (2, 5)):
        got = found[f"{model}-{workers}"]
        assert got["codes"] == [*[-9] * kills, 0]
        assert got["left"] == ["killed.h5"]
        assert_whole(folder / f"{model}-{workers}" / "killed.h5", folder / model / "whole.h5")
    if sys.platform == "linux":
        assert found[f"{model}-2"]["met"] > 0  # a process of before was still there


@needs_fork
@pytest.mark.slow
def test_two_runs_in_one_folder_at_once_are_as_each_alone(deep: tuple[Path, dict[str, Any]]) -> None:
    folder, pair = deep[0] / "pair", deep[1]["pair"]
    assert pair["codes"] == [0, 0, 0, 0]
    assert pair["left"] == ["s0.h5", "s1.h5"]
    for seed in (0, 1):
        assert_whole(folder / f"both/s{seed}.h5", folder / f"alone{seed}/s{seed}.h5")
    losses = [read_run(folder / f"both/s{seed}.h5").scalars["loss"] for seed in (0, 1)]
    assert not np.array_equal(*losses)


# --- what a checkpoint holds ----------------------------------------------------------------------------------


def test_every_generator_is_put_back() -> None:
    def draw() -> list[float]:
        numbers = [random.random(), random.gauss(), np.random.rand(), np.random.standard_normal()]  # noqa: NPY002
        return [*numbers, float(torch.rand(()))]

    seed_generators(3)
    random.gauss(), np.random.standard_normal()  # noqa: NPY002 - each keeps a second number for the next call
    state = read_generators()
    drawn = draw()
    assert draw() != drawn
    restore_generators(state)
    assert draw() == drawn
    seed_generators(3)
    first = draw()
    seed_generators(3)
    assert draw() == first


def test_what_a_metric_remembers_from_earlier_rows_is_kept(tmp_path: Path) -> None:
    options = {"model": "plain8", "batch_size": 2}  # 20 rows an epoch; dead_fraction looks back over 20
    state = stopped(tmp_path / "a.h5", **options)
    assert {len(each) for each in state["recorder"]["DeadUnits"].values()} == {3}
    train_run(config(**options), tmp_path / "whole.h5")
    assert train_run(config(**options), tmp_path / "a.h5", resume=True) == "complete"
    assert_equal_runs(read_run(tmp_path / "a.h5"), read_run(tmp_path / "whole.h5"))
    assert np.isfinite(read_run(tmp_path / "a.h5").metric("dead_fraction")[50]).all()


def test_a_checkpoint_without_what_is_new_still_loads(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    state = stopped(path, model="plain8")
    train_run(config("plain8"), tmp_path / "whole.h5")
    first = state.pop("generators")[0]
    del state["values"], state["recorder"], state["config"]["on_record_error"]
    state |= {"torch_rng": first["cpu"], "cuda_rng": first["gpus"], "other_rng": []}
    torch.save(state, checkpoint_path(path))
    assert train_run(config("plain8"), path, resume=True) == "complete"
    assert_equal_runs(read_run(path), read_run(tmp_path / "whole.h5"))


@pytest.mark.parametrize("fails", ["torch.save", "os.fsync", "os.replace"])
def test_a_checkpoint_that_fails_leaves_the_one_before(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    before: dict[str, Any] = {"config": {}, "progress": {}, "rows": 1, "steps": 2}
    save_checkpoint(path, before)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fails, fail)
    with pytest.raises(RunFileError, match=r"a\.ckpt cannot be written: No space left on device"):
        save_checkpoint(path, {**before, "rows": 3})
    assert load_checkpoint(path) == before
    assert [found.name for found in tmp_path.iterdir()] == ["a.ckpt"]


def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = os.getppid()
    gone = [f".a.ckpt.{dead.pid}.tmp", f".a.ckpt.{os.getpid()}.tmp", f".a.ckpt.{10**30}.tmp"]
    kept = [f".a.ckpt.{alive}.tmp", f".b.ckpt.{dead.pid}.tmp", ".a.ckpt.x.tmp", "a.ckpt"]
    for name in [*gone, *kept]:
        (tmp_path / name).touch()
    remove_stale(tmp_path / "a.ckpt")
    remove_stale(tmp_path / "nowhere" / "a.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


# --- what is refused ------------------------------------------------------------------------------------------


def test_a_file_that_does_not_belong_to_its_checkpoint_is_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "a.h5", tmp_path / "b.h5"
    state = stopped(path)
    stopped(other, seed=1)
    shorter = tmp_path / "c.h5"
    stopped(shorter, epoch=1)

    def refused(file: Path | None, said: str) -> None:
        kept = path.read_bytes()
        if file is None:
            path.unlink()
        elif file != path:
            shutil.copy(file, path)
        put = path.read_bytes() if path.exists() else b""
        with pytest.raises(RunFileError, match=rf"a\.h5 does not belong to its checkpoint .*a\.ckpt: {said}"):
            train_run(config(), path, resume=True)
        assert (path.read_bytes() if path.exists() else b"") == put
        path.write_bytes(kept)

    refused(other, r"train_loss of epoch 2 is [\d.]+ there, [\d.]+ in the checkpoint")
    refused(shorter, "it holds 4 rows and 1 epoch, and the checkpoint was written after 8 and 2")
    refused(None, "there is no such file")
    nothing_done = {"config": state["config"], "progress": {"epoch": 0}, "rows": 0, "steps": 0}
    save_checkpoint(checkpoint_path(path), nothing_done)
    refused(path, "it holds 2 epochs, and the checkpoint was written before the first")
    save_checkpoint(checkpoint_path(path), state)
    assert train_run(config(), path, resume=True) == "complete"


def test_a_checkpoint_of_other_settings_or_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    state = stopped(path, epoch=1)
    with pytest.raises(ConfigError, match=r"other settings: schedule: constant there, cosine here"):
        train_run(config(schedule="cosine"), path, resume=True)
    torch.save({"model": {}}, checkpoint_path(path))
    with pytest.raises(RunFileError, match=r"a\.ckpt cannot be read: it holds no config"):
        train_run(config(), path, resume=True)
    state["model"]["layer.bias"] = torch.zeros(7)
    torch.save(state, checkpoint_path(path))
    with pytest.raises(RunFileError, match=r"its checkpoint does not fit the model: .*layer\.bias"):
        train_run(config(), path, resume=True)


def test_the_last_checkpoint_of_a_complete_run_is_tidied_away(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    kept: list[bytes] = []

    def keep(event: object) -> None:
        if isinstance(event, EpochDone):
            kept.append(checkpoint_path(path).read_bytes())

    train_run(config(), path, listener=keep)
    for left, there in ((kept[-1], False), (kept[0], True)):
        checkpoint_path(path).write_bytes(left)
        assert train_run(config(), path, resume=True) == "complete"
        assert checkpoint_path(path).exists() == there


def test_the_checkpoint_stays_beside_the_file_where_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a model of the user's own may do when it is built."""
    (tmp_path / "elsewhere").mkdir()

    def build(*arguments: Any, **options: Any) -> nn.Module:
        os.chdir(tmp_path / "elsewhere")
        return build_model(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("gradlens.train.session.build_model", build)
        with pytest.raises(KeyboardInterrupt):
            train_run(config(), Path("a.h5"), listener=StopAfter(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "a.h5", "elsewhere"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    os.chdir(tmp_path)
    assert train_run(config(), Path("a.h5"), resume=True) == "complete"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "elsewhere"]


# --- checkpoints of a stranger --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rows": "8"}, "its rows is of type str, int expected"),
        ({"rows": -1}, "it counts less than 0"),
        ({"progress": [1]}, "its progress is of type list"),
        ({"progress": {"epoch": "2"}}, "its progress holds epoch of type str"),
        ({"progress": {"epoch": 2, "more": 1}}, "its progress holds more"),
        ({"values": {"train_loss": "x"}}, "its values are no numbers"),
        ({"config": {"model": 3}}, "the settings in the checkpoint of .* cannot be used"),
        ({"model": 3}, "its model is of type int"),
        ({"generators": 3}, "its generators is of type int"),
        ({"generators": [{"cpu": 3}]}, "does not fit the model"),
        ({"optimizer": {}}, "does not fit the model"),
        ({"steps": 3}, "the checkpoint counts 3 steps"),
        ({"rows": 4}, "it holds 8 rows up to epoch 2, and the checkpoint counts 4"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_checkpoint_that_lies_is_refused_in_a_line(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    state = stopped(path)
    torch.save(state | changed, checkpoint_path(path))
    with pytest.raises(RunFileError, match=said) as caught:
        train_run(config(), path, resume=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_seed_or_epoch_is_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "a.h5", tmp_path / "b.h5"
    early = stopped(path, epoch=1)
    path.unlink()
    checkpoint_path(path).unlink()
    late = stopped(path)
    stopped(other, seed=1)
    torch.save(late | {name: early[name] for name in ("rows", "steps", "progress")}, checkpoint_path(path))
    with pytest.raises(RunFileError, match="of epoch 1 is"):
        train_run(config(), path, resume=True)
    shutil.copy(checkpoint_path(other), checkpoint_path(path))
    with pytest.raises(ConfigError, match="seed: 1 there, 0 here"):
        train_run(config(), path, resume=True)


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    stopped(path)
    checkpoint_path(path).unlink()
    os.mkfifo(checkpoint_path(path))
    with pytest.raises(RunFileError, match="it is no plain file"):
        train_run(config(), path, resume=True)
