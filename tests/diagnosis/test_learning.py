"""Whether a model learns: yes, no, or unknown where nothing can be said."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from gradlens import diagnose_arrays
from gradlens.diagnosis.learning import Losses, judge_learning
from gradlens.diagnosis.recorded_rows import Recording, run_of_arrays
from gradlens.run import FloatArray
from tests.diagnosis.recordings import LAYERS, arrays, check, facts, state

N = 240
NOISE = np.random.default_rng(3).normal(size=N)
CROSS_ENTROPY = {"losses": [{"op": "NllLoss", "reduction": "mean", "classes": 10, "shape": [32, 10]}]}
GUESS = math.log(10)


def learning(loss: FloatArray, graph: dict | None = None, steps: FloatArray | None = None, **changes: object) -> str:
    scalars = {"loss": loss} | {name: changes.pop(name) for name in ("lr", "val_acc") if name in changes}
    known = facts(graph=graph or {}, **changes)
    grid = {"param_grad_norm": np.ones((len(loss), LAYERS))}
    return judge_learning(Recording(run_of_arrays(grid, None, scalars, steps, facts=known))).verdict


def falls(share: float, noise: float = 0.02) -> FloatArray:
    return np.linspace(1, 1 - share, N) + noise * NOISE


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [
        (falls(0.8), "yes"),
        (falls(0.8, 0.3), "yes"),
        (falls(0.08, 0.01), "yes"),
        (falls(0.0), "no"),
        (falls(0.0, 0.0), "no"),
        (falls(0.05, 0.4), "unknown"),  # too noisy to see a fall of this size, or to exclude it
        (falls(0.0)[:80], "unknown"),  # too few rows to expect a fall
        (falls(0.9)[:15], "unknown"),
        (falls(-1.0), "unknown"),  # a rising loss may have rising targets
        (-falls(0.0), "unknown"),
        (-falls(-0.8), "yes"),  # -1 to -1.8
        (np.r_[falls(0.8)[:150], np.full(90, np.nan)], "no"),  # not finite to the end
    ],
)
def test_the_trend_of_the_loss(loss: FloatArray, verdict: str) -> None:
    assert learning(loss) == verdict


STEEP = np.r_[8, 5, 2, 0.8, 0.6, np.geomspace(0.5, 0.13, 16)]


def test_few_values_that_fall_steeply() -> None:
    losses = Losses(STEEP)
    assert losses.fell < losses.margin  # the spread of the first values hides the fall
    assert learning(STEEP) == "yes"
    assert learning(np.r_[8, np.full(20, 3.0) + 0.3 * NOISE[:20]]) != "yes"  # one value alone shows no order


def test_few_values_of_noise_show_no_order() -> None:
    rng = np.random.default_rng(0)
    seen = [Losses(np.exp(rng.normal(size=int(rng.integers(20, 100))))).falls_in_order() for _ in range(2000)]
    assert sum(seen) <= 2  # the test allows one in 2,000


def test_a_loss_that_is_always_nan_was_logged() -> None:
    grid, scalars = {"param_grad_norm": np.ones((N, LAYERS))}, {"loss": np.full(N, np.nan)}
    for graph, said in ({"nonfinite_since": 0}, "NaN or infinite"), ({}, "no loss was logged"):
        run = run_of_arrays(grid, None, scalars, None, facts=facts(graph=graph))
        assert said in judge_learning(Recording(run)).evidence


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(("share", "verdict"), [(0.5, "yes"), (0.0, "no")])
def test_the_size_of_the_loss_does_not_matter(scale: float, share: float, verdict: str) -> None:
    assert learning(scale * falls(share)) == verdict


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [
        (GUESS + 0.02 * NOISE, "no"),
        (GUESS + np.geomspace(3, 1e-3, N) + 0.02 * NOISE, "no"),  # it only forgot its initialisation
        (GUESS - np.linspace(0, 0.5, N) + 0.02 * NOISE, "yes"),
        (0.5 * GUESS + 0.02 * NOISE, "unknown"),  # it had learnt before
        (GUESS + np.linspace(0, 1, N) + 0.02 * NOISE, "no"),
    ],
)
def test_a_classifier_is_compared_with_guessing(loss: FloatArray, verdict: str) -> None:
    assert learning(loss, CROSS_ENTROPY) == verdict


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 1000 + np.arange(N)},
        {"lr": np.linspace(1e-6, 1e-3, N)},
        {"copies": [{"layer": "target", "of": "online"}]},
        {"totals": {"numel": 1000, "trainable": 10}},
        {"graph": {"unregistered": [{"parameter": True, "count": 4, "held_in": None}]}},
        {"optimizers": [{"class": "Adam"}, {"class": "Adam"}]},
    ],
    ids=["resumed", "warm-up", "targets", "adapters", "another model", "two optimizers"],
)
def test_a_loss_that_stands_may_have_a_reason(changes: dict) -> None:
    assert learning(falls(0.0), **changes) == "unknown"
    assert learning(falls(0.8), **changes) == "yes"


def test_an_accuracy_that_rises_is_enough() -> None:
    assert learning(falls(0.0), val_acc=np.linspace(0.2, 0.8, N)) == "yes"
    assert learning(falls(0.0), val_acc=0.5 + 0.1 * NOISE) == "no"


def test_healthy_is_never_said_of_a_model_that_does_not_learn() -> None:
    data = arrays(noise=0.05, rows=N)
    found = diagnose_arrays(data, scalars={"loss": falls(0.0)})
    check(found, "plateau")
    assert found.learning == "no"
    assert "does it learn? no" in str(found)
    main = found.findings[0]
    assert "gradients arrive at 8 of 8 layers" in main.evidence
    assert "steps are of a usual size" in main.evidence
    check(diagnose_arrays(data, scalars={"loss": falls(0.8)}), "healthy")
    check(diagnose_arrays(data), "healthy")  # nothing was logged


def test_a_plateau_names_steps_that_are_too_large_or_too_small() -> None:
    data = arrays(noise=0.05, rows=N)
    small = diagnose_arrays(
        data | {"update_ratio": 1e-4 * data["update_ratio"]}, scalars={"loss": falls(0.0)}, facts=facts()
    )
    assert small.findings[0].remedy.startswith("Raise the learning rate of SGD")
    data["activation_grad_norm"][8:60, :-1] *= 0.05
    leap = data["update_ratio"].copy()
    leap[0] = 0.5
    early = np.where(np.arange(N) < 8, 3.0, 2.3) + 0.01 * NOISE
    found = diagnose_arrays(
        data | {"update_ratio": leap}, scalars={"loss": early, "lr": np.full(N, 0.02)}, facts=facts()
    )
    check(found, "plateau")
    assert found.learning == "unknown"
    assert "and then it stays there" in found.learning_evidence
    assert found.findings[0].remedy.startswith("Lower the learning rate of SGD (0.02) to about 0.0002, and warm it up")
    check(diagnose_arrays(data, scalars={"loss": early}), "healthy")  # it may be as low as it can be


def test_a_gradient_of_0_is_told_apart_by_its_cause() -> None:
    data = {name: np.zeros((N, LAYERS)) for name in ("activation_grad_norm", "param_grad_norm")}
    layers, stands = [f"layer{i + 1}" for i in range(LAYERS)], {"loss": falls(0.0)}

    def cause(**changes: object) -> str:
        found = diagnose_arrays(data, scalars=stands, facts=facts(**changes))
        check(found, "zero_gradient")
        return found.findings[0].cause

    zero = {"gradient": "zero", "seen": ["zero"]}
    assert cause(parameters=[state(layers, **zero, weights_zero=True)]) == "zero initialisation"
    assert cause(parameters=[state(layers, **zero, dtype="float16")]) == "underflow in float16"
    relu = {"outputs": [{"op": "Relu", "layer": "5", "loss": "MseLoss"}]}
    assert cause(parameters=[state(layers, **zero)], graph=relu) == "ReLU is the last operation"
    assert cause(parameters=[state(layers, **zero)]) == ""


def test_weights_without_and_a_bias_with_a_gradient_show_dead_units() -> None:
    data = arrays(noise=0.05, rows=N)
    off = [f"layer{i + 1}" for i in range(LAYERS)]
    states = [
        state(off, gradient="zero", seen=["arriving", "zero"], since=32),
        state(off[-1:], names=["bias"]),
    ]
    data["activation_grad_norm"][40:, :-1] = data["param_grad_norm"][40:, :-1] = 0
    found = diagnose_arrays(data, scalars={"loss": falls(0.0)}, facts=facts(parameters=states))
    check(found, "dead")
    assert found.kinds == ("dead",)
    assert found.findings[0].layers == ("layer7",)


def test_fine_tuning_with_small_steps_is_not_a_rate_that_is_too_small() -> None:
    data = arrays(noise=0.05, rows=N)
    data["update_ratio"] = np.full((N, LAYERS), 1e-5)
    data["grad_coherence"] = np.full((N, LAYERS), 0.4)
    graph = {"losses": [{"op": "NllLoss", "reduction": "mean", "classes": 10, "shape": [32, 10]}]}
    slowly = np.linspace(0, 0.05, N) + 0.01 * NOISE
    fresh = diagnose_arrays(data, scalars={"loss": GUESS + 0.03 - slowly}, facts=facts(graph=graph))
    check(fresh, "frozen")
    check(diagnose_arrays(data, scalars={"loss": 1.8 - slowly}, facts=facts(graph=graph)), "healthy")


def test_behind_a_norm_the_scale_of_the_input_is_no_vanishing_or_exploding_gradient() -> None:
    names = [f"layer{i + 1}" for i in range(LAYERS)]
    normed = facts(parameters=[state([name for layer in names for name in (layer, f"norm{layer}")])])
    for factor, kind in ((1e-5, "vanishing"), (1e6, "exploding")):
        data = arrays(noise=0.05)
        data["activation_grad_norm"][:, 0] *= factor
        if factor < 1:
            data["update_ratio"][:, 0] *= factor
        check(diagnose_arrays(data, scalars={"loss": np.full(60, 1.6)}), kind)
        check(diagnose_arrays(data, scalars={"loss": np.geomspace(2, 0.1, 60)}, facts=normed), "healthy")


def test_a_gradient_that_rises_from_nothing_and_a_loss_that_falls_again_are_no_explosion() -> None:
    data = arrays(noise=0.05, rows=N)
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][:90] *= 1e-6
    loss = np.where(np.arange(N) < 90, 1e-9, np.geomspace(1.0, 0.05, N))
    check(diagnose_arrays(data, scalars={"loss": loss}), "healthy")
    check(diagnose_arrays(data, scalars={"loss": np.where(np.arange(N) < 90, 1e-9, 1.0)}), "exploding")


def test_underflow_of_float16_is_told_from_an_explosion() -> None:
    data = arrays(noise=0.02, rows=N)
    sizes = 10.0 ** np.linspace(-8.5, -5, LAYERS) * np.where(np.arange(N) < 60, 1, 1e4)[:, None]
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name] = data[name] * sizes
        data[name][data[name] < 2.0**-24] = 0  # as float16 does
    rises = np.where(np.arange(N) < 60, 1.0, 1.5)
    found = diagnose_arrays(data, scalars={"loss": rises})
    check(found, "zero_gradient")
    assert "float16" in found.findings[0].evidence
    assert "GradScaler" in found.findings[0].remedy
    dead = {name: np.where(values == 0, 0, 1e3 * values) for name, values in data.items()}
    assert "float16" not in str(diagnose_arrays(dead, scalars={"loss": rises}))


@pytest.mark.parametrize(
    ("logged", "learning"),
    [
        (("train_loss",), "yes"),
        (("train/loss", "val_loss"), "yes"),
        (("loss", "aux_loss"), "yes"),
        (("d_loss", "g_loss"), "unknown"),
        (("val_loss",), "unknown"),
        (("closeness",), "unknown"),
    ],
)
def test_the_only_scalar_that_is_called_a_loss_is_the_loss(logged: tuple[str, ...], learning: str) -> None:
    rng = np.random.default_rng(0)
    falls = np.geomspace(2, 0.2, 120) + 0.01 * rng.normal(size=120)
    gradients = {"param_grad_norm": np.exp(rng.normal(0, 0.1, (120, 3)))}
    scalars = {"loss": np.full(120, np.nan)} | dict.fromkeys(logged, falls)
    assert diagnose_arrays(gradients, scalars=scalars).learning == learning


def test_a_loss_that_is_infinite_from_the_first_row_on_is_no_missing_loss() -> None:
    gradients = {"param_grad_norm": np.full((120, 3), np.inf)}
    found = diagnose_arrays(gradients, scalars={"loss": np.full(120, -np.inf)})
    assert found.learning == "no"
    assert "not finite" in found.learning_evidence


@pytest.mark.parametrize("logged_every", [2, None])
def test_a_loss_that_is_logged_every_second_step_is_not_missing(logged_every: int | None) -> None:
    rng = np.random.default_rng(0)
    loss = falls(0.8)
    missing = np.arange(N) % logged_every == 0 if logged_every else rng.random(N) < 0.3
    gradients = {"param_grad_norm": np.exp(rng.normal(0, 0.1, (N, 3)))}
    found = diagnose_arrays(gradients, scalars={"loss": np.where(missing, np.nan, loss)})
    assert any("was not logged" in note for note in found.notes) == (logged_every is None)


def test_a_loss_below_0_falls_by_a_number_and_not_by_a_share() -> None:
    rows, noise = np.full((200, 4), 1.0), np.random.default_rng(0).normal(0, 0.01, 200)
    losses = -0.95 + 0.8 * np.exp(-np.arange(200) / 20) + noise
    found = diagnose_arrays({"param_grad_norm": rows}, scalars={"loss": losses})
    assert found.learning == "yes"
    assert re.search(r"it falls by 0\.[67]\d*$", found.learning_evidence)
