"""Laws of gradients at initialisation, each as a function with its source.

Weights are independent with mean 0; a "norm" is the L2 norm of the gradient of the loss w.r.t. a layer's output, over
the whole batch. ``gradlens verify`` measures each of them with the recorder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gradlens.theory.mean_field import OPEN, open_share, relu_product

Activation = Literal["linear", "relu"]
ACTIVATIONS: tuple[Activation, ...] = ("linear", "relu")
DECADES = 1 / math.log(10)
"""Decades in a natural logarithm of 1."""


@dataclass(frozen=True)
class Check:
    """A law beside what the recorder measured.

    Args:
        law: What is measured.
        source: Author and year.
        setting: The net, and how often it was drawn.
        value: What the law says.
        measured: What the recorder found.
        tolerance: Largest relative difference that passes.
    """

    law: str
    source: str
    setting: str
    value: float
    measured: float
    tolerance: float

    @property
    def error(self) -> float:
        """The relative difference."""
        return abs(self.measured - self.value) / abs(self.value)

    @property
    def passed(self) -> bool:
        """Whether it is within the tolerance; a measurement that is NaN is not."""
        return self.error <= self.tolerance


def default_variance(fan_in: int) -> float:
    """Return the variance of weights under PyTorch's default of linear and convolutional layers.

    Uniform(+-1 / sqrt(fan_in)) has the variance 1 / (3 fan_in): the commonly used heuristic of Glorot & Bengio 2010,
    Understanding the Difficulty of Training Deep Feedforward Neural Networks, eq. 1.
    """
    return 1 / (3 * fan_in)


def he_variance(fan: int) -> float:
    """Return the variance of weights that keeps norms through ReLU: 2 / fan.

    Source: He, Zhang, Ren & Sun 2015, Delving Deep into Rectifiers, sec. 2.2 (fan_in) and 2.3 (fan_out).
    """
    return 2 / fan


def norm_ratio(fan_in: int, weight_variance: float, activation: Activation) -> float:
    """Return a layer's gradient norm over that of the next one: sqrt(fan_in x variance), with ReLU x 1 / sqrt(2).

    ``fan_in`` is that of the next layer, and so this one's width. PyTorch's default gives 1 / sqrt(3) in a linear net
    and 1 / sqrt(6) with ReLU; He's gives 1.
    Valid for the root mean square over draws of weights, at any width; of a ReLU net without large biases.
    Source: Glorot & Bengio 2010, sec. 4.2.1; with ReLU He et al. 2015, sec. 2.3.
    """
    return math.sqrt(fan_in * weight_variance * (OPEN if activation == "relu" else 1.0))


def batch_norm_growth(batch: float, activation: Activation) -> float:
    """Return the growth of the gradient norm per layer towards the input, of a net with batch norm and no shortcuts.

    Linear: sqrt((B - 2) / (B - 3)). ReLU: sqrt(pi / (pi - 1)) = 1.2112 for a large batch; for a finite one the product
    of what ReLU and norm let pass, of 1 / the variance of relu(z), and of the mean of 1 / chi-squared.
    Valid for inner layers of wide fully connected nets (width much larger than the batch), whatever the scale of the
    weights; the first layer's norm depends on the data's variance.
    Source: Yang, Pennington, Rao, Sohl-Dickstein & Schoenholz 2019, A Mean Field Theory of Batch Normalization, sec. 4;
    the ReLU law of a finite batch is worked out in ``open_share``.

    Args:
        batch: B, at least 4; may be infinite.
        activation: "relu" or "linear".
    """
    if activation == "linear":
        return 1.0 if math.isinf(batch) else math.sqrt((batch - 2) / (batch - 3))
    if math.isinf(batch):
        return math.sqrt(math.pi / (math.pi - 1))
    variance = relu_product(1.0) - relu_product(-1 / (batch - 1))
    return math.sqrt(open_share(batch) / variance * batch / (batch - 3))


@dataclass(frozen=True)
class LogNormal:
    """The law of ln of a squared norm over draws of weights: Normal(-variance / 2, variance).

    Args:
        variance: Of the natural logarithm of the squared norm.
    """

    variance: float

    @property
    def mean(self) -> float:
        """The mean of the logarithm: the squared norm itself has mean 1."""
        return -self.variance / 2

    @property
    def spread_decades(self) -> float:
        """The standard deviation of log10 of the norm (not squared)."""
        return math.sqrt(self.variance) / 2 * DECADES


def log_norm_law(widths: Sequence[float], activation: Activation = "relu") -> LogNormal:
    """Return the law of the squared norm of a vector sent back through layers of these widths.

    ln of it is about Normal(-b/2, b) with b = 5 x sum(1 / width) for ReLU, and 2 x sum(1 / width) for linear nets: the
    differences between seeds. Valid for one input and wide fully connected nets; the gradient of a batch whose inputs
    are unlike each other has a smaller spread.
    Source: Hanin 2018, Which Neural Net Architectures Give Rise to Exploding and Vanishing Gradients?, theorem 1; Hanin
    & Nica 2019, Products of Many Large Random Matrices and Gradients in Deep Neural Networks, theorem 1.
    """
    return LogNormal((5 if activation == "relu" else 2) * sum(1 / width for width in widths))


def branch_share(block: int) -> float:
    """Return the variance of the branch over that of the stream behind block l of a residual net with batch norm.

    Each branch ends in variance 1 and the stream adds them up, from 1: 1 / (l + 1). Valid at initialisation, for blocks
    without an activation behind the addition.
    Source: De & Smith 2020, Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks,
    sec. 3.

    Args:
        block: l, counted from 1.
    """
    return 1 / (block + 1)


@dataclass(frozen=True)
class NoiseScale:
    """What two batch sizes tell of the gradient.

    Args:
        signal: Estimate of |G|^2, the squared norm of the true gradient.
        noise: Estimate of trace(S), the summed variance of one example's gradient.
    """

    signal: float
    noise: float

    @property
    def scale(self) -> float:
        """trace(S) / |G|^2, in examples: the batch size at which noise and signal are alike."""
        return self.noise / self.signal if self.signal else math.inf


def noise_scale(small_square: float, big_square: float, small: int, big: int) -> NoiseScale:
    """Estimate the gradient noise scale from mean squared gradient norms at two batch sizes.

    |G|^2 = (big x |G_big|^2 - small x |G_small|^2) / (big - small) and trace(S) = (|G_small|^2 - |G_big|^2) /
    (1 / small - 1 / big) are unbiased; their ratio is not, so average the squares over many batches first.
    Source: McCandlish, Kaplan, Amodei & the OpenAI Dota Team 2018, An Empirical Model of Large-Batch Training, appendix
    A.1.

    Args:
        small_square: Mean of |G_small|^2.
        big_square: Mean of |G_big|^2.
        small: Examples in a small batch.
        big: Examples in a big one.
    """
    return NoiseScale(
        (big * big_square - small * small_square) / (big - small),
        (small_square - big_square) / (1 / small - 1 / big),
    )


def scaled_weight_gradient(factor: float) -> float:
    """Return what multiplies a weight's gradient when a weight that batch norm follows is multiplied by a factor.

    1 / factor, but for the norm's epsilon: the output does not change, f(c w) = f(w), and so c f'(c w) = f'(w).
    Source: Ioffe & Szegedy 2015, Batch Normalization, sec. 3.3.
    """
    return 1 / factor
