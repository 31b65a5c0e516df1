"""Small tasks to train on: a batch for each step, the same for a seed, and made anew, so that nothing is stored."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Batch = Callable[[int], tuple[Tensor, Tensor]]
"""Step to inputs and targets."""


def at(seed: int, step: int) -> torch.Generator:
    """Return the random numbers of a step."""
    return torch.Generator().manual_seed(1_000_003 * (seed + 1) + step)


def blobs(seed: int, batch: int = 64, width: int = 32, classes: int = 10, clusters: int = 40) -> Batch:
    """Clusters in 32 dimensions, four to a class, so that no linear function separates them; unit variance."""
    centres = torch.randn(clusters, width, generator=at(seed, -1))

    def make(step: int) -> tuple[Tensor, Tensor]:
        random = at(seed, step)
        cluster = torch.randint(clusters, (batch,), generator=random)
        x = centres[cluster] + torch.randn(batch, width, generator=random)
        return x / math.sqrt(2), cluster % classes

    return make


def hidden_blobs(seed: int, batch: int = 64, signal: int = 8, noise: int = 56) -> Batch:
    """Blobs in 8 of 64 dimensions, turned by a random rotation; the others are noise twice as large.

    A first layer that is narrow must learn which dimensions count.
    """
    small = blobs(seed, batch, signal, classes=4, clusters=12)
    turn = torch.linalg.qr(torch.randn(signal + noise, signal + noise, generator=at(seed, -2)))[0]

    def make(step: int) -> tuple[Tensor, Tensor]:
        x, y = small(step)
        rest = 2 * torch.randn(batch, noise, generator=at(seed + 500, step))
        return torch.cat([2 * x, rest], dim=1) @ turn / 2, y

    return make


def gratings(seed: int, batch: int = 32, size: int = 12) -> Batch:
    """Eight classes of stripes (four directions, two wavelengths) with any phase and noise, (B, 1, 12, 12)."""
    place = torch.arange(size, dtype=torch.float32)
    rows, columns = place[:, None].expand(size, size), place[None, :].expand(size, size)

    def make(step: int) -> tuple[Tensor, Tensor]:
        random = at(seed, step)
        y = torch.randint(8, (batch,), generator=random)
        angle, wave = (y % 4) * math.pi / 4, torch.where(y < 4, 3.0, 5.0)
        phase = 2 * math.pi * torch.rand(batch, generator=random)
        along = angle.cos()[:, None, None] * rows + angle.sin()[:, None, None] * columns
        x = torch.sin(2 * math.pi * along / wave[:, None, None] + phase[:, None, None])
        return (x + 0.4 * torch.randn(batch, size, size, generator=random))[:, None], y

    return make


def chain(seed: int, batch: int = 16, length: int = 24, symbols: int = 16) -> Batch:
    """A Markov chain's symbols, (B, T), and the next ones: a character model's task with a known least loss."""
    table = torch.softmax(2.5 * torch.randn(symbols, symbols, generator=at(seed, -1)), dim=1)

    def make(step: int) -> tuple[Tensor, Tensor]:
        random = at(seed, step)
        text = [torch.randint(symbols, (batch,), generator=random)]
        for _ in range(length):
            text.append(torch.multinomial(table[text[-1]], 1, generator=random)[:, 0])
        whole = torch.stack(text, dim=1)
        return whole[:, :-1], whole[:, 1:]

    return make


def first_symbol(seed: int, batch: int = 32, length: int = 20, symbols: int = 4) -> Batch:
    """Random symbols, (B, T); the target is the first one, so that it must be kept to the end."""

    def make(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(symbols, (batch, length), generator=at(seed, step))
        return x, x[:, 0]

    return make


def linear(
    seed: int, batch: int = 64, width: int = 20, outputs: int = 3, noise: float = 0.1, unit: float = 1.0
) -> Batch:
    """Linear regression with noise, in some unit of the targets."""
    weight = torch.randn(width, outputs, generator=at(seed, -1)) / math.sqrt(width)

    def make(step: int) -> tuple[Tensor, Tensor]:
        random = at(seed, step)
        x = torch.randn(batch, width, generator=random)
        return x, unit * (x @ weight + noise * torch.randn(batch, outputs, generator=random))

    return make


def same(task: Batch, batches: int) -> Batch:
    """Go round the same few batches again and again: a data set of that size."""
    kept = [task(step) for step in range(batches)]
    return lambda step: kept[step % batches]


def changed(task: Batch, change: Callable[[int, Tensor], Tensor]) -> Batch:
    """Change the inputs of each step."""

    def make(step: int) -> tuple[Tensor, Tensor]:
        x, y = task(step)
        return change(step, x), y

    return make
