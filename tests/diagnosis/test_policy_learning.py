"""A loss weighted with advantages says nothing of whether the policy gets better; a reward does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradlens


def train(path: Path, *, logs_reward: bool) -> gradlens.Diagnosis:
    """An actor and a critic of a bandit with three arms; the critic's error makes most of the loss, and falls."""
    torch.manual_seed(0)
    body, actor, critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh()), nn.Linear(16, 3), nn.Linear(16, 1)
    model = nn.ModuleDict({"body": body, "actor": actor, "critic": critic})
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    with gradlens.record(model, path, optimizer=optimizer) as recorder:
        for _ in range(80):
            state = torch.randn(32, 4)
            hidden = body(state)
            policy, value = torch.distributions.Categorical(logits=actor(hidden)), critic(hidden)[:, 0]
            action = policy.sample()
            reward = (action == 0).float() * 3 + 0.1 * torch.randn(32)
            advantage = (reward - value).detach()
            loss = -(policy.log_prob(action) * advantage).mean() + F.mse_loss(value, reward)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, **({"reward": reward.mean()} if logs_reward else {}))
    return gradlens.diagnose(path)


@pytest.mark.parametrize("logs_reward", [False, True])
def test_a_loss_with_advantages_is_no_evidence_and_a_reward_is(tmp_path: Path, logs_reward: bool) -> None:
    found = train(tmp_path / "run.h5", logs_reward=logs_reward)
    assert not found.findings
    assert found.learning == ("yes" if logs_reward else "unknown")
    assert ("log the reward" in found.learning_evidence) != logs_reward
