"""Faults after public reports, second list: each fault, and its twin without it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import gradlens
from tests.diagnosis.recordings import check

FEW = 60


def fit_a_curve(path: Path, rate: float) -> gradlens.Diagnosis:
    """Fit a line with LBFGS, which ends by itself when it is there."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 40).view(-1, 1)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=rate, max_iter=5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - 0.5 * x).pow(2).mean()
        loss.backward()
        return loss

    with gradlens.record(model, path, optimizer=optimizer, every={"update_ratio": 1}) as recorder:
        for _ in range(FEW):
            recorder.log(loss=optimizer.step(closure))
    return gradlens.diagnose(path)


def test_an_optimizer_that_has_reached_its_tolerance_is_not_frozen(tmp_path: Path) -> None:
    found = fit_a_curve(tmp_path / "run.h5", 0.5)
    updates = gradlens.read_run(tmp_path / "run.h5").metric("update_ratio")
    assert (updates[-10:] == 0).all()
    check(found, "healthy")


def test_an_optimizer_with_a_tolerance_that_never_moves_is_frozen(tmp_path: Path) -> None:
    check(fit_a_curve(tmp_path / "run.h5", 0.0), "frozen")
