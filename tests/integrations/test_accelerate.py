"""The tracker in Accelerate: what ``prepare`` returned is recorded from ``init_trackers`` to ``end_training``."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import gradlens
from tests.integrations.reference import Later, Reference, assert_equal, needs, references  # noqa: F401

pytestmark = needs("accelerate")
accelerate, ours = Later("accelerate"), Later("gradlens.integrations.accelerate")


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def train(tracker: Any, *, first: str = "prepare", epochs: int = 2, **given: Any) -> Any:
    accelerator = accelerate.Accelerator(cpu=True, log_with=tracker, **given)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    if first == "init_trackers":
        accelerator.init_trackers("project")
    x = torch.randn(16, 4)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, (x.sum(dim=1) > 0).long()), batch_size=4)
    model, optimizer, data = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1), data)
    if first == "prepare":
        accelerator.init_trackers("project", config={"seed": 5, "lr": 0.1})
    losses = []
    for epoch in range(epochs):
        for x, y in data:
            with accelerator.accumulate(model):
                loss = functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            accelerator.log({"loss": loss}, step=len(losses))
        accelerator.log({"eval_loss": loss.item(), "epoch": epoch})
    return accelerator, losses


def test_accumulation_clipping_and_logs(references: list[Reference]) -> None:  # noqa: F811
    accelerator, losses = train(ours.GradlensTracker(), gradient_accumulation_steps=2)
    accelerator.end_training()
    run = assert_equal("runs/Sequential-s5.h5", references[0])
    assert run.status == "complete"
    np.testing.assert_allclose(run.scalars["loss"], np.reshape(losses, (4, 2)).mean(axis=1), rtol=1e-6)
    assert run.scalars["clip_coefficient"].max() < 1
    assert run.epochs["epoch"].tolist() == [0, 1]
    np.testing.assert_allclose(run.epochs["val_loss"], [losses[3], losses[7]], rtol=1e-6)
    assert run.config["lr"] == 0.1
    assert accelerator.get_tracker("gradlens", unwrap=True) is None  # the recorder, which is closed


def test_bfloat16_and_options(references: list[Reference]) -> None:  # noqa: F811
    accelerator, _ = train(ours.GradlensTracker("a.h5", every=3), mixed_precision="bf16")
    accelerator.end_training()
    assert_equal("a.h5", references[0], rows=[0, 3, 6])


def test_trackers_before_prepare_warn_and_the_training_goes_on() -> None:
    with pytest.warns(gradlens.GradlensWarning, match=r"init_trackers after accelerator\.prepare"):
        _, losses = train(ours.GradlensTracker(), first="init_trackers")
    assert len(losses) == 8
    assert not Path("runs").exists()


def test_without_end_training_the_file_is_closed_as_failed() -> None:
    train(ours.GradlensTracker("a.h5"))
    gc.collect()
    assert gradlens.read_run("a.h5").status == "failed"
    assert len(gradlens.read_run("a.h5").steps) == 8


def test_an_error_in_the_tracker_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = ours.GradlensTracker("a.h5")
    monkeypatch.setattr(tracker.recording, "log", lambda *args, **more: 1 / 0)
    with pytest.warns(gradlens.GradlensWarning, match="training goes on without it: .*division by zero"):
        _, losses = train(tracker)
    assert len(losses) == 8
