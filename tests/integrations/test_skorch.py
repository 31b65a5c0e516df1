"""The callback in skorch, also as a part of scikit-learn: clones, partial_fit, a grid search."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradlens
from tests.integrations.reference import Later, Reference, assert_equal, needs, references  # noqa: F401

pytestmark = needs("skorch", "sklearn")
skorch, ours = Later("skorch"), Later("gradlens.integrations.skorch")
X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.hidden(x)))


def network(callback: Any, epochs: int = 2, **given: Any) -> Any:
    torch.manual_seed(0)
    return skorch.NeuralNetClassifier(
        Net, criterion=nn.CrossEntropyLoss, max_epochs=epochs, batch_size=8, lr=0.1, callbacks=[callback], verbose=0,
        **given,
    )  # fmt: skip


def test_fit(references: list[Reference]) -> None:  # noqa: F811
    net = network(ours.GradlensCallback).fit(X, Y)
    run = assert_equal("runs/Net.h5", references[0])
    assert run.status == "complete"
    losses = [batch["train_loss"] for epoch in net.history for batch in epoch["batches"] if "train_loss" in batch]
    np.testing.assert_allclose(run.scalars["loss"], losses, rtol=1e-6)
    for name, of_skorch in (("train_loss",) * 2, ("val_loss", "valid_loss"), ("val_accuracy", "valid_acc")):
        np.testing.assert_allclose(run.epochs[name], net.history[:, of_skorch], rtol=1e-6)
    assert run.epochs["epoch"].tolist() == [1, 2]
    assert run.config["batch_size"] == 8


def test_partial_fit_goes_on_and_fit_begins_anew() -> None:
    net = network(ours.GradlensCallback()).fit(X, Y)
    net.partial_fit(X, Y)
    assert len(gradlens.read_run("runs/Net.h5").steps) == 16
    net.fit(X, Y)
    assert len(gradlens.read_run("runs/Net-2.h5").steps) == 8


def test_clones_keep_the_options() -> None:
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV

    callback = ours.GradlensCallback(every=2, metrics="zero_fraction")
    cloned = clone(network(callback)).fit(X, Y)
    assert gradlens.read_run("runs/Net.h5").steps.tolist() == [0, 2, 4, 6]
    assert "zero_fraction" in gradlens.read_run("runs/Net.h5").metrics
    search = GridSearchCV(cloned, {"lr": [0.1, 0.2]}, cv=2, refit=False, error_score="raise")
    search.fit(X, Y)
    assert len(gradlens.read_runs("runs")) == 5


def test_after_an_exception_the_file_is_closed_as_failed() -> None:
    class Breaks(skorch.callbacks.Callback):  # type: ignore[name-defined, misc]
        def on_batch_end(self, net: Any, **more: Any) -> None:
            if len(net.history) == 2:
                raise ValueError("broken")

    net = network(ours.GradlensCallback("a.h5"))
    net.set_params(callbacks=[ours.GradlensCallback("a.h5"), Breaks()])
    message = ""
    try:
        net.fit(X, Y)
    except ValueError as error:
        message = str(error)
    assert message == "broken"
    del net
    gc.collect()
    assert gradlens.read_run("a.h5").status == "failed"


def test_an_error_in_the_callback_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradlens.integrations.framework_recording import FrameworkRecording

    monkeypatch.setattr(FrameworkRecording, "log", lambda *args, **more: 1 / 0)
    with pytest.warns(gradlens.GradlensWarning, match="training goes on without it: .*division by zero"):
        net = network(ours.GradlensCallback("a.h5")).fit(X, Y)
    assert len(net.history) == 2
