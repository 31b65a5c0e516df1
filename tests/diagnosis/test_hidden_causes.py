"""Causes that public reports name and the rows alone do not show: each fault, and its twin without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from gradlens import diagnose, diagnose_arrays, read_run
from gradlens.run import Layer
from tests.diagnosis.recordings import check
from tests.diagnosis.test_programs import CLASSES, INPUTS, batch, both, cross_entropy, expect, mlp, train

FEW = 60


def half_sum(x: Tensor) -> Tensor:
    return 0.5 * x.sum(1, keepdim=True)


@both
def test_functional_dropout_after_the_last_layer(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        outputs = model(x)
        outputs = functional.dropout(outputs, 0.4) if faulty else 1.5 * outputs
        return (outputs - half_sum(x)).square().mean()

    found = train(tmp_path / "run.h5", mlp(out=1), loss, steps=FEW)
    expect(found, faulty, "setup", r"dropout \(F.dropout\) is the last operation")


def test_a_mask_over_targets_is_no_dropout(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        keep = (torch.rand(len(x), 1) < 0.5).float() / 0.5
        return ((model(x) - half_sum(x)).square() * keep).mean()

    check(train(tmp_path / "run.h5", mlp(out=1), loss, steps=FEW), "healthy")


@both
def test_a_tanh_before_a_loss_written_by_hand(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (model(x) - (9 if faulty else 0) - 0.1 * half_sum(x).tanh()).abs().mean()

    found = train(tmp_path / "run.h5", nn.Sequential(mlp(out=1), nn.Tanh()), loss, steps=FEW)
    expect(found, faulty, "setup", "ends with a tanh.* before L1Loss.* at most 2")


@both
def test_a_norm_after_the_last_layer(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(model(x), half_sum(x) + (40 if faulty else 0))

    model = nn.Sequential(mlp(out=1), nn.BatchNorm1d(1, affine=False)) if faulty else mlp(out=1)
    expect(train(tmp_path / "run.h5", model, loss), faulty, "setup", "no weight can change.*targets go from")


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(CLASSES, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.tanh(self.table(x).mean(1)))
        return logits


@both
def test_numbers_that_a_cast_makes_0(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        words = y[:, None].repeat(1, 3)
        return functional.cross_entropy(model((words / CLASSES).long() if faulty else words), y)

    expect(train(tmp_path / "run.h5", Words(), loss), faulty, "setup", "all the data that table gets are 0")


@both
def test_backward_on_a_penalty_alone(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(120):
            cost = cross_entropy(model, *batch(step))
            penalty = 1e-5 * sum(weight.square().sum() for weight in model.parameters())
            optimizer.zero_grad()
            (penalty if faulty else cost + penalty).backward()
            optimizer.step()
            recorder.log(loss=cost.item())
    expect(diagnose(read_run(tmp_path / "run.h5")), faulty, "cut", "reaches the output of none of them")


@both
def test_one_of_two_optimizers_never_steps(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    body, head = (torch.optim.Adam(part.parameters(), lr=5e-3) for part in (model[:3], model[3:]))
    with gradlens.record(model, tmp_path / "run.h5", optimizer=[body, head]) as recorder:
        for step in range(FEW):
            loss = cross_entropy(model, *batch(step))
            model.zero_grad()
            loss.backward()
            for optimizer in (head,) if faulty else (body, head):
                optimizer.step()
            recorder.log(loss=loss)
    found = diagnose(read_run(tmp_path / "run.h5"))
    expect(found, faulty, "frozen", "never steps")
    assert not any(finding.kind == "unused" for finding in found.findings)


def test_steps_that_bfloat16_rounds_away(tmp_path: Path) -> None:
    model = mlp().bfloat16()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x.bfloat16()).float(), y)

    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.sign() * (weight.abs() + 0.1))  # near 0 the numbers lie closer together
    found = train(tmp_path / "run.h5", model, loss, torch.optim.SGD(model.parameters(), lr=1e-6), steps=FEW)
    expect(found, True, "frozen", "spacing of bfloat16 numbers.* torch.autocast")


def test_weights_that_a_loop_only_names_anew(tmp_path: Path) -> None:
    model = mlp()
    with gradlens.record(model, tmp_path / "run.h5") as recorder:
        for step in range(FEW):
            model.zero_grad()
            cross_entropy(model, *batch(step)).backward()
            for weight in model.parameters():
                weight = weight - 0.1 * weight.grad
            recorder.step()
    expect(diagnose(read_run(tmp_path / "run.h5")), True, "frozen", "p -= lr")


def test_attention_whose_keys_are_all_masked(tmp_path: Path) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(4, 1, batch_first=True), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            words = x.view(len(x), 3, 4)
            masked = torch.full(words.shape[:2], fill_value=True)
            logits: Tensor = self.out(self.attention(words, words, words, key_padding_mask=masked)[0].mean(1))
            return logits

    found = train(tmp_path / "run.h5", Attends(), steps=FEW // 2)
    expect(found, True, "nonfinite", "in the forward pass.* output of attention is the first one")


@both
def test_a_root_whose_slope_is_infinite_breaks_the_backward_pass(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        outputs = model(x)
        apart = (outputs[:, None] - outputs).square().sum(-1)
        root = (apart if faulty else apart + 1e-6).sqrt().mean()
        return functional.cross_entropy(outputs, y) + 1e-3 * root

    expect(train(tmp_path / "run.h5", mlp(), loss, steps=FEW), faulty, "nonfinite", "in the backward pass")


@pytest.mark.slow
@pytest.mark.parametrize("faulty", [True, False])
def test_a_minimax_generator_without_a_slope(tmp_path: Path, faulty: bool) -> None:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    judge = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    judge.append(nn.Sigmoid())
    both_models = nn.ModuleDict({"made": made, "judge": judge})
    slow, fast = torch.optim.Adam(made.parameters(), lr=1e-4), torch.optim.Adam(judge.parameters(), lr=1e-2)
    with gradlens.record(both_models, tmp_path / "run.h5", optimizer=[fast, slow]):
        for _ in range(150):
            fake, real = made(torch.randn(32, 4)), 6 + 0.1 * torch.randn(32, 2)
            fast.zero_grad()
            (-(judge(real) + 1e-8).log() - (1 - judge(fake.detach()) + 1e-8).log()).mean().backward()
            fast.step()
            slow.zero_grad()
            chance = judge(fake)
            ((1 - chance + 1e-8).log() if faulty else -(chance + 1e-8).log()).mean().backward()
            slow.step()
    found = diagnose(read_run(tmp_path / "run.h5"))
    check(found, "setup" if faulty else "healthy")
    assert not faulty or found.findings[0].layers == ("made.0", "made.2")


class Gate(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value.clamp(0, 1)


def test_a_parameter_outside_a_clamp_is_a_note_where_the_model_learns(tmp_path: Path) -> None:
    found = train(tmp_path / "run.h5", mlp(Gate(1.5)), steps=FEW)
    check(found, "healthy")
    assert any("outside the range of a clamp" in note for note in found.notes)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(INPUTS, CLASSES) for _ in range(3))
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        self.step += 1
        logits: Tensor = self.experts[2 if self.step < FEW // 2 else self.step % 2](x)
        return logits


def test_zeros_that_are_left_in_experts_without_tokens(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        value = cross_entropy(model, x, y)
        optimizer.zero_grad(set_to_none=False)
        return value

    model = Experts()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    found = train(tmp_path / "run.h5", model, loss, optimizer, steps=FEW, clear=False)
    assert not any(finding.kind == "zero_gradient" for finding in found.findings), str(found)


def divergences(late: float) -> dict[str, np.ndarray]:
    rows = np.arange(100)
    return {"kl": late + 4 * np.exp(-rows / 8), "recon": 0.62 + 0.08 * np.exp(-rows / 8)}


@pytest.mark.parametrize(("late", "kind"), [(0.005, "setup"), (3.0, "healthy")])
def test_a_variational_model_that_ignores_its_latent_variables(late: float, kind: str) -> None:
    gradients = np.full((100, 4), 0.5)
    check(diagnose_arrays({"activation_grad_norm": gradients}, scalars=divergences(late)), kind)


@pytest.mark.parametrize(("first", "kind"), [("Embedding", "healthy"), ("Linear", "exploding")])
def test_a_table_whose_rows_are_seldom_used_does_not_explode(first: str, kind: str) -> None:
    layers = [Layer(f"layer{i}", first if i == 0 else "Linear", "main", i + 1, 1, 1) for i in range(4)]
    gradients = np.tile([400.0, 2.0, 1.0, 1.0], (60, 1))
    check(diagnose_arrays({"activation_grad_norm": gradients}, layers), kind)
