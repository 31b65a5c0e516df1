"""Advantages in the loss: log-probabilities that are multiplied by numbers of both signs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradlens.recorder.facts.loss.policy_gradients import policy_gradients

BATCH = 12
ADVANTAGES = torch.linspace(-1.0, 1.5, BATCH)
ACTIONS = torch.arange(BATCH) % 3
Loss = Callable[[Tensor], Tensor]


def chosen(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).log_prob(ACTIONS)


def normal(mean: Tensor) -> Tensor:
    return torch.distributions.Normal(mean, 0.5).log_prob(torch.ones(BATCH, 3)).sum(1)


def with_a_learnt_width(mean: Tensor) -> Tensor:
    return torch.distributions.Normal(mean, mean.exp()).log_prob(torch.ones(BATCH, 3)).sum(1)


def clipped(logits: Tensor) -> Tensor:
    ratio = (chosen(logits) - chosen(logits).detach()).exp()
    return torch.max(-ADVANTAGES * ratio, -ADVANTAGES * ratio.clamp(0.8, 1.2)).mean()


POLICIES: dict[str, Loss] = {
    "categorical": lambda x: -(chosen(x) * ADVANTAGES).mean(),
    "of probabilities": lambda x: -(torch.log(x.softmax(1).gather(1, ACTIONS[:, None])[:, 0]) * ADVANTAGES).mean(),
    "cross entropy": lambda x: (F.cross_entropy(x, ACTIONS, reduction="none") * ADVANTAGES).mean(),
    "normal": lambda x: -(normal(x) * ADVANTAGES).sum(),
    "learnt width": lambda x: -(with_a_learnt_width(x) * ADVANTAGES).sum(),
    "clipped ratio": clipped,
    "a list": lambda x: torch.stack([-p * float(a) for p, a in zip(chosen(x), ADVANTAGES, strict=True)]).sum(),
    "beside a critic": lambda x: -(chosen(x) * ADVANTAGES).mean() + 0.5 * F.mse_loss(x[:, 0], ADVANTAGES),
    "with an entropy": lambda x: (
        -(chosen(x) * ADVANTAGES).mean() - 0.01 * torch.distributions.Categorical(logits=x).entropy().mean()
    ),
}
OTHERS: dict[str, Loss] = {
    "cross entropy": lambda x: F.cross_entropy(x, ACTIONS),
    "weighted examples": lambda x: (F.cross_entropy(x, ACTIONS, reduction="none") * ADVANTAGES.abs()).mean(),
    "returns of one sign": lambda x: -(chosen(x) * (ADVANTAGES + 2)).mean(),
    "cosine with a target": lambda x: 2 - 2 * (F.normalize(x, dim=1) * torch.randn(BATCH, 3)).sum(1).mean(),
    "hinge": lambda x: (1 - x[:, 0] * ADVANTAGES.sign()).clamp(min=0).mean(),
    "confidence": lambda x: F.cross_entropy(x, ACTIONS) - 0.1 * torch.special.entr(x.softmax(1)).sum(1).mean(),
    "distillation": lambda x: -(x.log_softmax(1) * torch.randn(BATCH, 3).softmax(1)).sum(1).mean(),
    "a few parts": lambda x: 2.0 * F.cross_entropy(x, ACTIONS) - 0.1 * F.cross_entropy(x, ACTIONS.flip(0)),
    "squared error": lambda x: F.mse_loss(x, torch.randn(BATCH, 3)),
    "adversarial": lambda x: -x[:4].mean() + x[4:].mean(),
}


def found_in(loss: Loss) -> list[dict[str, object]]:
    torch.manual_seed(0)
    value = loss(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))(torch.randn(BATCH, 5)))
    found = policy_gradients(value.grad_fn)
    value.backward()
    return found


@pytest.mark.parametrize("name", POLICIES)
def test_advantages_are_found(name: str) -> None:
    assert len(found_in(POLICIES[name])) == 1


@pytest.mark.parametrize("name", OTHERS)
def test_other_losses_have_none(name: str) -> None:
    assert found_in(OTHERS[name]) == []
