"""Diagnoses: planted faults are found where they are, healthy runs stay healthy, and too little stays undecided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradlens
from gradlens import Diagnosis, diagnose, diagnose_arrays, read_run
from gradlens.analysis import profile
from gradlens.diagnosis.findings import KINDS
from gradlens.diagnosis.recorded_rows import late_windows, share_beyond, since
from gradlens.errors import ConfigError
from tests.conftest import SAMPLE

ROWS, LAYERS = 60, 8


def arrays(decades: float = 0.0, noise: float = 0.2, rows: int = ROWS, layers: int = LAYERS, seed: int = 0) -> dict:
    """Return a recording: decades of the first over the last hidden layer, and noise in decades."""
    rng = np.random.default_rng(seed)
    depth = np.append(np.linspace(decades, 0, layers - 1), 0.3)
    logs = depth + noise * rng.normal(size=(rows, layers)) + noise * rng.normal(size=(rows, 1))
    update = np.full((rows, layers), 1e-3) * 10.0 ** np.minimum(depth, 0)
    return {
        "activation_grad_norm": 10.0**logs,
        "param_grad_norm": 2 * 10.0**logs,
        "update_ratio": update,
        "param_norm": 1 + np.arange(rows)[:, None] * update,
    }


def check(found: Diagnosis, kind: str) -> None:
    assert found.kind == kind, str(found)
    assert str(found).startswith(f"{found.run}: {kind}")
    for finding in found.findings:
        assert finding.kind in KINDS
        assert 0 < finding.confidence <= 1
        for text in (finding.evidence, finding.threshold, finding.source, finding.remedy):
            assert len(text) > 10
            assert text in " ".join(str(found).split()) or "  " in text
        assert finding.remedy.endswith(".")
        assert any(digit in finding.evidence for digit in "0123456789")
        assert finding.steps[0] <= finding.steps[1]


# --- planted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5])
@pytest.mark.parametrize(
    ("decades", "kind"),
    [(0, "healthy"), (-2, "healthy"), (2, "healthy"), (-6, "vanishing"), (-30, "vanishing"), (8, "exploding")],
)  # fmt: skip
def test_the_way_back(decades: float, kind: str, noise: float) -> None:
    found = diagnose_arrays(arrays(decades, noise))
    check(found, kind)
    if kind != "healthy":
        assert found.findings[0].layers[0] == "layer1"
        assert f"10^{decades:.0f}"[:5] in found.findings[0].evidence or noise
        assert found.findings[0].confidence > 0.9


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("decades", [-5, 0, 1.5])
def test_the_seed_of_the_noise_leaves_the_verdict(decades: float, seed: int) -> None:
    check(diagnose_arrays(arrays(decades, 0.3, seed=seed)), "vanishing" if decades < -3 else "healthy")


@pytest.mark.parametrize("decades", [-6.0, 0.0, 8.0])
@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_scaling_all_gradients_leaves_the_verdict(decades: float, factor: float) -> None:
    plain, scaled = arrays(decades), arrays(decades)
    for name in ("activation_grad_norm", "param_grad_norm"):
        scaled[name] = scaled[name] * factor
    a, b = diagnose_arrays(plain), diagnose_arrays(scaled)
    assert [(f.kind, f.layers, f.steps) for f in a.findings] == [(f.kind, f.layers, f.steps) for f in b.findings]
    assert [f.confidence for f in a.findings] == pytest.approx([f.confidence for f in b.findings], abs=0.01)


def test_near_convergence_all_gradients_are_tiny_and_that_is_healthy() -> None:
    data = arrays()
    fall = 10.0 ** np.linspace(0, -9, ROWS)[:, None]
    for name in ("activation_grad_norm", "param_grad_norm", "update_ratio"):
        data[name] = data[name] * fall
    check(diagnose_arrays(data, scalars={"loss": fall[:, 0]}), "healthy")


def test_where_and_when_it_begins_to_vanish() -> None:
    data, steps = arrays(noise=0.05), np.arange(ROWS) * 10
    for name in ("activation_grad_norm", "update_ratio"):
        data[name][25:, :3] *= 1e-5
    finding = diagnose_arrays(data, [f"block{i}" for i in range(LAYERS)], steps=steps).findings[0]
    assert (finding.kind, finding.layers, finding.steps) == ("vanishing", ("block0", "block1", "block2"), (250, 590))


def test_a_fault_that_passes_is_none() -> None:
    data = arrays(noise=0.05)
    data["activation_grad_norm"][:20, :3] *= 1e-6
    check(diagnose_arrays(data), "healthy")
    data = arrays(noise=0.05, rows=100)
    data["activation_grad_norm"][75:, :3] *= 1e-6
    data["update_ratio"][75:, :3] *= 1e-6
    check(diagnose_arrays(data), "vanishing")  # it lasts to the end


def test_early_layers_that_learn_all_the_same_excuse_a_small_gradient() -> None:
    data = arrays(-5)
    data["update_ratio"][:] = 1e-3
    learns, stuck = np.geomspace(2, 0.5, ROWS), np.full(ROWS, 1.6)
    found = diagnose_arrays(data, scalars={"loss": learns})
    check(found, "healthy")
    assert "that is no fault" in found.notes[0]
    check(diagnose_arrays(data, scalars={"loss": stuck}), "vanishing")
    data = arrays(-12)
    data["update_ratio"][:] = 1e-3  # weight decay moves them
    check(diagnose_arrays(data, scalars={"loss": learns}), "vanishing")


def test_exact_zeros() -> None:
    data = arrays(noise=0.1)
    for name in ("activation_grad_norm", "param_grad_norm", "update_ratio"):
        data[name][:, :3] = 0
    found = diagnose_arrays(data)
    check(found, "vanishing")
    assert found.kinds == ("vanishing",)  # that these layers stand still follows
    assert "exactly 0 at 3 layer(s) up to layer3, and not by underflow" in found.findings[0].evidence
    assert any("frozen" in note for note in found.notes)
    underflow = arrays(-45, noise=0.1)
    underflow["activation_grad_norm"][:, :2] = 0
    assert "not by underflow" not in diagnose_arrays(underflow).findings[0].evidence
    nothing = {"activation_grad_norm": np.zeros((ROWS, LAYERS))}
    check(diagnose_arrays(nothing), "undecided")


def test_growth_over_depth_is_judged_by_the_law_of_batch_norm() -> None:
    deep = np.linspace(49 * 0.083, 0, 50)
    check(diagnose_arrays({"activation_grad_norm": np.tile(10.0 ** np.append(deep, 0), (ROWS, 1))}), "healthy")
    check(diagnose_arrays({"activation_grad_norm": np.tile(10.0 ** np.append(2 * deep, 0), (ROWS, 1))}), "exploding")


@pytest.mark.parametrize("loss", [None, "rises", "falls"])
def test_growth_over_steps(loss: str | None) -> None:
    data = arrays(noise=0.05)
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][30:] *= 10.0 ** np.linspace(0.5, 8, 30)[:, None]
    scalars = {} if loss is None else {"loss": 10.0 ** np.linspace(0, 5 if loss == "rises" else -5, ROWS)}
    found = diagnose_arrays(data, scalars=scalars)
    check(found, "healthy" if loss == "falls" else "exploding")
    if found.findings:
        assert 35 <= found.findings[0].steps[0] <= 48


def test_growth_that_ends_in_what_is_not_finite() -> None:
    data = arrays(noise=0.05)
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][40:46] *= 10.0 ** np.arange(1, 7)[:, None]
        data[name][46:] = np.inf
    found = diagnose_arrays(data, scalars={"loss": np.where(np.arange(ROWS) < 46, 1.0, np.nan)})
    check(found, "exploding")
    assert found.kinds == ("exploding", "nonfinite")
    assert found.findings[1].steps[0] == 46
    assert "forward pass: the loss itself is not finite" in found.findings[1].evidence


def test_one_spike_is_no_explosion() -> None:
    data = arrays(noise=0.05)
    data["param_grad_norm"][30] *= 1e6
    check(diagnose_arrays(data), "healthy")


def test_a_backward_pass_that_breaks() -> None:
    data = arrays(noise=0.05)
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][20, :5] = np.inf
    data["nonfinite_count"] = np.zeros((ROWS, LAYERS))
    data["nonfinite_count"][20, :5] = 7
    found = diagnose_arrays(data, scalars={"loss": np.ones(ROWS)}, steps=np.arange(ROWS) + 100)
    check(found, "nonfinite")
    finding = found.findings[0]
    assert (finding.layers[0], finding.steps, finding.confidence) == ("layer5", (120, 120), 1.0)
    assert "backward pass: layer5" in finding.evidence
    assert "layer6 behind it is still finite" in finding.evidence
    assert "35 entries" in finding.evidence


def test_a_forward_pass_that_breaks() -> None:
    data = arrays(noise=0.05)
    data["activation_rms"] = np.ones((ROWS, LAYERS))
    data["activation_rms"][20:, 3:] = np.inf
    data["param_grad_norm"][20:] = np.inf
    found = diagnose_arrays(data)
    check(found, "nonfinite")
    assert found.findings[0].layers[0] == "layer4"
    assert "forward pass: the output of layer4" in found.findings[0].evidence


def test_steps_that_a_scaler_skips_are_no_fault() -> None:
    data, skipped = arrays(noise=0.05), np.zeros(ROWS)
    skipped[:6] = 1
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][:6] = np.inf
    found = diagnose_arrays(data, scalars={"skipped": skipped, "loss": np.ones(ROWS)})
    check(found, "healthy")
    assert "6 step(s)" in found.notes[-1]
    skipped[:20] = 1
    check(diagnose_arrays(data, scalars={"skipped": skipped}), "nonfinite")


def test_layers_that_stand_still() -> None:
    data = arrays(noise=0.05)
    data["update_ratio"][20:, [2, 4]] = 0
    found = diagnose_arrays(data)
    check(found, "frozen")
    assert (found.findings[0].layers, found.findings[0].steps) == (("layer3", "layer5"), (20, 59))
    sparse = arrays(noise=0.05)
    sparse["update_ratio"][np.arange(ROWS) % 25 != 0] = np.nan
    sparse["update_ratio"][:, 2] *= 0
    check(diagnose_arrays(sparse), "frozen")
    norms = arrays(noise=0.05)
    del norms["update_ratio"]
    norms["param_norm"][:, 2] = 3.3
    found = diagnose_arrays(norms)
    check(found, "frozen")
    assert found.findings[0].layers == ("layer3",)


def test_a_learning_rate_of_zero() -> None:
    lr = np.where(np.arange(ROWS) < 20, 0.1, 0)
    found = diagnose_arrays(arrays(), scalars={"lr": lr})
    check(found, "frozen")
    assert found.findings[0].steps == (20, 59)
    check(diagnose_arrays(arrays(), scalars={"lr": np.linspace(1, 0, ROWS)}), "healthy")


def test_a_layer_that_no_gradient_reaches() -> None:
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


def test_dead_layers() -> None:
    data = arrays(noise=0.05)
    data["zero_fraction"] = np.full((ROWS, LAYERS), 0.5)
    data["zero_fraction"][:, -1] = np.nan  # no activation function behind it
    check(diagnose_arrays(data), "healthy")
    data["zero_fraction"][30:, 4] = 1.0
    for name in ("activation_grad_norm", "param_grad_norm"):
        data[name][30:, :5] = 0
    found = diagnose_arrays(data)
    check(found, "dead")
    assert found.kinds == ("dead",)  # that the gradient vanishes follows
    assert (found.findings[0].layers, found.findings[0].steps) == (("layer5",), (30, 59))
    assert "what follows from it: vanishing" in " ".join(found.notes)
    data = arrays(noise=0.05)
    data["zero_fraction"] = np.full((ROWS, LAYERS), 0.5)
    data["zero_fraction"][20:24] = 1.0
    check(diagnose_arrays(data), "healthy")


def test_saturated_layers() -> None:
    data = arrays(noise=0.05)
    data["activation_rms"] = np.full((ROWS, LAYERS), 1.0)
    data["activation_rms"][:, -1] = 30.0  # logits
    data["zero_fraction"] = np.zeros((ROWS, LAYERS))
    check(diagnose_arrays(data), "healthy")
    data["activation_rms"][:, 3] = 12.0
    check(diagnose_arrays(data), "healthy")  # not bounded, as far as is known
    data["activation_grad_norm"][:, :4] /= 50
    found = diagnose_arrays(data)
    check(found, "saturated")
    assert found.findings[0].layers == ("layer4",)
    data["zero_fraction"][:] = 0.5  # a ReLU
    check(diagnose_arrays(data), "healthy")


def test_incoherent_gradients() -> None:
    rng = np.random.default_rng(0)
    data, stuck = arrays(noise=0.05), {"loss": np.full(ROWS, 1.6)}
    data["grad_coherence"] = 0.001 * rng.normal(size=(ROWS, LAYERS))
    found = diagnose_arrays(data, scalars=stuck)
    check(found, "incoherent")
    assert len(found.findings[0].layers) >= LAYERS // 2
    check(diagnose_arrays(data, scalars={"loss": np.geomspace(2, 0.2, ROWS)}), "healthy")
    data["grad_coherence"][: ROWS // 3] += 0.3  # near convergence noise is all that is left
    check(diagnose_arrays(data, scalars=stuck), "healthy")
    both = arrays(-8) | {"grad_coherence": data["grad_coherence"] * 0}
    assert diagnose_arrays(both, scalars=stuck).kinds == ("vanishing",)


# --- too little -------------------------------------------------------------------------------------------


def test_too_few_rows_are_undecided_unless_what_is_seen_is_sure() -> None:
    few = {name: grid[:6] for name, grid in arrays(-10).items()}
    found = diagnose_arrays(few)
    check(found, "undecided")
    assert "6 row(s) are too few" in found.reason
    few["param_grad_norm"][5] = np.inf
    check(diagnose_arrays(few), "nonfinite")


def test_missing_metrics_are_undecided() -> None:
    check(diagnose_arrays({"param_norm": np.ones((ROWS, LAYERS)) * np.arange(ROWS)[:, None]}), "undecided")
    data = {name: grid for name, grid in arrays().items() if name == "activation_grad_norm"}
    check(diagnose_arrays(data), "healthy")
    data["activation_grad_norm"][5:, :6] = np.nan
    check(diagnose_arrays(data), "undecided")
    check(diagnose_arrays({"param_grad_norm": arrays(-9)["param_grad_norm"]}), "vanishing")


def test_shallow_nets_have_no_way_back() -> None:
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


# --- runs -------------------------------------------------------------------------------------------------


def test_the_sample_grows_towards_the_input_and_is_healthy() -> None:
    found = diagnose(read_run(SAMPLE))
    check(found, "healthy")
    assert "10^2.2" in found.reason


@pytest.mark.parametrize(("decades", "kind"), [(-12.0, "vanishing"), (0.0, "healthy"), (12.0, "exploding")])
def test_a_long_run_is_judged_by_blocks(make_run, monkeypatch: pytest.MonkeyPatch, decades: float, kind: str) -> None:
    run = read_run(
        make_run(steps=700, decades=decades, change=lambda grid: grid / 10 ** (0.01 * np.arange(700))[:, None])
    )
    short = diagnose(run)
    monkeypatch.setattr(profile, "EXACT_NUMBERS", 100)
    monkeypatch.setattr(profile, "LONG_BLOCKS", 10)
    long = diagnose(read_run(run.path))
    check(short, kind)
    check(long, kind)
    assert [f.layers for f in short.findings] == [f.layers for f in long.findings]


def test_in_a_long_run_the_very_step_is_found(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(grid: np.ndarray) -> np.ndarray:
        grid[500, :2] = np.inf
        return grid / 10 ** (0.01 * np.arange(700))[:, None]

    monkeypatch.setattr(profile, "EXACT_NUMBERS", 100)
    monkeypatch.setattr(profile, "LONG_BLOCKS", 10)
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


# --- helpers ----------------------------------------------------------------------------------------------


def test_since_when() -> None:
    assert since(np.array([True, True, True])) == 0
    assert since(np.array([True, False, True, True])) == 2
    assert since(np.array([False] * 10 + [True] * 8 + [False] + [True] * 21)) == 10
    assert since(np.array([False, False])) == 1


def test_windows_and_shares() -> None:
    assert [window for window, _ in late_windows(40)] == [slice(20, 40)]
    assert [window for window, _ in late_windows(100)] == [slice(50, 100), slice(80, 100)]
    series = np.random.default_rng(0).normal(size=200)
    assert share_beyond(series, -1, below=True) == pytest.approx(1 / 502)
    assert share_beyond(series, 1, below=True) == pytest.approx(501 / 502)
    assert 0.02 < share_beyond(series, float(np.median(series)), below=True) < 0.98
