"""One line that is wrong in a program that works: a sign, a detach, a shift, an average copied back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradlens
from tests.diagnosis.small_trainings import train_on

STEPS = 60
Step = Callable[[], Tensor]


def train(
    path: Path, model: nn.Module, step: Step, rate: float = 0.01, after: Callable[[], None] = lambda: None
) -> gradlens.Diagnosis:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    return train_on(path, model, lambda _: step(), optimizer=optimizer, steps=STEPS, after=after)


def autoencoder(sign: int, *, by_hand: bool) -> tuple[nn.Module, Step]:
    torch.manual_seed(0)
    parts = {"body": nn.Linear(8, 16), "mean": nn.Linear(16, 3), "log": nn.Linear(16, 3), "back": nn.Linear(3, 8)}
    model = nn.ModuleDict(parts)

    def step() -> Tensor:
        x = torch.randn(32, 2) @ torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
        hidden = torch.relu(model["body"](x))
        mean, log = model["mean"](hidden), model["log"](hidden)
        error = F.mse_loss(model["back"](mean + (0.5 * log).exp() * torch.randn_like(mean)), x, reduction="sum")
        if by_hand:
            divergence = -0.5 * torch.sum(1 + log - mean.pow(2) - log.exp())
        else:
            normal = torch.distributions.Normal
            divergence = torch.distributions.kl_divergence(normal(mean, (0.5 * log).exp()), normal(0.0, 1.0)).sum()
        return (error + sign * divergence) / 32

    return model, step


def test_a_divergence_with_the_wrong_sign(tmp_path: Path) -> None:
    found = train(tmp_path / "run.h5", *autoencoder(-1, by_hand=True))
    assert found.findings[0].cause == "the divergence has the wrong sign"


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_variational_autoencoder_is_healthy(tmp_path: Path, by_hand: bool) -> None:
    found = train(tmp_path / "run.h5", *autoencoder(1, by_hand=by_hand))
    assert not found.findings


def actor_critic(kind: str) -> tuple[nn.Module, Step]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.Linear(4, 16), "actor": nn.Linear(16, 3), "critic": nn.Linear(16, 1)})

    def step() -> Tensor:
        hidden = torch.tanh(model["body"](torch.randn(32, 4)))
        policy, value = torch.distributions.Categorical(logits=model["actor"](hidden)), model["critic"](hidden)
        action = policy.sample()
        reward = (action == 0).float()[:, None]
        advantage = reward - value
        advantage = advantage if kind == "trained" else advantage.detach()
        loss = -(policy.log_prob(action)[:, None] * advantage).mean() + F.smooth_l1_loss(value, reward)
        return loss - 0.01 * policy.entropy().mean()

    return model, step


def test_an_advantage_that_is_not_detached(tmp_path: Path) -> None:
    found = train(tmp_path / "run.h5", *actor_critic("trained"))
    assert found.findings[0].cause == "the advantage is not detached"
    assert found.findings[0].layers == ("critic",)


def test_a_detached_advantage_is_healthy(tmp_path: Path) -> None:
    assert not train(tmp_path / "run.h5", *actor_critic("detached")).findings


@pytest.mark.parametrize("by_module", [True, False])
def test_a_focal_loss_has_no_critic(tmp_path: Path, by_module: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1), *([nn.Sigmoid()] if by_module else []))

    def step() -> Tensor:
        x = torch.randn(32, 4)
        p, y = model(x), (x[:, :1] > 0).float()
        p = p if by_module else p.sigmoid()
        return -(y * (1 - p) * (p + 1e-6).log() + (1 - y) * p * (1 - p + 1e-6).log()).mean()

    found = train(tmp_path / "run.h5", model, step)
    assert not found.findings
    assert gradlens.read_run(tmp_path / "run.h5").facts["graph"]["trained_advantages"] == []


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(9, 16), nn.Linear(16, 16), nn.Linear(16, 9)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(self.table(ids))))


def read(folder: Path, shift: int, *, time_first: bool) -> gradlens.Diagnosis:
    torch.manual_seed(0)
    model = Reader()

    def step() -> Tensor:
        ids = (torch.randint(0, 9, (6, 1)) + 2 * torch.arange(14)) % 9
        x, y = ids[:, :10], ids[:, shift : shift + 10]
        if time_first:
            x, y = x.t(), y.t()
        return F.cross_entropy(model(x).reshape(-1, 9), y.reshape(-1))

    return train(folder / f"{shift}.h5", model, step)


@pytest.mark.parametrize("time_first", [False, True])
def test_targets_that_are_the_inputs_are_noted_and_those_two_later_are_found(tmp_path: Path, time_first: bool) -> None:
    copied, right, far = (read(tmp_path, shift, time_first=time_first) for shift in (0, 1, 2))
    assert not copied.findings
    assert any("gets at the same positions" in note for note in copied.notes)
    assert not right.findings
    assert not any("positions" in note for note in right.notes)
    assert far.findings[0].cause == "targets are moved by more than one position"


@pytest.mark.parametrize("copied_back", [True, False])
def test_an_average_that_is_copied_back_is_noted(tmp_path: Path, copied_back: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    average = copy.deepcopy(model).requires_grad_(requires_grad=False)

    def step() -> Tensor:
        x = torch.randn(32, 4)
        return F.cross_entropy(model(x), (x[:, 0] > 0).long())

    @torch.no_grad()
    def after() -> None:
        for mean, own in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(own, 0.5)
            if copied_back:
                own.copy_(mean)

    found = train(tmp_path / "run.h5", model, step, 0.1, after)
    assert not found.findings
    assert any("besides the optimizer, something writes" in note for note in found.notes) == copied_back


class Policy(nn.Module):
    def __init__(self, *, detached: bool) -> None:
        super().__init__()
        self.cell, self.actor, self.critic = nn.LSTM(3, 8), nn.Linear(8, 2), nn.Linear(8, 1)
        self.detached = detached

    def act(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, state = self.cell(x, state)
        return self.actor(hidden), state

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.detached:
            hidden, _ = self.cell(x)
            return self.actor(hidden)[-1], self.critic(hidden)[-1]
        state = None
        for each in x.split(1):
            hidden, state = self.cell(each, state)
            state = (state[0].detach(), state[1].detach())
        return self.actor(hidden)[-1], self.critic(hidden)[-1]


@pytest.mark.parametrize("detached", [False, True])
def test_steps_that_only_choose_actions_are_not_a_state_that_is_detached(tmp_path: Path, detached: bool) -> None:
    torch.manual_seed(0)
    model = Policy(detached=detached)

    def step() -> Tensor:
        x, state = torch.randn(12, 4, 3), None
        for each in x.split(1) if not detached else ():  # as an agent acts, with a graph that no loss uses
            _, state = model.act(each, state)
        logits, value = model(x)
        return F.cross_entropy(logits, (x.sum((0, 2)) > 0).long()) + value.square().mean()

    found = train(tmp_path / "run.h5", model, step)
    causes = [finding.cause for finding in found.findings]
    assert ("the state is detached at each step" in causes) == detached
