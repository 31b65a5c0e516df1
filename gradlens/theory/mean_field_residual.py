"""How a gradient's norm changes through a residual net at initialisation; see ``gradlens.theory.mean_field``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlens.run import FloatArray
from gradlens.theory.mean_field import OPEN, Conv, Likeness, open_share

SAMPLES = 8192
"""Numbers of the stream that are followed; the error of a norm is then below 0.01 decades."""


@dataclass(frozen=True)
class Block:
    """A residual block ``relu(shortcut(x) + branch(x))``.

    Args:
        first: The branch's first convolution.
        second: Its second.
        projection: The shortcut's own convolution (option B), or None.
    """

    first: Conv
    second: Conv
    projection: Conv | None = None


@dataclass(frozen=True)
class _Stream:
    """Numbers of the stream, drawn.

    Args:
        values: (G, N, 4): groups of channels born together; draws; two images at a place, and at another place.
        weights: (G,) share of the channels in each group.
        square: (side, side) mean square at each place, 1 on average.
    """

    values: FloatArray
    weights: FloatArray
    square: FloatArray

    def mean(self, values: FloatArray) -> float:
        """Return the mean over channels, draws and pairs of (G, N, K) values."""
        return float(self.weights @ values.mean(axis=(1, 2)))

    def likeness(self) -> Likeness:
        """Return the mean products of each kind of pair."""
        pairs = ([0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0])
        return Likeness(self.square, *(self.mean(self.values * self.values[..., pair]) for pair in pairs))


@dataclass(frozen=True)
class _Passed:
    """What going forward through a block leaves for the way back.

    Args:
        before: (G,) weights of the groups of channels at its input.
        after: (G',) at its output.
        opened: (G', N, 4) where the ReLU behind the addition let pass.
        inverse: Mean inverse variances that the norms of the first and second convolution and the projection divide by.
    """

    before: FloatArray
    after: FloatArray
    opened: NDArray[np.bool_]
    inverse: tuple[float, float, float]


def residual_gains(
    stem: Conv, blocks: Sequence[Block], *, norm: bool, batch: int = 2, pooled: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Follow the gradient through a residual net: stem, ReLU, blocks.

    A number of the stream goes as ``s -> relu(s + z)``, where the branch z is Normal (many channels) and, under batch
    norm, of variance 1: the stream's variance grows with depth, and the branch, whose first norm divides by it, has an
    ever smaller share in the gradient (De & Smith 2020, Batch Normalization Biases Residual Blocks Towards the
    Identity Function in Deep Networks, sec. 3; here with the ReLU behind the addition of He et al. 2015). Its
    distribution is followed by numbers drawn from it, and the gradient goes back along the same numbers.

    Args:
        stem: The first convolution.
        blocks: In order.
        norm: With batch norm.
        batch: Images in a batch; it matters with batch norm only.
        pooled: A max pooling follows the stem. The stream behind it is taken to be as without.

    Returns:
        (1 + 2 x blocks,) as ``plain_gains``, NaN at the same layers. And (blocks,) the share of the squared
        norm at each block's input that came through its branch.
    """
    rng = np.random.default_rng(0)
    first = np.maximum(rng.normal(size=(1, SAMPLES, 4)), 0.0)
    stream = _Stream(first, np.ones(1), np.ones((blocks[0].first.side,) * 2))
    passed = []
    for block in blocks:
        stream, step = _forward(stream, block, batch if norm else None, rng)
        passed.append(step)
    gradient = np.ones_like(stream.values)
    grid: FloatArray = np.ones((blocks[-1].second.out_side,) * 2)
    found: list[float] = []
    shares: list[float] = []
    for block, step in zip(reversed(blocks), reversed(passed), strict=True):
        gradient, grid, norms, share = _backward(gradient, grid, block, step, batch if norm else None)
        found += norms
        shares.append(share)
    opened = 1.0 if pooled else float((gradient * (first > 0)).mean() / gradient.mean())
    found.append(math.nan if norm else grid.sum() * opened)
    gains = np.array(found[::-1])
    if norm and pooled:
        gains[1] = math.nan
    return gains / gains[-1], np.array(shares[::-1])


def _forward(stream: _Stream, block: Block, batch: int | None, rng: np.random.Generator) -> tuple[_Stream, _Passed]:
    before, draws = stream.likeness(), stream.values.shape[1]
    if batch:
        inner, first = before.normed(block.first, batch)
        branch, second = inner.rectified().normed(block.second, batch)
    else:
        inner = _unnormed(before.square * before.same, block.first)
        branch, first, second = _unnormed(inner.square * inner.same * OPEN, block.second), 1.0, 1.0
    projected = 1.0
    if block.projection is not None:
        if batch:
            anew, projected = before.normed(block.projection, batch)
        else:
            anew = _unnormed(before.square * before.same, block.projection)
        shortcut = _Stream(_draw(anew, (1, draws), rng), np.ones(1), anew.square)
    elif block.first.inputs != block.second.outputs:
        kept = block.first.inputs / block.second.outputs
        values = np.concatenate([stream.values, np.zeros((1, draws, 4))])
        strided = stream.square[:: block.first.stride, :: block.first.stride]
        shortcut = _Stream(values, np.append(stream.weights * kept, 1 - kept), strided / strided.mean())
    else:
        shortcut = stream
    summed = shortcut.values + _draw(branch, shortcut.values.shape[:2], rng)
    size = shortcut.mean(shortcut.values**2)
    square = (size * shortcut.square + branch.same * branch.square) / (size + branch.same)
    step = _Passed(stream.weights, shortcut.weights, summed > 0, (first, second, projected))
    return _Stream(np.maximum(summed, 0.0), shortcut.weights, square), step


def _unnormed(square: FloatArray, conv: Conv) -> Likeness:
    """Return what comes out of a convolution without batch norm; of correlations none is needed."""
    found = conv.forward(square)
    return Likeness(found / found.mean(), float(found.mean()))


def _draw(likeness: Likeness, shape: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """Draw Normal numbers of two images at two places, (*shape, 4)."""
    a, b, c, d = likeness.same, likeness.images, likeness.places, likeness.both
    values, vectors = np.linalg.eigh(np.array([[a, b, c, d], [b, a, d, c], [c, d, a, b], [d, c, b, a]]))
    return np.asarray(rng.normal(size=(*shape, 4)) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T)


def _backward(
    gradient: FloatArray, grid: FloatArray, block: Block, step: _Passed, batch: int | None
) -> tuple[FloatArray, FloatArray, list[float], float]:
    """Take the gradient from a block's output to its input.

    Args:
        gradient: (G', N, 4) its mean square along the drawn numbers, in units of its mean.
        grid: Its squared norm over channels at each place.
        block: The block.
        step: What going forward left.
        batch: Images, or None without batch norm.

    Returns:
        Both at the input, the squared norms at the outputs of the second and the first convolution, and the share of
        the squared norm at the input that came through convolutions.
    """
    opened = gradient * step.opened
    share = float(step.after @ opened.mean(axis=(1, 2)) / (step.after @ gradient.mean(axis=(1, 2))))
    at_sum = grid * share
    count = batch * block.second.places if batch else math.inf
    kept = (count - 2) / (count - 1) if batch else 1.0
    inner_open = open_share(batch * block.first.places) if batch else OPEN
    at_second = at_sum * (kept * step.inverse[1])
    at_first = block.second.back(at_second) * (inner_open * step.inverse[0])
    branch = block.first.back(at_first)
    norms = [float(at_second.sum()), float(at_first.sum())]
    if block.projection is not None:
        branch = branch + block.projection.back(at_sum * (kept * step.inverse[2]))
        return np.ones((len(step.before), *opened.shape[1:])), branch, norms, 1.0
    groups = len(step.before)
    own = opened[:groups]  # without the channels that are born here
    size = float(step.after[:groups] @ own.mean(axis=(1, 2)) / (step.after @ opened.mean(axis=(1, 2))))
    passed = np.zeros_like(branch)
    passed[:: block.first.stride, :: block.first.stride] = at_sum * size
    total = passed + branch
    own = own / float(step.before @ own.mean(axis=(1, 2)))
    mixed = own * (passed.sum() / total.sum()) + branch.sum() / total.sum()
    return mixed, total, norms, float(branch.sum() / total.sum())
