"""Remedies name what this model and training have, and do not advise what is there already."""

from __future__ import annotations

import numpy as np

from gradlens import diagnose_arrays
from gradlens.run import Layer
from tests.diagnosis.recordings import LAYERS, ROWS, arrays, facts, state

NAMES = [f"layer{i + 1}" for i in range(LAYERS)]
STUCK = np.full(ROWS, 2.0)


def residual() -> list[Layer]:
    tags = ("residual",)
    return [Layer(name, "Linear", "main", i + 1, 64, 100, tags=tags) for i, name in enumerate(NAMES)]


def remedy(data: dict, layers: list[Layer] | None = None, given: dict | None = None, **scalars: np.ndarray) -> str:
    return diagnose_arrays(data, layers, {"loss": STUCK} | scalars, facts=given).findings[0].remedy


def test_a_vanishing_gradient_is_answered_with_what_the_model_lacks() -> None:
    data = arrays(-6, noise=0.0)
    seen = facts(graph={"source": "backward", "bounded": [{"op": "Tanh", "layer": name} for name in NAMES[:2]]})
    assert "instead of the tanh behind layer1, layer2, add shortcuts" in remedy(data, given=seen)
    assert "where an activation function is bounded" in remedy(data)
    assert "add shortcuts" not in remedy(data, residual(), seen)
    unbounded = remedy(data, given=facts(graph={"source": "backward"}))
    assert "ReLU" not in unbounded
    assert "initialise larger weights" in unbounded


def test_steps_that_are_too_small_get_a_rate_in_numbers_and_a_schedule_only_where_there_is_one() -> None:
    rows = 200
    data = arrays(noise=0.05, rows=rows) | {"update_ratio": np.full((rows, LAYERS), 1e-7)}
    loss = 2.0 + 0.01 * np.random.default_rng(0).normal(size=rows)
    said = remedy(data, given=facts(), loss=loss, lr=np.full(rows, 1e-6))
    assert said == "Raise the learning rate of SGD (1e-06) step by step, to about 0.01."
    falling = remedy(data, given=facts(), loss=loss, lr=np.geomspace(1e-6, 1e-7, rows))
    assert falling == "Raise the learning rate of SGD (1e-06) by a factor of 10 to 100, or check its schedule."


def test_layers_that_stand_still_in_the_optimizer_are_not_to_be_given_to_it() -> None:
    data = arrays(noise=0.0)
    data["update_ratio"][:, :2] = 0.0
    groups = [
        {"layers": NAMES[:2], "count": 4, "lr": {"first": 1e-12, "last": 1e-12, "largest": 1e-12}},
        {"layers": NAMES[2:], "count": 12, "lr": {"first": 1e-3, "last": 1e-3, "largest": 1e-3}},
    ]
    two = [{"class": "SGD", "foreign": {"count": 0, "numel": 0}, "groups": groups, "schedulers": []}]
    said = remedy(data, given=facts(optimizers=two))
    assert said.startswith("SGD has layer1, layer2: check the learning rate of their group (1e-12), and whether")
    assert "requires_grad on layer1, layer2" in remedy(data)


def test_a_gradient_that_becomes_0_later_is_answered_with_the_rate() -> None:
    data = arrays(noise=0.0)
    data["param_grad_norm"][20:] = data["activation_grad_norm"][20:] = 0.0
    said = remedy(data, given=facts(), lr=np.full(ROWS, 0.1))
    assert said == "Lower the learning rate of SGD (0.1) by a factor of 10, and check the bias of layer8."


def test_gradients_that_are_clipped_are_not_to_be_clipped_again() -> None:
    data = arrays(noise=0.0)
    data["param_grad_norm"][40:, 3] = np.inf
    clips = {"when": "before_step", "max_norm": 1.0, "coefficient": [1.0, 1.0, 1.0], "total_norm": [0.5, 0.5, 0.5]}
    clipped = remedy(data, given=facts(clipping=[clips | {"first_step": 0, "last_step": 9, "looks": 5}]))
    assert "the output of layer4: sqrt" in clipped
    assert "clip" not in clipped
    assert "and clip the gradients" in remedy(data, given=facts())


def test_zeros_at_the_start_name_both_factors() -> None:
    data = arrays(noise=0.0)
    data["param_grad_norm"][:, :2] = data["activation_grad_norm"][:, :2] = 0.0
    zero = state(NAMES[:2], weights_zero=True, gradient="zero", seen=["zero"])
    said = remedy(data, given=facts(parameters=[zero, state(NAMES[2:])]))
    assert said.startswith("Initialise layer1, layer2 with small random weights")


def test_a_plateau_over_tokens_is_not_told_to_normalise_them() -> None:
    rows = 200
    loss = 2.0 + 0.01 * np.random.default_rng(0).normal(size=rows)
    data = arrays(noise=0.05, rows=rows)
    tokens = {"layer": NAMES[0], "data": True, "dtype": "int64", "rms": 30.0, "shape": [32, 9], "calls": 3}
    said = remedy(data, given=facts(inputs=[tokens]), loss=loss)
    assert "inputs and targets may be shuffled apart or mislabelled. If it does not" in said
    assert "or not normalised" in remedy(data, given=facts(), loss=loss)


def test_a_gradient_that_vanishes_after_the_first_large_steps_is_answered_with_the_rate() -> None:
    """A transformer under AdamW at 0.1: at its initialisation the gradient arrives, two steps later it is gone."""
    for arrives, update, is_rate in ((2, 1.4, True), (1, 1.4, True), (0, 1.4, False), (2, 1e-3, False)):
        data = arrays(-6, noise=0.0)
        for name in ("activation_grad_norm", "param_grad_norm"):
            data[name][:arrives] = data[name][:arrives, -1:]
        data["update_ratio"][:1] = update
        said = remedy(data, given=facts())
        assert ("In the first rows the gradient arrived" in said) == is_rate, said
        assert ("learning rate" in said) == is_rate
        assert ("He initialisation" in said or "initialise larger weights" in said) != is_rate
