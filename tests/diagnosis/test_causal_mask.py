"""A model that is to predict the next index sees it, or not: read from the attention in the graph of the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradlens
from tests.diagnosis.small_trainings import train_on

WORDS, LENGTH, WIDTH = 9, 10, 16
CAUSE = "the model sees what it is to predict"


class Block(nn.Module):
    """Attention by hand, fused, or torch's own module; with or without a mask of later positions."""

    def __init__(self, how: str, *, masked: bool) -> None:
        super().__init__()
        self.how, self.masked = how, masked
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.own = nn.MultiheadAttention(WIDTH, 2, batch_first=True) if how == "module" else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        if self.own is not None:
            return x + self.own(x, x, x, attn_mask=later if self.masked else None, need_weights=False)[0]
        q, k, v = self.qkv(x).chunk(3, -1)
        if context is not None:
            _, k, v = self.qkv(context).chunk(3, -1)
        if self.how == "fused":
            q, k, v = (each[:, None] for each in (q, k, v))
            return x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.masked)[:, 0])
        scores = q @ k.transpose(1, 2) / WIDTH**0.5
        scores = scores.masked_fill(later, -torch.inf) if self.masked else scores
        return x + self.out(scores.softmax(-1) @ v)


class Model(nn.Module):
    def __init__(self, how: str, *, masked: bool, source: bool = False) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.first, self.second = Block(how, masked=masked), Block(how, masked=masked and not source)
        self.source = nn.Embedding(WORDS, WIDTH) if source else None
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(self.table(x) + self.places(torch.arange(x.shape[1])))
        context = None if self.source is None else self.source(x.flip(1))
        return self.head(self.second(hidden, context))


def train(path: Path, model: nn.Module, shift: int = 1) -> gradlens.Diagnosis:
    def loss(step: int) -> Tensor:
        ids = torch.randint(0, WORDS, (6, LENGTH + 1))
        x, y = ids[:, :LENGTH], ids[:, shift : shift + LENGTH]
        return F.cross_entropy(model(x).flatten(0, 1), y.reshape(-1))

    return train_on(path, model, loss, steps=40)


@pytest.mark.parametrize("how", ["by hand", "fused", "module"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_that_sees_the_next_position(tmp_path: Path, how: str, masked: bool) -> None:
    torch.manual_seed(0)
    found = train(tmp_path / "run.h5", Model(how, masked=masked))
    assert (CAUSE in [finding.cause for finding in found.findings]) != masked


def test_a_decoder_that_sees_all_of_its_source_is_meant(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = train(tmp_path / "run.h5", Model("by hand", masked=True, source=True))
    assert CAUSE not in [finding.cause for finding in found.findings]


def test_a_model_that_names_each_position_may_see_all(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = train(tmp_path / "run.h5", Model("fused", masked=False), shift=0)
    assert CAUSE not in [finding.cause for finding in found.findings]
