"""Causes in advanced trainings: terms and derivatives in a loss, references, buffers, experts; each with a twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from gradlens import diagnose, diagnose_arrays, read_run
from gradlens.recorder.facts.loss.loss_reading import read_loss
from gradlens.run import Layer
from tests.diagnosis.recordings import arrays, check, facts, state
from tests.diagnosis.test_programs import INPUTS, both, expect, mlp, train

ROWS = 240
FALLS = np.linspace(1, 0.2, ROWS)


def curves(**scalars: np.ndarray) -> gradlens.Diagnosis:
    return diagnose_arrays(arrays(rows=ROWS), None, scalars, facts=facts())


@pytest.mark.parametrize("faulty", [True, False])
@pytest.mark.parametrize("log_target", [True, False])
def test_a_divergence_of_probabilities(faulty: bool, log_target: bool) -> None:
    logits, target = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    given = functional.softmax(logits, 1) if faulty else functional.log_softmax(logits, 1)
    wanted = functional.log_softmax(target, 1) if log_target else functional.softmax(target, 1)
    loss = functional.kl_div(given, wanted, reduction="batchmean", log_target=log_target) * 4
    found = [(fact["loss"], fact["op"]) for fact in read_loss(loss.grad_fn)["probabilities_as_logs"]]
    assert found == ([("KlDiv", "Softmax")] if faulty else [])


def test_an_expected_reward_is_no_divergence() -> None:
    chances = torch.randn(4, 3, requires_grad=True).softmax(1)
    loss = -(chances * torch.randn(4, 3)).sum(1).mean()
    assert not read_loss(loss.grad_fn)["probabilities_as_logs"]


@pytest.mark.parametrize("faulty", [True, False])
def test_ctc_of_scores(faulty: bool) -> None:
    made = nn.Linear(3, 5)(torch.randn(3, 6, 2).transpose(0, 2))  # not contiguous: a matrix product and a sum
    scores = made if faulty else made.log_softmax(-1)
    loss = functional.ctc_loss(
        scores.transpose(0, 1), torch.ones(2, 1).long(), torch.tensor([6, 6]), torch.tensor([1, 1])
    )
    assert bool(read_loss(loss.grad_fn)["probabilities_as_logs"]) == faulty


def fitted(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - 0.1 * x.sum(1, keepdim=True)).square().mean()


def curved(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return (curvature - 1).square().mean() + fitted(model, x)


def test_the_second_derivative_of_a_relu_network(tmp_path: Path) -> None:
    found = train(tmp_path / "run.h5", mlp(out=1), curved, steps=25)
    expect(found, True, "setup", "second derivative through Relu.*bends everywhere")


def test_derivatives_that_are_not_0(tmp_path: Path) -> None:
    smooth = nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    assert not train(tmp_path / "run.h5", smooth, curved, steps=25).findings

    def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean() + fitted(model, x)

    assert not train(tmp_path / "once.h5", nn.Sequential(mlp(out=1), nn.ReLU()), penalty, steps=25).findings


def test_a_term_that_another_one_dominates() -> None:
    far = 3e5 * FALLS
    found = curves(loss=far + 1.6, loss_price=far, loss_kind=np.full(ROWS, 1.6))
    check(found, "setup")
    assert "loss_price dominates" in found.findings[0].evidence
    check(curves(loss=far + 1.6 * FALLS, loss_price=far, loss_kind=1.6 * FALLS), "healthy")
    check(curves(loss=far + 1.6, loss_price=far, loss_reg=np.full(ROWS, 1.6)), "healthy")


def test_a_loss_that_is_one_number() -> None:
    """A policy that is compared with itself has the loss ln 2 whatever its weights are."""
    graph = {"losses": [{"op": "Mean", "reduction": "mean", "shape": [32], "alone": False}]}
    found = diagnose_arrays(arrays(rows=ROWS), None, {"loss": np.full(ROWS, np.log(2))}, facts=facts(graph=graph))
    check(found, "plateau")
    assert "constant, 0.693147 in all of 240 rows" in found.learning_evidence
    assert "compared with itself" in found.findings[0].remedy


@both
def test_gradients_that_each_micro_batch_clears(tmp_path: Path, faulty: bool) -> None:
    model = mlp(out=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.03)
    torch.manual_seed(0)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(80 if faulty else 400):
            x = torch.randn(8, INPUTS)
            loss = functional.mse_loss(model(x), x.sum(1, keepdim=True)) / 4
            if faulty:
                optimizer.zero_grad()
            loss.backward()
            if step % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
                recorder.log(loss=loss)
    expect(diagnose(read_run(tmp_path / "run.h5")), faulty, "setup", "gradients of 3 of them are cleared")


class Mixed(nn.Module):
    def __init__(self, faulty: bool) -> None:
        super().__init__()
        weight = torch.randn(INPUTS, INPUTS) / 4
        if faulty:
            self.register_buffer("weight", weight)
        else:
            self.weight = nn.Parameter(weight)
            self.register_buffer("kernel", weight.clone())  # beside weights that are trained
        self.bias = nn.Parameter(torch.zeros(INPUTS))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.weight + self.bias)


@both
def test_weights_that_are_a_buffer(tmp_path: Path, faulty: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Mixed(faulty), nn.Linear(INPUTS, 16), nn.ReLU(), nn.Linear(16, 4))
    expect(train(tmp_path / "run.h5", model, steps=60), faulty, "setup", "'?weight'? .*is a buffer and not a parameter")


def test_a_score_that_falls_beside_the_loss() -> None:
    worse = 0.5 + 0.3 * FALLS
    assert "labels that are swapped" in curves(loss=FALLS, accuracy=worse).findings[0].remedy
    check(curves(loss=FALLS, val_accuracy=worse), "healthy")  # it overfits


def test_a_loss_that_is_logged_every_tenth_step() -> None:
    loss = np.where(np.arange(ROWS) % 10 == 9, 1 + 0.01 * np.random.default_rng(0).normal(size=ROWS), np.nan)
    read = {"layer": "attention", "kind": "MultiheadAttention", "batch_first": False, "shape": [48, 12, 32]}
    found = diagnose_arrays(arrays(rows=ROWS), None, {"loss": loss}, facts=facts(inputs=[read]))
    check(found, "plateau")
    assert "attention has batch_first=False and reads 48 x 12 x 32 as 12 examples of 48 steps" in str(
        found.findings[0].evidence
    )


def test_experts_are_no_measure_for_layers_before_them() -> None:
    parents = [(), (0,), (0,), (1, 2)]
    layers = [
        Layer(name, "Linear", "main", i + 1, 8, 8, parents=p)
        for i, (name, p) in enumerate(zip("abcd", parents, strict=True))
    ]
    grid = {name: values[:, [0, 2, 2, 3]] for name, values in arrays(2.5, rows=ROWS, layers=4).items()}
    for seen, kind in ((["arriving", "none"], "healthy"), (["arriving"], "exploding")):
        known = facts(parameters=[state(["b"], seen=seen), state(["a", "c", "d"])])
        check(diagnose_arrays(grid, layers, {"loss": FALLS}, facts=known), kind)


def test_a_policy_that_stays_random() -> None:
    flat, noise = np.full(ROWS, np.log(3)), 0.05 * np.random.default_rng(0).normal(size=ROWS)
    found = curves(loss=noise - 5 * flat, entropy=flat, reward=0.3 + noise)
    check(found, "plateau")
    assert "ln 3" in found.learning_evidence
    assert "entropy bonus a smaller weight" in found.findings[0].remedy
    check(curves(loss=noise - 5 * flat, entropy=flat, reward=np.linspace(0.3, 0.9, ROWS)), "healthy")
    check(curves(loss=noise, entropy=flat * np.linspace(1, 0.9, ROWS), reward=0.3 + noise), "healthy")
