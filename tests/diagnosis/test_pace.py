"""Wrong diagnoses that the score card (experiments/scorecard) found, each as it was, beside what looks like it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradlens
from gradlens import Diagnosis, diagnose, diagnose_arrays, read_run
from gradlens.run import Layer

ROWS = 120


def recording(layers: int = 9, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """Return a healthy recording of every metric, with some changed."""
    rng = np.random.default_rng(0)

    def grid(typical: float, spread: float = 0.1) -> np.ndarray:
        return typical * 10 ** (spread * rng.normal(size=(ROWS, layers)))

    return {
        "activation_grad_norm": grid(1.0),
        "param_grad_norm": grid(2.0),
        "update_ratio": grid(1e-3),
        "activation_rms": grid(1.0, 0.01),
        "zero_fraction": np.full((ROWS, layers), 0.5),
        "grad_coherence": 0.2 + 0.05 * rng.normal(size=(ROWS, layers)),
    } | changes


STUCK, FALLS = np.full(ROWS, 1.6), np.geomspace(2, 0.1, ROWS)


def kind(loss: np.ndarray = STUCK, lr: np.ndarray | None = None, layers: int = 9, **changes: np.ndarray) -> str:
    scalars = {"loss": loss} | ({} if lr is None else {"lr": lr})
    return diagnose_arrays(recording(layers, **changes), scalars=scalars).kind


def test_a_shallow_net_at_its_noise_floor_is_not_shattered() -> None:
    """noise-floor, seed 1: four layers, a cosine of -0.04 and a loss that is stuck from the first row on."""
    noise = -0.04 + 0.05 * np.random.default_rng(1).normal(size=(ROWS, 9))
    assert kind(layers=4, grad_coherence=noise[:, :4]) == "healthy"
    assert kind(layers=9, grad_coherence=noise) == "incoherent"


def test_a_net_that_had_learnt_all_before_the_second_fifth_is_not_shattered() -> None:
    """resnet34 on the photographs: all pictures learnt in a tenth of the rows, the loss at its floor from there on."""
    noise = -0.2 + 0.05 * np.random.default_rng(1).normal(size=(ROWS, 9))
    learnt = np.maximum(np.geomspace(1.6, 1.6 * 1e-4, ROWS), 0.23)
    learnt[ROWS // 10 :] = 0.23
    assert kind(learnt, grad_coherence=noise) == "healthy"
    barely = np.where(np.arange(ROWS) < ROWS // 10, 1.6, 1.4)
    assert kind(barely, grad_coherence=noise) == "incoherent"


def test_a_learning_rate_far_too_small() -> None:
    """lr-x0.001: it was called healthy."""
    tiny = np.full((ROWS, 9), 1e-5)
    agree = np.full((ROWS, 9), 0.4)
    found = diagnose_arrays(recording(update_ratio=tiny, grad_coherence=agree), scalars={"loss": STUCK})
    assert found.kind == "frozen"
    assert "learning rate" in found.findings[0].remedy
    assert "1.0e-05" in found.findings[0].evidence
    assert kind(update_ratio=tiny, grad_coherence=np.full((ROWS, 9), 0.05)) == "healthy"  # near convergence
    assert kind(FALLS, update_ratio=tiny, grad_coherence=agree) == "healthy"  # it learns all the same
    assert kind(lr=np.linspace(0, 1e-3, ROWS), update_ratio=tiny, grad_coherence=agree) == "healthy"  # warm-up
    assert kind(lr=np.full(ROWS, 1e-3), update_ratio=tiny, grad_coherence=agree) == "frozen"
    assert diagnose_arrays(recording(update_ratio=tiny, grad_coherence=agree)).kind == "healthy"  # no loss to tell


def test_units_that_go_off_after_the_gradient_has_vanished_are_no_cause() -> None:
    """init-x0.1, seed 2: vanishing from the first row on; at step 125 a layer's last units went off: called dead."""
    grads = 10.0 ** np.append(np.linspace(-8, 0, 8), 0.3) * np.ones((ROWS, 1))
    zeros = np.full((ROWS, 9), 0.5)
    zeros[50:, 7] = 1.0
    found = diagnose_arrays(
        recording(activation_grad_norm=grads, update_ratio=1e-3 * grads, zero_fraction=zeros), scalars={"loss": STUCK}
    )
    assert found.kinds == ("vanishing",)
    assert any("what follows from it: dead" in note for note in found.notes)
    zeros[:, 7] = 1.0
    assert kind(activation_grad_norm=grads, update_ratio=1e-3 * grads, zero_fraction=zeros) == "dead"


def test_a_signal_that_explodes_on_its_way_forward() -> None:
    """plain18-no-bn, seeds 0 and 1, under Adam: gradients recovered, outputs grew a thousandfold: called healthy."""
    time, depth = np.minimum(np.arange(ROWS) / 40, 1)[:, None], np.linspace(0, 3, 9)
    outputs = 10.0 ** (time * depth)
    found = diagnose_arrays(recording(activation_rms=outputs))
    assert found.kind == "exploding"
    assert found.findings[0].layers[-1] == "layer8"  # not the last: logits may be large
    assert "10^" in found.findings[0].evidence
    assert kind(activation_rms=10.0**depth * np.ones((ROWS, 1))) == "healthy"  # it was so from the first row on
    assert kind(activation_rms=10.0 ** (3 * time) * np.ones((1, 9))) == "healthy"  # all grow together


def test_an_embedding_is_no_first_layer_to_compare_outputs_with() -> None:
    outputs = 0.1 * 10.0 ** (2.5 * np.minimum(np.arange(ROWS) / 40, 1)[:, None] * np.ones((1, 9)))
    outputs[:, 0] = 0.02
    layers = [Layer(f"l{i}", "Linear" if i else "Embedding", "main", i + 1, 64, 64) for i in range(9)]
    assert diagnose_arrays(recording(activation_rms=outputs), layers).kind == "healthy"
    layers[0] = Layer("l0", "Linear", "main", 1, 64, 64)
    assert diagnose_arrays(recording(activation_rms=outputs), layers).kind == "exploding"


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
    """no-zero-grad: called dead, after units had gone off; what came first is a sum of gradients."""
    found = train(tmp_path / "run.h5", clear=clear, clip=clip)
    assert found.kind == ("healthy" if clear else "exploding")
    if not clear:
        assert found.findings[0].remedy.startswith("Call optimizer.zero_grad()")
        assert found.findings[0].layers == ("0", "2", "4")


def test_a_sum_is_not_seen_in_gradients_that_do_not_move() -> None:
    same = np.ones((ROWS, 9))
    assert kind(activation_grad_norm=same, param_grad_norm=2 * same) == "healthy"
    assert kind(param_grad_norm=np.linspace(1, 30, ROWS)[:, None] * same) == "exploding"
    assert kind(param_grad_norm=np.linspace(1, 2, ROWS)[:, None] * same) == "healthy"  # it does not grow
