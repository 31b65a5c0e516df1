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


PLACES = 6


class Places(nn.Module):
    """Classify each of six places of a row, with layers that see one place, or images of 6 x 1 with a convolution."""

    def __init__(self, *, is_image: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        hidden, last = (nn.Conv2d(2, 24, 1), nn.Conv2d(24, CLASSES, 1)) if is_image else (nn.Linear(2, 24), None)
        self.hidden, self.last = hidden, last or nn.Linear(24, CLASSES)
        self.is_image = is_image

    def forward(self, x: Tensor) -> Tensor:
        places = x.reshape(len(x), PLACES, 2)
        return self.last(self.hidden(places.transpose(1, 2)[..., None] if self.is_image else places).relu())


def by_place(x: Tensor) -> Tensor:
    places = x.reshape(len(x), PLACES, 2)
    return 2 * (places[..., 0] > 0).long() + (places[..., 1] > 0).long()


@both
def test_a_log_softmax_over_the_places(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.nll_loss(functional.log_softmax(model(x), 2 if faulty else 1), by_place(x)[..., None])

    found = train(tmp_path / "run.h5", Places(is_image=True), loss, steps=FEW)
    expect(found, faulty, "setup", "runs over dimension 2 of 32 x 4 x 6 x 1, .* takes dimension 1 for the classes")


def test_a_log_softmax_over_three_dimensions_is_as_the_loss_takes_it(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.nll_loss(functional.log_softmax(model(x), -1).transpose(1, 2), by_place(x))

    expect(train(tmp_path / "run.h5", Places(is_image=False), loss, steps=FEW), False, "", "")


@both
def test_logits_that_are_transposed_before_they_are_flattened(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x).transpose(1, 2) if faulty else model(x)
        return functional.cross_entropy(logits.reshape(-1, CLASSES), by_place(x).flatten())

    found = train(tmp_path / "run.h5", Places(is_image=False), loss, steps=FEW)
    expect(found, faulty, "setup", "last makes 32 x 6 x 4, and .* cuts 32 x 4 x 6 into rows of 4, which hold parts")


@both
def test_channels_that_are_flattened_as_if_they_were_last(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x) if faulty else model(x).permute(0, 2, 3, 1)
        return functional.cross_entropy(logits.reshape(-1, CLASSES), by_place(x).flatten())

    found = train(tmp_path / "run.h5", Places(is_image=True), loss, steps=FEW)
    expect(found, faulty, "setup", "cuts 32 x 4 x 6 x 1 into rows of 4, which hold parts")


def test_several_heads_of_one_layer_are_not_mixed(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x).view(-1, CLASSES), by_place(x).flatten())

    expect(train(tmp_path / "run.h5", mlp(out=PLACES * CLASSES), loss), False, "", "")


@both
def test_a_ratio_of_probabilities_to_themselves(tmp_path: Path, faulty: bool) -> None:
    kept: dict[str, Tensor] = {}

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        chosen = model(x).log_softmax(1).gather(1, y[:, None])[:, 0]
        old = model(x).log_softmax(1).gather(1, y[:, None])[:, 0]
        kept["old"] = old if faulty else torch.full_like(old, -1.4)
        ratio = (chosen - kept["old"]).exp()
        return 5 - torch.minimum(ratio, ratio.clamp(0.2, 5)).mean()

    found = train(tmp_path / "run.h5", mlp(), loss, steps=FEW)
    expect(found, faulty, "zero_gradient", r"ratio of two probabilities.* the two gradients cancel.*old = log_prob")
