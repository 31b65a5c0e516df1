"""A gradient that vanishes through time is found where the model does not learn, and never where it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradlens
from gradlens.diagnosis.diagnose import diagnose_arrays
from gradlens.metrics import GRADIENT_THROUGH_TIME

ROWS = 200


def arrays(ratio: float, losses: np.ndarray) -> gradlens.Diagnosis:
    through_time = np.full((ROWS, 2), np.nan)
    through_time[::25, 0] = ratio
    rng = np.random.default_rng(0)
    metrics = {
        "activation_grad_norm": np.exp(rng.normal(0, 0.1, (ROWS, 2))),
        "param_grad_norm": np.exp(rng.normal(0, 0.1, (ROWS, 2))),
        GRADIENT_THROUGH_TIME: through_time,
    }
    facts = {"graph": {"losses": [{"op": "NllLoss", "classes": 4, "shape": [32, 4]}]}}
    return diagnose_arrays(metrics, ["rnn", "out"], {"loss": losses}, facts=facts)


def flat() -> np.ndarray:
    return np.log(4) + np.random.default_rng(1).normal(0, 0.01, ROWS)


@pytest.mark.parametrize("ratio", [1e-4, 1e-13, 0.0])
def test_it_is_found_where_the_model_does_not_learn(ratio: float) -> None:
    said = arrays(ratio, flat())
    assert said.learning == "no"
    assert said.kind == "vanishing"
    assert said.findings[0].layers == ("rnn",)
    assert "time" in said.findings[0].evidence
    assert not said.findings[0].cause  # it is no proof that the targets depend on what is far back


@pytest.mark.parametrize("ratio", [2e-3, 1.0])
def test_a_gradient_that_arrives_is_not_to_blame(ratio: float) -> None:
    assert arrays(ratio, flat()).kind == "plateau"


def test_a_model_that_learns_may_forget() -> None:
    assert not arrays(1e-13, np.geomspace(1.4, 0.1, ROWS)).findings


@pytest.mark.parametrize(("steps", "learns"), [(60, False), (5, True)])
def test_a_recurrent_network_that_must_remember(steps: int, learns: bool, tmp_path: object) -> None:
    torch.manual_seed(0)
    rnn, head = nn.RNN(4, 32, batch_first=True), nn.Linear(32, 4)
    model = nn.ModuleList([rnn, head])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with gradlens.record(model, f"{tmp_path}/run.h5", optimizer=optimizer) as recorder:
        for _ in range(150):
            y = torch.randint(4, (32,))
            x = 0.1 * torch.randn(32, steps, 4)
            x[:, 0] = torch.eye(4)[y]
            loss = nn.functional.cross_entropy(head(rnn(x)[0][:, -1]), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    said = gradlens.diagnose(gradlens.read_run(f"{tmp_path}/run.h5"))
    assert said.kind == ("healthy" if learns else "vanishing"), said
    assert learns or said.findings[0].layers == ("0",)


def test_an_explosion_says_that_it_is_through_time(tmp_path: object) -> None:
    torch.manual_seed(0)
    rnn, head = nn.RNN(4, 32, batch_first=True, nonlinearity="relu"), nn.Linear(32, 1)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(1.6 * torch.eye(32))
    model = nn.ModuleList([rnn, head])
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with gradlens.record(model, f"{tmp_path}/run.h5", optimizer=optimizer) as recorder:
        for _ in range(60):
            loss = head(rnn(torch.randn(16, 40, 4))[0][:, -1]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    said = gradlens.diagnose(gradlens.read_run(f"{tmp_path}/run.h5"))
    assert said.kind in ("exploding", "nonfinite")
    assert "through time" in said.findings[0].evidence
    assert "clip" in said.findings[0].remedy.lower()
