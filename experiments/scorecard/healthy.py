"""Healthy trainings: those that a fault is planted into, and those that look odd and have no fault.

All of them learn: what each ends with is in the results beside what guessing ends with.
"""

from __future__ import annotations

import math

import tasks
import torch
from nets import (
    Branches,
    HalfGradient,
    Init,
    Length,
    Recurrent,
    Stem,
    Transformer,
    conv_net,
    deep_bn_mlp,
    glorot,
    he,
    mlp,
    small_cnn,
)
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR
from training import Book, Training

BOOK = Book()
healthy = BOOK.healthy
WIDTHS = [32, *[64] * 9, 10]
ADAM, SGD_RATE = 1e-3, 0.02


def sgd(model: nn.Module, lr: float = SGD_RATE, decay: float = 0.0) -> SGD:
    """Return SGD with the usual momentum."""
    return SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)


# --- twins of faults --------------------------------------------------------------------------------------


@healthy("mlp10-he-sgd", "ten linear layers with ReLU, He initialised")
def mlp_sgd(seed: int, scale: float = 1.0, lr: float = SGD_RATE, decay: float = 0.0) -> Training:
    """An MLP under SGD; its initialisation, learning rate and decay may be wrong."""
    model = mlp(WIDTHS, init=he(scale))
    return Training(model, sgd(model, lr, decay), tasks.blobs(seed), "relu")


@healthy("mlp10-he-adam", "the same under Adam")
def mlp_adam(seed: int, lr: float = ADAM) -> Training:
    """An MLP under Adam."""
    model = mlp(WIDTHS, init=he())
    return Training(model, Adam(model.parameters(), lr=lr), tasks.blobs(seed), "relu")


@healthy("mlp3-he-sgd-plain", "three layers, SGD without momentum")
def mlp_plain_sgd(seed: int, zero_grad: bool = True) -> Training:
    """A shallow MLP; its gradients may never be cleared."""
    model = mlp([32, 64, 64, 10], init=he())
    return Training(model, SGD(model.parameters(), lr=0.1), tasks.blobs(seed), "relu", zero_grad=zero_grad)


@healthy("tanh6-glorot", "six layers of tanh, Glorot initialised")
def tanh_net(seed: int, gain: float = 1.0, inputs: float = 1.0, shift: float = 0.0) -> Training:
    """A tanh MLP; its initialisation or the scale of its inputs may be wrong."""
    model = mlp([32, *[64] * 5, 10], "tanh", glorot(gain))
    batch = tasks.changed(tasks.blobs(seed), lambda _, x: inputs * x + shift)
    return Training(model, sgd(model), batch, "tanh")


@healthy("tanh30-glorot", "thirty layers of tanh with the gain of 5/3 that keeps the gradient's size")
def deep_tanh(seed: int, init: Init | None = None) -> Training:
    """A deep tanh MLP."""
    model = mlp([32, *[64] * 29, 10], "tanh", init or glorot(5 / 3))
    return Training(model, sgd(model, 0.005), tasks.blobs(seed), "tanh")


@healthy("sigmoid12-bn", "twelve layers of sigmoid behind batch norm")
def sigmoid_net(seed: int, norm: bool = True) -> Training:
    """A deep sigmoid MLP."""
    model = mlp([32, *[64] * 11, 10], "sigmoid", None, norm=norm)
    return Training(model, sgd(model, 0.1), tasks.blobs(seed), "sigmoid")


@healthy("plain18-bn", "a plain net of 18 convolutions with batch norm")
def plain(seed: int, norm: bool = True) -> Training:
    """A plain convolutional model."""
    model = conv_net(8, shortcut=False, norm=norm, init=he() if norm else None)
    return Training(model, Adam(model.parameters(), lr=2e-3), tasks.gratings(seed), "relu")


@healthy("resnet26-bn", "a residual net of 26 convolutions with batch norm")
def residual(seed: int, norm: bool = True) -> Training:
    """A residual convolutional model."""
    model = conv_net(12, shortcut=True, norm=norm, init=he())
    return Training(model, sgd(model, 0.01), tasks.gratings(seed), "relu")


@healthy("resmlp42-bn", "a residual net of 42 linear layers with batch norm")
def deep_bn(seed: int, shortcut: bool = True) -> Training:
    """A deep MLP with batch norm, with or without shortcuts."""
    model = deep_bn_mlp(20, shortcut=shortcut)
    return Training(model, Adam(model.parameters(), lr=ADAM), tasks.blobs(seed), "relu")


@healthy("stem", "a narrow stem that finds the signal among noise, and a trunk")
def stem(seed: int, fault: str = "") -> Training:
    """A model whose first stage matters; it may be frozen, cut off, or not in the optimizer."""
    model = Stem(fault)
    given = model.trunk.parameters() if fault == "forgotten" else [p for p in model.parameters() if p.requires_grad]
    return Training(model, Adam(given, lr=3e-3), tasks.hidden_blobs(seed), "relu")


@healthy("branches", "two branches, each for half of the inputs")
def branches(seed: int, fault: str = "") -> Training:
    """A model with two branches."""
    model = Branches(fault)
    given = [p for p in model.parameters() if p.requires_grad]
    return Training(model, Adam(given, lr=3e-3), tasks.hidden_blobs(seed), "relu")


@healthy("pixels-fp32", "a model with a small loss per pixel, in float32, whose gradient shrinks toward the input")
def small_gradients(seed: int, half: bool = False) -> Training:
    """A model whose gradients are far below 1; rounded to float16 they may be 0."""
    model = mlp([32, *[64] * 7, 10], "relu", he(0.5))
    if half:
        model = nn.Sequential(*[part for layer in model for part in (layer, HalfGradient())])
    optimizer = Adam(model.parameters(), lr=ADAM, eps=1e-14)
    return Training(model, optimizer, tasks.blobs(seed, batch=256), "relu", _scaled_loss)


def _scaled_loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 1e-4 * functional.cross_entropy(out, y)


@healthy("mlp4-dataset", "a fixed data set of 40 batches, over and over")
def dataset(seed: int, nan: bool = False) -> Training:
    """A small MLP on a fixed data set, of which one sample may hold a NaN."""

    def spoil(step: int, x: torch.Tensor) -> torch.Tensor:
        if nan and step == 37:
            x[5, 3] = math.nan
        return x

    model = mlp([32, 64, 64, 64, 10], init=he())
    return Training(model, sgd(model), tasks.same(tasks.changed(tasks.blobs(seed), spoil), 40), "relu")


@healthy("length-eps", "a length as a feature, with an epsilon below its root")
def length(seed: int, eps: float = 1e-6) -> Training:
    """A model that takes a root; some samples are all 0."""

    def blank(step: int, x: torch.Tensor) -> torch.Tensor:
        if step % 50 == 45:
            x[0] = 0
        return x

    model = Length(eps)
    return Training(model, _no_bias(model), tasks.changed(tasks.blobs(seed), blank), "relu")


def _no_bias(model: Length) -> Adam:
    for layer in model.body:
        if isinstance(layer, nn.Linear):
            layer.bias = None  # type: ignore[assignment]
    return Adam(model.parameters(), lr=ADAM)


@healthy("mlp4-inputs", "inputs of unit variance")
def scaled_inputs(seed: int, factor: float = 1.0) -> Training:
    """A small MLP; three of its inputs may stand in another unit."""
    unit = torch.ones(32)
    unit[:3] = factor
    model = mlp([32, 64, 64, 64, 10], init=he())
    return Training(model, sgd(model), tasks.changed(tasks.blobs(seed), lambda _, x: x * unit), "relu")


@healthy("rnn-orthogonal-clip", "a ReLU network with an orthogonal recurrent matrix and clipping")
def recurrent(seed: int, gain: float = 0.95, clip: float | None = 1.0) -> Training:
    """A recurrent model whose recurrent matrix may be too large, without clipping."""
    model = Recurrent("relu", 16, 32, gain=gain)
    return Training(model, sgd(model, 0.05), tasks.chain(seed, length=40), "relu", clip=clip)


@healthy("lstm-memory", "an LSTM with a forget bias of 1 keeps the first of 20 symbols")
def memory(seed: int, cell: str = "lstm") -> Training:
    """A recurrent model that must remember; a plain tanh one with small weights cannot."""
    model = Recurrent(cell, 4, 32, last=True, gain=0.3 if cell == "rnn" else None)
    if cell == "lstm":
        model.rnn.bias_ih_l0.data[32:64] = 3.0  # Jozefowicz et al. 2015: a large forget bias lets it remember
    return Training(model, Adam(model.parameters(), lr=1e-2), tasks.first_symbol(seed), "tanh", clip=1.0)


# --- others, and odd ones ---------------------------------------------------------------------------------


@healthy("transformer", "a causal pre-norm transformer under Adam")
def transformer(seed: int, lr: float = 3e-3) -> Training:
    """A small transformer."""
    model = Transformer()
    return Training(model, Adam(model.parameters(), lr=lr), tasks.chain(seed), "gelu", clip=1.0)


@healthy("lstm-clip", "an LSTM language model with clipping")
def lstm(seed: int) -> Training:
    """A small LSTM."""
    model = Recurrent("lstm", 16, 48)
    return Training(model, Adam(model.parameters(), lr=1e-2), tasks.chain(seed), "tanh", clip=1.0)


@healthy("gru", "a GRU language model without clipping")
def gru(seed: int) -> Training:
    """A small GRU."""
    model = Recurrent("gru", 16, 48)
    return Training(model, Adam(model.parameters(), lr=1e-2), tasks.chain(seed), "tanh")


@healthy("small-cnn", "three convolutions without norm")
def cnn(seed: int) -> Training:
    """A small CNN."""
    model = small_cnn()
    return Training(model, Adam(model.parameters(), lr=ADAM), tasks.gratings(seed), "relu")


@healthy("linear-regression", "one linear layer under SGD")
def regression(seed: int) -> Training:
    """Linear regression."""
    model = nn.Sequential(nn.Linear(20, 3))
    return Training(model, SGD(model.parameters(), lr=0.1), tasks.linear(seed), "linear", functional.mse_loss)


@healthy("near-convergence", "a data set learned by heart before recording begins: all gradients are tiny")
def converged(seed: int) -> Training:
    """Late training: 1,200 steps are over."""
    model = mlp([32, 128, 128, 128, 10], init=he())
    batch = tasks.same(tasks.blobs(seed), 4)
    return Training(model, sgd(model, 0.05), batch, "relu", before=1200)


@healthy("noise-floor", "a regression whose loss is noise from the first tenth on: it is stuck, and there is no more")
def noise_floor(seed: int) -> Training:
    """Regression with much noise."""
    model = mlp([20, 32, 32, 32, 3], "relu", he())
    batch = tasks.linear(seed, noise=2.0)
    return Training(model, Adam(model.parameters(), lr=ADAM), batch, "relu", functional.mse_loss, before=100)


@healthy("small-unit", "targets in a unit that makes them 1e-4: the loss and all gradients are tiny")
def small_unit(seed: int) -> Training:
    """Regression of small targets under Adam."""
    model = mlp([20, 48, 48, 48, 3], "tanh", glorot())
    with torch.no_grad():
        model[-1].weight.mul_(1e-4)
    groups = [{"params": model[:-1].parameters(), "lr": 1e-3}, {"params": model[-1].parameters(), "lr": 1e-6}]
    return Training(model, Adam(groups, eps=1e-16), tasks.linear(seed, unit=1e-4), "tanh", functional.mse_loss)


@healthy("large-unit", "targets in a unit that makes them 1e3: the loss is a million")
def large_unit(seed: int) -> Training:
    """Regression of large targets under Adam."""
    model = mlp([20, 48, 48, 48, 3], "relu", he())
    with torch.no_grad():
        model[-1].weight.mul_(1e3)
    groups = [{"params": model[:-1].parameters(), "lr": 1e-3}, {"params": model[-1].parameters(), "lr": 1.0}]
    return Training(model, Adam(groups), tasks.linear(seed, unit=1e3), "relu", functional.mse_loss)


@healthy("warmup-cosine", "warm-up from 0 and a cosine down to almost 0, AdamW with decay")
def warmup(seed: int) -> Training:
    """A schedule that begins and ends near 0."""
    model = mlp([32, 64, 64, 64, 10], "gelu", he())
    optimizer = AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)

    def rate(step: int) -> float:
        return step / 30 if step < 30 else 0.5 * (1 + math.cos(math.pi * (step - 30) / 271))

    return Training(model, optimizer, tasks.blobs(seed), "gelu", schedule=LambdaLR(optimizer, rate))


@healthy(
    "zero-init-residual", "each residual branch begins as exactly 0, so that its first layer's gradient is 0 at first"
)
def zero_init(seed: int) -> Training:
    """A residual model without norm, as in Fixup and SkipInit."""
    model = conv_net(8, shortcut=True, norm=False, init=he(), zero=True)
    return Training(model, Adam(model.parameters(), lr=1e-3), tasks.gratings(seed), "relu")


@healthy("autoencoder", "a bottleneck of 8 between GELUs, mean squared error")
def autoencoder(seed: int) -> Training:
    """An autoencoder."""
    model = mlp([32, 48, 8, 48, 32], "gelu", he())
    task = tasks.blobs(seed)
    batch = lambda step: (task(step)[0],) * 2  # noqa: E731
    return Training(model, Adam(model.parameters(), lr=3e-3), batch, "gelu", functional.mse_loss)


@healthy("dropout", "half of the units dropped, weight decay")
def dropout(seed: int) -> Training:
    """A wide MLP with dropout."""
    model = mlp([32, 128, 128, 128, 10], "relu", he(), dropout=0.5)
    return Training(model, AdamW(model.parameters(), lr=2e-3, weight_decay=0.1), tasks.blobs(seed), "relu")


@healthy("selu8", "eight layers of SELU")
def selu(seed: int) -> Training:
    """A self-normalising model."""
    model = mlp([32, *[64] * 7, 10], "selu", glorot())
    return Training(model, sgd(model, 0.01), tasks.blobs(seed), "selu")
