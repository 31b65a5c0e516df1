"""Mean field theory of residual networks: how the gradient's norm changes at initialisation.

The residual stream is the sequence of sums of shortcut and branch. See also ``gradlens.theory.mean_field``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlens.run import FloatArray
from gradlens.theory.mean_field import OPEN, Conv, Likeness, open_share

SAMPLES = 8192
"""Number of Monte Carlo samples of the residual stream; the error of a norm is then below 0.01 decades."""


@dataclass(frozen=True)
class Block:
    """A residual block ``relu(shortcut(x) + branch(x))``.

    Args:
        first: The branch's first convolution.
        second: The branch's second convolution.
        projection: The convolution in the shortcut (option B), or None.
    """

    first: Conv
    second: Conv
    projection: Conv | None = None


@dataclass(frozen=True)
class _Stream:
    """Monte Carlo samples of the residual stream.

    Args:
        values: (G, N, 4): groups of channels that begin at the same block; samples; two images at one place, and at
            another place.
        weights: (G,) share of the channels in each group.
        square: (side, side) mean square at each place, 1 on average.
    """

    values: FloatArray
    weights: FloatArray
    square: FloatArray

    def mean(self, values: FloatArray) -> float:
        """Return the mean over channels, samples and pairs of (G, N, K) values."""
        return float(self.weights @ values.mean(axis=(1, 2)))

    def likeness(self) -> Likeness:
        """Return the mean product of each kind of pair."""
        pairs = ([0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0])
        return Likeness(self.square, *(self.mean(self.values * self.values[..., pair]) for pair in pairs))


@dataclass(frozen=True)
class _Passed:
    """The results of the forward pass through a block that its backward pass needs.

    Args:
        before: (G,) weights of the groups of channels at the block's input.
        after: (G',) weights of the groups of channels at the block's output.
        opened: (G', N, 4) whether the ReLU after the addition is active.
        inverse: Mean of 1 / variance in the batch norms of the first and second convolution and the projection.
    """

    before: FloatArray
    after: FloatArray
    opened: NDArray[np.bool_]
    inverse: tuple[float, float, float]


def residual_gains(
    stem: Conv, blocks: Sequence[Block], *, norm: bool, batch: int = 2, pooled: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Compute the gradient's norms in a residual network: stem, ReLU, blocks.

    A value s of the residual stream becomes ``relu(s + z)`` in a block. The branch z is normally distributed (because
    there are many channels) and has variance 1 with batch norm. The variance of the stream grows with depth. The first
    batch norm of the branch divides by it, so that the branch's share of the gradient decreases with depth. The
    distribution of the stream is represented by Monte Carlo samples; the backward pass uses the same samples.

    Args:
        stem: The first convolution.
        blocks: The residual blocks, input first.
        norm: Whether there is batch norm.
        batch: Number of images in a batch; used only with batch norm.
        pooled: Whether a max pooling follows the stem. Its effect on the residual stream is neglected.

    Returns:
        Two arrays. (1 + 2 x blocks,) as in ``plain_gains``, NaN at the same layers. (blocks,) the share of the squared
        norm at each block's input that passes through its branch.

    Source: De & Smith 2020, Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks,
    sec. 3; here with a ReLU after the addition, as in He et al. 2015, Deep Residual Learning.
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
    before, samples = stream.likeness(), stream.values.shape[1]
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
        shortcut = _Stream(_sample(anew, (1, samples), rng), np.ones(1), anew.square)
    elif block.first.inputs != block.second.outputs:
        kept = block.first.inputs / block.second.outputs
        values = np.concatenate([stream.values, np.zeros((1, samples, 4))])
        strided = stream.square[:: block.first.stride, :: block.first.stride]
        shortcut = _Stream(values, np.append(stream.weights * kept, 1 - kept), strided / strided.mean())
    else:
        shortcut = stream
    summed = shortcut.values + _sample(branch, shortcut.values.shape[:2], rng)
    size = shortcut.mean(shortcut.values**2)
    square = (size * shortcut.square + branch.same * branch.square) / (size + branch.same)
    step = _Passed(stream.weights, shortcut.weights, summed > 0, (first, second, projected))
    return _Stream(np.maximum(summed, 0.0), shortcut.weights, square), step


def _unnormed(square: FloatArray, conv: Conv) -> Likeness:
    """Return the moments after a convolution without batch norm; correlations are not needed then."""
    found = conv.forward(square)
    return Likeness(found / found.mean(), float(found.mean()))


def _sample(likeness: Likeness, shape: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """Return normally distributed samples for two images at two places, (*shape, 4)."""
    a, b, c, d = likeness.same, likeness.images, likeness.places, likeness.both
    values, vectors = np.linalg.eigh(np.array([[a, b, c, d], [b, a, d, c], [c, d, a, b], [d, c, b, a]]))
    return np.asarray(rng.normal(size=(*shape, 4)) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T)


def _backward(
    gradient: FloatArray, grid: FloatArray, block: Block, step: _Passed, batch: int | None
) -> tuple[FloatArray, FloatArray, list[float], float]:
    """Compute the gradient at a block's input from that at its output.

    Args:
        gradient: (G', N, 4) mean square of the gradient for each sample, divided by its mean.
        grid: Squared norm of the gradient over channels at each place.
        block: The block.
        step: The results of the forward pass.
        batch: Number of images, or None without batch norm.

    Returns:
        ``gradient`` and ``grid`` at the input, the squared norms at the outputs of the second and the first
        convolution, and the share of the squared norm at the input that passes through convolutions.
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
    own = opened[:groups]  # without the channels that begin at this block
    size = float(step.after[:groups] @ own.mean(axis=(1, 2)) / (step.after @ opened.mean(axis=(1, 2))))
    passed = np.zeros_like(branch)
    passed[:: block.first.stride, :: block.first.stride] = at_sum * size
    total = passed + branch
    own = own / float(step.before @ own.mean(axis=(1, 2)))
    mixed = own * (passed.sum() / total.sum()) + branch.sum() / total.sum()
    return mixed, total, norms, float(branch.sum() / total.sum())
