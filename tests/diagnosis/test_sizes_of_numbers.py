"""Numbers of an odd size: logits in a narrow range, updates lost in rounding, data far from 1, and empty steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from gradlens import diagnose, diagnose_arrays, read_run
from gradlens.recorder.facts.loss.compared_outputs import compared_outputs
from gradlens.recorder.facts.loss.graph_reading import label
from tests.diagnosis.recordings import check
from tests.diagnosis.test_programs import CLASSES, INPUTS, both, expect, mlp, train, ways


@both
def test_temperature_multiplied(tmp_path: Path, faulty: bool) -> None:
    def contrast(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        one, two = (functional.normalize(model(x + 0.1 * torch.randn_like(x)), dim=1) for _ in range(2))
        similarity = one @ two.T
        return functional.cross_entropy(similarity * 0.07 if faulty else similarity / 0.07, torch.arange(len(x)))

    expect(train(tmp_path / "run.h5", mlp(out=16), contrast), faulty, "setup", "cosine similarities.*temperature")


@pytest.mark.parametrize(
    ("limit", "loss", "says"), [(0.05, 4.1, "finding"), (1.0, 3.0, "note"), (1.0, 2.0, ""), (20, 3.0, "")]
)
def test_the_floor_of_a_cross_entropy(limit: float, loss: float, says: str) -> None:
    """ln(1 + 63 exp(-2 s)) is 4.06 for s = 0.05 and 2.25 for s = 1; a loss below it shows that the range is not so."""
    graph = {
        "losses": [{"op": "NllLoss", "reduction": "mean", "classes": 64, "alone": True, "scaled": False}],
        "logit_range": [{"of": "cosine similarities", "limit": limit, "shape": [64, 64], "since": 0}],
    }
    rows = np.full((120, 4), 1.0)
    found = diagnose_arrays(
        {"param_grad_norm": rows}, scalars={"loss": np.linspace(4.16, loss, 120)}, facts={"version": 1, "graph": graph}
    )
    noted = [note for note in found.notes if "the logits are" in note]
    causes = [finding.cause for finding in found.findings]
    assert bool(noted) == (says == "note")
    assert ("logits in a narrow range" in causes) == (says == "finding")


@both
def test_data_divided_twice(tmp_path: Path, faulty: bool) -> None:
    def small(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x / 900 if faulty else x), y)

    model = mlp(nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    found = train(tmp_path / "run.h5", model, small, torch.optim.SGD(model.parameters(), lr=0.05))
    said = str(found)
    assert ("root mean square of 0.00" in " ".join(said.split())) == faulty
    if not faulty:
        expect(found, False, "", "")


@both
def test_data_that_are_far_too_large_are_noted(tmp_path: Path, faulty: bool) -> None:
    def large(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        column = torch.zeros(INPUTS).index_fill(0, torch.tensor([3]), 1e4 if faulty else 0.0)
        return functional.cross_entropy(model(x + column), y)

    found = train(tmp_path / "run.h5", mlp(), large)
    assert (
        any("not normalised" in text for text in (*found.notes, *(each.evidence for each in found.findings))) == faulty
    )


@ways("faulty", True, False)
def test_updates_lost_in_bfloat16_are_noted(tmp_path: Path, faulty: bool) -> None:
    model = mlp().to(torch.bfloat16 if faulty else torch.float32)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y)

    found = train(tmp_path / "run.h5", model, loss, torch.optim.SGD(model.parameters(), lr=5e-3), steps=120)
    facts = read_run(tmp_path / "run.h5").facts["rounding"]
    assert [fact["dtype"] for fact in facts] == (["bfloat16"] if faulty else [])
    assert any("stay as they are" in note and "float32" in note for note in found.notes) == faulty
    assert not faulty or 0.5 < facts[0]["unchanged"] < 1


def test_the_share_of_lost_updates_is_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4, bias=False).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        model(torch.randn(3, 8).bfloat16()).square().mean().backward()
        before, pulled = model.weight.detach().clone(), model.weight.grad != 0
        optimizer.step()
        lost = float(((model.weight == before) & pulled).sum() / pulled.sum())
        recorder.log(loss=1.0)
    assert read_run(tmp_path / "run.h5").facts["rounding"][0]["unchanged"] == pytest.approx(lost)


class Own(torch.optim.Optimizer):
    """An optimizer written by hand."""

    def __init__(self, parameters: Any, how: str) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.how = how

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            if self.how == "rebinds":
                p = p - 0.1 * p.grad
            elif self.how == "in place":
                p -= 0.1 * p.grad
            elif self.how == "replaces data":
                p.data = p.data - 0.1 * p.grad
            else:
                p.copy_(p)


@ways("how", "rebinds", "in place", "replaces data", "writes the same")
def test_an_optimizer_that_writes_into_no_parameter(tmp_path: Path, how: str) -> None:
    model = mlp()
    found = train(tmp_path / "run.h5", model, optimizer=Own(model.parameters(), how))
    assert read_run(tmp_path / "run.h5").facts["optimizers"][0]["wrote"] is (how != "rebinds")
    if how in ("in place", "replaces data"):
        expect(found, False, "", "")
    else:
        assert [each.kind for each in found.findings] == ["frozen"]
        assert ("makes a new tensor" in found.findings[0].remedy) == (how == "rebinds")


@pytest.mark.parametrize("way", ["pairs", "cosine", "margin", "labels", "variance", "detached", "negatives", "mean"])
def test_losses_of_comparisons_alone(way: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    layer.register_forward_hook(lambda *called: label(called[-1], "layer"))
    one, two, three = (layer(torch.randn(8, 6)) for _ in range(3))
    distance = (one - two).square().sum(1)
    loss = {
        "pairs": distance.mean(),
        "cosine": 2 - 2 * functional.cosine_similarity(one, two, dim=1).mean(),
        "margin": functional.relu(distance - (one - three).square().sum(1) + 1).mean(),
        "labels": (torch.arange(8) % 2 * distance).mean(),
        "variance": distance.mean() - one.std(0).mean(),
        "detached": (one - two.detach()).square().mean(),
        "negatives": distance.mean() - torch.log((one - three).square().sum(1)).mean(),
        "mean": one.square().mean(),
    }[way]
    assert [fact["layer"] for fact in compared_outputs(loss.grad_fn)] == ["layer"] * (way in ("pairs", "cosine"))


def test_an_optimum_that_is_the_same_for_all_examples_is_no_collapse(tmp_path: Path) -> None:
    best = torch.linspace(-2, 2, 6)

    def cost(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return torch.log1p((model(x) - best).square().sum(1)).mean()

    found = train(tmp_path / "run.h5", mlp(out=6), cost, steps=320)
    (whole,) = [item for item in read_run(tmp_path / "run.h5").facts["spread"] if item["layer"] == "(model)"]
    assert whole["last"] < 0.2 < whole["first"]
    check(found, "healthy")


@ways("way", "collapses", "difference", "mse_loss", "variance", "negatives")
def test_representations_that_collapse(tmp_path: Path, way: str) -> None:
    def alike(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        one, two = (functional.normalize(model(x + 0.1 * torch.randn_like(x)), dim=1) for _ in range(2))
        if way == "negatives":
            return functional.cross_entropy(one @ two.T / 0.1, torch.arange(len(x)))
        if way in ("difference", "mse_loss"):
            one, two = (model(x + 0.1 * torch.randn_like(x)) for _ in range(2))
            return functional.mse_loss(one, two) if way == "mse_loss" else (one - two).square().sum(1).mean()
        spread = functional.relu(0.25 - one.std(0)).mean() if way == "variance" else 0.0
        return -(one * two).sum(1).mean() + 10 * spread

    found = train(tmp_path / "run.h5", mlp(out=16), alike, steps=320)
    (whole,) = [item for item in read_run(tmp_path / "run.h5").facts["spread"] if item["layer"] == "(model)"]
    assert whole["features"] == 16
    collapses = way not in ("variance", "negatives")
    assert (whole["last"] < 0.2 < whole["first"]) == collapses
    assert ["collapse" in finding.evidence for finding in found.findings] == [True] * collapses


@ways("how", "sample", "rsample", "by hand", "two decoders")
def test_a_sample_without_a_graph(tmp_path: Path, how: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"enc": nn.Sequential(nn.Linear(INPUTS, 24), nn.ReLU(), nn.Linear(24, 8))})
    model["dec"] = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, INPUTS))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        mean, log_var = model["enc"](x).chunk(2, 1)
        drawn = torch.distributions.Normal(mean, (log_var / 2).exp())
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        z = drawn.sample() if how == "sample" else drawn.rsample() if how == "rsample" else z
        kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(1).mean()
        again = functional.mse_loss(model["dec"](z), x, reduction="sum") if how == "two decoders" else 0.0
        return functional.mse_loss(model["dec"](z), x, reduction="sum") / len(x) + 0.1 * kl + again

    found = train(tmp_path / "run.h5", model, loss)
    causes = [finding.cause for finding in found.findings]
    assert causes == ["a drawn sample passes no gradient"] * (how == "sample")
    assert bool(read_run(tmp_path / "run.h5").facts["graph"]["terms_apart"]) == (how == "sample")


def test_two_models_with_losses_of_their_own_share_no_sample(tmp_path: Path) -> None:
    """An actor and a critic get the same states; the actor's entropy has a logarithm, and its actions their shape."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"actor": nn.Linear(INPUTS, 2 * INPUTS), "critic": nn.Linear(INPUTS, 1)})

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        mean, log_std = model["actor"](x).chunk(2, 1)
        policy = torch.distributions.Normal(mean, log_std.exp())
        chosen = policy.log_prob(x + 0.1).sum(1).mean()
        return functional.mse_loss(model["critic"](x).squeeze(1), y.float()) - 0.1 * chosen

    train(tmp_path / "run.h5", model, loss)
    assert [finding.cause for finding in diagnose(tmp_path / "run.h5").findings if finding.kind == "cut"] == []


@ways("way", "binary", "classes", "even")
def test_a_rare_class_is_noted(tmp_path: Path, way: str) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        y = (x[:, 0] > (0 if way == "even" else x[:, 0].sort()[0][-2])).float()
        logits = model(x)
        if way == "classes":
            return functional.cross_entropy(logits[:, :2], y.long())
        return functional.binary_cross_entropy_with_logits(logits[:, 0], y)

    found = train(tmp_path / "run.h5", mlp(), loss)
    assert [note[:5] for note in found.notes if "always says so" in note] == ["96.9%"] * (way != "even")


@both
def test_targets_far_away(tmp_path: Path, faulty: bool) -> None:
    def far(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(model(x).squeeze(1), y + 500.0 * faulty)

    model = mlp(out=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4 if faulty else 5e-3)
    expect(train(tmp_path / "run.h5", model, far, optimizer, steps=240), faulty, "plateau", "targets.*out of reach")


def test_the_spread_of_outputs_is_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(8, 4), torch.randn(6, 8)
    output = model(x).detach().double().numpy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        model(x).square().mean().backward()
        optimizer.step()
        recorder.log(loss=1.0)
    expected = np.sqrt(np.square(output - output.mean(0)).mean() / np.square(output).mean())
    (fact,) = read_run(tmp_path / "run.h5").facts["spread"]
    assert fact["first"] == fact["last"] == pytest.approx(expected, rel=1e-6)


def test_a_model_whose_output_another_new_model_gets(tmp_path: Path) -> None:
    """Data set distillation: what is trained are images, and each step trains a new network on them."""
    torch.manual_seed(0)

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.made = nn.Linear(CLASSES, INPUTS)

        def forward(self, labels: Tensor) -> Tensor:
            return self.made(functional.one_hot(labels, CLASSES).float())

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        labels = torch.arange(CLASSES)
        fresh = nn.Linear(INPUTS, CLASSES)
        own = functional.cross_entropy(fresh(model(labels)), labels)
        gradient = torch.autograd.grad(own, fresh.parameters(), create_graph=True)
        weight, bias = (p - 1.0 * g for p, g in zip(fresh.parameters(), gradient, strict=True))
        return functional.cross_entropy(functional.linear(x, weight, bias), y)

    found = train(tmp_path / "run.h5", Images(), loss)
    strange = read_run(tmp_path / "run.h5").facts["graph"]["unregistered"]
    assert strange
    assert all(item["inside"] is False for item in strange)
    assert diagnose(tmp_path / "run.h5").findings == found.findings == ()


def test_an_average_of_weights_with_batch_norm_is_meant(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(INPUTS, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, CLASSES))
    average = torch.optim.swa_utils.AveragedModel(inner)
    model = nn.ModuleDict({"inner": inner, "average": average})
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.05)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model["inner"](x), y)

    found = train(tmp_path / "run.h5", model, loss, optimizer, after=lambda: average.update_parameters(inner))
    assert found.findings == (), str(found)
    assert any(note.startswith("average is built like inner") for note in found.notes)


@ways("way", "counted", "left out")
def test_padding_in_the_loss_is_noted(tmp_path: Path, way: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"words": nn.Embedding(20, 16), "read": nn.GRU(16, 24, batch_first=True)})
    model["out"] = nn.Linear(24, 20)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        words = torch.randint(1, 20, (16, 12), generator=torch.Generator().manual_seed(int(1e3 * x[0, 0].abs())))
        words[:, 4:] = 0
        logits = model["out"](model["read"](model["words"](words))[0]).reshape(-1, 20)
        return functional.cross_entropy(logits, words.reshape(-1), ignore_index=0 if way == "left out" else -100)

    found = train(tmp_path / "run.h5", model, loss)
    targets = read_run(tmp_path / "run.h5").facts["graph"]["targets"]
    assert ({fact["commonest"] for fact in targets} == {0}) == (way == "counted")
    assert any("mostly that of padding" in note for note in found.notes) == (way == "counted")
