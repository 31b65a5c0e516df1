"""Layers that never receive a gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradlens
from gradlens import diagnose_arrays
from gradlens.recorder.layers import all_leaves
from tests.diagnosis.recordings import arrays, check


def test_a_layer_that_never_receives_a_gradient() -> None:
    data = arrays(noise=0.05)
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][:, 3] = np.nan
    data["update_ratio"][:, 3] = 0
    found = diagnose_arrays(data)
    check(found, "unused")
    assert found.findings[0].layers == ("layer4",)
    assert len(found.findings) == 1
    data["param_grad_norm"][40, 3] = 1  # used late
    assert "unused" not in diagnose_arrays(data).kinds


def test_a_layer_without_parameters_needs_no_gradient_of_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer, layers=all_leaves):
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
    run = gradlens.read_run(tmp_path / "run.h5")
    assert len(run.layers) == 5
    assert gradlens.diagnose(run).findings == ()
    assert "no parameter gradient" not in str(gradlens.summary(run))


class WithUnusedHead(nn.Module):
    """The last block has a second head that is frozen because nothing uses it, as in N-BEATS."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.hidden = nn.Linear(4, 8), nn.Linear(8, 8)
        self.head, self.unused = nn.Linear(8, 3), nn.Linear(8, 4).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tanh(self.hidden(torch.tanh(self.body(x))))
        return self.head(x), self.unused(x)


class Constants(nn.Module):
    """Like a Gaussian process: hyperparameters in modules that are never called."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.PReLU() for _ in range(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (sum(10.0 ** (-2 * i) * part.weight for i, part in enumerate(self.parts)) * x.mean(),)


@pytest.mark.filterwarnings("ignore:gradlens. activation_grad_norm is missing")
@pytest.mark.parametrize("build", [WithUnusedHead, Constants])
def test_what_frameworks_build_on_purpose_is_no_finding(build: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer):
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(16, 4))[0].square().mean().backward()
            optimizer.step()
    found = gradlens.diagnose(gradlens.read_run(tmp_path / "run.h5"))
    assert found.findings == ()
    assert any("nothing uses their output: unused" in note for note in found.notes) == (build is WithUnusedHead)
