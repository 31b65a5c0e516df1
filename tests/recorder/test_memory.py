"""What the recorder holds of large models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradlens.recorder.measurers.weights as weights
from gradlens import read_run, record
from gradlens.recorder import Recorder
from gradlens.sinks import ListSink
from tests.recorder.small import backward, mlp


def train(
    model: nn.Module, sink: ListSink, rows: int, metrics=("param_grad_norm", "param_norm", "update_ratio")
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer, metrics=metrics, on_error="raise"):
        for step in range(rows):
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()


@pytest.mark.parametrize("metrics", [("update_ratio",), ("param_norm", "update_ratio")])
def test_weights_too_large_to_copy_at_once_are_sampled_in_turn(metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [4 * sum(p.numel() for p in layer.parameters()) for layer in mlp() if isinstance(layer, nn.Linear)]
    monkeypatch.setattr(weights, "MOST_COPIED", sizes[0] + sizes[1])  # the first two layers together, then the third
    copied = []
    read = weights.Weights.before_step

    def watched(self: weights.Weights, *arguments: object) -> None:
        read(self, *arguments)
        copied.append(sum(4 * copy.numel() for copy in self._copies))

    monkeypatch.setattr(weights.Weights, "before_step", watched)
    model, sink = mlp(), ListSink()
    before, expected = [], []
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer, metrics=metrics, on_error="raise"):
        for step in range(28):
            optimizer.zero_grad()
            backward(model, step)
            before = [nn.utils.parameters_to_vector(layer.parameters()).detach().double() for layer in linear]
            optimizer.step()
            now = [nn.utils.parameters_to_vector(layer.parameters()).detach().double() for layer in linear]
            expected.append([float((b - a).norm() / a.norm()) for a, b in zip(before, now, strict=True)])
    assert max(copied) <= sizes[0] + sizes[1]
    ratios = np.array([row.metrics.get("update_ratio", np.full(3, np.nan)) for row in sink.rows])
    for row in (0, 25):
        np.testing.assert_allclose(ratios[row, :2], expected[row][:2], rtol=1e-4)
        np.testing.assert_allclose(ratios[row + 1, 2], expected[row + 1][2], rtol=1e-4)
        assert np.isnan(ratios[row, 2])
        assert np.isnan(ratios[row + 1, :2]).all()
    assert np.isnan(ratios[2:25]).all()
    if "param_norm" in metrics:
        assert [row for row in range(28) if "param_norm" in sink.rows[row].metrics] == [0, 25]
        assert np.isfinite(sink.rows[0].metrics["param_norm"]).all()


def test_the_file_says_that_updates_are_spread_over_rows(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MOST_COPIED", 1)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with record(model, tmp_path / "run.h5", optimizer=optimizer):
        for step in range(4):
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
    run = read_run(tmp_path / "run.h5")
    assert run.info["every"]["update_ratio"] == 1
    assert np.isfinite(run.metric("update_ratio")).sum(1).tolist() == [1, 1, 1, 0]
    assert (run.scalars.get("discarded_passes", np.zeros(4)) == 0).all()


def test_passes_discarded_late_are_0_before(tmp_path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(6):
            if step == 4:
                backward(model, 90)
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
            if step == 2:
                recorder.log_epoch(epoch=1)
    assert read_run(tmp_path / "run.h5").scalars["discarded_passes"].tolist() == [0, 0, 0, 0, 1, 0]
