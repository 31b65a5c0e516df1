"""Diagnoses: planted faults are found in place, healthy runs are healthy, and too few data are undecided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradlens
from gradlens import Diagnosis, diagnose, diagnose_arrays, read_run
from gradlens.analysis import profile
from gradlens.errors import ConfigError
from tests.conftest import SAMPLE
from tests.diagnosis.recordings import LAYERS, ROWS, arrays, check


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5])
@pytest.mark.parametrize(
    ("decades", "kind"),
    [(0, "healthy"), (-2, "healthy"), (2, "healthy"), (-6, "vanishing"), (-30, "vanishing"), (8, "exploding")],
)  # fmt: skip
def test_the_ratio_of_first_to_last_hidden_layer_decides(decades: float, kind: str, noise: float) -> None:
    found = diagnose_arrays(arrays(decades, noise))
    check(found, kind)
    if kind != "healthy":
        assert found.findings[0].layers[0] == "layer1"
        assert f"10^{decades:.0f}"[:5] in found.findings[0].evidence or noise
        assert found.findings[0].confidence > 0.9


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("decades", [-5, 0, 1.5])
def test_the_seed_of_the_noise_does_not_change_the_verdict(decades: float, seed: int) -> None:
    check(diagnose_arrays(arrays(decades, 0.3, seed=seed)), "vanishing" if decades < -3 else "healthy")


@pytest.mark.parametrize("decades", [-6.0, 0.0, 8.0])
@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_scaling_all_gradients_does_not_change_the_verdict(decades: float, factor: float) -> None:
    plain, scaled = arrays(decades), arrays(decades)
    for name in ("activation_grad_norm", "param_grad_norm"):
        scaled[name] = scaled[name] * factor
    a, b = diagnose_arrays(plain), diagnose_arrays(scaled)
    assert [(f.kind, f.layers, f.steps) for f in a.findings] == [(f.kind, f.layers, f.steps) for f in b.findings]
    assert [f.confidence for f in a.findings] == pytest.approx([f.confidence for f in b.findings], abs=0.01)


def test_too_few_rows_are_undecided_unless_a_fault_is_certain() -> None:
    few = {name: grid[:6] for name, grid in arrays(-10).items()}
    found = diagnose_arrays(few)
    check(found, "undecided")
    assert "too few rows: 6, but at least 10 are needed" in found.reason
    few["param_grad_norm"][5] = np.inf
    check(diagnose_arrays(few), "nonfinite")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (range(0, 60, 10), "too few rows: 6 of 51 steps, but at least 10 are needed: record more steps"),
        (range(0, 12, 2), "too few rows: 6 of 11 steps, but"),
        (range(3, 9), "too few rows: 6, but at least 10 are needed"),
    ],
)
def test_too_few_rows_of_enough_steps_are_answered_with_the_interval(steps: range, said: str) -> None:
    few = {name: grid[:6] for name, grid in arrays(-10).items()}
    assert said in diagnose_arrays(few, steps=np.array(steps)).reason


def test_missing_metrics_are_undecided() -> None:
    check(diagnose_arrays({"param_norm": np.ones((ROWS, LAYERS)) * np.arange(ROWS)[:, None]}), "undecided")
    data = {name: grid for name, grid in arrays().items() if name == "activation_grad_norm"}
    check(diagnose_arrays(data), "healthy")
    data["activation_grad_norm"][5:, :6] = np.nan
    check(diagnose_arrays(data), "undecided")
    check(diagnose_arrays({"param_grad_norm": arrays(-9)["param_grad_norm"]}), "vanishing")


def test_models_with_fewer_than_three_layers_have_no_ratio() -> None:
    found = diagnose_arrays({"activation_grad_norm": np.ones((ROWS, 2)) * [1e-9, 1]})
    check(found, "healthy")
    assert "fewer than three layers" in found.reason


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metrics": {}}, "no metric"),
        ({"metrics": {"a": np.ones(3)}}, "shape"),
        ({"metrics": {"a": np.ones((3, 2)), "b": np.ones((2, 2))}}, "shape"),
        ({"metrics": {"a": np.ones((3, 2))}, "layers": ["x"]}, "layers: 1"),
        ({"metrics": {"a": np.ones((3, 2))}, "steps": [1]}, "steps: 1"),
        ({"metrics": {"a": np.ones((3, 2))}, "scalars": {"loss": [1]}}, "loss: 1"),
    ],
)
def test_arrays_that_do_not_fit(given: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        diagnose_arrays(**given)


def test_the_recorded_sample_grows_toward_the_input_and_is_healthy() -> None:
    found = diagnose(read_run(SAMPLE))
    check(found, "healthy")
    assert "conv1 has about 137 times (10^2.1) the gradient norm of layer4.2.conv2" in found.reason


@pytest.mark.parametrize(("decades", "kind"), [(-12.0, "vanishing"), (0.0, "healthy"), (12.0, "exploding")])
def test_a_long_run_is_judged_by_chunks(make_run, monkeypatch: pytest.MonkeyPatch, decades: float, kind: str) -> None:
    run = read_run(
        make_run(steps=700, decades=decades, change=lambda grid: grid / 10 ** (0.01 * np.arange(700))[:, None])
    )
    short = diagnose(run)
    monkeypatch.setattr(profile, "EXACT_NUMBERS", 100)
    monkeypatch.setattr(profile, "LONG_CHUNKS", 10)
    long = diagnose(read_run(run.path))
    check(short, kind)
    check(long, kind)
    assert [f.layers for f in short.findings] == [f.layers for f in long.findings]


def test_in_a_long_run_the_exact_step_is_found(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(grid: np.ndarray) -> np.ndarray:
        grid[500, :2] = np.inf
        return grid / 10 ** (0.01 * np.arange(700))[:, None]

    monkeypatch.setattr(profile, "EXACT_NUMBERS", 100)
    monkeypatch.setattr(profile, "LONG_CHUNKS", 10)
    found = diagnose(read_run(make_run(steps=700, decades=0.0, change=change)))
    check(found, "nonfinite")
    assert (found.findings[0].steps, found.findings[0].layers[0]) == ((500, 500), "stage0.1")


def test_a_running_run(make_run) -> None:
    found = diagnose(read_run(make_run(status="running", decades=0.0)))
    check(found, "healthy")
    assert "still being written" in found.notes[-1]
    check(diagnose(read_run(make_run("empty", steps=0, epochs=0))), "undecided")


def mlp(depth: int, activation: type[nn.Module], *, he: bool = False, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(depth - 1):
        linear = nn.Linear(32 if i else 16, 32)
        if he:
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        linear.weight.data *= scale
        layers += [linear, activation()]
    return nn.Sequential(*layers, nn.Linear(32, 4))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = mlp(5, nn.ReLU, he=True), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def train(model: nn.Module, path: Path, *, sgd: float = 0.0, steps: int = 40) -> Diagnosis:
    centres = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    parameters = model.parameters()
    optimizer = torch.optim.SGD(parameters, lr=sgd, momentum=0.9) if sgd else torch.optim.Adam(parameters, lr=1e-3)
    every = {"every": 1}
    with gradlens.record(model, path, optimizer=optimizer, **every) as recorder:
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            y = torch.randint(0, 4, (32,), generator=generator)
            x = torch.randn(32, 16, generator=generator) + centres[y]
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=float(loss.detach()))
    return diagnose(read_run(path))


def freeze(model: nn.Sequential, layer: int) -> nn.Sequential:
    model[layer].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "sgd", "kind", "layers"),
    [
        (lambda: mlp(8, nn.ReLU, he=True), 0, "healthy", ()),
        (lambda: mlp(8, nn.ReLU, he=True), 0.02, "healthy", ()),
        (lambda: mlp(30, nn.Sigmoid), 0, "vanishing", ("0", "2")),
        (lambda: mlp(30, nn.Sigmoid), 0.1, "vanishing", ("0", "2")),
        (lambda: mlp(10, nn.ReLU, scale=10.0), 0, "exploding", ("0",)),
        (lambda: mlp(10, nn.ReLU, scale=10.0), 0.1, "exploding", ("0",)),
        (lambda: mlp(5, nn.ReLU, he=True), 50.0, "exploding", ()),
        (lambda: freeze(mlp(5, nn.ReLU, he=True), 4), 0, "frozen", ("4",)),
        (lambda: freeze(mlp(5, nn.ReLU, he=True), 0), 0, "frozen", ("0",)),
        (Branches, 0, "unused", ("idle",)),
    ],
    ids=["he", "he-sgd", "sigmoid", "sigmoid-sgd", "x10", "x10-sgd", "lr", "frozen", "frozen-first", "unused"],
)  # fmt: skip
def test_real_trainings(make, sgd: float, kind: str, layers: tuple[str, ...], tmp_path: Path) -> None:
    found = train(make(), tmp_path / "run.h5", sgd=sgd, steps=60 if kind == "frozen" else 30)
    check(found, kind)
    assert found.findings == () or found.findings[0].layers[: len(layers)] == layers
    if sgd == 50:
        assert found.kinds == ("exploding", "nonfinite")


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (None, "no loss was recorded that would tell whether anything is left to learn"),
        (np.geomspace(2.3, 0.01, ROWS), "yet the loss falls, to 0.01: what lowers it is in no recorded gradient"),
        (
            np.r_[np.full(ROWS - 3, np.nan), 2.0, 2.0, 2.0],
            "the loss ends at 2, and there are too few rows to see whether it falls",
        ),
    ],
)
def test_a_loss_beside_gradients_that_are_all_exactly_0(loss: np.ndarray | None, said: str) -> None:
    data = {name: np.zeros((ROWS, LAYERS)) for name in ("activation_grad_norm", "param_grad_norm")}
    found = diagnose_arrays(data, scalars={} if loss is None else {"loss": loss})
    assert found.kind == "undecided"
    assert f"all gradients are exactly 0 in {ROWS} rows; {said}" in found.reason
    assert "no loss tells" not in str(found)


def test_gradients_that_are_all_exactly_0_beside_a_loss_that_stands_are_a_finding() -> None:
    """It was undecided, so that no gate of ``--fail-on any`` fell."""
    data = {name: np.zeros((ROWS, LAYERS)) for name in ("activation_grad_norm", "param_grad_norm")}
    found = diagnose_arrays(data, scalars={"loss": np.full(ROWS, 2.3)})
    check(found, "zero_gradient")
    assert "exactly 0 at all layers" in found.findings[0].evidence
    assert found.learning == "no"
