"""A critic's errors as weights of log-probabilities: they are advantages, whatever their sign."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradlens
from gradlens.recorder.facts.loss.policy_gradients import policy_gradients

BATCH = 12
RETURNS = torch.linspace(1.0, 4.0, BATCH)
ACTIONS = torch.arange(BATCH) % 3
Loss = Callable[[Tensor, Tensor], Tensor]


def log_probability(scores: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=scores).log_prob(ACTIONS)


def critic(scores: Tensor, values: Tensor, way: str = "returns first") -> Tensor:
    errors = RETURNS - values if way != "values first" else values - RETURNS
    weights = errors.detach().clone() if way == "a copy" else errors.detach()
    policy = (weights * log_probability(scores)).mean()
    return 0.5 * errors.pow(2).mean() + (policy if way == "values first" else -policy)


POLICIES: dict[str, Loss] = {
    "returns first": critic,
    "values first": lambda scores, values: critic(scores, values, "values first"),
    "with an entropy": lambda scores, values: (
        critic(scores, values) - 0.01 * torch.distributions.Categorical(logits=scores).entropy().mean()
    ),
}
OTHERS: dict[str, Loss] = {
    "a copy of the errors": lambda scores, values: critic(scores, values, "a copy"),
    "no square of the weights": lambda scores, values: (
        (values - 1).pow(2).mean() - (RETURNS * log_probability(scores)).mean()
    ),
    "weighted examples": lambda scores, values: (
        (RETURNS - values).pow(2).mean() + (RETURNS * F.cross_entropy(scores, ACTIONS, reduction="none")).mean()
    ),
}


def read(loss: Loss) -> list:
    torch.manual_seed(0)
    x = torch.randn(BATCH, 5)
    return policy_gradients(loss(nn.Linear(5, 3)(x), nn.Linear(5, 1)(x)[:, 0] * 1e-3).grad_fn)


@pytest.mark.parametrize("loss", POLICIES.values(), ids=POLICIES)
def test_errors_of_one_sign_are_advantages(loss: Loss) -> None:
    assert len(read(loss)) == 1


@pytest.mark.parametrize("loss", OTHERS.values(), ids=OTHERS)
def test_other_weights_of_one_sign_are_none(loss: Loss) -> None:
    assert read(loss) == []


@pytest.mark.parametrize("way", ["returns first", pytest.param("a copy", marks=pytest.mark.slow)])
def test_a_falling_loss_with_errors_of_a_critic_is_no_evidence(tmp_path: Path, way: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for _ in range(80):
            out = model(torch.randn(BATCH, 5))
            loss = critic(out[:, :3], out[:, 3], way)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    found = gradlens.diagnose(tmp_path / "run.h5")
    assert found.learning == ("unknown" if way == "returns first" else "yes"), found.learning_evidence
