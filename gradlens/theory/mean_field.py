"""How a gradient's norm changes from layer to layer at initialisation: mean field theory of convolutional nets.

Weights are independent with mean 0, so that mean squares can be followed through a net without drawing weights; the
formulas hold in the limit of many channels. Forwards, ``Likeness`` follows how alike the numbers of a channel are,
which says what a batch norm divides by. Backwards, the mean square of the gradient is followed place by place, as the
padding lets less of it through at the border. Residual nets are in ``gradlens.theory.mean_field_residual``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradlens.analysis.stats import gauss_legendre
from gradlens.run import FloatArray

OPEN = 1 / 2
"""The share of units that a ReLU lets pass, where their sign is a fair coin's."""
RELU_MEAN_SQUARE = 1 / (2 * math.pi)
"""The squared mean of relu(z), z ~ Normal(0, 1)."""


def relu_product(correlation: float) -> float:
    """Return E[relu(a) relu(b)] of standard normal a and b with this correlation.

    Source: Cho & Saul 2009, Kernel Methods for Deep Learning, sec. 2: half the arc-cosine kernel of degree 1.
    """
    c = min(max(correlation, -1.0), 1.0)
    return (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / (2 * math.pi)


def open_share(count: float) -> float:
    """Return what ReLU and batch norm leave of a squared gradient norm on its way back, but for the norm's division.

    Batch norm takes two parts out of the gradient of a channel: its mean, and what lies along the channel's output z.
    With z uniform among vectors of B numbers of mean 0 and variance 1, d = (z > 0), and a gradient v isotropic among
    vectors of mean 0, E|left of d v|^2 / E|v|^2 = (E[k] - 2 E[k]/B + E[k^2]/B^2 - 1/2 + 1/(2 pi)) / (B - 1), with
    k = sum(d), E[k] = B/2, E[k^2] = B^2/4 + B/4 - B/(2 pi). Many numbers leave 1/2.
    Source: Yang et al. 2019, A Mean Field Theory of Batch Normalization, sec. 4, worked out for a finite batch.

    Args:
        count: B, the numbers in a channel: images x places.
    """
    if math.isinf(count):
        return OPEN
    squared = 1 / 4 + (1 / 4 - RELU_MEAN_SQUARE) / count
    return (count / 2 - 1 + squared - 1 / 2 + RELU_MEAN_SQUARE) / (count - 1)


@dataclass(frozen=True)
class Conv:
    """A convolution with a square kernel on square maps, as far as theory needs it.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        kernel: Side of its kernel.
        stride: Its stride.
        padding: Zeros on each side.
        side: Side of the map that comes in.
        weight_variance: Of the weights at initialisation.
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    side: int
    weight_variance: float

    @property
    def out_side(self) -> int:
        """The side of the map that goes out."""
        return (self.side + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def places(self) -> int:
        """The number of places in the map that goes out."""
        return self.out_side**2

    def windows(self, grid: FloatArray) -> FloatArray:
        """Return what each place of the kernel sees of a map, (kernel^2, out_side, out_side); 0 on the padding."""
        padded = np.pad(grid, self.padding)
        reach = self.stride * (self.out_side - 1) + 1
        sides = range(self.kernel)
        return np.array(
            [padded[i : i + reach : self.stride, j : j + reach : self.stride] for i in sides for j in sides]
        )

    def forward(self, square: FloatArray) -> FloatArray:
        """Take the mean square per number from the input's places to the output's.

        Source: He et al. 2015, Delving Deep into Rectifiers, sec. 2.2, place by place.
        """
        return np.asarray(self.inputs * self.weight_variance * self.windows(square).sum(axis=0))

    def back(self, gradient: FloatArray) -> FloatArray:
        """Take the squared norm of a gradient over channels from the output's places to the input's.

        Source: He et al. 2015, sec. 2.3, place by place.
        """
        reach = np.zeros((self.side, self.out_side))
        starts = np.arange(self.out_side) * self.stride - self.padding
        for tap in range(self.kernel):
            places = starts + tap
            on_map = (places >= 0) & (places < self.side)
            reach[places[on_map], np.flatnonzero(on_map)] += 1
        return np.asarray(self.inputs * self.weight_variance * (reach @ gradient @ reach.T))


@dataclass(frozen=True)
class Likeness:
    """How alike the numbers of a channel are: the mean product of two of them, for each kind of pair.

    Args:
        square: (side, side) mean square at each place, divided by ``same``.
        same: A number with itself.
        images: Two images at one place.
        places: Two places of one image.
        both: Two places of two images.
    """

    square: FloatArray
    same: float = 1.0
    images: float = 0.0
    places: float = 0.0
    both: float = 0.0

    def rectified(self) -> Likeness:
        """Take the ReLU of Normal numbers with mean square 1."""
        products = (relu_product(c) for c in (1.0, self.images, self.places, self.both))
        return Likeness(self.square, *products)

    def normed(self, conv: Conv, batch: float) -> tuple[Likeness, float]:
        """Take a convolution and batch norm.

        A channel is a Normal vector (many channels come in) of batch x places numbers. Its covariance has, beside the
        mean, three spaces: what images, places, and both together differ in. Where a space has few dimensions, the
        variance that the norm divides by differs from channel to channel, and the mean of its inverse is larger than
        the inverse of its mean.
        Source: Yang et al. 2019, sec. 4, for one place; here for maps.

        Args:
            conv: The convolution.
            batch: Images in a batch.

        Returns:
            The likeness after it, and the mean over channels of 1 / variance.
        """
        b, p, scale = batch, conv.places, conv.inputs * conv.weight_variance
        windows = conv.windows(np.sqrt(self.square))
        seen = windows.mean(axis=(1, 2))
        own, common = float((windows**2).sum(axis=0).mean()), float(seen @ seen)
        apart = (common * p - own) / (p - 1) if p > 1 else 0.0
        same, images = scale * own * self.same, scale * own * self.images
        places, both = scale * apart * self.places, scale * apart * self.both
        mean = (same + (b - 1) * images + (p - 1) * places + (b - 1) * (p - 1) * both) / (b * p)
        spectrum = [
            (same - images + (p - 1) * (places - both), b - 1),
            (same - places + (b - 1) * (images - both), p - 1),
            (same - images - places + both, (b - 1) * (p - 1)),
        ]
        shares, inverse = normalised(np.array(spectrum))
        of_images, of_places, of_rest = (
            share * b * p / degrees if degrees else 0.0 for share, (_, degrees) in zip(shares, spectrum, strict=True)
        )
        with_mean = np.einsum("t,tij->ij", seen, windows) / common * mean
        square = (scale * self.same * (windows**2).sum(axis=0) - 2 * with_mean + mean) / (same - mean)
        after = Likeness(
            np.maximum(square, 0.0),
            1.0,
            ((p - 1) * (of_places - of_rest) - of_images) / (b * p),
            ((b - 1) * (of_images - of_rest) - of_places) / (b * p) if p > 1 else 0.0,
            (of_rest - of_images - of_places) / (b * p) if p > 1 else 0.0,
        )
        return after, b * p * inverse


def normalised(spectrum: FloatArray) -> tuple[FloatArray, float]:
    """Return what is left of a Normal vector's spectrum when the vector is divided by its length.

    The length's square X is a sum of parts weight x chi-squared(degrees). E[1 / X] is the integral over s > 0 of
    E[exp(-s X)], the product of (1 + 2 s weight)^(-degrees / 2), and E[part / X] likewise.

    Args:
        spectrum: (K, 2) weights and degrees of freedom; more than 2 degrees in all.

    Returns:
        (K,) E[part / X], and E[1 / X].
    """
    weight, degrees = np.maximum(spectrum, 0.0).T
    nodes, weights = gauss_legendre(200)
    t, scale = (nodes + 1) / 2, float(weight @ degrees)
    s = t / (1 - t) ** 3 / scale  # (0, 1) to (0, inf)
    slope = weights / 2 * (1 + 2 * t) / (1 - t) ** 4 / scale
    grown = 1 + 2 * s[:, None] * weight
    density = np.exp(-(np.log(grown) @ degrees) / 2) * slope
    return np.asarray(density @ (weight * degrees / grown)), float(density.sum())


def plain_gains(convs: Sequence[Conv], *, norm: bool, batch: int = 2, pooled: bool = False) -> FloatArray:
    """Follow the gradient through convolutions, each followed by batch norm (or nothing) and ReLU.

    Without batch norm a layer's squared norm is that of the next one x fan-in x weight variance / 2 (Glorot & Bengio
    2010, sec. 4.2.1; He et al. 2015, sec. 2.3). With batch norm it is divided by the variance that the norm takes out,
    so that the scale of the weights cancels: pi / (pi - 1) per inner layer of a wide net on a large batch (Yang et al.
    2019, sec. 4), more where a channel holds few numbers, less where the padding makes places differ.

    Args:
        convs: In order.
        norm: With batch norm.
        batch: Images in a batch; it matters with batch norm only.
        pooled: A max pooling follows the first layer. Every pooled number is taken to come from an open ReLU.

    Returns:
        (L,) expected squared norm of the gradient at each convolution's output over that at the last one's. NaN where
        it depends on the data: with batch norm at the first layer, and at the second behind a pooling.
    """
    inverse = np.ones(len(convs))
    if norm:
        likeness = Likeness(np.ones((convs[1].side,) * 2))
        for i, conv in enumerate(convs[1:], 1):
            likeness, inverse[i] = likeness.rectified().normed(conv, batch)
        inverse[: 2 if pooled else 1] = math.nan
    gradient: FloatArray = np.ones((convs[-1].out_side,) * 2)
    found = np.full(len(convs), gradient.sum())
    for i in range(len(convs) - 2, -1, -1):
        opened = open_share(batch * convs[i].places) if norm else 1.0 if pooled and i == 0 else OPEN
        before = convs[i + 1].back(gradient)
        gradient = before * (opened * (inverse[i] if np.isfinite(inverse[i]) else 1.0))
        found[i] = gradient.sum() * (1.0 if np.isfinite(inverse[i]) else math.nan)
    return np.asarray(found / found[-1])
