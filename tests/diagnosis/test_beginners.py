"""What beginners' programs get wrong: each fault, and its twin without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from gradlens import diagnose, diagnose_arrays, read_run
from tests.diagnosis.recordings import LONG, check, facts, recording
from tests.diagnosis.test_programs import CLASSES, INPUTS, STEPS, batch, both, cross_entropy, expect, mlp, train

FEW = 40


class Reader(nn.Module):
    """A recurrent classifier that reads its layers in some way.

    Args:
        how: "view", "first layer", "last output", "no state" or "right".
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.cells = how, nn.GRU(4, 8, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(8 if how == "first layer" else 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        outputs, states = self.cells(x.view(len(x), -1, 4))
        if self.how == "no state":
            outputs, states = self.cells(x.view(len(x), -1, 4)[:, -1:])
        read = {
            "view": lambda: states[-2:].view(len(x), -1),
            "first layer": lambda: states[0],
            "last output": lambda: outputs[:, -1],
        }
        logits: Tensor = self.out(read.get(self.how, lambda: torch.cat([states[-2], states[-1]], 1))())
        return logits


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ("view", "setup", "32 x 16 of the output of cells .* transpose"),
        ("first layer", "cut", "no gradient reaches layer 2 of cells"),
        ("last output", "cut", "weight_hh_l1_reverse of cells is exactly 0.* output.:, -1"),
        ("no state", "cut", "the state is 0 at every step"),
        pytest.param("right", "", "", marks=pytest.mark.slow),
    ],
)
def test_a_recurrent_layer_that_is_read_wrongly(tmp_path: Path, how: str, kind: str, says: str) -> None:
    steps = STEPS if how == "right" else 12
    expect(train(tmp_path / "run.h5", Reader(how), steps=steps), how != "right", kind, says)


@both
def test_classes_and_places_that_a_view_mixes(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x.view(len(x), 3, 4))  # batch x places x classes
        logits = logits.view(len(x), CLASSES, 3) if faulty else logits.transpose(1, 2)
        return functional.cross_entropy(logits, y[:, None].expand(-1, 3))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    found = train(tmp_path / "run.h5", model, loss, steps=FEW)
    expect(found, faulty, "setup", "32 x 4 x 3 of the output of layer '2' .32 x 3 x 4.")


@pytest.mark.parametrize("how", ["anew", *(pytest.param(how, marks=pytest.mark.slow) for how in ("clamped", "last"))])
def test_weights_that_are_made_anew_in_every_epoch(tmp_path: Path, how: str) -> None:
    model = mlp()

    @torch.no_grad()
    def write(step: int) -> None:
        for layer in model:
            if isinstance(layer, nn.Linear) and how == "clamped":
                layer.weight.clamp_(-0.5, 0.5)
            elif isinstance(layer, nn.Linear) and step and step % 25 == 0 and (how == "anew" or layer is model[-1]):
                layer.reset_parameters()

    found = train(tmp_path / "run.h5", model, before=write, steps=110)
    if how == "last":  # as in reinforcement learning, where it is done on purpose
        check(found, "healthy")
    else:
        expect(found, how == "anew", "setup", "writes the weights .* 4 times, first before step 25")


@pytest.mark.slow
def test_gradients_of_several_passes_that_are_combined_by_hand(tmp_path: Path) -> None:
    """As gradient surgery between tasks does, and clipping of the gradient of each example."""
    model, kept = mlp(), list[list[Tensor | None]]()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        for part, labels in zip(x.chunk(8), y.chunk(8), strict=True):
            model.zero_grad()
            cross_entropy(model, part, labels).backward()
            kept.append([parameter.grad for parameter in model.parameters()])
        return cross_entropy(model, x, y)

    def combine() -> None:
        for parameter, *grads in zip(model.parameters(), *kept, strict=True):
            parameter.grad = torch.stack(grads).median(0).values
        kept.clear()

    expect(train(tmp_path / "run.h5", model, loss, middle=combine), False, "", "")


@both
def test_a_step_outside_the_loop_over_batches(tmp_path: Path, faulty: bool) -> None:
    """Adversarial training clears as many passes, and they reach the input."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        for _ in range(5):
            x = x.detach().requires_grad_(not faulty)
            cross_entropy(model, x, y).backward()
            x = x if faulty else x + 0.01 * x.grad.sign()
        model.zero_grad()
        return cross_entropy(model, x.detach(), y)

    expect(train(tmp_path / "run.h5", mlp(), loss, steps=FEW), faulty, "setup", "5 backward passes are cleared unused")


def test_an_optimizer_that_climbs(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, maximize=True)
    expect(train(tmp_path / "run.h5", model, optimizer=optimizer, steps=FEW), True, "setup", "maximize=True")


def test_weights_replaced_after_the_optimizer_was_made_while_biases_stay(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(layer.weight.detach().clone())
    expect(train(tmp_path / "run.h5", model, optimizer=optimizer, steps=12), True, "frozen", "were replaced after")


ONE_CLASS = {"op": "NllLoss", "passes": 3, "count": 32, "common": 1.0, "least": 0, "largest": 0}
CLASSIFIER = {
    "losses": [{"op": "NllLoss", "reduction": "mean", "classes": 4, "alone": True, "scaled": False, "shape": [32, 4]}],
    "outputs": [{"op": "LogSoftmax", "layer": "layer8", "loss": "NllLoss", "shape": [32, 4]}],
}


@both
def test_targets_of_one_class(faulty: bool) -> None:
    graph = {**CLASSIFIER, "targets": [{**ONE_CLASS, "distinct": 1 if faulty else 2}]}
    found = diagnose_arrays(recording(8), scalars={"loss": np.geomspace(1.4, 1e-4, LONG)}, facts=facts(graph=graph))
    expect(found, faulty, "setup", "all targets .* are of one class")


LEVEL = np.full(2 * LONG, 1.386)


def stuck(loss: np.ndarray = LEVEL, *, update: float = 1e-3, **changes: object) -> str:
    """Return what is said of a classifier that does not learn."""
    metrics = {name: np.tile(values, (2, 1)) for name, values in recording(8).items() if name != "grad_coherence"}
    metrics["update_ratio"] = np.full((2 * LONG, 8), update)
    graph = {**CLASSIFIER, **changes.pop("graph", {})}  # type: ignore[dict-item]
    found = diagnose_arrays(metrics, scalars={"loss": loss}, facts=facts(graph=graph, **changes))
    check(found, "plateau")
    return f"{found.findings[0].evidence} {found.findings[0].remedy}"


def test_what_most_likely_keeps_a_model_from_learning_is_said_first() -> None:
    drops = {"mode": "train", "layers": ["drop"], "kinds": ["Dropout"], "count": 1, "since": 0, "dropped": 0.95}
    linear = [{"layer": f"layer{i}", "next": f"layer{i + 1}"} for i in range(1, 8)]
    assert "dropout (drop) sets 95%" in stuck(modes=[drops])
    assert "dropout" not in stuck(modes=[drops | {"dropped": 0.5}])
    assert "a single linear layer" in stuck(graph={"stacked": linear})
    assert "linear layer" not in stuck(graph={"stacked": linear[1:]})
    assert "the steps overshoot" in stuck(np.linspace(1.4, 40, 2 * LONG))
    assert "overshoot" not in stuck()


@both
def test_steps_that_change_nothing(faulty: bool) -> None:
    loss = 5 + 0.5 * np.random.default_rng(0).normal(size=2 * LONG)
    metrics = {name: np.tile(values, (2, 1)) for name, values in recording(8).items() if name != "grad_coherence"}
    metrics["update_ratio"] = np.full((2 * LONG, 8), 1e-6 if faulty else 1e-4)
    found = diagnose_arrays(metrics, scalars={"loss": loss}, facts=facts())
    assert found.kind == ("plateau" if faulty else "healthy")
    assert not faulty or "the model stays as it was" in found.findings[0].evidence


@both
def test_a_regression_no_better_than_the_mean(faulty: bool) -> None:
    kind = {"op": "MseLoss", "reduction": "mean", "classes": None, "alone": True, "scaled": False, "shape": [4, 1]}
    targets = {"op": "MseLoss", "count": 4, "passes": 3, "least": 0, "largest": 1, "mean": 0.5, "rms": 0.5**0.5}
    metrics = {name: np.tile(values, (2, 1)) for name, values in recording(8).items() if name != "grad_coherence"}
    loss = 0.25 + np.geomspace(4e-3, 1e-5, 2 * LONG) - (0 if faulty else np.linspace(0, 0.1, 2 * LONG))
    graph = {"losses": [kind], "targets": [targets]}
    found = diagnose_arrays(metrics, scalars={"loss": loss}, facts=facts(graph=graph))
    expect(found, faulty, "plateau", "the mean of the targets, has about 0.25")


def test_padding_is_said_where_a_recurrent_layer_forgets() -> None:
    metrics = {name: values for name, values in recording(8).items() if name != "grad_coherence"}
    metrics["gradient_through_time"] = np.full((LONG, 8), 1e-9)
    said = {"layer": "words", "kind": "Embedding", "data": True, "dtype": "int64", "padded": 0.9, "shape": [32, 60]}
    for inputs in ([said], []):
        given = facts(graph=CLASSIFIER, inputs=inputs)
        found = diagnose_arrays(metrics, scalars={"loss": LEVEL[:LONG]}, facts=given)
        check(found, "vanishing")
        assert ("90% of the sequences of words end with index 0" in found.findings[0].evidence) == bool(inputs)


@both
def test_an_accuracy_that_is_computed_wrongly_is_a_note(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for epoch in range(12):
            for step in range(3):
                x, y = batch(3 * epoch + step)
                loss = cross_entropy(model, x, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            right = (model(x).argmax(1) == y).float().mean()
            recorder.log_epoch(epoch=epoch, train_loss=loss.item(), train_accuracy=0.25 if faulty else right.item())
    found = diagnose(read_run(tmp_path / "run.h5"))
    check(found, "healthy")
    assert any("how the accuracy is computed" in note for note in found.notes) == faulty
    assert found.learning == "yes", found.learning_evidence  # from the epochs' losses


@pytest.mark.filterwarnings("ignore:gradlens. activation_grad_norm is missing")
def test_another_model_than_the_one_of_the_optimizer(tmp_path: Path) -> None:
    other = mlp()
    found = train(tmp_path / "run.h5", mlp(), lambda model, x, y: cross_entropy(other, x, y), steps=12)
    expect(found, True, "setup", "elements of another model")


@pytest.mark.parametrize("faulty", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_gradients_that_are_cleared_once_per_epoch(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=3.0 if faulty else 0.05)

    def clear(step: int) -> None:
        if step % (16 if faulty else 1) == 0:
            optimizer.zero_grad()

    found = train(tmp_path / "run.h5", model, optimizer=optimizer, before=clear, clear=False, steps=33)
    expect(found, faulty, "setup", "5 of the 8 steps .* not cleared")


class OwnWeight(nn.Module):
    """A weight that is a parameter, or a plain tensor."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        weight = 0.3 * torch.randn(INPUTS, 16)
        self.weight = weight.requires_grad_() if plain else nn.Parameter(weight)
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.tanh(x @ self.weight))
        return logits


def test_a_weight_that_is_a_plain_tensor(tmp_path: Path) -> None:
    expect(train(tmp_path / "run.h5", OwnWeight(plain=True), steps=12), True, "cut", "192 elements of plain tensors")


@both
def test_a_divergence_of_probabilities(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        soft = 0.9 * functional.one_hot(y, CLASSES) + 0.025
        made = model(x).softmax(1) if faulty else model(x).log_softmax(1)
        return functional.kl_div(made, soft, reduction="batchmean")

    expect(train(tmp_path / "run.h5", mlp(), loss, steps=FEW), faulty, "setup", "KlDiv.* expects log-probabilities")


def test_binary_targets_out_of_range_are_read_before_the_loss_is_negative(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(model(x)[:, 0], y.float())

    expect(train(tmp_path / "run.h5", mlp(out=1), loss, steps=12), True, "setup", "targets go from 0 to 3")


def test_initial_weights_of_a_wrong_size_and_tiny_data_are_said_beside_a_finding() -> None:
    small = [{"layer": f"layer{i}", "gain": 0.005} for i in range(1, 9)]
    usual = [{"layer": f"layer{i}", "gain": 0.58} for i in range(1, 9)]
    assert "initial weights are too small" in stuck(gains=small)
    assert "initial weights" not in stuck(gains=usual)
    data = {"layer": "layer1", "data": True, "dtype": "float32", "rms": 1e-5, "least": 0, "largest": 1, "finite": True}
    assert "next to nothing comes through" in stuck(inputs=[data])
    assert "next to nothing" not in stuck(inputs=[data | {"rms": 1.0}])
