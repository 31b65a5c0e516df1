"""Faults after public reports, second list: each fault, and its twin without it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from tests.diagnosis.recordings import check
from tests.diagnosis.small_trainings import train_on
from tests.diagnosis.test_programs import INPUTS, both, ways

FEW = 60


def fit_a_curve(path: Path, rate: float) -> gradlens.Diagnosis:
    """Fit a line with LBFGS, which ends by itself when it is there."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 40).view(-1, 1)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=rate, max_iter=5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - 0.5 * x).pow(2).mean()
        loss.backward()
        return loss

    with gradlens.record(model, path, optimizer=optimizer, every={"update_ratio": 1}) as recorder:
        for _ in range(FEW):
            recorder.log(loss=optimizer.step(closure))
    return gradlens.diagnose(path)


def test_an_optimizer_that_has_reached_its_tolerance_is_not_frozen(tmp_path: Path) -> None:
    found = fit_a_curve(tmp_path / "run.h5", 0.5)
    updates = gradlens.read_run(tmp_path / "run.h5").metric("update_ratio")
    assert (updates[-10:] == 0).all()
    check(found, "healthy")


def test_an_optimizer_with_a_tolerance_that_never_moves_is_frozen(tmp_path: Path) -> None:
    check(fit_a_curve(tmp_path / "run.h5", 0.0), "frozen")


WORDS, LENGTH, WIDTH = 12, 8, 16


def fit(
    path: Path,
    model: nn.Module,
    loss_of: Callable[[nn.Module, int], Tensor],
    *,
    part: nn.Module | None = None,
    steps: int = FEW,
    rate: float = 1e-2,
) -> gradlens.Diagnosis:
    """Train a model, or a part of it, with a loss per step, and diagnose it."""

    def loss(step: int) -> Tensor:
        torch.manual_seed(step)
        return loss_of(model, step)

    return train_on(path, model, loss, optimizer=torch.optim.Adam((part or model).parameters(), rate), steps=steps)


def causes(found: gradlens.Diagnosis) -> list[str]:
    return [finding.cause for finding in found.findings]


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))


def scarce(count: int) -> tuple[Tensor, Tensor]:
    """Return examples of three classes: 80, 15 and 5 %."""
    y = torch.multinomial(torch.tensor([0.8, 0.15, 0.05]), count, replacement=True)
    return torch.randn(count, INPUTS) + 2 * functional.one_hot(y, INPUTS), y


FAVOURED = "class weights favour the frequent classes"


@pytest.mark.parametrize(
    ("weights", "faulty"),
    [((0.8, 0.15, 0.05), True), ((1 / 0.8, 1 / 0.15, 1 / 0.05), False), ((1.0, 1.0, 1.0), False),
     ((1.0, 1.0, 0.0), False), ((1.0, 0.9, 1.1), False), ((0.05, 0.15, 0.8), False)],
)  # fmt: skip
def test_class_weights_in_the_wrong_order(tmp_path: Path, weights: tuple[float, ...], faulty: bool) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(128)
        return functional.cross_entropy(model(x), y, weight=torch.tensor(weights))

    found = fit(tmp_path / "run.h5", classifier(), loss_of)
    assert causes(found) == ([FAVOURED] if faulty else []), str(found)


@pytest.mark.parametrize(("weight", "faulty"), [(0.1, True), (9.0, False), (1.0, False)])
def test_the_weight_of_a_rare_positive_class(tmp_path: Path, weight: float, faulty: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1))

    def loss_of(model: nn.Module, step: int) -> Tensor:
        y = (torch.rand(128, 1) < 0.1).float()
        x = torch.randn(128, INPUTS) + 2 * y
        return functional.binary_cross_entropy_with_logits(model(x), y, pos_weight=torch.tensor([weight]))

    assert causes(fit(tmp_path / "run.h5", model, loss_of)) == ([FAVOURED] if faulty else [])


@both
@ways("way", "log-probabilities", "cross entropy")
def test_weights_after_the_average(tmp_path: Path, faulty: bool, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(32)
        weights = torch.rand(32)
        if way == "cross entropy":
            losses = functional.cross_entropy(model(x), y, reduction="mean" if faulty else "none")
            return (losses * weights).mean()
        chosen = torch.stack([part[i] for part, i in zip(model(x).log_softmax(1), y, strict=True)])
        return -((chosen.mean() if faulty else chosen) * weights).sum()

    found = fit(tmp_path / "run.h5", classifier(), loss_of)
    assert causes(found) == (["weights come after the average"] if faulty else []), str(found)


def test_a_sum_of_terms_with_weights_of_their_own_is_no_average_over_examples(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(32)
        return (functional.cross_entropy(model(x), y) * torch.tensor([0.5, 0.2, 0.2, 0.1])).sum()

    assert not causes(fit(tmp_path / "run.h5", classifier(), loss_of))


@both
def test_a_batch_that_holds_one_example_many_times(tmp_path: Path, faulty: bool) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(32)
        return (
            functional.cross_entropy(model(x[:1].expand(32, -1)), y[:1].expand(32))
            if faulty
            else (functional.cross_entropy(model(x), y))
        )

    found = fit(tmp_path / "run.h5", classifier(), loss_of)
    assert ("a batch holds one example many times" in causes(found)) == faulty, str(found)


def test_one_input_for_targets_that_differ_is_no_copy(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(32)
        return functional.cross_entropy(model(x[:1].expand(32, -1)), y)

    assert "a batch holds one example many times" not in causes(fit(tmp_path / "run.h5", classifier(), loss_of))


class Scores(nn.Module):
    """Attention over the facts of a set; ``dim`` is that of the softmax over scores of (facts * examples) x 1."""

    def __init__(self, *, faulty: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.faulty = nn.Embedding(WORDS, WIDTH), faulty
        self.hidden, self.score, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 3)

    def forward(self, facts: Tensor) -> Tensor:
        x = self.embed(facts)
        scores = self.score(torch.tanh(self.hidden(x)).view(-1, WIDTH))
        weights = scores.softmax(1).view(*facts.shape, 1) if self.faulty else scores.view(*facts.shape, 1).softmax(1)
        return self.out((weights * x).sum(1))


@both
def test_scores_of_attention_over_one_element(tmp_path: Path, faulty: bool) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        facts = torch.randint(0, WORDS, (32, LENGTH))
        return functional.cross_entropy(model(facts), facts[:, 0] % 3)

    found = fit(tmp_path / "run.h5", Scores(faulty=faulty), loss_of)
    assert causes(found) == (["softmax over one element"] if faulty else []), str(found)
    assert not faulty or set(found.findings[0].layers) == {"score", "hidden"}


class Speaker(nn.Module):
    """A small transformer for sequences of indices."""

    def __init__(self, *, causal: bool = True, by_example: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.causal, self.by_example = causal, by_example
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(64, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, 0.0, batch_first=True, norm_first=True)
        self.out = nn.Linear(WIDTH, WORDS)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        count = x.shape[1]
        places = torch.arange(len(x)).unsqueeze(1) if self.by_example else torch.arange(count).unsqueeze(0)
        mask = nn.Transformer.generate_square_subsequent_mask(count) if self.causal else None
        embedded = self.words(x) + self.places(places)
        return self.out(self.block(embedded, src_mask=mask, src_key_padding_mask=hidden))


def text(count: int, length: int = LENGTH) -> Tensor:
    """Return sequences in which each index is one to four above the one before."""
    return (torch.randint(0, WORDS, (count, 1)) + torch.randint(1, 5, (count, length)).cumsum(1)) % WORDS


def says(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.reshape(-1, WORDS), targets.reshape(-1))


@ways("way", "twice", "in the batch", "in the loss", "two heads", "a prefix")
def test_targets_that_are_moved_twice(tmp_path: Path, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x = text(32)
        if way == "in the batch":
            return says(model(x[:, :-1]), x[:, 1:])
        if way == "a prefix":  # outputs and targets both begin later
            return says(model(x)[:, 1:-1], x[:, 2:])
        outputs = model(x)
        far, near = says(outputs[:, :-2], x[:, 2:]), says(outputs[:, :-1], x[:, 1:])
        return {"twice": far, "in the loss": near, "two heads": near + far}[way]

    found = fit(tmp_path / "run.h5", Speaker(), loss_of)
    assert causes(found) == (["targets are moved by more than one position"] if way == "twice" else []), str(found)


@both
def test_positions_that_are_counted_along_the_batch(tmp_path: Path, faulty: bool) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x = text(32)
        return says(model(x), x.flip(1))

    found = fit(tmp_path / "run.h5", Speaker(causal=False, by_example=faulty), loss_of)
    assert causes(found) == (["positions are counted along the batch"] if faulty else []), str(found)


@both
@ways("way", "fused", "by hand")
def test_a_padding_mask_that_is_turned_round(tmp_path: Path, faulty: bool, way: str) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words, self.attend = nn.Embedding(WORDS, WIDTH), nn.MultiheadAttention(WIDTH, 2, batch_first=True)
            self.out = nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            embedded, is_padding = self.words(x), x == 0
            hidden = ~is_padding if faulty else is_padding
            if way == "by hand":
                scores = (embedded @ embedded.transpose(1, 2)).masked_fill(hidden.unsqueeze(1), -torch.inf)
                return self.out((scores.softmax(-1) @ embedded)[:, 0])
            first = embedded[:, :1]
            return self.out(
                self.attend(first, embedded, embedded, key_padding_mask=hidden, need_weights=False)[0][:, 0]
            )

    def loss_of(model: nn.Module, step: int) -> Tensor:
        x = torch.randint(1, WORDS, (32, LENGTH))
        x[:, -2:] = 0
        x[::2, -4:] = 0
        return functional.cross_entropy(model(x), x[:, 1] % 3)

    found = fit(tmp_path / "run.h5", Reader(), loss_of)
    assert ("the padding mask is turned round" in causes(found)) == faulty, str(found)


@ways("way", "attack", "samples")
def test_gradients_without_a_graph_beside_a_sum_that_begins_with_0(tmp_path: Path, way: str) -> None:
    """Adversarial examples and Langevin samples are meant to pass no gradient; autograd takes the 0 for a tensor."""

    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(64)
        near = x.clone()
        for _ in range(1 if way == "attack" else 5):
            near = near.detach().requires_grad_(True)
            value = functional.cross_entropy(model(near), y) if way == "attack" else model(near)[:, 0].sum()
            near = near + 0.1 * torch.autograd.grad(value, near)[0].sign()
        terms: float | Tensor = 0
        for inputs in (x, near.detach()):
            terms = terms + functional.cross_entropy(model(inputs), y)
        assert isinstance(terms, Tensor)
        return terms

    torch.manual_seed(0)
    found = fit(tmp_path / "run.h5", nn.Sequential(nn.Linear(INPUTS, 24), nn.Tanh(), nn.Linear(24, 3)), loss_of)
    assert causes(found) == [], str(found)


@ways("way", "no graph", "a graph", "an attack", "a number")
def test_a_gradient_penalty_without_a_graph(tmp_path: Path, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(64)
        x.requires_grad_(True)
        loss = functional.cross_entropy(model(x), y)
        if way == "a number":
            return loss + 1.0
        slope = torch.autograd.grad(model(x).sum(), x, create_graph=way == "a graph")[0]
        if way == "an attack":  # the gradient makes an input, as in adversarial training
            return loss + functional.cross_entropy(model(x + 0.1 * slope.sign()), y)
        return loss + 0.1 * (slope.norm(dim=1) - 1).square().mean()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))
    found = fit(tmp_path / "run.h5", model, loss_of)
    assert causes(found) == (["a term of the loss has no graph"] if way == "no graph" else []), str(found)
    assert not causes(found) or found.findings[0].layers == ("0", "2", "4")


class Taught(nn.Module):
    """A student with batch norm, and a teacher that is its average."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(
            nn.Linear(INPUTS, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)
        )
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)

    @torch.no_grad()
    def average(self, *, buffers: bool) -> None:
        for own, mean in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
            mean.mul_(0.9).add_(own, alpha=0.1)
        for own, mean in zip(self.student.buffers(), self.teacher.buffers(), strict=True) if buffers else ():
            mean.copy_(own)


@ways("way", "weights alone", "buffers, too", "train mode", "statistics that fit")
def test_a_teacher_that_gets_no_statistics(tmp_path: Path, way: str) -> None:
    model = Taught()
    model.teacher.train(way == "train mode")
    if way == "statistics that fit":
        model.student[0].weight.data.zero_()  # what goes into batch norm has a mean of about 0, as at the start
        model.student[1].momentum = 0.001

    def loss_of(model: nn.Module, step: int) -> Tensor:
        assert isinstance(model, Taught)
        x, y = scarce(64)
        model.average(buffers=way == "buffers, too")
        with torch.no_grad():
            soft = model.teacher(20 + 8 * x).softmax(1)
        outputs = model.student(20 + 8 * x)
        return functional.cross_entropy(outputs, y) + 0.1 * functional.cross_entropy(outputs, soft)

    found = fit(tmp_path / "run.h5", model, loss_of, rate=1e-3)
    stale = "a copy's batch norm statistics are not updated"
    assert (stale in causes(found)) == (way == "weights alone"), str(found)


class WithTarget(nn.Module):
    """A model of values, and a target that is a copy of it."""

    def __init__(self) -> None:
        super().__init__()
        self.own = classifier()
        self.target = copy.deepcopy(self.own)


@ways("way", "its own", "the model's", "once at the start", "never")
def test_a_target_that_gets_its_own_weights(tmp_path: Path, way: str) -> None:
    model = WithTarget()
    source = model.target if way == "its own" else model.own

    def loss_of(_: nn.Module, step: int) -> Tensor:
        x, y = scarce(64)
        if way != "never" and step % (10 * FEW if way == "once at the start" else 5) == 0:
            model.target.load_state_dict(source.state_dict())
        with torch.no_grad():
            goal = 0.9 * model.target(x).max(1)[0]
        outputs = model.own(x)
        return functional.cross_entropy(outputs, y) + 0.01 * (outputs.max(1)[0] - goal).square().mean()

    found = fit(tmp_path / "run.h5", model, loss_of, part=model.own)
    assert causes(found) == (["a copy is written with its own weights"] if way == "its own" else []), str(found)


@both
def test_the_entropy_of_a_policy_with_a_plus_sign(tmp_path: Path, faulty: bool) -> None:
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(FEW):
            torch.manual_seed(step)
            x, y = scarce(64)
            policy = torch.distributions.Categorical(logits=model(x))
            actions = policy.sample()
            reward = (actions == y).float()
            loss = -(policy.log_prob(actions) * (reward - 0.5)).mean()
            loss += (0.02 if faulty else -0.02) * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, reward=reward.mean())
    found = gradlens.diagnose(tmp_path / "run.h5")
    assert causes(found) == (["the sign of the entropy is wrong"] if faulty else []), str(found)


def test_a_classifier_may_make_its_entropy_small(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(64)
        outputs = model(x)
        policy = torch.distributions.Categorical(logits=outputs)
        return functional.cross_entropy(outputs, y) + 0.1 * policy.entropy().mean()

    assert not causes(fit(tmp_path / "run.h5", classifier(), loss_of))


@both
def test_a_softmax_over_the_examples_of_which_actions_are_picked(tmp_path: Path, faulty: bool) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(64)
        chosen = model(x).softmax(0 if faulty else 1).gather(1, y.unsqueeze(1))
        return -torch.log(chosen + 1e-9).mean()

    found = fit(tmp_path / "run.h5", classifier(), loss_of)
    assert causes(found) == (["softmax over the batch"] if faulty else []), str(found)


@ways("way", "in no optimizer", "in this optimizer", "in its own optimizer")
def test_weights_of_the_loss_in_no_optimizer_are_noted(tmp_path: Path, way: str) -> None:
    model = classifier()
    torch.manual_seed(1)
    centres = nn.Parameter(torch.randn(3, 3))
    own = torch.optim.SGD([centres], 0.1)
    given = [*model.parameters(), *([centres] if way == "in this optimizer" else [])]
    optimizer = torch.optim.Adam(given, 1e-2)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(FEW):
            torch.manual_seed(step)
            x, y = scarce(64)
            loss = functional.cross_entropy(model(x) @ centres.T, y)
            optimizer.zero_grad()
            own.zero_grad()
            loss.backward()
            optimizer.step()
            if way == "in its own optimizer":
                own.step()
            recorder.log(loss=loss)
    notes = gradlens.diagnose(tmp_path / "run.h5").notes
    assert any("must be given to an optimizer, too" in note for note in notes) == (way == "in no optimizer"), notes


@both
def test_a_tensor_that_is_added_to_itself_is_noted(tmp_path: Path, faulty: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.hidden, self.out = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.hidden(x).relu()
            return self.out(y + y if faulty else x + y)

    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(64)
        return functional.cross_entropy(model(x), y)

    found = fit(tmp_path / "run.h5", Block(), loss_of)
    assert found.kind == "healthy"
    assert any("added to itself" in note for note in found.notes) == faulty
