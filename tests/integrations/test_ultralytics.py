"""The callback for Ultralytics, with a stub that calls what its trainer calls: the package is too heavy here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradlens
from gradlens.integrations.ultralytics import GradlensCallback
from tests.integrations.reference import ONLY_OURS, Reference, assert_equal, references  # noqa: F401

pytestmark = ONLY_OURS


class StubTrainer:
    """Trains as ``ultralytics.engine.trainer.BaseTrainer`` does, with its attributes and callbacks."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.callbacks: dict[str, list[Callable[[Any], None]]] = defaultdict(list)
        self.args = SimpleNamespace(model="yolo11n.pt", seed=4, batch=8, lr0=0.01)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 2))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.epoch, self.start_epoch, self.metrics = 0, 0, {}
        self.losses: list[float] = []

    def add_callback(self, event: str, function: Callable[[Any], None]) -> None:
        self.callbacks[event].append(function)

    def run(self, event: str) -> None:
        for function in self.callbacks[event]:
            function(self)

    def train(self) -> None:
        self.run("on_train_start")
        for self.epoch in range(2):
            for _ in range(3):
                output = self.model(torch.randn(8, 3, 8, 8))
                self.loss = output.square().mean(dim=0)  # a loss for each of box, cls, dfl
                self.scaler.scale(self.loss.sum()).backward()
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.zero_grad()
                self.losses.append(float(self.loss.detach().sum()))
                self.run("on_train_batch_end")
            self.metrics = {"metrics/mAP50(B)": 0.5, "val/box_loss": 1.0, "val/cls_loss": 2.0, "fitness": 0.1}
            self.run("on_fit_epoch_end")
        self.run("on_train_end")


def test_rows_losses_and_epochs(references: list[Reference]) -> None:  # noqa: F811
    trainer = StubTrainer()
    GradlensCallback().add_to(trainer)
    trainer.train()
    run = assert_equal("runs/yolo11n-s4.h5", references[0])
    assert run.status == "complete"
    np.testing.assert_allclose(run.scalars["loss"], trainer.losses, rtol=1e-6)
    assert run.scalars["clip_coefficient"].max() < 1
    assert run.epochs["val_loss"].tolist() == [3.0, 3.0]
    assert run.epochs["val_box_loss"].tolist() == [1.0, 1.0]
    assert run.epochs["val_mAP50(B)"].tolist() == [0.5, 0.5]
    np.testing.assert_allclose(run.epochs["train_loss"], np.reshape(trainer.losses, (2, 3)).mean(axis=1), rtol=1e-6)
    assert run.config["batch"] == 8


def test_an_error_in_the_callback_ends_no_training() -> None:
    trainer = StubTrainer()
    GradlensCallback("a.h5").add_to(trainer)
    trainer.callbacks["on_train_batch_end"].insert(0, lambda trainer: setattr(trainer, "loss", None))
    with pytest.warns(gradlens.GradlensWarning, match="training goes on without it"):
        trainer.train()
    assert gradlens.read_run("a.h5").status == "failed"
