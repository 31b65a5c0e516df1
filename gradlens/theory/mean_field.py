"""Mean field theory of convolutional networks: how the gradient's norm changes from layer to layer at initialisation.

Weights are independent with mean 0. So mean squares can be computed layer by layer without sampling weights; the
formulas hold in the limit of many channels. In the forward pass, ``Likeness`` describes the correlations between the
values of a channel, which determine the variance by which batch norm divides. In the backward pass, the mean square of
the gradient is computed place by place, because less of it passes the padding at the border. A place is a pixel of a
map. Residual networks are in ``gradlens.theory.mean_field_residual``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradlens.analysis.stats import gauss_legendre
from gradlens.run import FloatArray

OPEN = 1 / 2
"""The share of active units of a ReLU whose inputs are symmetric around 0."""
RELU_MEAN_SQUARE = 1 / (2 * math.pi)
"""The squared mean of relu(z), z ~ Normal(0, 1)."""


def relu_product(correlation: float) -> float:
    """Return E[relu(a) relu(b)] for standard normal a and b.

    Args:
        correlation: Correlation of a and b; values outside [-1, 1] are clipped.

    Source: Cho & Saul 2009, Kernel Methods for Deep Learning, sec. 2: half the arc-cosine kernel of degree 1.
    """
    c = min(max(correlation, -1.0), 1.0)
    return (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / (2 * math.pi)


def open_share(count: float) -> float:
    """Return the share of a squared gradient norm that passes back through ReLU and batch norm, before the division.

    Batch norm removes two parts from the gradient of a channel: its mean, and its component along the channel's output
    z. Let z be uniform among vectors of B values with mean 0 and variance 1, d = (z > 0), and the gradient v isotropic
    among vectors of mean 0. Then the share is E|rest of d v|^2 / E|v|^2 =
    (E[k] - 2 E[k]/B + E[k^2]/B^2 - 1/2 + 1/(2 pi)) / (B - 1), with k = sum(d), E[k] = B/2,
    E[k^2] = B^2/4 + B/4 - B/(2 pi). It tends to 1/2 for large B.

    Args:
        count: B, the number of values in a channel: images x places; may be infinite.

    Source: Yang et al. 2019, A Mean Field Theory of Batch Normalization, sec. 4, derived here for a finite batch.
    """
    if math.isinf(count):
        return OPEN
    squared = 1 / 4 + (1 / 4 - RELU_MEAN_SQUARE) / count
    return (count / 2 - 1 + squared - 1 / 2 + RELU_MEAN_SQUARE) / (count - 1)


@dataclass(frozen=True)
class Conv:
    """A convolution with a square kernel on square maps, with the properties that theory needs.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        kernel: Side length of the kernel.
        stride: Stride.
        padding: Number of zeros on each side.
        side: Side length of the input map.
        weight_variance: Variance of the weights at initialisation.
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
        """The side length of the output map."""
        return (self.side + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def places(self) -> int:
        """The number of places in the output map."""
        return self.out_side**2

    def windows(self, grid: FloatArray) -> FloatArray:
        """Return the input value at each kernel position for each output place; 0 on the padding.

        Args:
            grid: (side, side) input map.

        Returns:
            (kernel^2, out_side, out_side).
        """
        padded = np.pad(grid, self.padding)
        reach = self.stride * (self.out_side - 1) + 1
        sides = range(self.kernel)
        return np.array(
            [padded[i : i + reach : self.stride, j : j + reach : self.stride] for i in sides for j in sides]
        )

    def forward(self, square: FloatArray) -> FloatArray:
        """Return the mean square of the output at each place.

        Args:
            square: (side, side) mean square of the input at each place.

        Returns:
            (out_side, out_side).

        Source: He et al. 2015, Delving Deep into Rectifiers, sec. 2.2, place by place.
        """
        return np.asarray(self.inputs * self.weight_variance * self.windows(square).sum(axis=0))

    def back(self, gradient: FloatArray) -> FloatArray:
        """Return the squared norm over channels of the gradient w.r.t. the input at each place.

        Args:
            gradient: (out_side, out_side) the same w.r.t. the output.

        Returns:
            (side, side).

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
    """The second moments of a channel: the mean product of two of its values, for each kind of pair.

    Args:
        square: (side, side) mean square at each place, divided by ``same``.
        same: Mean product of a value with itself.
        images: Mean product of two images at one place.
        places: Mean product of two places in one image.
        both: Mean product of two places in two images.
    """

    square: FloatArray
    same: float = 1.0
    images: float = 0.0
    places: float = 0.0
    both: float = 0.0

    def rectified(self) -> Likeness:
        """Return the moments after ReLU, for normally distributed values with mean square 1."""
        products = (relu_product(c) for c in (1.0, self.images, self.places, self.both))
        return Likeness(self.square, *products)

    def normed(self, conv: Conv, batch: float) -> tuple[Likeness, float]:
        """Return the moments after a convolution and batch norm.

        A channel is a normally distributed vector (because there are many input channels) of batch x places values. Its
        covariance has three eigenspaces beside the mean: differences between images, between places, and of both
        together. Where an eigenspace has few dimensions, the variance by which batch norm divides differs from channel
        to channel, and the mean of its inverse is larger than the inverse of its mean.

        Args:
            conv: The convolution.
            batch: Number of images in a batch.

        Returns:
            The moments after batch norm, and the mean over channels of 1 / variance.

        Source: Yang et al. 2019, sec. 4, for one place; here for maps.
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
    """Return the spectrum of a normally distributed vector after it is divided by its length.

    The squared length X is a sum of parts weight x chi-squared(degrees). E[1 / X] is the integral over s > 0 of
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
    """Compute the gradient's norms in a sequence of convolutions, each followed by batch norm (or nothing) and ReLU.

    Without batch norm, a layer's squared norm is that of the next layer x fan-in x weight variance / 2. With batch norm
    it is also divided by the variance of the channel, so that the scale of the weights cancels. This gives
    pi / (pi - 1) per inner layer of a wide network with a large batch; more where a channel has few values, less where
    the padding makes places differ.

    Args:
        convs: The convolutions, input first.
        norm: Whether there is batch norm.
        batch: Number of images in a batch; used only with batch norm.
        pooled: Whether a max pooling follows the first layer. All pooled values are assumed to be positive.

    Returns:
        (L,) expected squared norm of the gradient w.r.t. each convolution's output, divided by that of the last one.
        NaN where it depends on the data: with batch norm at the first layer, and at the second after a pooling.

    Source: Glorot & Bengio 2010, sec. 4.2.1; He et al. 2015, sec. 2.3; with batch norm Yang et al. 2019, sec. 4.
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
