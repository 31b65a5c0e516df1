"""A part of a module that is returned and left unused is a note; a part that is cut out of the graph is a finding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradlens
from tests.diagnosis.small_trainings import train_on


class Body(nn.Module):
    """Returns what it finds in each position, and a summary that a task may not need."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.pool, self.act = nn.Linear(6, 16), nn.Linear(16, 16), nn.Tanh()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.lift(x))
        return hidden, self.act(self.pool(hidden))


class UsesHidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Body(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.body(x)
        return self.head(hidden)


class TakenByAHook(nn.Module):
    """Runs a whole network for the output of a layer inside it, as self-supervised wrappers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 10))
        self.head = nn.Linear(16, 3)
        self.net[1].register_forward_hook(lambda module, args, output: setattr(self, "hidden", output))

    def forward(self, x: Tensor) -> Tensor:
        self.net(x)
        return self.head(self.hidden)


class DetachedBody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 16), nn.ReLU()), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).detach())


class DetachedBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.branch = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.lift(x))
        return self.head(hidden + self.branch(hidden).detach())


def train(path: Path, make: Callable[[], nn.Module]) -> gradlens.Diagnosis:
    torch.manual_seed(0)
    model = make()

    def loss(step: int) -> Tensor:
        x = torch.randn(32, 6)
        return F.cross_entropy(model(x), x[:, :3].argmax(1))

    return train_on(path, model, loss)


@pytest.mark.parametrize(("make", "layers"), [(UsesHidden, "body.pool"), (TakenByAHook, "net.2")])
def test_what_is_returned_and_left_unused_is_a_note(tmp_path: Path, make: Callable[[], nn.Module], layers: str) -> None:
    found = train(tmp_path / "run.h5", make)
    assert not found.findings
    assert any("the loss does not reach the output of these" in note and layers in note for note in found.notes)


@pytest.mark.parametrize(("make", "layer"), [(DetachedBody, "body.0"), (DetachedBranch, "branch.2")])
def test_what_is_cut_out_of_the_graph_is_still_a_finding(
    tmp_path: Path, make: Callable[[], nn.Module], layer: str
) -> None:
    found = train(tmp_path / "run.h5", make)
    assert found.kind == "cut"
    assert layer in found.findings[0].cause


def test_layers_whose_own_optimizer_has_done_its_steps_are_no_experts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
    optimizers = [torch.optim.Adam(layer.parameters(), 0.01) for layer in layers]
    with gradlens.record(layers, tmp_path / "run.h5", optimizer=optimizers) as recorder:
        for layer, optimizer in zip(layers, optimizers, strict=True):
            for _ in range(40):
                x = torch.randn(32, 6)
                optimizer.zero_grad()
                loss = F.mse_loss(layer(x), x)
                loss.backward()
                optimizer.step()
                recorder.log(loss=loss)
    found = gradlens.diagnose(tmp_path / "run.h5")
    assert not found.findings
    assert any("makes no step in the last fifth of the rows: layer '0'" in note for note in found.notes)
    assert not any("experts" in note or "not logged" in note for note in found.notes)


class WithPlaces(nn.Module):
    """Owns a trained token and a table of positions that is not trained, as masked autoencoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.body, self.head = nn.Parameter(torch.zeros(16)), nn.Linear(6, 16), nn.Linear(16, 3)
        self.places = nn.Parameter(torch.randn(16), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x) + self.token + self.places))


def test_a_table_of_positions_that_is_not_trained_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = WithPlaces()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for _ in range(40):
            x = torch.randn(32, 6)
            loss = F.cross_entropy(model(x), x[:, :3].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    found = gradlens.diagnose(tmp_path / "run.h5")
    assert not found.findings
    assert any("a part of the parameters of (model) is frozen from the first row on: places" in n for n in found.notes)
    assert not any("not in the optimizer: (model)" in note for note in found.notes)
