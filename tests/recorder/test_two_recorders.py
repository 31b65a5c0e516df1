"""Two recorders in one program, on models whose layers have the same names: neither takes the other's for its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradlens


def train(folder: Path, *, detached: bool) -> dict[str, gradlens.Run]:
    """A generator and a discriminator with an optimizer and a recorder each."""
    torch.manual_seed(0)
    maker = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    judge = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    models = {"maker": maker, "judge": judge}
    optimizers = {name: torch.optim.Adam(model.parameters(), 1e-3) for name, model in models.items()}
    paths = {name: folder / f"{name}.h5" for name in models}
    recorders = {name: gradlens.record(models[name], paths[name], optimizer=optimizers[name]) for name in models}
    ones, zeros = torch.ones(16, 1), torch.zeros(16, 1)
    with recorders["maker"], recorders["judge"]:
        for _ in range(40):
            fake = maker(torch.randn(16, 4))
            optimizers["judge"].zero_grad()
            loss = F.binary_cross_entropy_with_logits(judge(torch.randn(16, 2) + 2), ones)
            loss = loss + F.binary_cross_entropy_with_logits(judge(fake.detach()), zeros)
            loss.backward()
            optimizers["judge"].step()
            recorders["judge"].log(loss=loss)
            optimizers["maker"].zero_grad()
            loss = F.binary_cross_entropy_with_logits(judge(fake.detach() if detached else fake), ones)
            loss.backward()
            optimizers["maker"].step()
            recorders["maker"].log(loss=loss)
    return {name: gradlens.read_run(path) for name, path in paths.items()}


@pytest.mark.parametrize("detached", [False, True])
def test_a_detached_fake_is_seen_in_the_generator_only(tmp_path: Path, detached: bool) -> None:
    runs = train(tmp_path, detached=detached)
    graphs = {name: run.facts["graph"] for name, run in runs.items()}
    assert graphs["judge"]["cut"] == []
    assert [item["layers"] for item in graphs["maker"]["cut"]] == ([["0", "2"]] if detached else [])
    assert graphs["maker"]["modules"]["reached"] == (0 if detached else 3)
    assert {item["layer"] for item in graphs["judge"]["outputs"]} == {"2"}
    assert not any(item["layer"] for item in graphs["maker"]["outputs"])
    kinds = {name: gradlens.diagnose(run).kind for name, run in runs.items()}
    assert kinds == {"judge": "healthy", "maker": "cut" if detached else "healthy"}
