"""Several processes that torchrun starts train one model, and leave what one process leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch.distributed as dist

from gradlens import read_run
from gradlens.cli import run_command
from gradlens.config import make_config
from gradlens.data import Share
from gradlens.errors import ConfigError
from gradlens.launch import Launch
from gradlens.run import Run
from gradlens.train import train_run
from gradlens.train.distributed import World, joined, own_device
from tests.processes import PATIENCE, free_port
from tests.train.distributed_cases import TINY, few

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not hasattr(os, "fork"), reason="no gloo"),
    pytest.mark.usefixtures("one_thread"),
]

ROOT = Path(__file__).parents[2]
TRAIN = ["--image-size", "16", "--batch-size", "150", "--epochs", "1", "--optimizer", "sgd", "--lr", "0.01"]
SMALL = ["run", "plain8-nobn", *TRAIN]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    """Return ``torchrun --nproc-per-node 2 -m gradlens ...``."""
    port = str(free_port())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    return [*torchrun, "-m", "gradlens", *arguments]


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE, check=False
    )


def layout(path: Path) -> dict[str, Any]:
    """List what a file holds: every group and data set with its type and shape, every attribute.

    The length of the facts depends on their numbers, so their keys stand for them, but for those of the ranks.
    """
    found: dict[str, Any] = {}
    with h5py.File(path, "r") as file:
        found["attributes"] = sorted(file.attrs)
        file.visititems(lambda name, item: found.update({name: (getattr(item, "dtype", 0), getattr(item, "shape", 0))}))
    return {**found, "state/facts_json": sorted(set(read_run(path).facts) - {"ranks"})}


def assert_close(got: Run, whole: Run, bound: float) -> None:
    assert got.layers == whole.layers
    np.testing.assert_array_equal(got.steps, whole.steps)
    np.testing.assert_array_equal(got.epoch_of_step, whole.epoch_of_step)
    for name in whole.metrics:
        np.testing.assert_allclose(got.metric(name), whole.metric(name), rtol=bound, err_msg=name)
    for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "lr"):
        np.testing.assert_allclose(got.epochs[name], whole.epochs[name], rtol=bound, err_msg=name)
    np.testing.assert_allclose(got.scalars["loss"], whole.scalars["loss"], rtol=bound)


@pytest.mark.slow
def test_torchrun_leaves_what_one_process_leaves() -> None:
    done = torchrun(*SMALL, "--seeds", "0,1", "--out", "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 runs in two") == 1
    assert done.stderr.count("2 processes share each batch") == 2  # once of each run
    assert "Warning" not in done.stderr
    assert run_command([*SMALL, "--seeds", "0,1", "--out", "one"]) == 0
    files = [f"plain8-nobn-s{seed}.h5" for seed in (0, 1)]
    assert sorted(str(path) for path in Path().glob("t*/*")) == [f"two/{file}" for file in files]
    for seed, file in enumerate(files):
        assert done.stderr.count(f"-> two/{file}") == 1
        assert layout(Path("two") / file) == layout(Path("one") / file)
        assert "ranks" in read_run(Path("two") / file).facts
        two, one = read_run(f"two/{file}"), read_run(f"one/{file}")
        assert_close(two, one, 1e-5)
        np.testing.assert_array_equal(two.metric("param_norm")[0], one.metric("param_norm")[0])
        assert two.info["environment"]["world_size"] == two.config["processes"] == 2
        assert "batch_norm" not in two.config
        assert (two.status, two.seed) == ("complete", seed)

    done = torchrun(*SMALL, "--out", "two")
    assert done.returncode == 1
    assert done.stderr.count(f"Error: two/{files[0]} already exists") == 1


# --- without other processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_each_picture_counts_on_one_process(world: int) -> None:
    for count in range(2, 14):
        keys = list(range(100, 100 + count))
        parts = [Share(rank, world).of(keys) for rank in range(world)]
        assert sorted(key for part, own in parts for key in part[:own]) == keys
        assert all(len(part) >= 2 and set(part) <= set(keys) for part, _ in parts)
        assert max(own for _, own in parts) - min(own for _, own in parts) <= 1


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Launch(1, 1, 2, 2)
    assert own_device("cuda:3", Launch()) == "cuda:3"
    assert own_device("cpu", two) == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert own_device("auto", two) == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert own_device("auto", two) == own_device("cuda", two) == "cuda:1"
    with pytest.raises(ConfigError, match="device 'cuda:0' cannot be shared by 2 processes"):
        own_device("cuda:0", two)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes need a GPU each, and there are 1"):
        own_device("auto", two)


def test_one_process_is_a_world_of_its_own() -> None:
    with joined("cpu") as world:
        assert not dist.is_initialized()
    assert (world.first, world.shared, world.size) == (True, False, 1)
    assert world.add(1.5, 2) == (1.5, 2)
    assert world.gather("a") == ["a"]
    assert World().in_turn(lambda: 3) == World().together(lambda: 3) == 3


# --- several processes, one training after another: distributed_cases.py --------------------------------------


class Together:
    """What several processes made of all trainings."""

    def __init__(self, folder: Path, world: int) -> None:
        self.folder, self.world = folder, world
        command = [sys.executable, "-m", "tests.train.distributed_cases", str(folder), str(world)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=ENVIRONMENT, timeout=3 * PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr
        self.found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world)]

    def read(self, name: str) -> Run:
        return read_run(self.folder / f"{name}.h5")

    def assert_all(self, name: str, key: str, expected: str) -> None:
        for found in self.found:
            assert found[name][key].startswith(expected), found[name]


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Together:
    return Together(tmp_path_factory.mktemp("together"), request.param)


@pytest.mark.slow
class TestSeveral:
    def test_short_batches_keep_the_mean(self, together: Together, tmp_path: Path, monkeypatch) -> None:
        """The last batch of an epoch has two pictures; of four processes, two have none of them."""
        monkeypatch.setattr("gradlens.data.patterns.TRAIN_IMAGES", 0)
        monkeypatch.setattr("gradlens.data.patterns.VAL_IMAGES", 0)
        few(38)
        together.assert_all("short", "status", "complete")
        train_run(make_config("plain8-nobn", optimizer="sgd", lr=0.01, **TINY), tmp_path / "one.h5")
        one = read_run(tmp_path / "one.h5")
        assert len(one.steps) == 12
        assert_close(together.read("short"), one, 1e-5)

    def test_only_rank_0_speaks(self, together: Together) -> None:
        assert together.found[0]["whole"]["started"] == 1
        text = f"{together.world} processes share each batch; batch norm normalises the part of each by itself"
        assert together.found[0]["whole"]["notes"] == [text]
        assert all(one["started"] == 0 and not one["notes"] for found in together.found[1:] for one in found.values())
        assert together.read("whole").config["batch_norm"].startswith("each process normalises its own part")
        names = {path.name for path in together.folder.glob("*.h5")}
        assert names == {
            f"{name}.h5" for name in ("short", "same", "whole", "resumed", "dropout-whole", "dropout", "poison")
        }
        assert not list(together.folder.glob("*.ckpt")) + list(together.folder.glob(".*"))

    @pytest.mark.parametrize(
        "names", [("resumed", "whole", "stopped"), ("dropout", "dropout-whole", "dropout-stopped")]
    )
    def test_an_interrupted_run_goes_on_to_the_bits_of_an_unbroken_one(self, together: Together, names) -> None:
        resumed, whole, stopped = names
        together.assert_all(stopped, "raised", "KeyboardInterrupt")
        together.assert_all(resumed, "status", "complete")
        assert together.found[0][resumed]["notes"][0] == "continuing after epoch 1"
        # DistributedDataParallel packs its gradients anew after the first step, and with more than two processes the
        # packing decides in which order they are added up: there the bits of a resumed run differ in rounding.
        bound = 0 if together.world == 2 else 1e-3
        assert_close(together.read(resumed), together.read(whole), bound)

    def test_the_same_seed_gives_the_same_bits(self, together: Together) -> None:
        assert_close(together.read("same"), together.read("whole"), 0)

    def test_nothing_is_left_to_resume(self, together: Together) -> None:
        together.assert_all("again", "status", "complete")
        assert "nothing to resume" in together.found[0]["again"]["notes"][0]

    def test_a_loss_that_is_not_finite_on_one_stops_all(self, together: Together) -> None:
        together.assert_all("poison", "status", "failed")
        run = together.read("poison")
        assert (run.status, len(run.steps)) == ("failed", 3)
        assert np.isnan(run.scalars["loss"][2])
        assert np.isinf(run.metric("param_grad_norm")[2]).all()

    def test_a_mistake_ends_all(self, together: Together) -> None:
        for rank, found in enumerate(together.found):
            where = "" if rank == 0 else "process 0: "
            assert found["exists"]["raised"].startswith(f"RunExistsError: {where}")
            assert found["broken"]["raised"].startswith("ModelError: ")
            assert ("process 1: " in found["broken"]["raised"]) == (rank != 1)
        text = f"ConfigError: batch_size 3 is shared by {together.world} processes: expected at least"
        together.assert_all("small", "raised", text)


# --- torchrun, slowly -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "plain35"], "Error: plain35: there is no model of depth 35"),
        (["run", "plain8", "--lr", "fast"], "Error: Invalid value for '--lr'"),
        (["run", "plain8", "--data", "csv:none.csv"], "Error: none.csv: there is no such file"),
        ([*SMALL, "--lr", "1e30"], "Error: runs/plain8-nobn-s0.h5: stopped because the loss was not finite"),
    ],
)
def test_a_mistake_is_said_once(arguments: list[str], said: str) -> None:
    done = torchrun(*arguments)
    assert done.returncode == 1
    assert done.stderr.count(said) == 1
    assert sum(line.startswith("Error: ") for line in done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_all_and_the_run_goes_on_with_other_numbers_of_processes() -> None:
    arguments = ["run", "plain8", *TRAIN[:4], "--epochs", "5"]
    process = subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT
    )
    deadline = time.time() + PATIENCE
    while time.time() < deadline and not Path("runs/plain8-s0.ckpt").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode != 0
    assert err.count("interrupted after") == 1, err
    run = read_run("runs/plain8-s0.h5")
    assert run.status == "interrupted"
    done = len(run.epochs["epoch"])
    assert 1 <= done < 5
    resume = ["run", "plain8", "--resume"]
    alone = [sys.executable, "-m", "gradlens", *resume]
    ended = subprocess.run(alone, capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"continuing after epoch {done}" in ended.stderr
    run = read_run("runs/plain8-s0.h5")
    assert (run.status, run.epochs["epoch"].tolist()) == ("complete", list(range(1, 6)))
