"""Data, outputs and layers that do not fit each other: each fault, and its twin without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from gradlens import Diagnosis, diagnose, read_run
from tests.diagnosis.recordings import check
from tests.diagnosis.test_programs import (
    CLASSES,
    INPUTS,
    STEPS,
    batch,
    both,
    both_slowly,
    cross_entropy,
    expect,
    mlp,
    train,
)


def noisy_sum(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(model(x), 0.2 * x.sum(1, keepdim=True))


@both
def test_dropout_after_the_last_layer(tmp_path: Path, faulty: bool) -> None:
    drop = nn.Dropout(0.5)
    model = nn.Sequential(mlp(), drop) if faulty else mlp(drop)
    expect(train(tmp_path / "run.h5", model), faulty, "setup", "dropout .* is the last operation")


@both
@pytest.mark.parametrize("loss", [functional.mse_loss, functional.smooth_l1_loss])
def test_targets_outside_the_range_of_a_tanh(tmp_path: Path, faulty: bool, loss: Callable[..., Tensor]) -> None:
    def far(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return loss(model(x), 3 + x.sum(1, keepdim=True) if faulty else 0.5 * torch.tanh(x.sum(1, keepdim=True)))

    found = train(tmp_path / "run.h5", nn.Sequential(mlp(out=1), nn.Tanh()), far)
    expect(found, faulty, "setup", "between -1 and 1.* the targets go from")


@both
def test_targets_below_what_a_relu_gives(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        total = x.sum(1, keepdim=True)
        return functional.mse_loss(model(x), total if faulty else total.square() + 0.1 * torch.randn_like(total))

    found = train(tmp_path / "run.h5", nn.Sequential(mlp(out=1), nn.ReLU()), loss)
    expect(
        found, faulty, "setup", "ends with a relu, whose output is never below 0, before MseLoss, and the targets go"
    )


@both
def test_weights_that_are_all_one_constant(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    for layer in model.modules() if faulty else ():
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.weight, 0.05)
            nn.init.zeros_(layer.bias)
    expect(train(tmp_path / "run.h5", model), faulty, "setup", "all rows of the weights")


class LastOutput(nn.Module):
    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.cells, self.out = nn.GRU(4, 16, batch_first=batch_first), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.cells(x.view(len(x), 3, 4))[0]
        logits: Tensor = self.out(outputs[:, -1])
        return logits


@both_slowly
def test_a_batch_that_is_taken_for_time(tmp_path: Path, faulty: bool) -> None:
    torch.manual_seed(0)

    def moved(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model, x if not faulty else torch.randn_like(x), y)

    found = train(tmp_path / "run.h5", LastOutput(batch_first=not faulty), moved)
    expect(found, faulty, "setup", "takes the batch for time")


@both_slowly
def test_a_batch_norm_over_two_values(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model, x[:2], y[:2]) if faulty else cross_entropy(model, x, y)

    expect(train(tmp_path / "run.h5", mlp(nn.BatchNorm1d(24)), loss), faulty, "setup", "2 values per channel")


@both_slowly
def test_data_that_come_class_by_class(tmp_path: Path, faulty: bool) -> None:
    turn = iter(range(STEPS))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        step = next(turn)
        only = step // 10 % CLASSES
        x, y = batch(step, 64)
        return cross_entropy(model, x[y == only], y[y == only]) if faulty else cross_entropy(model, x, y)

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    expect(train(tmp_path / "run.h5", model, loss, optimizer), faulty, "setup", "sorted by class")


@both_slowly
def test_weights_that_are_made_anew_in_each_step(tmp_path: Path, faulty: bool) -> None:
    model = mlp()

    def reset(step: int) -> None:
        for layer in model.modules() if faulty else ():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    expect(train(tmp_path / "run.h5", model, before=reset), faulty, "setup", "overwritten")


@both_slowly
def test_layers_that_are_replaced_after_the_optimizer_was_made(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if faulty:
        model[0] = nn.Linear(INPUTS, 24)
    found = train(tmp_path / "run.h5", model, optimizer=optimizer)
    expect(found, faulty, "frozen", "replaced after the optimizer")


def run_of_batches(path: Path, *, same: bool) -> Diagnosis:
    """Train on 16 random labels, and log the loss on others beside it."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with gradlens.record(model, path, optimizer=optimizer) as recorder:
        for step in range(STEPS):
            x, y = batch(0 if same else step, 16)
            loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
            if step % 40 == 39:
                other = functional.cross_entropy(model(batch(999, 200)[0].flip(1)), batch(999, 200)[1])
                recorder.log_epoch(train_loss=loss, val_loss=other)
    return diagnose(read_run(path))


@both
def test_the_same_batch_in_every_step(tmp_path: Path, faulty: bool) -> None:
    expect(run_of_batches(tmp_path / "run.h5", same=faulty), faulty, "setup", "very same batch")


@both
def test_data_that_are_not_normalised(tmp_path: Path, faulty: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 4), nn.Sigmoid(), nn.Linear(4, CLASSES))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model, 1000 + 1000 * x if faulty else x, y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    expect(train(tmp_path / "run.h5", model, loss, optimizer), faulty, "saturated", "not normalised.*Scale the inputs")


@both
def test_targets_that_are_out_of_reach(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        target = 0.2 * x.sum(1, keepdim=True)
        return functional.mse_loss(model(x), 2e5 + 5e4 * target if faulty else target)

    expect(train(tmp_path / "run.h5", mlp(out=1), loss), faulty, "plateau", "out of reach.*Scale the targets")


@both
def test_gradients_that_are_clipped_to_a_tiny_value(tmp_path: Path, faulty: bool) -> None:
    model = mlp(out=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    clip = 1e-6 if faulty else 1.0
    found = train(
        tmp_path / "run.h5",
        model,
        lambda model, x, y: functional.mse_loss(model(x) / 0.1, x.sum(1, keepdim=True)),
        optimizer,
        middle=lambda: nn.utils.clip_grad_value_(model.parameters(), clip),
    )
    if faulty:
        expect(found, faulty, "clipping", "clipped by value")
    else:
        assert "clipping" not in found.kinds


@both_slowly
def test_a_mean_loss_that_is_divided_again(tmp_path: Path, faulty: bool) -> None:
    model = mlp(out=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return noisy_sum(model, *batch(0)) / (1000 if faulty else 1)

    expect(train(tmp_path / "run.h5", model, loss, optimizer), faulty, "frozen", "Do not divide a loss")


@both
def test_an_output_layer_that_is_frozen(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    nn.init.normal_(model[-1].weight, std=1e-3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("2") or (not faulty and name.startswith("4")))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = train(tmp_path / "run.h5", model, optimizer=torch.optim.SGD(trained, lr=0.05))
    expect(found, faulty, "plateau", "Set requires_grad to True on the parameters of .*layer '4'")


def test_blocks_that_are_skipped_at_random_are_not_frozen(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = nn.Linear(INPUTS, INPUTS), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + torch.tanh(self.inner(x)) if self.calls % 25 != 1 else x  # never in a row with its update

    torch.manual_seed(0)
    check(train(tmp_path / "run.h5", nn.Sequential(Block(), Block(), nn.Linear(INPUTS, CLASSES))), "healthy")


def test_heads_beside_the_longest_path_count_as_known(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.one, self.two = nn.Linear(INPUTS, 16), nn.Linear(16, CLASSES), nn.Linear(16, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.body(x))
            return torch.stack([self.one(h), self.two(h)])

    torch.manual_seed(0)
    found = train(
        tmp_path / "run.h5",
        Two(),
        lambda model, x, y: functional.cross_entropy(model(x)[0], y) + functional.cross_entropy(model(x)[1], y),
    )
    check(found, "healthy")
