"""Small trainings with one fault each, a twin without it, and odd trainings that work: what the diagnosis says of "
"them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from gradlens import Diagnosis, diagnose, read_run
from tests.diagnosis.recordings import check

STEPS, INPUTS, CLASSES = 160, 12, 4
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def batch(step: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Return examples of four classes around four centres."""
    centres = 2 * torch.randn(CLASSES, INPUTS, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(step)
    y = torch.randint(0, CLASSES, (size,), generator=generator)
    return torch.randn(size, INPUTS, generator=generator) + centres[y], y


def mlp(*between: nn.Module, out: int = CLASSES, width: int = 24) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = nn.Linear(width, width)
    return nn.Sequential(nn.Linear(INPUTS, width), *between, nn.ReLU(), hidden, nn.ReLU(), nn.Linear(width, out))


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), y)


def train(
    path: Path,
    model: nn.Module,
    loss: Loss = cross_entropy,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    steps: int = STEPS,
    before: Callable[[int], None] = lambda step: None,
    middle: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
    clear: bool = True,
) -> Diagnosis:
    """Train a model and diagnose the run; the functions run before the step, before the update and after it."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=5e-3)
    with gradlens.record(model, path, optimizer=optimizer) as recorder:
        for step in range(steps):
            before(step)
            value = loss(model, *batch(step))
            if clear:
                optimizer.zero_grad()
            value.backward()
            middle()
            optimizer.step()
            recorder.log(loss=value)
            after()
    return diagnose(read_run(path))


def expect(found: Diagnosis, faulty: bool, kind: str, says: str) -> None:
    if not faulty:
        check(found, "healthy")
        assert found.learning == "yes", found.learning_evidence
        return
    check(found, kind)
    main = found.findings[0]
    assert re.search(says, f"{main.evidence} {main.remedy} {main.cause}", re.IGNORECASE), str(found)


def ways(name: str, first: object, *others: object) -> pytest.MarkDecorator:
    """Parametrise a test by ways to write a program, of which the quick suite runs the first."""
    return pytest.mark.parametrize(name, [first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)])


both = pytest.mark.parametrize("faulty", [True, pytest.param(False, marks=pytest.mark.slow)])
both_slowly = pytest.mark.parametrize(
    "faulty", [pytest.param(faulty, marks=pytest.mark.slow) for faulty in (True, False)]
)
"""For faults of which others of the same kind are quick."""


@both
def test_a_sigmoid_before_a_loss_with_logits(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(model(x), functional.one_hot(y, CLASSES).float())

    model = mlp()
    found = train(tmp_path / "run.h5", nn.Sequential(model, nn.Sigmoid()) if faulty else model, loss)
    expect(found, faulty, "setup", "Remove the sigmoid")


def test_a_log_softmax_that_is_applied_twice_changes_nothing(tmp_path: Path) -> None:
    expect(train(tmp_path / "run.h5", nn.Sequential(mlp(), nn.LogSoftmax(1))), False, "", "")


@both_slowly
def test_the_negative_log_likelihood_of_probabilities(tmp_path: Path, faulty: bool) -> None:
    last = nn.Softmax(1) if faulty else nn.LogSoftmax(1)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.nll_loss(model(x), y)

    expect(train(tmp_path / "run.h5", nn.Sequential(mlp(), last), loss), faulty, "setup", "log-probabilities")


@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
@both
def test_a_target_of_another_shape(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        target = x.sum(1, keepdim=not faulty)
        return functional.smooth_l1_loss(model(x), target)

    expect(train(tmp_path / "run.h5", mlp(out=1), loss), faulty, "setup", "same shape")


@both_slowly
def test_a_gate_whose_softmax_runs_over_images(tmp_path: Path, faulty: bool) -> None:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.score, self.out = nn.Linear(3, 16), nn.Linear(16, 1), nn.Linear(16, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.tanh(self.embed(x.view(len(x), 4, 3)))
            weights = self.score(tokens).softmax(0 if faulty else 1)
            return self.out((weights * tokens).sum(1))

    torch.manual_seed(0)
    expect(train(tmp_path / "run.h5", Pool()), faulty, "setup", "first dimension of 32 x 4 x 1")


@both
def test_a_gradient_that_is_cleared_before_the_step(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    found = train(tmp_path / "run.h5", model, middle=lambda: model.zero_grad() if faulty else None)
    expect(found, faulty, "setup", r"not between them")
    assert not faulty or len(found.findings) == 1  # that nothing changes is a consequence


@both_slowly
def test_gradients_that_add_up_under_rmsprop(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    expect(train(tmp_path / "run.h5", model, optimizer=optimizer, clear=not faulty), faulty, "setup", "never cleared")


@both_slowly
def test_a_batch_norm_whose_statistics_stay_as_they_were(tmp_path: Path, faulty: bool) -> None:
    model = mlp(nn.BatchNorm1d(24, momentum=0.0 if faulty else 0.1))
    expect(train(tmp_path / "run.h5", model), faulty, "setup", "momentum 0.*running")


@both
def test_a_model_that_never_returns_to_training_mode(tmp_path: Path, faulty: bool) -> None:
    model = mlp(nn.BatchNorm1d(24), nn.Dropout(0.1))

    def validate(step: int) -> None:
        if step % 20 == 6:
            model.eval()
        elif not faulty:
            model.train()

    expect(train(tmp_path / "run.h5", model, before=validate), faulty, "setup", r"eval mode.*model\.train\(\)")


def test_a_frozen_batch_norm_beside_a_dropout_that_trains_is_a_note(tmp_path: Path) -> None:
    model = mlp(nn.BatchNorm1d(24), nn.Dropout(0.1))
    found = train(tmp_path / "run.h5", model, before=lambda step: model[1].eval() and None)
    check(found, "healthy")
    assert any("in eval mode while others train: layer '1'" in note for note in found.notes)


@both
def test_clipping_to_a_thousandth(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    limit = 1e-3 if faulty else 5.0
    found = train(
        tmp_path / "run.h5",
        model,
        optimizer=optimizer,
        middle=lambda: nn.utils.clip_grad_norm_(model.parameters(), limit) and None,
    )
    expect(found, faulty, "clipping", "max_norm from 0.001 to about")


@pytest.mark.slow
def test_strong_clipping_under_an_optimizer_that_rescales_is_no_fault(tmp_path: Path) -> None:
    model = mlp()
    clip = nn.utils.clip_grad_norm_
    found = train(tmp_path / "run.h5", model, middle=lambda: clip(model.parameters(), 1e-3) and None)
    check(found, "healthy")


class TwoParts(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.change = nn.Sequential(nn.Linear(INPUTS, 24), nn.Tanh(), nn.Linear(24, 24)), change
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.change(self.features(x)))


@both
def test_features_that_pass_through_numpy(tmp_path: Path, faulty: bool) -> None:
    change = (lambda h: torch.from_numpy(h.detach().numpy())) if faulty else (lambda h: h)
    found = train(tmp_path / "run.h5", TwoParts(change))
    expect(found, faulty, "cut", r"no gradient reaches features\.0, features\.2.*output of features\.2")
    assert not faulty or found.findings[0].layers == ("features.2", "features.0")


def test_features_in_no_optimizer_may_be_cut_off(tmp_path: Path) -> None:
    model = TwoParts(lambda h: h.detach())
    found = train(tmp_path / "run.h5", model, optimizer=torch.optim.Adam(model.head.parameters(), lr=5e-3))
    check(found, "healthy")
    assert any("in no optimizer" in note and "features.0" in note for note in found.notes)


@both
def test_a_loss_that_is_added_up_from_numbers(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        parts = [functional.cross_entropy(model(x[i::2]), y[i::2]) for i in (0, 1)]
        return torch.tensor(sum(float(part.detach()) for part in parts), requires_grad=True) if faulty else sum(parts)

    expect(train(tmp_path / "run.h5", mlp(), loss), faulty, "cut", r"no graph.*without \.item\(\)")


@both
def test_layers_in_a_dictionary(tmp_path: Path, faulty: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = {"a": nn.Linear(24, 24), "b": nn.Linear(24, 24)}
            self.first, self.last = nn.Linear(INPUTS, 24), nn.Linear(24, CLASSES)
            self.blocks = parts if faulty else nn.ModuleDict(parts)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            return self.last(self.blocks["b"](self.blocks["a"](x).relu()).relu())

    torch.manual_seed(0)
    expect(train(tmp_path / "run.h5", Model()), faulty, "cut", "'blocks' an nn.ModuleList")


@both
def test_a_layer_in_the_middle_that_no_group_has(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    parts = [model[0], model[4]] if faulty else list(model)
    optimizer = torch.optim.Adagrad([p for part in parts for p in part.parameters()], lr=0.05)
    expect(train(tmp_path / "run.h5", model, optimizer=optimizer), faulty, "frozen", "layer '2' to a group of Adagrad")


@pytest.mark.filterwarnings("ignore:gradlens. the optimizer given:gradlens.errors.GradlensWarning")
@both_slowly
def test_an_optimizer_of_the_model_before_it_was_copied(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    trained = copy.deepcopy(model) if faulty else model
    expect(train(tmp_path / "run.h5", trained, optimizer=optimizer), faulty, "frozen", "none of them is the model's")


@both
def test_a_rate_that_decays_with_every_batch(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    found = train(tmp_path / "run.h5", model, optimizer=optimizer, after=decay.step if faulty else lambda: None)
    expect(found, faulty, "frozen", r"ExponentialLR \(it changes at every step\) brings the learning rate from 0.005")


def test_a_schedule_that_ends_at_nothing_is_a_note(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS + 1)
    check(train(tmp_path / "run.h5", model, optimizer=optimizer, after=schedule.step), "healthy")


@both
def test_two_factors_that_are_initialised_to_0(tmp_path: Path, faulty: bool) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.left = mlp(), nn.Linear(INPUTS, 8, bias=False)
            self.right = nn.Linear(8, CLASSES, bias=False)
            nn.init.zeros_(self.right.weight)
            if faulty:
                nn.init.zeros_(self.left.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + self.right(self.left(x))

    found = train(tmp_path / "run.h5", Gated())
    expect(found, faulty, "zero_gradient", "left, right are initialised with weights of exactly 0")


@both_slowly
def test_an_output_that_is_bounded(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = model(x) - 5
        return functional.mse_loss(functional.relu6(out) if faulty else out, y[:, None].float() + 1)

    expect(
        train(tmp_path / "run.h5", mlp(out=1), loss),
        faulty,
        "zero_gradient",
        "the last operation before the loss is a ReLU6",
    )


@both_slowly
def test_a_rate_that_switches_every_unit_off(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=60.0 if faulty else 0.05)
    found = train(tmp_path / "run.h5", model, optimizer=optimizer)
    if faulty:
        assert found.kind in ("dead", "zero_gradient", "exploding")
        assert "Lower the learning rate of SGD (60) to about" in found.findings[0].remedy
    else:
        check(found, "healthy")


@both
def test_labels_that_do_not_belong_to_their_examples(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x), torch.randint_like(y, CLASSES) if faulty else y)

    found = train(tmp_path / "run.h5", mlp(), loss, steps=240)
    expect(found, faulty, "plateau", "no better than guessing.*gradients arrive at 3 of 3 layers.*shuffled apart")
    assert found.learning == ("no" if faulty else "yes")


@pytest.mark.slow
def test_two_models_against_each_other_need_no_falling_loss(tmp_path: Path) -> None:
    class Game(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.make = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2))
            self.tell = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1))

    model = Game()
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-3, betas=(0.5, 0.9)) for part in (model.tell, model.make)]
    logits = functional.binary_cross_entropy_with_logits
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizers) as recorder:
        for _ in range(STEPS):
            real, made = torch.randn(32, 2) + 2, model.make(torch.randn(32, 4))
            there = logits(model.tell(real), torch.ones(32, 1)) + logits(model.tell(made.detach()), torch.zeros(32, 1))
            optimizers[0].zero_grad()
            there.backward()
            optimizers[0].step()
            fooled = logits(model.tell(made), torch.ones(32, 1))
            optimizers[1].zero_grad()
            fooled.backward()
            optimizers[1].step()
            recorder.log(loss=fooled)
    found = diagnose(read_run(tmp_path / "run.h5"))
    check(found, "healthy")
    assert found.learning != "no"


@pytest.mark.slow
def test_a_teacher_that_follows_is_a_note(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = mlp()
            self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    model = Pair()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out, wanted = model.student(x), model.teacher(x + 0.1).softmax(1)
        return functional.cross_entropy(out, y) + 0.1 * functional.cross_entropy(out, wanted)

    def follow() -> None:
        with torch.no_grad():
            for slow, fast in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
                slow.lerp_(fast, 0.05)

    found = train(tmp_path / "run.h5", model, loss, torch.optim.Adam(model.student.parameters(), lr=5e-3), after=follow)
    check(found, "healthy")
    assert any("teacher is built like student" in note for note in found.notes)


@pytest.mark.slow
def test_attention_over_time_may_have_time_first(tmp_path: Path) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.score, self.out = nn.Linear(3, 24), nn.Linear(24, 1), nn.Linear(24, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            steps = torch.tanh(self.embed(x.view(len(x), 4, 3).transpose(0, 1)))
            return self.out((self.score(steps).softmax(0) * steps).sum(0))

    torch.manual_seed(0)
    check(train(tmp_path / "run.h5", Attention()), "healthy")


def test_a_small_part_may_be_trained_alone_with_gradients_for_the_rest(tmp_path: Path) -> None:
    class Prompted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.small = nn.Linear(INPUTS, 96), nn.Linear(INPUTS, CLASSES)
            self.body, self.last = nn.Linear(96, 96), nn.Linear(96, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.body(self.first(x).relu()).relu()) + self.small(x)

    model = Prompted()
    found = train(tmp_path / "run.h5", model, optimizer=torch.optim.Adam(model.small.parameters(), lr=1e-2))
    check(found, "healthy")
    assert any("in no optimizer" in note and "body" in note for note in found.notes)


def test_strong_clipping_that_a_high_rate_balances_is_no_fault(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    clip = nn.utils.clip_grad_norm_
    found = train(
        tmp_path / "run.h5", model, optimizer=optimizer, middle=lambda: clip(model.parameters(), 0.005) and None
    )
    assert "clipping" not in found.kinds, str(found)


def test_batch_norms_that_fit_may_be_frozen_after_a_while(tmp_path: Path) -> None:
    model = mlp(nn.BatchNorm1d(24))

    def freeze(step: int) -> None:
        if step == 60:
            model[1].eval()

    check(train(tmp_path / "run.h5", model, before=freeze), "healthy")


@pytest.mark.slow
def test_noisy_labels_under_a_usual_rate_are_no_plateau(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrong = torch.rand(len(y), generator=torch.Generator().manual_seed(int(1e4 * x[0, 0].abs()))) < 0.5
        return functional.cross_entropy(model(x), torch.where(wrong, torch.randint_like(y, CLASSES), y))

    model = mlp()
    found = train(tmp_path / "run.h5", model, loss, torch.optim.Adam(model.parameters(), lr=1e-2), steps=240)
    check(found, "healthy")


@pytest.mark.slow
def test_a_hinge_that_is_satisfied_is_learnt(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        centres = 4 * torch.eye(CLASSES, INPUTS)
        return functional.multi_margin_loss(model(centres[y]), y)

    model = mlp()
    found = train(tmp_path / "run.h5", model, loss, torch.optim.SGD(model.parameters(), lr=0.2), steps=300)
    assert found.findings == ()
    assert found.learning == "yes"
    assert any("the loss is learnt" in note for note in found.notes)


@both_slowly
def test_layers_made_in_forward(tmp_path: Path, faulty: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(out=16)
            self.head = None if faulty else nn.Linear(16, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            head = nn.Linear(16, CLASSES) if self.head is None else self.head
            return head(torch.relu(self.body(x)))

    expect(train(tmp_path / "run.h5", Model()), faulty, "cut", "forward.*__init__")


def test_parameters_of_a_second_model_are_no_layers_made_anew(tmp_path: Path) -> None:
    other = nn.Linear(CLASSES, CLASSES)
    found = train(tmp_path / "run.h5", mlp(), lambda model, x, y: functional.cross_entropy(other(model(x)), y))
    check(found, "healthy")


@both
def test_a_score_that_falls(tmp_path: Path, faulty: bool) -> None:
    torch.manual_seed(0)
    actor = mlp(out=1)
    optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)
    with gradlens.record(actor, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(STEPS):
            reward = -(actor(batch(step)[0]) - 3).square().log1p().mean()
            optimizer.zero_grad()
            (reward if faulty else -reward).backward()
            optimizer.step()
            recorder.log(reward=reward)
    expect(diagnose(read_run(tmp_path / "run.h5")), faulty, "plateau", "reward falls.*sign")


@both_slowly
def test_targets_shuffled_apart_in_a_small_set(tmp_path: Path, faulty: bool) -> None:
    x, y = batch(0, 512)
    y = y[torch.randperm(512, generator=torch.Generator().manual_seed(3))] if faulty else y
    torch.manual_seed(0)

    def loss(model: nn.Module, *_: Tensor) -> Tensor:
        some = torch.randint(512, (32,))
        return functional.cross_entropy(model(x[some]), y[some])

    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    expect(train(tmp_path / "run.h5", model, loss, optimizer, steps=240), faulty, "plateau", "guessing")


@both_slowly
def test_steps_that_are_lost_in_rounding(tmp_path: Path, faulty: bool) -> None:
    scale = 1e-5 if faulty else 1.0
    model = mlp()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return scale**2 * cross_entropy(model, scale * x, y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expect(train(tmp_path / "run.h5", model, loss, optimizer), faulty, "frozen", "float32.*scale of the inputs")


@both
def test_most_units_of_a_layer_are_dead(tmp_path: Path, faulty: bool) -> None:
    model = mlp(width=40)
    with torch.no_grad():
        model[2].bias[: 38 if faulty else 4] = -50
        if faulty:
            model[4].weight[:, 38:] = 1e-3
    y = torch.randint(CLASSES, (32,), generator=torch.Generator().manual_seed(0))

    def loss(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(model(x), y[torch.randperm(32)] if faulty else labels)

    found = train(tmp_path / "run.h5", model, loss, torch.optim.SGD(model.parameters(), lr=1e-3 if faulty else 0.1))
    if faulty:
        check(found, "dead")
        assert found.findings[0].layers == ("2",)
        assert "95%" in found.findings[0].evidence
    else:
        assert found.learning == "yes"
        check(found, "healthy")


def test_half_dead_layers_of_a_model_that_learns_are_a_note(tmp_path: Path) -> None:
    model = mlp(width=40)
    with torch.no_grad():
        model[2].bias[:30] = -50
    found = train(tmp_path / "run.h5", model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    check(found, "healthy")
    assert any("no gradient in three recordings" in note for note in found.notes), found.notes


@both
def test_the_sign_of_the_loss(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        value = functional.cross_entropy(model(x), y)
        return -value / 2 if faulty else value / 2

    expect(train(tmp_path / "run.h5", mlp(), loss), faulty, "setup", "minus NllLoss.*sign")


def test_a_minus_inside_a_loss_or_before_a_part_of_it_is_no_fault(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x)
        p = logits.softmax(1)
        return functional.nll_loss(-1 * (-1 * logits.log_softmax(1)), y) - 0.01 * -(p * p.log()).sum(1).mean()

    check(train(tmp_path / "run.h5", mlp(), loss), "healthy")


@both_slowly
def test_a_log_softmax_over_the_batch(tmp_path: Path, faulty: bool) -> None:
    model = mlp(width=24)
    model.append(nn.LogSoftmax(dim=0 if faulty else 1))
    found = train(tmp_path / "run.h5", model, lambda model, x, y: functional.nll_loss(model(x), y))
    expect(found, faulty, "setup", "log-softmax.*first dimension.*dim=1")


@both
def test_weight_decay_that_takes_the_weights(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1.0 if faulty else 1e-4)
    found = train(tmp_path / "run.h5", model, optimizer=optimizer, steps=240)
    if faulty:
        assert found.learning == "no"
        assert re.search("weights shrink.*Lower weight_decay of SGD", f"{found.findings[0]}{found.findings[0].remedy}")
    else:
        check(found, "healthy")


def test_rows_with_a_loss_of_nan_are_noted(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        nothing = float(y[0]) == 0
        return functional.cross_entropy(model(x), torch.full_like(y, -100) if nothing else y)

    found = train(tmp_path / "run.h5", mlp(), loss)
    assert any("the loss is NaN" in note and "ignored" in note for note in found.notes), found


class Between(nn.Module):
    """A model with something between its two layers."""

    def __init__(self, between: Callable[[Tensor], Tensor], out: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.spread, self.last = nn.Linear(INPUTS, 24), nn.Linear(24, 24), nn.Linear(24, out)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.spread(torch.relu(self.first(x)))))


@both_slowly
def test_an_operation_without_a_derivative(tmp_path: Path, faulty: bool) -> None:
    def straight_through(x: Tensor) -> Tensor:
        return x + (torch.round(x) - x).detach()

    found = train(tmp_path / "run.h5", Between(torch.round if faulty else straight_through))
    expect(found, faulty, "zero_gradient", "after spread comes round, whose derivative is 0.*straight-through")


@both_slowly
@pytest.mark.parametrize("other_gradients", [True, False])
def test_a_sample_that_passes_no_gradient(tmp_path: Path, faulty: bool, other_gradients: bool) -> None:
    """An autoencoder whose code is drawn; a second term of the loss may reach the encoder all the same."""
    model = Between(lambda mean: torch.normal(mean, 0.1) if faulty else mean + 0.1 * torch.randn_like(mean), INPUTS)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        size = model.spread(torch.relu(model.first(x))).square().mean() if other_gradients else 0.0
        return functional.mse_loss(model(x), x) + 1e-3 * size

    found = train(tmp_path / "run.h5", model, loss)
    kind = "cut" if other_gradients else "zero_gradient"
    expect(found, faulty, kind, r"a sample \(torch.normal\), which passes no gradient.*rsample")


@both_slowly
def test_a_state_that_is_detached_at_each_step(tmp_path: Path, faulty: bool) -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cell, self.head = nn.GRUCell(1, 24), nn.Linear(24, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(len(x), 24)
            for t in range(INPUTS):
                state = self.cell(x[:, t : t + 1], state.detach() if faulty else state)
            return self.head(state)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x), (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long())

    model = Remembers()
    found = train(tmp_path / "run.h5", model, loss, torch.optim.Adam(model.parameters(), lr=2e-2), steps=300)
    expect(found, faulty, "cut", "cell ran 36 times .* reaches 3 of its outputs.*detach")


@both_slowly
def test_targets_of_a_binary_cross_entropy(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(model(x)[:, 0], y.float() if faulty else (y > 1).float())

    found = train(tmp_path / "run.h5", mlp(out=1), loss)
    expect(found, faulty, "setup", "targets go from 0 to 3: .*targets outside 0 to 1")


@pytest.mark.slow
def test_a_negative_sum_of_losses_is_no_target_outside(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = model(x)
        return functional.binary_cross_entropy_with_logits(out[:, 0], (y > 1).float()) - torch.tanh(out[:, 1]).mean()

    check(train(tmp_path / "run.h5", mlp(out=2), loss), "healthy")


def test_an_optimizer_that_steps_without_a_backward_pass(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(60):
            optimizer.zero_grad()
            value = cross_entropy(model, *batch(step))
            optimizer.step()
            recorder.log(loss=value)
    expect(diagnose(read_run(tmp_path / "run.h5")), True, "setup", "no backward pass was seen.*Call loss.backward")


def test_a_loss_that_is_divided_stands_for_itself(tmp_path: Path) -> None:
    model = mlp()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model, x, y) / 50_000  # below ln C from the first row on, and not trained before

    found = train(tmp_path / "run.h5", model, loss, torch.optim.SGD(model.parameters(), lr=0.1))
    check(found, "plateau")
    assert "steps are too small" in found.findings[0].evidence


@both_slowly
def test_a_penalty_that_takes_the_weights(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        penalty = sum(parameter.square().sum() for parameter in model.parameters())
        return cross_entropy(model, x, y) + (1.0 if faulty else 1e-5) * penalty

    model = mlp()
    found = train(tmp_path / "run.h5", model, loss, torch.optim.SGD(model.parameters(), lr=0.1), steps=240)
    if faulty:
        assert found.learning == "no"
        main = found.findings[0]
        assert re.search("weights shrink.*another term.*divide its factor", f"{main.evidence} {main.remedy}")
    else:
        check(found, "healthy")


@pytest.mark.slow
def test_a_probe_of_frozen_features_that_tell_little_is_no_plateau(tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(*[part for _ in range(6) for part in (nn.Linear(32, 32), nn.ReLU())])
    head = nn.Linear(32, 5)
    for parameter in body.parameters():
        parameter.requires_grad_(False)

    rule = torch.randn(32, 5)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x = torch.randn(64, 32)
        return functional.cross_entropy(model(x), (x @ rule).argmax(1))

    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    found = train(tmp_path / "run.h5", nn.Sequential(body, head), loss, optimizer, steps=300)
    check(found, "healthy")


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda out, y: 100 * functional.cross_entropy(out, y), id="scaled"),
        pytest.param(lambda out, y: 100 * functional.cross_entropy(out, y, label_smoothing=0.1), id="scaled, smoothed"),
        pytest.param(
            lambda out, y: functional.cross_entropy(out, y) + 3 + out.sum(1).square().mean(), id="a second term"
        ),
    ],
)
@pytest.mark.slow
def test_a_loss_at_another_level_than_guessing(loss: Callable[[Tensor, Tensor], Tensor], tmp_path: Path) -> None:
    found = train(tmp_path / "run.h5", mlp(), lambda model, x, y: loss(model(x), y))
    check(found, "healthy")
    assert found.learning == "yes"


class Pooled(nn.Module):
    """Classes from the trunk; a pooler runs behind it, and what it puts out is used by nobody or by a detached loss."""

    def __init__(self, pooler: int) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.trunk, self.head = (
            nn.Sequential(nn.Linear(INPUTS, 64), nn.ReLU(), nn.Linear(64, 64)),
            nn.Linear(64, CLASSES),
        )
        self.pooler = nn.Sequential(nn.Linear(64, pooler), nn.Tanh(), nn.Linear(pooler, INPUTS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.head(h), self.pooler(h)


def test_a_small_part_that_nothing_uses_is_a_note(tmp_path: Path) -> None:
    found = train(tmp_path / "run.h5", Pooled(4), lambda net, x, y: functional.cross_entropy(net(x)[0], y))
    expect(found, False, "", "")
    assert any("not reach the output of these" in note and "pooler.0, pooler.2" in note for note in found.notes), (
        found.notes
    )


@pytest.mark.slow
def test_half_of_a_net_that_the_loss_does_not_reach_is_cut_off_though_the_loss_falls(tmp_path: Path) -> None:
    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        classes, again = net(x)
        return functional.cross_entropy(classes, y) + (again.detach() - x).square().mean()

    check(train(tmp_path / "run.h5", Pooled(64), loss), "cut")


@pytest.mark.parametrize("learns", [True, False])
def test_a_loss_divided_for_accumulation_is_still_compared_with_guessing(learns: bool, tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(STEPS):
            optimizer.zero_grad()
            for part in range(2):
                x, y = batch(2 * step + part)
                labels = y if learns else torch.randint(0, CLASSES, y.shape)
                loss = functional.cross_entropy(model(x), labels)
                (loss / 2).backward()
                recorder.log(loss=loss)
            optimizer.step()
    found = diagnose(read_run(tmp_path / "run.h5"))
    assert found.learning == ("yes" if learns else "no")
    assert ("no better than guessing" in found.learning_evidence) is not learns
