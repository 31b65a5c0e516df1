"""Measure known laws with the recorder, in the settings for which they hold.

Random numbers are seeded, so results are the same each time on one machine. There are enough samples that a correct
recorder fails with other seeds less than once in a thousand times: in repeated runs each tolerance was about 4 or more
standard deviations from the mean measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gradlens.metrics import ACTIVATION_GRAD_NORM, PARAM_GRAD_NORM
from gradlens.recorder import Recorder
from gradlens.recorder.layers import LayerChoice
from gradlens.run import FloatArray
from gradlens.sinks import ListSink
from gradlens.theory.laws import (
    Activation,
    Check,
    batch_norm_growth,
    branch_share,
    default_variance,
    he_variance,
    log_norm_law,
    noise_scale,
    norm_ratio,
    scaled_weight_gradient,
)

Loss = Callable[[], Tensor]


def verify() -> Iterator[Check]:
    """Measure every law, one after the other, in about half a minute on two cores.

    Yields:
        A check per law and setting: prediction, measurement and tolerance.
    """
    with torch.random.fork_rng(devices=[]):
        for number, setting in enumerate(SETTINGS):
            torch.manual_seed(number)
            yield from setting()


def _measure(
    net: nn.Module,
    losses: Sequence[Loss],
    metric: str = ACTIVATION_GRAD_NORM,
    layers: LayerChoice = None,
) -> FloatArray:
    """Return what the recorder measures in each of several backward passes, (T, L)."""
    sink = ListSink()
    recorder = Recorder(net, sink, metrics=[metric], layers=layers, on_error="raise")
    with recorder:
        for loss in losses:
            net.zero_grad(set_to_none=True)
            loss().backward()  # type: ignore[no-untyped-call]
            recorder.step()
    return sink.metric(metric)


def _stack(width: int, depth: int, activation: Activation, *, norm: bool = False) -> nn.Sequential:
    """Make a stack of linear layers of one width, each followed by batch norm and ReLU if asked for."""
    modules: list[nn.Module] = []
    for _ in range(depth):
        modules.append(nn.Linear(width, width, bias=not norm))
        if norm:
            modules.append(nn.BatchNorm1d(width, eps=1e-12))
        if activation == "relu":
            modules.append(nn.ReLU())
    return nn.Sequential(*modules)


@torch.no_grad()
def _initialise(net: nn.Module, init: str) -> None:
    """Initialise all linear layers anew: "he" with biases 0, or "default"."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            if init == "he":
                nn.init.normal_(module.weight, std=math.sqrt(he_variance(module.in_features)))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            else:
                module.reset_parameters()


def _normal_gradient(net: nn.Module, init: str, batch: int, width: int, interval: int = 1) -> Loss:
    """Return a loss whose gradient at the output is Normal(0, 1); weights are sampled every ``interval`` calls."""
    calls = iter(range(10**9))

    def loss() -> Tensor:
        if next(calls) % interval == 0:
            _initialise(net, init)
        out = net(torch.randn(batch, width))
        total: Tensor = (out * torch.randn_like(out)).sum()
        return total

    return loss


def _mean_ratio(norms: FloatArray) -> float:
    """Return the root mean square over samples and layers of a layer's norm over the next layer's."""
    return float(np.sqrt(np.mean((norms[:, :-1] / norms[:, 1:]) ** 2)))


# --- the settings -----------------------------------------------------------------------------------------


def _ratios() -> Iterator[Check]:
    """Glorot & Bengio 2010; He et al. 2015."""
    width, depth, batch, samples = 512, 10, 32, 12
    for title, source, init, activation in (
        ("norm per layer, linear, default init", "Glorot & Bengio 2010", "default", "linear"),
        ("norm per layer, ReLU, default init", "Glorot & Bengio 2010", "default", "relu"),
        ("norm per layer, ReLU, He init", "He et al. 2015", "he", "relu"),
    ):
        act: Activation = "relu" if activation == "relu" else "linear"
        variance = he_variance(width) if init == "he" else default_variance(width)
        net = _stack(width, depth, act)
        norms = _measure(net, [_normal_gradient(net, init, batch, width)] * samples)
        setting = f"width {width}, depth {depth}, {samples} samples"
        yield Check(title, source, setting, norm_ratio(width, variance, act), _mean_ratio(norms), 0.01)


def _relu_growth() -> Iterator[Check]:
    """Yang et al. 2019, for a large batch."""
    width, depth, batch, samples = 1024, 7, 512, 2
    net = _stack(width, depth, "relu", norm=True)
    norms = _measure(net, [_normal_gradient(net, "he", batch, width)] * samples)
    setting = f"width {width}, batch {batch}, inner layers, {samples} samples"
    law = batch_norm_growth(math.inf, "relu")
    yield Check("growth per layer, batch norm, ReLU", "Yang et al. 2019", setting, law, _mean_ratio(norms[:, 1:]), 0.01)


def _linear_growth() -> Iterator[Check]:
    """Yang et al. 2019, by batch size."""
    depth, inputs = 13, 8
    for batch, width, samples in ((8, 512, 450), (16, 512, 160), (32, 1024, 32)):
        net = _stack(width, depth, "linear", norm=True)
        norms = _measure(net, [_normal_gradient(net, "he", batch, width, inputs)] * samples)
        setting = f"width {width}, batch {batch}, inner layers, {samples} batches"
        law = batch_norm_growth(batch, "linear")
        yield Check(
            "growth per layer, batch norm, linear", "Yang et al. 2019", setting, law, _mean_ratio(norms[:, 1:]), 0.002
        )


def _log_normal() -> Iterator[Check]:
    """Hanin 2018, Hanin & Nica 2019."""
    width, depth, samples = 100, 20, 3000
    net = _stack(width, depth + 1, "relu")
    net.pop(-1)  # the gradient at the last layer's output is the Normal vector
    norms = _measure(net, [_normal_gradient(net, "he", 1, width)] * samples, layers=r"^(0|40)$")
    logs = 2 * np.log(norms[:, 0] / norms[:, 1])
    law = log_norm_law([width] * depth)
    setting = f"width {width}, depth {depth}, {samples} samples"
    source = "Hanin & Nica 2019"
    yield Check("variance of ln of the squared norm", source, setting, law.variance, float(logs.var(ddof=1)), 0.15)
    yield Check("mean of ln of the squared norm", source, setting, law.mean, float(logs.mean()), 0.15)


class _Residual(nn.Module):
    """Residual blocks; the loss is half the sum of squares, so the gradient of a value is the value itself."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.width = width
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(blocks))
        self.shortcuts = nn.ModuleList(nn.Identity() for _ in range(blocks))
        self.ends = nn.ModuleList(nn.Identity() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum over blocks of half the sums of squares of centred branch and shortcut outputs."""
        total = x.new_zeros(())
        for branch, norm, end, shortcut in zip(self.branches, self.norms, self.ends, self.shortcuts, strict=True):
            out = norm(branch(x))
            x = (x + out).detach()
            for value, mark in ((out, end), (x.requires_grad_(), shortcut)):
                centred = mark(value - value.mean(0))
                total = total + (centred**2).sum() / 2
        return total


def _branch_shares() -> Iterator[Check]:
    """De & Smith 2020."""
    width, blocks, batch = 256, 32, 256
    net = _Residual(width, blocks)
    x = torch.randn(batch, width)
    norms = _measure(net, [lambda: net((x - x.mean(0)) / x.std(0))], layers=_marks)[0]
    ends, sums = norms[0::2], norms[1::2]
    for block in (1, 2, 4, 8, 16, 32):
        share = float((ends[block - 1] / sums[block - 1]) ** 2)
        setting = f"block {block} of {blocks}, width {width}, batch {batch}"
        yield Check(
            "variance of branch / shortcut, batch norm", "De & Smith 2020", setting, branch_share(block), share, 0.05
        )


def _marks(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Identity)


def _noise() -> Iterator[Check]:
    """McCandlish et al. 2018: an example's gradient is the input itself, of known mean and variance."""
    size, noise, small, big, steps = 1024, 16.0, 8, 64, 400
    net = nn.Linear(size, 1, bias=False)
    true = torch.randn(size)
    true /= true.norm()

    def loss(batch: int) -> Loss:
        return lambda: net(true + torch.randn(batch, size) * math.sqrt(noise / size)).mean()

    small_square, big_square = (
        float(np.mean(_measure(net, [loss(batch)] * steps, PARAM_GRAD_NORM) ** 2)) for batch in (small, big)
    )
    found = noise_scale(small_square, big_square, small, big)
    setting = f"batches of {small} and {big}, {steps} of each"
    yield Check("gradient noise scale trace(S) / |G|^2", "McCandlish et al. 2018", setting, noise, found.scale, 0.05)


def _scaled_weight() -> Iterator[Check]:
    """Ioffe & Szegedy 2015."""
    factor = 3.0
    norm = nn.BatchNorm2d(8, eps=1e-12)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).double()
    x, y = torch.randn(16, 3, 8, 8, dtype=torch.float64), torch.arange(16) % 5
    conv = net[0]
    assert isinstance(conv, nn.Conv2d)
    conv.bias = None

    def loss() -> Tensor:
        return nn.functional.cross_entropy(net(x), y)

    before = _measure(net, [loss], PARAM_GRAD_NORM)[0, 0]
    with torch.no_grad():
        conv.weight *= factor
    after = _measure(net, [loss], PARAM_GRAD_NORM)[0, 0]
    law = scaled_weight_gradient(factor)
    yield Check(
        "gradient of a weight times 3 before batch norm",
        "Ioffe & Szegedy 2015",
        "convolution, 8 channels",
        law,
        float(after / before),
        1e-5,
    )


SETTINGS = (_ratios, _relu_growth, _linear_growth, _log_normal, _branch_shares, _noise, _scaled_weight)
"""Functions that yield the checks of their laws."""
