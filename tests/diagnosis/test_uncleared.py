"""Gradients that are never cleared are distinguished from those that are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradlens
from gradlens import Diagnosis, diagnose, read_run
from tests.diagnosis.recordings import LONG, kind


def train(path: Path, *, clear: bool, clip: float | None = None, steps: int = 80) -> Diagnosis:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    centres = torch.randn(4, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with gradlens.record(model, path, optimizer=optimizer) as recorder:
        for _ in range(steps):
            y = torch.randint(0, 4, (32,))
            loss = nn.functional.cross_entropy(model(torch.randn(32, 16) + centres[y]), y)
            if clear:
                optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            recorder.log(loss=float(loss.detach()))
    return diagnose(read_run(path))


@pytest.mark.parametrize(("clear", "clip"), [(False, None), (True, None), (True, 0.01)])
def test_gradients_that_are_never_cleared(tmp_path: Path, clear: bool, clip: float | None) -> None:
    """no-zero-grad: it was called dead because units died; the sum of gradients came first."""
    found = train(tmp_path / "run.h5", clear=clear, clip=clip)
    assert found.kind == ("setup" if not clear else "healthy" if clip is None else "clipping")
    if not clear:
        assert found.findings[0].remedy.startswith("Call optimizer.zero_grad()")
        assert found.findings[0].layers == ("0", "2", "4")


def test_gradients_that_do_not_change_are_not_a_sum() -> None:
    same = np.ones((LONG, 9))
    assert kind(activation_grad_norm=same, param_grad_norm=2 * same) == "healthy"
    assert kind(param_grad_norm=np.linspace(1, 30, LONG)[:, None] * same) == "exploding"
    assert kind(param_grad_norm=np.linspace(1, 2, LONG)[:, None] * same) == "healthy"  # it does not grow
