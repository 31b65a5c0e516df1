"""Programs as people publish them: what is meant, and the fault that looks like it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from gradlens import Diagnosis, diagnose, read_run
from tests.diagnosis.recordings import check
from tests.diagnosis.test_programs import CLASSES, INPUTS, batch, cross_entropy, mlp, train

WIDTH = 24


# --- frozen, and in the optimizer -----------------------------------------------------------------------------


class Places(nn.Module):
    """A model with a table of its own besides its layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.codes = nn.Parameter(torch.randn(INPUTS), requires_grad=False)
        self.layers = mlp()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x + 0.1 * self.codes)
        return out


class Kernel(nn.Module):
    """A layer with weights of its own name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, width) / width**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel


def test_a_fixed_table_that_the_optimizer_has_is_a_note(tmp_path: Path) -> None:
    model = Places()
    found = train(tmp_path / "run.h5", model, optimizer=torch.optim.AdamW(model.parameters(), lr=5e-3))
    check(found, "healthy")
    assert any("though the optimizer has them: codes of (model)" in note for note in found.notes)


@pytest.mark.slow
def test_a_frozen_embedding_that_the_optimizer_has_is_a_note_in_a_model_that_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = nn.Embedding.from_pretrained(torch.randn(12, WIDTH))
    model = nn.Sequential(words, nn.Flatten(), nn.Linear(3 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        index = torch.randint(0, 12, (32, 3))
        return functional.cross_entropy(model(index), (index[:, 0] > 5).long())

    found = train(tmp_path / "run.h5", model, loss, torch.optim.Adam(model.parameters(), lr=5e-3))
    check(found, "healthy")
    assert any("though the optimizer has them: weight of layer '0'" in note for note in found.notes)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["layer", "kernel"])
def test_frozen_weights_of_a_layer_that_the_optimizer_has_stay_a_finding(tmp_path: Path, at: str) -> None:
    model = mlp() if at == "layer" else mlp(nn.ReLU(), Kernel(WIDTH))
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
    if at == "layer":
        model[0].requires_grad_(False)
    found = train(tmp_path / "run.h5", model, optimizer=torch.optim.AdamW(model.parameters(), lr=5e-3))
    check(found, "frozen")
    assert found.findings[0].cause == "requires_grad is off"


# --- a part of a layer is in no optimizer ---------------------------------------------------------------------


class Scaled(nn.Module):
    """A layer with a parameter that belongs into a group of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)
        self.log_scale = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight * self.log_scale.exp()


def partly(path: Path, way: str) -> Diagnosis:
    model = mlp(nn.ReLU(), Scaled())
    own = [p for name, p in model.named_parameters() if "log_scale" not in name]
    rest = [p for name, p in model.named_parameters() if "log_scale" in name]
    groups = [{"params": own}, *([{"params": rest, "lr": 1e-3}] if way == "both groups" else [])]
    optimizer = torch.optim.Adam(groups, lr=5e-3)
    other = torch.optim.SGD(rest, lr=0.1)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        y = torch.randint(0, CLASSES, y.shape) if way == "does not learn" else y
        return functional.cross_entropy(model(x), y)

    def step_other() -> None:
        if way == "another optimizer":
            other.step()
            other.zero_grad()

    return train(path, model, loss, optimizer, after=step_other)


def test_parameters_of_a_layer_that_no_group_has(tmp_path: Path) -> None:
    found = partly(tmp_path / "run.h5", "does not learn")
    check(found, "frozen")
    main = found.findings[0]
    assert main.layers == ("2",)
    assert "gradients arrive at log_scale" in main.evidence


@pytest.mark.slow
@pytest.mark.parametrize("way", ["learns", "both groups", pytest.param("another optimizer", marks=pytest.mark.slow)])
def test_parameters_of_a_layer_that_are_elsewhere_or_in_a_model_that_learns(tmp_path: Path, way: str) -> None:
    found = partly(tmp_path / "run.h5", way)
    check(found, "healthy")
    assert any("no optimizer has these" in note for note in found.notes) == (way == "learns")


# --- equal rows -----------------------------------------------------------------------------------------------


class Spectrum(nn.Module):
    """Frequencies that are the same for each channel at first, and amplitudes that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(1e4 * torch.arange(1.0, 9).repeat(WIDTH, 1))
        self.amplitudes = nn.Parameter(torch.randn(WIDTH, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.amplitudes * torch.cos(self.frequencies / 1e4)).sum(1)


@pytest.mark.slow
def test_equal_rows_whose_gradients_differ_are_no_equal_units(tmp_path: Path) -> None:
    check(train(tmp_path / "run.h5", mlp(nn.ReLU(), Spectrum())), "healthy")


# --- a branch that nothing uses -------------------------------------------------------------------------------


class Block(nn.Module):
    """A block whose norm is for a shortcut of equal width; where the width changes, another part uses the input."""

    def __init__(self, inside: int, out: int, way: str) -> None:
        super().__init__()
        self.norm, self.first, self.way = nn.BatchNorm1d(inside), nn.Linear(inside, out), way
        self.second, self.equal = nn.Linear(out, out), inside == out

    def forward(self, x: Tensor) -> Tensor:
        normed = functional.relu(self.norm(x))
        if self.way == "detached":
            normed = normed.detach()
        uses = self.equal or self.way != "unused"
        y = self.second(functional.relu(self.first(normed if uses else x)))
        out: Tensor = x + y if self.equal else y
        return out


@pytest.mark.parametrize("steps", [160, 16])
@pytest.mark.parametrize("way", ["unused", "detached", pytest.param("used", marks=pytest.mark.slow)])
def test_a_norm_that_nothing_uses_and_one_that_is_cut_off(tmp_path: Path, way: str, steps: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(INPUTS, WIDTH), Block(WIDTH, WIDTH, "used"), Block(WIDTH, 32, way), nn.Linear(32, CLASSES)
    )
    found = train(tmp_path / "run.h5", model, steps=steps)
    check(found, "cut" if way == "detached" else "healthy")
    if way != "detached":
        assert any("the loss does not reach the output of these" in note for note in found.notes) == (way == "unused")


# --- a second term of the loss, in the middle -----------------------------------------------------------------


class Coder(nn.Module):
    """A variational autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(INPUTS, INPUTS), nn.ReLU())])
        self.mean: nn.Module = nn.Linear(INPUTS, 4)
        self.spread: nn.Module = nn.Linear(INPUTS, 4)
        self.decoder = nn.Sequential(nn.Linear(4, INPUTS), nn.ReLU(), nn.Linear(INPUTS, INPUTS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "bounded"),
    [(2.0, False), (2.0, True), pytest.param(1e-3, False, marks=pytest.mark.slow)],
)
def test_a_divergence_of_latent_layers_is_no_growth_over_depth(tmp_path: Path, factor: float, bounded: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        hidden = model.encoder(x)  # type: ignore[operator]
        mean, spread = model.mean(hidden), model.spread(hidden)  # type: ignore[operator]
        back = model.decoder(mean + (spread / 2).exp() * torch.randn_like(mean))  # type: ignore[operator]
        divergence = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(1).mean()
        if bounded:  # a prior that is drawn
            divergence = (mean - torch.rand_like(mean)).square().mean() + spread.mean()
        return 1e-3 * functional.mse_loss(back, x) + factor * 100 * divergence

    model = Coder()
    if bounded:
        model.mean, model.spread = (nn.Sequential(nn.Linear(INPUTS, 4), nn.Sigmoid()) for _ in range(2))
    found = train(tmp_path / "run.h5", model, loss)
    assert "exploding" not in found.kinds, str(found)


class TwoHeads(nn.Module):
    """A deep body with two heads."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(*[part for _ in range(8) for part in (nn.Linear(INPUTS, INPUTS), nn.ReLU())])
        self.one, self.other = nn.Linear(INPUTS, CLASSES), nn.Linear(INPUTS, CLASSES)
        for layer in self.body:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=scale * (2 / INPUTS) ** 0.5)


@pytest.mark.parametrize("scale", [3.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_body_of_two_heads_whose_gradient_grows(tmp_path: Path, scale: float) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        hidden = model.body(x)  # type: ignore[operator]
        one, other = model.one(hidden), model.other(hidden)  # type: ignore[operator]
        return functional.cross_entropy(one, y) + functional.cross_entropy(other, (y + 1) % CLASSES)

    model = TwoHeads(scale)
    found = train(tmp_path / "run.h5", model, loss, torch.optim.SGD(model.parameters(), lr=1e-9 if scale > 1 else 1e-2))
    assert ("exploding" in found.kinds) == (scale > 1), str(found)


# --- several models, each with a recorder ---------------------------------------------------------------------


def test_a_fault_in_the_loss_of_another_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    value, policy = mlp(out=1), mlp()
    optimizers = [torch.optim.Adam(model.parameters(), lr=5e-3) for model in (value, policy)]
    with (
        gradlens.record(value, tmp_path / "value.h5", optimizer=optimizers[0]) as one,
        gradlens.record(policy, tmp_path / "policy.h5", optimizer=optimizers[1]) as other,
    ):
        for step in range(60):
            x, y = batch(step)
            losses = (value(x) - x[:, 0]).square().mean(), cross_entropy(policy, x, y)
            for loss, optimizer, recorder in zip(losses, optimizers, (one, other), strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.log(loss=loss)
    found = diagnose(read_run(tmp_path / "value.h5"))
    check(found, "setup")
    assert found.findings[0].cause == "shapes are broadcast in the loss"
    check(diagnose(read_run(tmp_path / "policy.h5")), "healthy")
    facts = read_run(tmp_path / "policy.h5").facts["graph"]
    assert [item["op"] for item in facts["losses"]] == ["NllLoss"]
    assert facts["broadcast"] == []


# --- a learning rate of 0 -------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A residual block that begins as the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.last(functional.relu(self.first(x)))
        return out


@pytest.mark.parametrize("lr", [0.0, pytest.param(5e-3, marks=pytest.mark.slow)])
def test_a_rate_of_zero_comes_before_what_the_initial_weights_show(tmp_path: Path, lr: float) -> None:
    torch.manual_seed(0)
    blocks = [Residual() for _ in range(3)]
    model = nn.Sequential(nn.Linear(INPUTS, WIDTH), *blocks, nn.Linear(WIDTH, CLASSES))
    found = train(tmp_path / "run.h5", model, optimizer=torch.optim.Adam(model.parameters(), lr=lr))
    check(found, "healthy" if lr else "frozen")
    if not lr:
        assert [finding.cause for finding in found.findings] == ["the learning rate is 0"]


# --- losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["twice", "once", pytest.param("another dimension", marks=pytest.mark.slow)])
def test_a_softmax_of_a_softmax_whose_logarithm_is_taken_by_hand(tmp_path: Path, way: str) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        scores = model(x)
        if way == "another dimension":  # a share of each class in the batch
            shares = scores.softmax(0).sum() * 1e-3
            return -(functional.one_hot(y, CLASSES) * (scores + 1e-8).log()).sum(1).mean() + shares
        scores = scores.softmax(1) if way == "twice" else scores
        return -(functional.one_hot(y, CLASSES) * (scores + 1e-8).log()).sum(1).mean()

    found = train(tmp_path / "run.h5", nn.Sequential(mlp(), nn.Softmax(1)), loss)
    check(found, "setup" if way == "twice" else "healthy")
    if way == "twice":
        assert "softmax is applied twice" in found.findings[0].evidence


@pytest.mark.parametrize("way", ["no pairs", "met", pytest.param("falls", marks=pytest.mark.slow)])
def test_a_loss_that_is_exactly_0(tmp_path: Path, way: str) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = model(x)
        y = torch.arange(len(y)) if way == "no pairs" else y
        other = torch.arange(len(y)).roll(1)
        same = (y == y[other]) & (other != torch.arange(len(y)))
        if way == "met":  # a hinge that is learnt, and that is 0 later on
            return functional.multi_margin_loss(out, y, margin=0.05)
        return (out - out[other])[same].square().sum() / len(y) * (1 if way == "no pairs" else 0.1)

    found = train(tmp_path / "run.h5", mlp(), loss, steps=60)
    if way == "no pairs":
        check(found, "zero_gradient")
        assert found.findings[0].cause == "the loss is exactly 0 in every row"
        assert found.learning == "no"
        assert not any("the loss is learnt" in note for note in found.notes)
    else:
        assert "zero_gradient" not in found.kinds, str(found)


@pytest.mark.parametrize("way", ["all 1", "negatives", pytest.param("smoothed", marks=pytest.mark.slow)])
def test_binary_targets_that_are_all_the_same(tmp_path: Path, way: str) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        value = {"all 1": torch.ones(32), "negatives": (y > 1).float(), "smoothed": torch.full((32,), 0.9)}[way]
        return functional.binary_cross_entropy_with_logits(model(x)[:, 0], value)

    model = mlp(out=1)
    found = train(tmp_path / "run.h5", model, loss, torch.optim.Adam(model.parameters(), lr=2e-2))
    if way == "all 1":
        check(found, "setup")
        assert found.findings[0].cause == "all targets are the same"
    else:
        assert "setup" not in found.kinds, str(found)


class Scored(nn.Module):
    """A generator behind a critic whose weights it does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.model = mlp(out=INPUTS)


@pytest.mark.slow
def test_a_generator_whose_targets_are_all_1_is_no_classifier(tmp_path: Path) -> None:
    critic, made = mlp(out=1), Scored()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        scores = critic(made.model(x))
        return functional.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))

    found = train(tmp_path / "run.h5", made, loss, torch.optim.Adam(made.parameters(), lr=2e-2))
    assert "all targets are the same" not in [finding.cause for finding in found.findings]


@pytest.mark.parametrize("sign", [1, pytest.param(-1, marks=pytest.mark.slow)])
def test_a_likelihood_that_falls_to_minus_infinity(tmp_path: Path, sign: int) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        mean, log_variance = model(x).chunk(2, 1)
        return sign * (-0.5 * (x[:, :2] - mean).square() / log_variance.exp() - 0.5 * log_variance).sum(1).mean()

    model = mlp(out=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-2 if sign > 0 else 5e-3)
    found = train(tmp_path / "run.h5", model, loss, optimizer, steps=160)
    assert ("nonfinite" in found.kinds) == (sign > 0), str(found)
    if sign > 0:
        assert "it has no lower bound" in found.findings[0].evidence, str(found)
        assert "Look at the sign of each term" in found.findings[0].remedy


# --- schedules ------------------------------------------------------------------------------------------------

ROWS = 60
RATES = {
    "rises": np.linspace(1e-6, 1e-4, ROWS),
    "rises from 0": np.linspace(0, 1e-4, ROWS),
    "constant": np.full(ROWS, 1e-3),
    "then constant": np.minimum(np.linspace(1e-6, 1e-3, ROWS), 5e-4),
    "cycle": 1e-3 * np.sin(np.linspace(0.1, np.pi - 0.1, ROWS)),
    "falls": np.linspace(1e-3, 1e-4, ROWS),
}


@pytest.mark.parametrize("way", RATES)
def test_a_warm_up_that_has_not_ended_is_noted(way: str) -> None:
    gradients = {"param_grad_norm": np.exp(np.random.default_rng(0).normal(0, 0.1, (ROWS, 4)))}
    found = gradlens.diagnose_arrays(gradients, scalars={"loss": np.linspace(1, 0.5, ROWS), "lr": RATES[way]})
    check(found, "healthy")
    assert any("its warm-up has not ended" in note for note in found.notes) == way.startswith("rises")


@pytest.mark.slow
def test_a_loss_that_the_last_row_alone_lacks_is_no_average_over_nothing() -> None:
    gradients = {"param_grad_norm": np.exp(np.random.default_rng(0).normal(0, 0.1, (ROWS, 4)))}
    for missing in (ROWS - 1, ROWS // 2):
        loss = np.linspace(1, 0.5, ROWS)
        loss[missing] = np.nan
        found = gradlens.diagnose_arrays(gradients, scalars={"loss": loss})
        assert any("was not logged" in note for note in found.notes) == (missing < ROWS - 1)


# --- guessing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "learning"), [("falls", "unknown"), ("stands", "no"), ("at guessing", "no")])
def test_a_classifier_that_begins_far_above_guessing(way: str, learning: str) -> None:
    """A large first layer and dropout give confident scores at first; guessing is reached only later."""
    noise = np.random.default_rng(0).normal(0, 0.2, 120)
    levels = {"falls": (1.8, 1.2), "stands": (1.5, 1.5), "at guessing": (1.8, np.log(2))}[way]
    loss = np.linspace(*levels, 120) if way == "falls" else np.r_[np.full(10, levels[0]), np.full(110, levels[1])]
    kinds = {"op": "NllLoss", "reduction": "mean", "classes": 2, "shape": [32, 2], "passes": 3, "since": 0}
    kinds |= {"negated": False, "alone": True, "scaled": False}
    graph = {"source": "backward", "step": 0, "last_step": 2, "passes": 3, "complete": True, "losses": [kinds]}
    gradients = {"param_grad_norm": np.exp(np.random.default_rng(1).normal(0, 0.1, (120, 4)))}
    found = gradlens.diagnose_arrays(
        gradients, scalars={"loss": loss + noise}, facts={"version": 1, "looks": 5, "graph": graph}
    )
    assert found.learning == learning, str(found)
    assert (found.kind == "plateau") == (learning == "no")


# --- a divergence of logarithms of deviations -----------------------------------------------------------------


@pytest.mark.parametrize("sign", [-1, pytest.param(1, marks=pytest.mark.slow)])
def test_the_sign_of_a_divergence_of_squared_deviations(tmp_path: Path, sign: int) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        hidden = model.encoder(x)  # type: ignore[operator]
        mean, log_deviation = model.mean(hidden), model.spread(hidden).clamp(max=3)  # type: ignore[operator]
        back = model.decoder(mean + log_deviation.exp() * torch.randn_like(mean))  # type: ignore[operator]
        terms = 1 + 2 * log_deviation - mean**2 - log_deviation.exp() ** 2
        return functional.mse_loss(back, x) + sign * -0.5 * terms.sum(1).mean()

    model = Coder()
    found = train(tmp_path / "run.h5", model, loss, torch.optim.Adam(model.parameters(), lr=1e-2))
    causes = [finding.cause for finding in found.findings]
    assert ("the divergence has the wrong sign" in causes) == (sign < 0), str(found)
