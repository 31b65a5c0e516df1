"""Training: the same seed gives the same curves, a resumed run equals an unbroken one, nothing bad is hidden."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradlens import read_run
from gradlens.analysis.paths import main_path
from gradlens.config import OPTIMIZERS, make_config
from gradlens.errors import ConfigError, ModelError, RunExistsError, RunFileError
from gradlens.events import Ended, EpochDone, NonFinite, Note, Started, StepDone
from gradlens.metrics import DEFAULT_METRICS, METRICS_OF_PATHS
from gradlens.models import build_model
from gradlens.models.early_layers import freeze
from gradlens.recorder.measurers.residual_paths import find_blocks
from gradlens.run import Run
from gradlens.train import train_run
from gradlens.train.checkpoint import checkpoint_path
from gradlens.train.loop import find_logits
from gradlens.train.session import choose_device, make_optimizer, make_scheduler
from tests.processes import some_slow
from tests.train import distributed_cases


@pytest.fixture(autouse=True)
def few_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlens.data.patterns.TRAIN_IMAGES", 40)
    monkeypatch.setattr("gradlens.data.patterns.VAL_IMAGES", 20)


def config(model: str = "plain8", **options):
    return make_config(model, **{"image_size": 16, "batch_size": 10, "epochs": 3, **options})


def assert_equal_runs(a: Run, b: Run) -> None:
    assert a.layers == b.layers
    np.testing.assert_array_equal(a.steps, b.steps)
    np.testing.assert_array_equal(a.epoch_of_step, b.epoch_of_step)
    for name in a.scalars:
        np.testing.assert_array_equal(a.scalars[name], b.scalars[name])
    for name in a.metrics:
        np.testing.assert_array_equal(a.metric(name), b.metric(name))
    for name in a.epochs:
        if name != "seconds":
            np.testing.assert_array_equal(a.epochs[name], b.epochs[name])


def test_a_run_is_recorded_whole(tmp_path: Path) -> None:
    events: list = []
    assert train_run(config(), tmp_path / "a.h5", listener=events.append) == "complete"
    run = read_run(tmp_path / "a.h5")
    assert (run.status, run.model, run.seed) == ("complete", "plain8", 0)
    assert len(run.steps) == 12
    assert run.epochs["epoch"].tolist() == [1, 2, 3]
    assert run.epoch_of_step.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert np.isfinite([run.epochs[k] for k in ("train_loss", "train_accuracy", "val_loss", "val_accuracy")]).all()
    assert np.isfinite(run.scalars["loss"]).all()
    assert run.config["recipe"] == "quick"
    assert run.config["data_facts"]["train_images"] == 40
    assert [type(e) for e in events] == [Started, *([StepDone] * 4 + [EpochDone]) * 3, Ended]
    assert len(events[1].profile) == 8
    assert events[-1].status == "complete"
    assert not checkpoint_path(tmp_path / "a.h5").exists()
    with pytest.raises(RunExistsError, match="already exists"):
        train_run(config(), tmp_path / "a.h5")


def test_frozen_layers_keep_their_weights_and_norm_layers_are_recorded_on_request(tmp_path: Path) -> None:
    made = config("resnet8", epochs=1, freeze=0.4, norms=True)
    model = build_model("resnet8", num_classes=5)
    freeze(model, made.freeze)
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert {key.rsplit(".", 1)[0] for key in frozen} == {  # 3 of 8 layers, and the norms behind them
        "conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2",
    }  # fmt: skip
    train_run(made, tmp_path / "a.h5")
    run = read_run(tmp_path / "a.h5")
    assert run.config["freeze"] == 0.4
    assert "freeze" not in config().to_dict()
    assert [layer.name for layer in run.layers if layer.role == "norm"][:2] == ["bn1", "layer1.0.bn1"]
    weights = run.metric("param_norm")[~np.isnan(run.metric("param_norm")).all(axis=1)]
    assert weights.shape[1] == 15
    grads = dict(zip([layer.name for layer in run.layers], run.metric("param_grad_norm")[-1], strict=True))
    assert np.isnan(grads["layer1.0.conv2"])
    assert grads["layer2.0.conv1"] > 0


def test_a_run_with_scaled_branches_has_the_layers_of_the_residual_model(tmp_path: Path) -> None:
    train_run(config("resnet8-branchscale", epochs=1), tmp_path / "a.h5")
    train_run(config("resnet8", epochs=1), tmp_path / "b.h5")
    scaled, usual = (read_run(tmp_path / name) for name in ("a.h5", "b.h5"))
    path = [scaled.layers[i].name for i in main_path(scaled)]
    assert path == [usual.layers[i].name for i in main_path(usual)]
    assert set(METRICS_OF_PATHS) <= set(scaled.metrics)
    blocks = [i for i in range(len(scaled.layers)) if np.isfinite(scaled.metric("shortcut_grad_norm")[0, i])]
    assert [scaled.layers[i].name for i in blocks] == [f"layer{n}.0.conv1" for n in (1, 2, 3)]


@pytest.mark.parametrize("model", some_slow(["resnet8-nobn", "plain8"]))
def test_the_same_seed_gives_the_same_bits_and_another_does_not(model: str, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_run(config(model, seed=seed, epochs=2, augment=("flip", "color")), tmp_path / f"{name}.h5")
    a, b, c = (read_run(tmp_path / f"{name}.h5") for name in "abc")
    assert_equal_runs(a, b)
    assert not np.array_equal(a.scalars["loss"], c.scalars["loss"])


def test_residual_nets_are_recorded_with_their_paths_and_what_was_asked_for(tmp_path: Path) -> None:
    train_run(config("resnet8", epochs=1, metrics=("grad_coherence",)), tmp_path / "a.h5")
    train_run(config("plain8-nobn-sigmoid", epochs=1), tmp_path / "b.h5")
    residual, plain = read_run(tmp_path / "a.h5"), read_run(tmp_path / "b.h5")
    assert set(residual.metrics) == {*DEFAULT_METRICS, *METRICS_OF_PATHS, "grad_coherence"}
    assert set(plain.metrics) == set(DEFAULT_METRICS)
    blocks = [layer.name for layer in residual.layers if layer.name.endswith("0.conv1")]
    found = residual.metric("path_cosine")
    assert [residual.layers[i].name for i in np.flatnonzero(np.isfinite(found[0]))] == blocks
    assert np.isnan(found[1:]).all()  # every 25th row
    assert plain.config["activation"] == "sigmoid"
    assert "activation" not in residual.config


def test_a_run_begun_without_a_metric_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    monkeypatch.setattr("gradlens.train.session.find_blocks", lambda model: [])
    with pytest.raises(KeyboardInterrupt):
        train_run(config("resnet8", epochs=8), path, listener=Stop(6))
    monkeypatch.setattr("gradlens.train.session.find_blocks", find_blocks)
    assert set(read_run(path).metrics) == set(DEFAULT_METRICS)
    assert train_run(config("resnet8", epochs=8), path, resume=True) == "complete"
    found = read_run(path).metric("branch_grad_norm")
    assert np.flatnonzero(np.isfinite(found).any(axis=1)).tolist() == [25]


class Stop:
    """Interrupt after a number of steps, as Ctrl-C does."""

    def __init__(self, after: int, number: int = signal.SIGINT) -> None:
        self.left, self.number = after, number

    def __call__(self, event: object) -> None:
        if isinstance(event, StepDone):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)


def test_sigterm_closes_the_file_as_ctrl_c_does(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_run(config(), tmp_path / "run.h5", listener=Stop(2, signal.SIGTERM))
    assert read_run(tmp_path / "run.h5").status == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("after", some_slow([2, 4, 6, 8, 11], 5))
def test_an_interrupted_run_is_closed_and_resumed_to_the_bits_of_an_unbroken_one(after: int, tmp_path: Path) -> None:
    options = {"augment": ("flip", "crop"), "schedule": "step:2,0.5", "model": "resnet8"}
    train_run(config(**options), tmp_path / "whole.h5")
    path = tmp_path / "broken.h5"
    with pytest.raises(KeyboardInterrupt):
        train_run(config(**options), path, listener=Stop(after))
    assert read_run(path).status == "interrupted"
    assert len(read_run(path).steps) == after
    said: list = []
    assert train_run(config(**options), path, resume=True, listener=said.append) == "complete"
    assert_equal_runs(read_run(path), read_run(tmp_path / "whole.h5"))
    notes = [event.text for event in said if isinstance(event, Note)]
    finished = (after - 1) // 4  # the epoch whose last step was just made is not validated yet
    assert (f"continuing after epoch {finished}" if finished else "no finished epoch") in notes[0]
    assert read_run(path).info["notes"] == ([f"resumed at step {4 * finished}"] if finished else [])
    assert train_run(config(**options), path, resume=True) == "complete"  # nothing left to do
    assert sorted(p.name for p in tmp_path.glob("*.h5")) == ["broken.h5", "whole.h5"]
    assert not list(tmp_path.glob(".*"))


def test_a_run_is_not_resumed_with_other_settings(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_run(config(), tmp_path / "a.h5", listener=Stop(6))
    with pytest.raises(ConfigError, match=r"other settings: lr: 0\.0006 there, 0\.5 here"):
        train_run(config(lr=0.5), tmp_path / "a.h5", resume=True)
    checkpoint_path(tmp_path / "a.h5").write_bytes(b"broken")
    with pytest.raises(RunFileError, match=r"the checkpoint .* cannot be read"):
        train_run(config(), tmp_path / "a.h5", resume=True)


def test_a_run_without_its_checkpoint_is_not_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(KeyboardInterrupt):
        train_run(config(), path, listener=Stop(6))
    checkpoint_path(path).unlink()
    with pytest.raises(RunFileError, match=r"its checkpoint .*a\.ckpt is missing"):
        train_run(config(), path, resume=True)
    assert len(read_run(path).steps) == 6


def test_a_checkpoint_of_a_replaced_run_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(KeyboardInterrupt):
        train_run(config(), path, listener=Stop(9))
    with pytest.raises(KeyboardInterrupt):
        train_run(config(lr=0.1), path, overwrite=True, listener=Stop(2))
    assert train_run(config(lr=0.1), path, resume=True) == "complete"
    train_run(config(lr=0.1), tmp_path / "b.h5")
    assert_equal_runs(read_run(path), read_run(tmp_path / "b.h5"))


def test_patience_that_is_used_up_stays_used_up(tmp_path: Path) -> None:
    def stop_after_checkpoint(event: object) -> None:
        if isinstance(event, EpochDone) and event.epoch == 2:
            raise KeyboardInterrupt

    options = {"lr": 0.0, "patience": 1, "epochs": 5, "model": "plain8-nobn"}
    with pytest.raises(KeyboardInterrupt):
        train_run(config(**options), tmp_path / "a.h5", listener=stop_after_checkpoint)
    assert train_run(config(**options), tmp_path / "a.h5", resume=True) == "complete"
    run = read_run(tmp_path / "a.h5")
    assert (run.epochs["epoch"].tolist(), run.status) == ([1, 2], "complete")


def test_resuming_with_rare_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(KeyboardInterrupt):
        train_run(config(every=100), path, listener=Stop(6))
    assert train_run(config(every=100), path, resume=True) == "complete"
    run = read_run(path)
    assert run.steps.tolist() == [0]
    assert run.epochs["epoch"].tolist() == [1, 2, 3]


class Dropped(nn.Module):
    """Draws from the global random generator at each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 16 * 16, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_dropout_is_resumed_to_the_bit_with_any_number_of_workers(workers: int, tmp_path: Path) -> None:
    name = f"{__name__}:Dropped"
    train_run(config(name), tmp_path / "whole.h5")
    with pytest.raises(KeyboardInterrupt):
        train_run(config(name, workers=workers), tmp_path / "a.h5", listener=Stop(6))
    train_run(config(name, workers=workers), tmp_path / "a.h5", resume=True)
    assert_equal_runs(read_run(tmp_path / "a.h5"), read_run(tmp_path / "whole.h5"))


@pytest.mark.parametrize("choice", ["stop", "continue"])
def test_a_loss_that_is_not_finite_is_recorded_and_said(choice: str, tmp_path: Path) -> None:
    said: list = []
    name = f"{distributed_cases.__name__}:Poison"
    status = train_run(config(name, on_nonfinite=choice), tmp_path / "a.h5", listener=said.append)
    run = read_run(tmp_path / "a.h5")
    told = [event for event in said if isinstance(event, NonFinite)]
    assert told[0].step == 2
    assert told[0].epoch == 1
    assert math.isnan(told[0].loss)
    assert np.isnan(run.scalars["loss"][2])
    assert np.isinf(run.metric("param_grad_norm")[2]).all()
    if choice == "stop":
        assert (status, run.status, len(run.steps), len(told)) == ("failed", "failed", 3, 1)
        assert "the loss was nan at step 2" in said[-1].reason
    else:
        assert (status, run.status, len(run.steps), len(told)) == ("complete", "complete", 12, 10)


def test_patience_stops_early(tmp_path: Path) -> None:
    said: list = []
    train_run(config(lr=0.0, patience=2, epochs=9, model="plain8-nobn"), tmp_path / "a.h5", listener=said.append)
    run = read_run(tmp_path / "a.h5")
    assert run.epochs["epoch"].tolist() == [1, 2, 3]  # the first is the best, and nothing changes after it
    assert run.status == "complete"
    assert said[-1].reason == "no lower validation loss for 2 epochs"


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1, 1, 1, 1]),
        ("step:2,0.1", [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("cosine", [(1 + math.cos(math.pi * e / 6)) / 2 for e in range(6)]),
    ],
)
def test_schedules(schedule: str, rates: list[float]) -> None:
    settings = config(schedule=schedule, epochs=6, lr=1.0)
    optimizer = make_optimizer(settings, nn.Linear(1, 1))
    scheduler = make_scheduler(settings, optimizer)
    seen = []
    for _ in range(6):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx(rates)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains(name: str, tmp_path: Path) -> None:
    train_run(config(optimizer=name, epochs=1, amp=name == "adam"), tmp_path / "a.h5")
    assert (read_run(tmp_path / "a.h5").metric("update_ratio")[0] > 0).all()


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    for wrong in ("gpu", "cuda:99", "meta"):
        with pytest.raises(ConfigError, match=f"device '{wrong}' cannot be used"):
            choose_device(wrong)


def test_logits_are_found() -> None:
    logits = torch.zeros(2, 5)

    class Output:
        def __init__(self) -> None:
            self.logits = logits

    for output in (logits, Output(), {"out": logits}, (logits, 3), [logits]):
        assert find_logits(output) is logits
    for output, said in ((torch.zeros(2), r"a tensor of shape \(2,\)"), (3, "a int")):
        with pytest.raises(ModelError, match=f"the model gave {said}; expected class scores"):
            find_logits(output)


def three(num_classes: int = 0) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))


def narrow() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(10, 5))


def bare() -> nn.Module:
    return nn.Flatten()


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("three", "gives 3 scores for 5 classes"),
        ("narrow", "cannot take images of 16 x 16 pixels: .*mat1 and mat2"),
        ("bare", "has no parameters"),
    ],
)
def test_a_model_that_does_not_fit_is_told_before_anything_is_written(factory: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        train_run(config(f"{__name__}:{factory}"), tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path) -> None:
    for name, workers in (("a", 0), ("b", 2)):
        train_run(config(workers=workers, augment=("flip", "rotation")), tmp_path / f"{name}.h5")
    assert_equal_runs(read_run(tmp_path / "a.h5"), read_run(tmp_path / "b.h5"))


@pytest.mark.slow
def test_googlenet_with_its_auxiliary_outputs_trains(tmp_path: Path) -> None:
    train_run(config("torchvision:googlenet", epochs=1, image_size=64), tmp_path / "a.h5")
    assert len(read_run(tmp_path / "a.h5").steps) == 4
