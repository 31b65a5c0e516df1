"""Small models of the kinds that people train, each with a way to be built wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU, "selu": nn.SELU
}  # fmt: skip
Init = Callable[[Tensor], object]


def he(scale: float = 1.0) -> Init:
    """He's initialisation (2015), times a factor."""
    return lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu").mul_(scale)


def glorot(gain: float = 1.0) -> Init:
    """Glorot & Bengio's initialisation (2010)."""
    return lambda weight: nn.init.xavier_normal_(weight, gain=gain)


def apply(model: nn.Module, init: Init | None) -> None:
    """Initialise all weights of linear layers and convolutions; None leaves PyTorch's default, biases and all."""
    for module in model.modules() if init else ():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            with torch.no_grad():
                init(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def mlp(
    widths: list[int], activation: str = "relu", init: Init | None = None, norm: bool = False, dropout: float = 0.0
) -> nn.Sequential:
    """Linear layers with an activation function between them, with batch norm and dropout if asked for."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(a, b))
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(b)] if norm else []
            layers.append(ACTIVATIONS[activation]())
            layers += [nn.Dropout(dropout)] if dropout else []
    model = nn.Sequential(*layers)
    apply(model, init)
    return model


class Residual(nn.Module):
    """A block of two layers with a shortcut around them."""

    def __init__(self, layer: Callable[[], nn.Module], norm: Callable[[], nn.Module] | None, shortcut: bool) -> None:
        super().__init__()
        self.layer1, self.layer2, self.shortcut = layer(), layer(), shortcut
        self.norm1, self.norm2 = (norm(), norm()) if norm else (nn.Identity(), nn.Identity())
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(x + branch(x)), or relu(branch(x))."""
        h = self.norm2(self.layer2(self.relu1(self.norm1(self.layer1(x)))))
        out: Tensor = self.relu2(x + h if self.shortcut else h)
        return out


def conv_net(
    blocks: int, *, shortcut: bool, norm: bool, init: Init | None = None, width: int = 12, zero: bool = False
) -> nn.Sequential:
    """A stem, blocks of two convolutions on a map of 6 x 6, mean pooling, a classifier."""
    make = [
        Residual(
            lambda: nn.Conv2d(width, width, 3, padding=1), (lambda: nn.BatchNorm2d(width)) if norm else None, shortcut
        )
        for _ in range(blocks)
    ]
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(1, width, 3, stride=2, padding=1))
    if norm:
        model.add_module("norm", nn.BatchNorm2d(width))
    model.add_module("relu", nn.ReLU())
    model.add_module("blocks", nn.Sequential(*make))
    model.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 8)))
    apply(model, init)
    for block in make if zero else ():
        nn.init.zeros_(block.layer2.weight)
    return model


def deep_bn_mlp(blocks: int, *, shortcut: bool, width: int = 48) -> nn.Sequential:
    """A deep model of linear layers with batch norm, in blocks of two."""
    make = [Residual(lambda: nn.Linear(width, width), lambda: nn.BatchNorm1d(width), shortcut) for _ in range(blocks)]
    model = nn.Sequential(nn.Linear(32, width), nn.ReLU(), *make, nn.Linear(width, 10))
    apply(model, he())
    return model


def small_cnn() -> nn.Sequential:
    """Three convolutions without norm, two linear layers."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 48), nn.ReLU(),
        nn.Linear(48, 8),
    )  # fmt: skip
    apply(model, he())
    return model


class Transformer(nn.Module):
    """A causal pre-norm transformer of PyTorch's own layers, without dropout."""

    def __init__(self, symbols: int = 16, width: int = 32, depth: int = 3, length: int = 24) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(symbols, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, symbols)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, T, symbols)."""
        h = self.tokens(x) + self.places
        for layer in self.layers:
            h = layer(h, src_mask=self.mask, is_causal=True)
        out: Tensor = self.head(self.norm(h))
        return out


class Recurrent(nn.Module):
    """An embedding, a recurrent layer, a classifier of each place or of the last one."""

    def __init__(self, cell: str, symbols: int, width: int, *, last: bool = False, gain: float | None = None) -> None:
        super().__init__()
        made = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
        self.embed = nn.Embedding(symbols, width)
        self.rnn = (
            nn.RNN(width, width, nonlinearity="relu", batch_first=True)
            if cell == "relu"
            else made[cell](width, width, batch_first=True)
        )
        self.head, self.last = nn.Linear(width, symbols), last
        if gain is not None:
            nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, T, symbols) or (B, symbols)."""
        h, _ = self.rnn(self.embed(x))
        out: Tensor = self.head(h[:, -1] if self.last else h)
        return out


class Branches(nn.Module):
    """Two branches, each for half of the inputs, joined by addition; one may be detached or forgotten."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.a, self.b = mlp([32, 32, 16], init=he()), mlp([32, 32, 16], init=he())
        self.head, self.fault = mlp([16, 32, 4], init=he()), fault

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        h = self.a(x[:, :32])
        if self.fault != "unused":
            side = self.b(x[:, 32:])
            h = h + (side.detach() if self.fault == "detached" else side)
        out: Tensor = self.head(torch.relu(h))
        return out


class Stem(nn.Module):
    """A narrow stem that must find the signal, and a trunk after it; between them the graph may be cut."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.stem, self.trunk = mlp([64, 6], init=he()), mlp([6, 32, 32, 4], init=he())
        self.fault = fault
        if fault == "frozen":
            self.stem.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        h = self.stem(x)
        out: Tensor = self.trunk(torch.relu(h.detach() if self.fault == "detached" else h))
        return out


class Length(nn.Module):
    """A model one of whose features is the length of a hidden vector, whose root has an infinite slope at 0."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.body, self.head, self.eps = mlp([32, 48, 48, 48], init=he()), nn.Linear(49, 10), eps

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        h = self.body(x)
        length = torch.sqrt((h * h).sum(dim=1, keepdim=True) + self.eps)
        out: Tensor = self.head(torch.cat([torch.relu(h), length], dim=1))
        return out


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.to(torch.float16).to(grad.dtype)


class HalfGradient(nn.Module):
    """Pass a tensor on, and its gradient rounded to float16, as mixed precision without a loss scale does."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        out: Tensor = _Half.apply(x)
        return out
