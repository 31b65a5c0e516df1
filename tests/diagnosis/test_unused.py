"""Layers that never receive a gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
