"""Faults of everyday domains after public reports: each fault, its twin, and working programs that look alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from tests.diagnosis.test_programs import CLASSES, INPUTS, batch, both, mlp, ways

Epoch = Callable[[nn.Module], float]


def fit_epochs(
    path: Path, model: nn.Module, validate: Epoch, epochs: int = 6, examples: int = 64
) -> gradlens.Diagnosis:
    """Train a classifier for some epochs, and log its accuracy in training and on what ``validate`` returns."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x, y = batch(0, examples)
    data = x, y % int(list(model.parameters())[-1].shape[0])
    with gradlens.record(model, path, optimizer=optimizer) as recorder:
        for epoch in range(epochs):
            for part in torch.randperm(examples, generator=torch.Generator().manual_seed(epoch)).split(8):
                x, y = data[0][part], data[1][part]
                loss = functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.log(loss=loss)
            seen = accuracy(model, *data)
            recorder.log_epoch(epoch=epoch, train_loss=loss, train_accuracy=seen, val_accuracy=validate(model))
    return gradlens.diagnose(path)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


# --- a validation with other labels -------------------------------------------------------------------------

COMPARE = "Compare validation and training first"


@both
@ways("way", "order of classes", "other preprocessing")
def test_a_validation_that_has_other_labels_or_inputs(tmp_path: Path, faulty: bool, way: str) -> None:
    def validate(model: nn.Module) -> float:
        x, y = batch(99, 200)
        if faulty and way == "order of classes":
            y = (y + 1) % CLASSES
        elif faulty:
            x = x * 0 + torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        return accuracy(model, x, y)

    found = fit_epochs(tmp_path / "run.h5", mlp(), validate)
    assert found.kind == "healthy", str(found)
    assert found.learning == "yes"
    assert (COMPARE in str(found).replace("\n    ", " ")) == faulty, str(found)
    if faulty:
        assert ("another order" in " ".join(found.notes)) == (way == "order of classes")


def test_an_overfitted_model_that_still_tells_something_is_only_overfitted(tmp_path: Path) -> None:
    def validate(model: nn.Module) -> float:
        x, y = batch(99, 200)
        return accuracy(model, 0.4 * x + 3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), y)

    assert COMPARE not in " ".join(fit_epochs(tmp_path / "run.h5", mlp(), validate).notes)


def test_two_classes_at_one_half_may_be_overfitted(tmp_path: Path) -> None:
    found = fit_epochs(tmp_path / "run.h5", mlp(out=2), lambda model: 0.5)
    assert COMPARE not in " ".join(found.notes)


# --- micro-batches whose gradients are added up -------------------------------------------------------------

ADDED = "backward passes of a loss that is an average and is not divided by"


def accumulate(path: Path, *, divide: bool, count: int, rate: float, adam: bool = False) -> gradlens.Diagnosis:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, CLASSES))
    optimizer = (
        torch.optim.Adam(model.parameters(), rate) if adam else torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    )
    with gradlens.record(model, path, optimizer=optimizer) as recorder:
        for step in range(60):
            optimizer.zero_grad()
            for part in range(count):
                x, y = batch(count * step + part, 4)
                loss = functional.cross_entropy(model(x), y)
                (loss / count if divide else loss).backward()
            optimizer.step()
            recorder.log(loss=loss.detach())
    return gradlens.diagnose(path)


@both
def test_gradients_of_micro_batches_that_are_not_averaged(tmp_path: Path, faulty: bool) -> None:
    found = accumulate(tmp_path / "run.h5", divide=not faulty, count=16, rate=0.1)
    assert any(ADDED in finding.evidence for finding in found.findings) == faulty, str(found)
    assert bool(found.findings) == faulty
    assert (found.learning == "yes") == (not faulty), str(found)
    if faulty:
        assert found.findings[0].remedy.startswith("Divide the loss by 16"), str(found)


@ways("adam", False, True)
def test_a_sum_over_micro_batches_that_learns_is_no_fault(tmp_path: Path, adam: bool) -> None:
    found = accumulate(tmp_path / "run.h5", divide=False, count=4, rate=0.01, adam=adam)
    assert found.kind == "healthy", str(found)
    assert found.learning == "yes"


# --- a pretrained model that gets other inputs --------------------------------------------------------------


@both
def test_a_pretrained_part_that_gets_other_inputs(tmp_path: Path, faulty: bool) -> None:
    model = mlp(width=48)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(60):
        loss = functional.cross_entropy(model(batch(step)[0]), batch(step)[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.requires_grad_(False)
    trained = model[2].bias if isinstance(model[2].bias, nn.Parameter) else model[0].bias
    trained.requires_grad_(True)
    optimizer = torch.optim.Adam([trained], 1e-3)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(120):
            x, y = batch(step)
            loss = functional.cross_entropy(model(-x if faulty else x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    found = gradlens.diagnose(tmp_path / "run.h5")
    assert bool(found.findings) == faulty, str(found)
    if faulty:
        assert "Compare first, on the same batch" in found.findings[0].remedy, str(found)
        assert "Set requires_grad to True" not in found.findings[0].remedy


# --- a logarithm that breaks late ---------------------------------------------------------------------------


@both
def test_a_logarithm_in_the_loss_that_breaks_in_a_later_step(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(60):
            x, _ = batch(step)
            if step == 22:
                x[0] = 0
            energy = (model(x) * x[:, :CLASSES]).square().sum(1)
            loss = (torch.log10(energy + (0 if faulty else 1e-3)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    found = gradlens.diagnose(tmp_path / "run.h5")
    assert (found.kind == "nonfinite") == faulty, str(found)
    if faulty:
        assert found.findings[0].remedy.startswith("The loss takes a logarithm of the result of"), str(found)
