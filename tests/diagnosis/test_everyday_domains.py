"""Faults of everyday domains after public reports: each fault, its twin, and working programs that look alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from tests.diagnosis.test_battery_two import causes
from tests.diagnosis.test_programs import CLASSES, INPUTS, batch, both, cross_entropy, mlp, train, ways

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


@pytest.mark.slow
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


@pytest.mark.slow
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


# --- several labels for a softmax ---------------------------------------------------------------------------

SHARED = "a softmax for several labels at once"


@both
def test_a_softmax_for_several_labels_at_once(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        labels = (functional.one_hot(y, CLASSES) + functional.one_hot((y + 1) % CLASSES, CLASSES)).float()
        return functional.binary_cross_entropy(model(x), labels)

    found = train(tmp_path / "run.h5", nn.Sequential(mlp(), nn.Softmax(1) if faulty else nn.Sigmoid()), loss)
    assert causes(found) == ([SHARED] if faulty else []), str(found)


@pytest.mark.slow
def test_a_binary_cross_entropy_of_a_softmax_with_one_label_is_no_fault(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy(model(x), functional.one_hot(y, CLASSES).float())

    assert not train(tmp_path / "run.h5", nn.Sequential(mlp(), nn.Softmax(1)), loss).findings


# --- cosines without a scale --------------------------------------------------------------------------------


class Centres(nn.Module):
    """Cosine similarities of embeddings and of one column of weights per class."""

    def __init__(self, scale: float, classes: int = 100) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, classes))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (functional.normalize(x) @ functional.normalize(self.weight, dim=0))


@both
def test_cosines_of_normalised_columns_without_a_scale(tmp_path: Path, faulty: bool) -> None:
    model = nn.Sequential(mlp(out=8), Centres(1.0 if faulty else 16.0))
    found = train(tmp_path / "run.h5", model, cross_entropy)
    assert ("the logits are cosine similarities between -1 and 1" in str(found).replace("\n    ", " ")) == faulty


# --- the same random numbers in every step ------------------------------------------------------------------

REPEATED = "a seed is set in each step"


def drop(path: Path, seed: Callable[[int], None], model: nn.Module | None = None) -> gradlens.Diagnosis:
    model = model or mlp(nn.Dropout(0.3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with gradlens.record(model, path, optimizer=optimizer) as recorder:
        for step in range(60):
            seed(step)
            x, y = batch(step)
            loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    return gradlens.diagnose(path)


@both
def test_a_seed_that_is_set_in_the_loop(tmp_path: Path, faulty: bool) -> None:
    found = drop(tmp_path / "run.h5", (lambda step: torch.manual_seed(7) and None) if faulty else lambda step: None)
    assert not found.findings, str(found)
    assert (REPEATED in " ".join(found.notes)) == faulty, str(found)


@pytest.mark.slow
def test_a_seed_in_the_loop_of_a_model_that_draws_nothing_is_not_noted(tmp_path: Path) -> None:
    found = drop(tmp_path / "run.h5", lambda step: torch.manual_seed(7) and None, mlp())
    assert REPEATED not in " ".join(found.notes), str(found)


@pytest.mark.slow
def test_a_seed_of_its_own_for_each_step_is_not_noted(tmp_path: Path) -> None:
    found = drop(tmp_path / "run.h5", lambda step: torch.manual_seed(step) and None)
    assert REPEATED not in " ".join(found.notes), str(found)


# --- what the loss leaves out -------------------------------------------------------------------------------


@both
def test_a_class_that_ignore_index_leaves_out(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x), y, ignore_index=2 if faulty else -100)

    found = train(tmp_path / "run.h5", mlp(), loss)
    assert not found.findings, str(found)
    assert ("those of class 2 (ignore_index=2)" in " ".join(found.notes)) == faulty, str(found)


@pytest.mark.slow
def test_padding_that_ignore_index_leaves_out_is_not_noted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 16, padding_idx=0), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 9))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for _ in range(40):
            words = torch.randint(1, 9, (16, 8)) * (torch.arange(8) < torch.randint(3, 9, (16, 1)))
            targets = torch.where(words > 0, 1 + words % 8, 0)
            loss = functional.cross_entropy(model(words).flatten(0, 1), targets.flatten(), ignore_index=0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    assert "ignore_index" not in " ".join(gradlens.diagnose(tmp_path / "run.h5").notes)


UNREAD = "get a gradient of exactly 0 in every recording"


@both
def test_outputs_that_the_loss_does_not_read(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (model(x) - x[:, :CLASSES])[:, 2 if faulty else 0 :].square().mean()

    found = train(tmp_path / "run.h5", mlp(), loss)
    assert not found.findings, str(found)
    assert (f"2 of the {CLASSES} outputs of layer '4' {UNREAD}" in " ".join(found.notes)) == faulty, str(found)


@pytest.mark.slow
def test_outputs_that_are_read_by_turns_are_not_noted(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (model(x).gather(1, y.unsqueeze(1)) - x[:, :1]).square().mean()

    assert UNREAD not in " ".join(train(tmp_path / "run.h5", mlp(), loss).notes)


# --- a learning rate that is not the one asked for ----------------------------------------------------------

ASKED = "was made with a learning rate of"


@both
def test_a_schedule_that_takes_a_dampened_rate_as_its_base(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for group in optimizer.param_groups if faulty else ():
        group["lr"] /= 400  # what a warm-up does when it is made
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(120):
            x, y = batch(step)
            loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            recorder.log(loss=loss)
    assert (ASKED in str(gradlens.diagnose(tmp_path / "run.h5")).replace("\n    ", " ")) == faulty


@pytest.mark.slow
def test_groups_with_rates_of_their_own_are_not_noted(tmp_path: Path) -> None:
    model = mlp()
    groups = [{"params": model[0].parameters(), "lr": 1e-4}, {"params": [*model.parameters()][2:]}]
    optimizer = torch.optim.SGD(groups, lr=0.02)
    found = train(tmp_path / "run.h5", model, cross_entropy, optimizer)
    assert ASKED not in " ".join(found.notes), str(found)


# --- no better than a constant ------------------------------------------------------------------------------


def fit_many(path: Path, way: str, hidden: float) -> gradlens.Diagnosis:
    """Train on batches of 500 examples whose targets depend on what the model sees a share ``1 - hidden`` of."""
    torch.manual_seed(0)
    model = mlp(out=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with gradlens.record(model, path, optimizer=optimizer) as recorder:
        for _ in range(220):
            x = torch.randn(500, INPUTS)
            told = torch.where(torch.rand(500, 1) < hidden, torch.randn(500, 1), x[:, :1])
            if way == "regression":
                loss = functional.mse_loss(model(x), told + 2)
            else:
                loss = functional.binary_cross_entropy_with_logits(model(x) + 2, (told > 1).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    return gradlens.diagnose(path)


@both
@ways("way", "rare labels", "regression")
def test_a_model_that_is_no_better_than_a_constant(tmp_path: Path, faulty: bool, way: str) -> None:
    """Outputs begin far from the targets, so that the loss falls, and then nothing is learnt from the inputs."""
    found = fit_many(tmp_path / "run.h5", way, hidden=1.0 if faulty else 0.2)
    assert found.learning == ("no" if faulty else "yes"), str(found)
    assert ("no better" in found.learning_evidence) == faulty


@ways("way", "rare labels", "regression")
def test_noisy_targets_that_are_learnt_a_little_are_better_than_a_constant(tmp_path: Path, way: str) -> None:
    assert fit_many(tmp_path / "run.h5", way, hidden=0.5).learning == "yes"


# --- averages over the batch, and scores of attention -------------------------------------------------------

AVERAGED = "the loss compares the mean of the model's output over its first dimension"


@both
@ways("way", "all", "examples")
def test_a_mean_over_the_batch_before_the_loss(tmp_path: Path, faulty: bool, way: str) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        output, target = model(x), x[:, :CLASSES]
        if faulty:
            output, target = (each.mean() if way == "all" else each.mean(0) for each in (output, target))
        return functional.mse_loss(output, target)

    found = train(tmp_path / "run.h5", mlp(), loss)
    assert not found.findings, str(found)
    assert (AVERAGED in " ".join(found.notes)) == faulty, str(found)


@pytest.mark.slow
def test_a_mean_over_places_inside_the_model_is_not_noted(tmp_path: Path) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.layers(x), self.layers(x)]).mean(0)

    assert AVERAGED not in " ".join(train(tmp_path / "run.h5", Pooled()).notes)


class Attention(nn.Module):
    """Attention over the places of a sequence, with large features, divided by the root of its width or not."""

    def __init__(self, *, scaled: bool, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.expand, self.scale = nn.Linear(1, width), width**-0.5 if scaled else None
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.layer_norm(self.expand(x.unsqueeze(2)), (64,)) * 8
        scores = self.query(h) @ self.key(h).transpose(1, 2)
        weights = (scores if self.scale is None else scores * self.scale).softmax(-1)
        return self.head((weights @ self.value(h)).mean(1))


SCORES = "that nothing divides"


@both
def test_scores_of_attention_without_a_scale(tmp_path: Path, faulty: bool) -> None:
    text = str(train(tmp_path / "run.h5", Attention(scaled=not faulty), steps=40)).replace("\n    ", " ")
    assert (SCORES in text.replace("  ", " ")) == faulty, text


# --- fine-tuning --------------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """A frozen layer with a low-rank update beside it."""

    def __init__(self, layer: nn.Linear, scale: float, rank: int = 4) -> None:
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), scale
        self.down = nn.Parameter(torch.randn(layer.in_features, rank) / rank**0.5)
        self.up = nn.Parameter(torch.zeros(rank, layer.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.scale * (x @ self.down @ self.up)


@both
def test_adapters_whose_scale_loses_what_the_model_knew(tmp_path: Path, faulty: bool) -> None:
    model = mlp(width=48)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(40):
        loss = cross_entropy(model, *batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for i, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            model[i] = Adapter(layer, 400.0 if faulty else 1.0)
    tuned = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    found = train(tmp_path / "run.h5", model, lambda m, x, y: cross_entropy(m, 0.4 * x, y), tuned)
    assert (found.learning == "no") == faulty, str(found)
    if faulty:
        assert "what the model knew is lost" in found.learning_evidence, str(found)


# --- tiny inputs --------------------------------------------------------------------------------------------


@both
def test_tiny_inputs_whose_loss_falls_only_at_first(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(model((1e-5 if faulty else 1.0) * x), x[:, :1] + 1)

    found = train(tmp_path / "run.h5", mlp(out=1), loss, steps=400)
    assert ("next to nothing comes through" in str(found).replace("\n    ", " ")) == faulty, str(found)
