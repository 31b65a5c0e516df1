"""Losses of probabilities whose sign or input is wrong, and optimizers whose settings leave nothing of the step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradlens import read_run
from gradlens.recorder.facts.loss.likelihood_sign import likelihood_sign
from tests.diagnosis.test_programs import both, expect, mlp, train

Made = Callable[[Tensor, Tensor], Tensor]


def chosen(table: Tensor, y: Tensor) -> Tensor:
    return table[torch.arange(len(y)), y]


def bce(p: Tensor, y: Tensor) -> Tensor:
    return y * torch.log(p) + (1 - y) * torch.log(1 - p)


PLUS: dict[str, Made] = {
    "log of softmax": lambda x, y: torch.log(chosen(x.softmax(1), y)).mean(),
    "with a small number": lambda x, y: (x.softmax(1).gather(1, y[:, None]) + 1e-8).log().mean(),
    "log_softmax": lambda x, y: chosen(x.log_softmax(1), y).sum() / len(y),
    "one-hot": lambda x, y: (functional.one_hot(y, 4) * x.log_softmax(1)).sum(1).mean(),
    "two minuses": lambda x, y: -(-chosen(x.log_softmax(1), y)).mean(),
    "bce by hand": lambda x, y: bce(x[:, 0].sigmoid(), (y > 1).float()).mean(),
    "logsigmoid": lambda x, y: functional.logsigmoid(x[:, 0]).mean(),
}
OTHERS: dict[str, Made] = {
    "minus": lambda x, y: -chosen(x.log_softmax(1), y).mean(),
    "minus a number": lambda x, y: chosen(x.log_softmax(1), y).mean() * -1.0,
    "0 minus": lambda x, y: 0 - chosen(x.log_softmax(1), y).mean(),
    "bce": lambda x, y: -bce(x[:, 0].sigmoid(), (y > 1).float()).mean(),
    "advantages": lambda x, y: (chosen(x.log_softmax(1), y) * (y - 1.5)).mean(),
    "minimax": lambda x, y: torch.log(1 - x[:, 0].sigmoid()).mean(),
    "minimax by logsigmoid": lambda x, y: functional.logsigmoid(-x[:, 0]).mean(),
    "entropy": lambda x, y: (x.softmax(1) * x.log_softmax(1)).sum(1).mean(),
    "log of an error": lambda x, y: torch.log((x[:, 0] - y).square().mean()),
    "with another term": lambda x, y: chosen(x.log_softmax(1), y).mean() + x.square().mean(),
    "cross entropy": functional.cross_entropy,
}


@pytest.mark.parametrize("name", [*PLUS, *OTHERS])
def test_the_sign_of_a_likelihood(name: str) -> None:
    torch.manual_seed(0)
    x, y = nn.Linear(5, 4)(torch.randn(8, 5)), torch.randint(0, 4, (8,))
    found = likelihood_sign((PLUS | OTHERS)[name](x, y).grad_fn)
    assert len(found) == (name in PLUS)


@both
def test_a_likelihood_without_a_minus(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        value = torch.log(chosen(model(x).softmax(1), y) + 1e-8).mean()
        return value if faulty else -value

    expect(train(tmp_path / "run.h5", mlp(), loss), faulty, "setup", "without a minus")


def test_a_likelihood_that_is_maximized(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, maximize=True)
    found = train(tmp_path / "run.h5", model, lambda m, x, y: chosen(m(x).log_softmax(1), y).mean(), optimizer)
    assert read_run(tmp_path / "run.h5").facts["graph"]["likelihoods"]
    assert found.findings == ()


@both
def test_a_negative_log_likelihood_below_0(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logs = model(x).log_softmax(1)
        return functional.nll_loss(torch.log(logs.abs() + 1e-8) if faulty else logs, y)

    expect(train(tmp_path / "run.h5", mlp(), loss), faulty, "setup", "below 0.*log_softmax")


@both
def test_an_eps_above_the_gradients(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, eps=100.0 if faulty else 1e-8)
    expect(train(tmp_path / "run.h5", model, optimizer=optimizer), faulty, "plateau", "eps of Adam")


@pytest.mark.parametrize(("decay", "noted"), [(20.0, True), (0.1, False)])
def test_a_decay_that_takes_much_of_the_weights_is_noted(tmp_path: Path, decay: float, noted: bool) -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=decay)
    found = train(tmp_path / "run.h5", model, optimizer=optimizer)
    assert any("10.0% off each weight" in text for text in (*found.notes, str(found.findings))) == noted


@both
def test_a_signed_error(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        error = model(x).squeeze(1) - y.float()
        return error.mean() if faulty else error.abs().mean()

    expect(train(tmp_path / "run.h5", mlp(out=1), loss), faulty, "setup", "with its sign.*Square")


def test_critics_have_no_signed_error(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return model(x[y < 2]).mean() - model(x[y > 1]).mean() + model(x).square().mean()

    train(tmp_path / "run.h5", mlp(out=1), loss)
    assert read_run(tmp_path / "run.h5").facts["graph"]["signed_errors"] == []


@both
def test_data_beside_a_large_mean(tmp_path: Path, faulty: bool) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model((x / 8 + 0.5 - 127.5) / 127.5 if faulty else x), y)

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    expect(train(tmp_path / "run.h5", model, loss, optimizer), faulty, "plateau", "normalised twice")


@pytest.mark.parametrize(("rate", "noted"), [(1e-8, True), (1e-3, False)])
def test_a_group_with_a_far_smaller_rate_is_noted(tmp_path: Path, rate: float, noted: bool) -> None:
    model = mlp()
    groups = [{"params": model[:3].parameters(), "lr": rate}, {"params": model[3:].parameters()}]
    found = train(tmp_path / "run.h5", model, optimizer=torch.optim.SGD(groups, lr=0.05))
    assert any("learning rate of their group is 1e-08" in note for note in found.notes) == noted
