"""Laws of gradients at initialisation, each as a function with its source.

All laws assume independent weights with mean 0. "Norm" means the L2 norm of the gradient of the loss w.r.t. a layer's
output, over the whole batch. ``gradlens verify`` compares each law with measurements of the recorder.
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
"""log10(e): a natural logarithm times this is a number of decades."""


@dataclass(frozen=True)
class Check:
    """A law compared with a measurement of the recorder.

    Args:
        law: The law's quantity.
        source: Author and year.
        setting: The network, and the number of initialisations.
        value: The value by the law.
        measured: The value that the recorder measured.
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
        """Whether the difference is within the tolerance; False for a measurement that is NaN."""
        return self.error <= self.tolerance


def default_variance(fan_in: int) -> float:
    """Return the variance of weights under PyTorch's default initialisation of linear and convolutional layers.

    Uniform(-1 / sqrt(fan_in), 1 / sqrt(fan_in)) has the variance 1 / (3 fan_in).

    Args:
        fan_in: Number of inputs of a unit.

    Source: Glorot & Bengio 2010, Understanding the Difficulty of Training Deep Feedforward Neural Networks, eq. 1 (the
    commonly used heuristic).
    """
    return 1 / (3 * fan_in)


def he_variance(fan: int) -> float:
    """Return the variance of weights that preserves norms through ReLU: 2 / fan.

    Args:
        fan: fan_in to preserve norms in the forward pass, fan_out in the backward pass.

    Source: He, Zhang, Ren & Sun 2015, Delving Deep into Rectifiers, sec. 2.2 (fan_in) and 2.3 (fan_out).
    """
    return 2 / fan


def norm_ratio(fan_in: int, weight_variance: float, activation: Activation) -> float:
    """Return the ratio of a layer's gradient norm to that of the next layer.

    It is sqrt(fan_in x variance), with ReLU multiplied by 1 / sqrt(2). PyTorch's default initialisation gives
    1 / sqrt(3) in a linear network and 1 / sqrt(6) with ReLU; He initialisation gives 1 with ReLU. Valid for the root
    mean square over initialisations, at any width; with ReLU, for small biases.

    Args:
        fan_in: Number of inputs of the next layer, which is the width of this one.
        weight_variance: Variance of the next layer's weights.
        activation: The activation function between the layers.

    Source: Glorot & Bengio 2010, sec. 4.2.1; with ReLU He et al. 2015, sec. 2.3.
    """
    return math.sqrt(fan_in * weight_variance * (OPEN if activation == "relu" else 1.0))


def batch_norm_growth(batch: float, activation: Activation) -> float:
    """Return the growth of the gradient norm per layer toward the input, with batch norm and without shortcuts.

    Linear: sqrt((B - 2) / (B - 3)). ReLU: sqrt(pi / (pi - 1)) = 1.2112 for a large batch. For a finite batch it is the
    square root of a product: the share that passes ReLU and batch norm, 1 / the variance of relu(z), and the mean of
    1 / chi-squared. Valid for inner layers of wide fully connected networks (width much larger than the batch), at any
    scale of the weights. The norm at the first layer depends on the variance of the data.

    Args:
        batch: B, the batch size, at least 4; may be infinite.
        activation: "relu" or "linear".

    Source: Yang, Pennington, Rao, Sohl-Dickstein & Schoenholz 2019, A Mean Field Theory of Batch Normalization, sec. 4;
    ``open_share`` derives the ReLU law for a finite batch.
    """
    if activation == "linear":
        return 1.0 if math.isinf(batch) else math.sqrt((batch - 2) / (batch - 3))
    if math.isinf(batch):
        return math.sqrt(math.pi / (math.pi - 1))
    variance = relu_product(1.0) - relu_product(-1 / (batch - 1))
    return math.sqrt(open_share(batch) / variance * batch / (batch - 3))


@dataclass(frozen=True)
class LogNormal:
    """The distribution of ln of a squared norm over initialisations: Normal(-variance / 2, variance).

    Args:
        variance: The variance of the natural logarithm of the squared norm.
    """

    variance: float

    @property
    def mean(self) -> float:
        """The mean of the logarithm; with it, the squared norm has mean 1."""
        return -self.variance / 2

    @property
    def spread_decades(self) -> float:
        """The standard deviation of log10 of the norm (not squared)."""
        return math.sqrt(self.variance) / 2 * DECADES


def log_norm_law(widths: Sequence[float], activation: Activation = "relu") -> LogNormal:
    """Return the distribution between seeds of the squared norm of a vector that passed back through layers.

    ln of the squared norm is approximately Normal(-b / 2, b), with b = 5 x sum(1 / width) for ReLU and
    2 x sum(1 / width) for linear networks. Valid for one input and wide fully connected networks; the gradient of a
    batch with dissimilar inputs has a smaller spread.

    Args:
        widths: Widths of the layers.
        activation: The activation function.

    Source: Hanin 2018, Which Neural Net Architectures Give Rise to Exploding and Vanishing Gradients?, theorem 1; Hanin
    & Nica 2019, Products of Many Large Random Matrices and Gradients in Deep Neural Networks, theorem 1.
    """
    return LogNormal((5 if activation == "relu" else 2) * sum(1 / width for width in widths))


def branch_share(block: int) -> float:
    """Return the variance of the branch over that of the sum, at block l of a residual network with batch norm.

    The branch ends in variance 1, and the variance on the residual stream starts at 1 and grows by 1 per block. So the
    share is 1 / (l + 1). Valid at initialisation, for blocks without an activation function after the addition.

    Args:
        block: l, counted from 1.

    Source: De & Smith 2020, Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks,
    sec. 3.
    """
    return 1 / (block + 1)


@dataclass(frozen=True)
class NoiseScale:
    """Signal and noise of the gradient, estimated from two batch sizes.

    Args:
        signal: Estimate of |G|^2, the squared norm of the true gradient.
        noise: Estimate of trace(S), the summed variance of one example's gradient.
    """

    signal: float
    noise: float

    @property
    def scale(self) -> float:
        """trace(S) / |G|^2, in examples: the batch size at which noise and signal are equally large."""
        return self.noise / self.signal if self.signal else math.inf


def noise_scale(small_square: float, big_square: float, small: int, big: int) -> NoiseScale:
    """Estimate the gradient noise scale from mean squared gradient norms at two batch sizes.

    |G|^2 = (big x |G_big|^2 - small x |G_small|^2) / (big - small) and trace(S) = (|G_small|^2 - |G_big|^2) /
    (1 / small - 1 / big) are unbiased. Their ratio is not, so average the squares over many batches first.

    Args:
        small_square: Mean of |G_small|^2.
        big_square: Mean of |G_big|^2.
        small: Number of examples in a small batch.
        big: Number of examples in a large batch.

    Returns:
        The estimates.

    Source: McCandlish, Kaplan, Amodei & the OpenAI Dota Team 2018, An Empirical Model of Large-Batch Training, appendix
    A.1.
    """
    return NoiseScale(
        (big * big_square - small * small_square) / (big - small),
        (small_square - big_square) / (1 / small - 1 / big),
    )


def scaled_weight_gradient(factor: float) -> float:
    """Return the factor on the gradient of a weight before batch norm when the weight is multiplied by a factor.

    It is 1 / factor, apart from batch norm's epsilon: the output does not change, f(c w) = f(w), so c f'(c w) = f'(w).

    Args:
        factor: The factor c on the weight.

    Source: Ioffe & Szegedy 2015, Batch Normalization, sec. 3.3.
    """
    return 1 / factor
