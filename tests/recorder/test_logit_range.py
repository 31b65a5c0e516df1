"""Which logits lie within a fixed range, read from the graph: every way in which cosine similarities are written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradlens.recorder.facts.loss.logit_range import logit_range
from tests.torch_versions import needs_saved_tensors

SIZE, WIDTH = 24, 8
Made = Callable[[Tensor, Tensor], Tensor]


def unit(x: Tensor) -> Tensor:
    return functional.normalize(x, dim=-1)


def by_norm(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def by_safe_norm(x: Tensor) -> Tensor:
    return x / (x.norm(dim=1, keepdim=True) + 1e-8)


def by_root(x: Tensor) -> Tensor:
    return x / (x * x).sum(1, keepdim=True).sqrt()


LIMITED: dict[str, tuple[Made, float]] = {
    "times a number": (lambda a, b: unit(a) @ unit(b).T * 0.07, 0.07),
    "number first": (lambda a, b: 0.07 * (unit(a) @ unit(b).T), 0.07),
    "divided": (lambda a, b: unit(a) @ unit(b).T / 0.5, 2.0),
    "twice": (lambda a, b: (unit(a) @ unit(b).T / 0.5) * 3, 6.0),
    "as it is": (lambda a, b: unit(a) @ unit(b).T, 1.0),
    "linear": (lambda a, b: functional.linear(unit(a), unit(b)), 1.0),
    "einsum": (lambda a, b: torch.einsum("id,jd->ij", unit(a), unit(b)) * 0.1, 0.1),
    "norm": (lambda a, b: by_norm(a) @ by_norm(b).T * 0.1, 0.1),
    "safe norm": (lambda a, b: by_safe_norm(a) @ by_safe_norm(b).T * 0.1, 0.1),
    "root": (lambda a, b: by_root(a) @ by_root(b).T * 0.1, 0.1),
    "cosine_similarity": (lambda a, b: functional.cosine_similarity(a[:, None], b[None], dim=-1) * 0.1, 0.1),
    "joined": (lambda a, b: torch.cat([unit(a) @ unit(b).T, unit(a) @ unit(a).T / 0.5], 1), 2.0),
    "masked": (lambda a, b: (unit(a) @ unit(a).T * 0.1).masked_fill(torch.eye(SIZE).bool().roll(1, 0), -1e9), 0.1),
    "tanh": (lambda a, b: torch.tanh(a @ b.T) * 3, 3.0),
    "batched": (lambda a, b: (unit(a[None]) @ unit(b[None]).mT).reshape(-1, SIZE) * 0.2, 0.2),
}
FREE: dict[str, Made] = {
    "no norm": lambda a, b: a @ b.T * 0.1,
    "one norm": lambda a, b: unit(a) @ b.T,
    "over the batch": lambda a, b: functional.normalize(a, dim=0) @ functional.normalize(b, dim=0).T * 0.1,
    "learned scale": lambda a, b: unit(a) @ unit(b).T * nn.Parameter(torch.tensor(2.0)).exp(),
    "tensor for a scale": lambda a, b: unit(a) @ unit(b).T * torch.full((SIZE, SIZE), 3.0),
    "bias": lambda a, b: unit(a) @ unit(b).T + nn.Parameter(torch.zeros(SIZE)),
    "clamped": lambda a, b: (a @ b.T).clamp(-1, 1),
    "after a layer": lambda a, b: (unit(a) @ unit(b).T) @ nn.Parameter(torch.eye(SIZE)),
}


def made(make: Made) -> Tensor:
    torch.manual_seed(0)
    one, two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    return make(one(torch.randn(SIZE, WIDTH)), two(torch.randn(SIZE, WIDTH)))


@needs_saved_tensors
@pytest.mark.parametrize("name", LIMITED)
def test_logits_with_a_limit(name: str) -> None:
    make, limit = LIMITED[name]
    logits = made(make)
    found = logit_range(functional.cross_entropy(logits, torch.arange(SIZE)).grad_fn)
    assert [fact["limit"] for fact in found] == [pytest.approx(limit)]
    assert found[0]["shape"] == list(logits.shape)
    assert float(logits.detach().max()) <= limit + 1e-6
    assert found[0]["of"] == ("tanh" if name == "tanh" else "cosine similarities")


@pytest.mark.parametrize("name", FREE)
def test_logits_without_a_limit(name: str) -> None:
    assert logit_range(functional.cross_entropy(made(FREE[name]), torch.arange(SIZE)).grad_fn) == []


def test_a_loss_over_features_is_not_limited() -> None:
    u = unit(nn.Linear(WIDTH, WIDTH)(torch.randn(SIZE, WIDTH)))
    assert logit_range(functional.cross_entropy(u.T @ u * 0.1, torch.arange(WIDTH)).grad_fn) == []
