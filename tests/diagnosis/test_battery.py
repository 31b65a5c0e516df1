"""Faults after public reports that exact facts name: each fault, and its twin without it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from tests.diagnosis.recordings import check
from tests.diagnosis.test_programs import CLASSES, INPUTS, batch, both, expect, mlp, train

FEW = 60


class Rounded(nn.Linear):
    """A layer with weights of a few levels, with or without a straight-through estimator."""

    def __init__(self, inputs: int, outputs: int, *, estimates: bool, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.estimates = estimates

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.detach().abs().max() / 7
        rounded = torch.round(self.weight / scale) * scale
        weight = self.weight + (rounded - self.weight).detach() if self.estimates else rounded
        return functional.linear(x, weight, self.bias)


def rounded_mlp(*, estimates: bool, bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    first = Rounded(INPUTS, 24, estimates=estimates, bias=bias)
    return nn.Sequential(first, nn.ReLU(), Rounded(24, CLASSES, estimates=estimates, bias=bias))


@both
def test_rounded_weights_beside_a_bias_that_learns(tmp_path: Path, faulty: bool) -> None:
    found = train(tmp_path / "run.h5", rounded_mlp(estimates=not faulty, bias=True), steps=FEW)
    expect(found, faulty, "zero_gradient", "weights of layer '0', layer '2' .* go through round.* straight-through")
    assert not any("data" in finding.remedy for finding in found.findings)


@both
def test_rounded_weights_without_a_bias(tmp_path: Path, faulty: bool) -> None:
    found = train(tmp_path / "run.h5", rounded_mlp(estimates=not faulty, bias=False), steps=FEW)
    expect(found, faulty, "zero_gradient", "weights of layer '0', layer '2' go through round.* straight-through")


def test_gradients_cleared_before_the_step_of_several_batches_are_one_finding(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(FEW):
            for part in range(4):
                x, y = batch(4 * step + part)
                loss = functional.cross_entropy(model(x), y) / 4
                loss.backward()
            optimizer.zero_grad()
            optimizer.step()
            recorder.log(loss=loss)
    found = gradlens.diagnose(tmp_path / "run.h5")
    check(found, "setup")
    assert [finding.cause for finding in found.findings] == ["gradients are cleared before the step"]
