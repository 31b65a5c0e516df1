"""Regressions: wrong diagnoses that experiments/scorecard found, each next to a similar case with another verdict."""

from __future__ import annotations

import numpy as np

from gradlens import diagnose_arrays
from gradlens.run import Layer
from tests.diagnosis.recordings import FALLS, LONG, STUCK, kind, recording


def test_a_shallow_model_at_its_noise_floor_is_not_incoherent() -> None:
    """noise-floor, seed 1: four layers, a cosine of -0.04 and a loss that is stuck from the first row on."""
    noise = -0.04 + 0.05 * np.random.default_rng(1).normal(size=(LONG, 9))
    assert kind(layers=4, grad_coherence=noise[:, :4]) == "healthy"
    assert kind(layers=9, grad_coherence=noise) == "incoherent"


def test_a_model_that_finished_learning_before_the_second_fifth_is_not_incoherent() -> None:
    """resnet34 on the photographs: all images learnt in a tenth of the rows, the loss at its floor from there on."""
    noise = -0.2 + 0.05 * np.random.default_rng(1).normal(size=(LONG, 9))
    learnt = np.maximum(np.geomspace(1.6, 1.6 * 1e-4, LONG), 0.23)
    learnt[LONG // 10 :] = 0.23
    assert kind(learnt, grad_coherence=noise) == "healthy"
    barely = np.where(np.arange(LONG) < LONG // 10, 1.6, 1.4)
    assert kind(barely, grad_coherence=noise) == "incoherent"


def test_a_learning_rate_that_is_far_too_small() -> None:
    """lr-x0.001: it was called healthy."""
    tiny = np.full((LONG, 9), 1e-5)
    agree = np.full((LONG, 9), 0.4)
    found = diagnose_arrays(recording(update_ratio=tiny, grad_coherence=agree), scalars={"loss": STUCK})
    assert found.kind == "frozen"
    assert "learning rate" in found.findings[0].remedy
    assert "1.0e-05" in found.findings[0].evidence
    assert kind(update_ratio=tiny, grad_coherence=np.full((LONG, 9), 0.05)) == "healthy"  # near convergence
    assert kind(FALLS, update_ratio=tiny, grad_coherence=agree) == "healthy"  # it learns nevertheless
    assert kind(lr=np.linspace(0, 1e-3, LONG), update_ratio=tiny, grad_coherence=agree) == "healthy"  # warm-up
    assert kind(lr=np.full(LONG, 1e-3), update_ratio=tiny, grad_coherence=agree) == "frozen"
    assert (
        diagnose_arrays(recording(update_ratio=tiny, grad_coherence=agree)).kind == "healthy"
    )  # without a loss nothing is certain


def test_units_that_die_after_the_gradient_vanished_are_not_the_cause() -> None:
    """init-x0.1, seed 2: vanishing from the first row on; at step 125 a layer's last units died: it was called dead."""
    grads = 10.0 ** np.append(np.linspace(-8, 0, 8), 0.3) * np.ones((LONG, 1))
    zeros = np.full((LONG, 9), 0.5)
    zeros[50:, 7] = 1.0
    found = diagnose_arrays(
        recording(activation_grad_norm=grads, update_ratio=1e-3 * grads, zero_fraction=zeros), scalars={"loss": STUCK}
    )
    assert found.kinds == ("vanishing",)
    assert any("a consequence, not a separate fault: dead" in note for note in found.notes)
    zeros[:, 7] = 1.0
    assert kind(activation_grad_norm=grads, update_ratio=1e-3 * grads, zero_fraction=zeros) == "dead"


def test_a_signal_that_explodes_in_the_forward_pass() -> None:
    """plain18-no-bn, seeds 0 and 1, under Adam: gradients recovered, outputs grew 1,000-fold: called healthy."""
    time, depth = np.minimum(np.arange(LONG) / 40, 1)[:, None], np.linspace(0, 3, 9)
    outputs = 10.0 ** (time * depth)
    found = diagnose_arrays(recording(activation_rms=outputs))
    assert found.kind == "exploding"
    assert found.findings[0].layers[-1] == "layer8"  # not the last: logits may be large
    assert "10^" in found.findings[0].evidence
    assert kind(activation_rms=10.0**depth * np.ones((LONG, 1))) == "healthy"  # it was so from the first row on
    assert kind(activation_rms=10.0 ** (3 * time) * np.ones((1, 9))) == "healthy"  # all grow together


def test_an_embedding_does_not_count_as_the_first_layer() -> None:
    outputs = 0.1 * 10.0 ** (2.5 * np.minimum(np.arange(LONG) / 40, 1)[:, None] * np.ones((1, 9)))
    outputs[:, 0] = 0.02
    layers = [Layer(f"l{i}", "Linear" if i else "Embedding", "main", i + 1, 64, 64) for i in range(9)]
    assert diagnose_arrays(recording(activation_rms=outputs), layers).kind == "healthy"
    layers[0] = Layer("l0", "Linear", "main", 1, 64, 64)
    assert diagnose_arrays(recording(activation_rms=outputs), layers).kind == "exploding"
