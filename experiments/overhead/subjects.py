"""The models that are trained: one training step of each, always the same from the same seed.

A batch of random data is trained on again and again: what the numbers are does not matter to what a step costs, as long
as they stay ordinary ones (see ``Mlp``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from gradlens.models import build_model


class Mlp(nn.Sequential):
    """Linear layers of one width with ReLU between them, He initialised.

    With PyTorch's default initialisation the gradient falls by 0.4 a layer here: in the first layer its entries are
    near 1e-22, so that their squares are denormal numbers. A processor computes with those many times slower, whatever
    takes a norm would pay for it, and more or less of it as training goes on. He initialisation (Kaiming, the gain of
    ReLU) keeps the gradient's size over all layers.

    Args:
        depth: Linear layers.
        width: Of all but the last one.
        classes: Width of the last one.
    """

    def __init__(self, depth: int = 50, width: int = 128, classes: int = 10) -> None:
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.ReLU()]
        layers.append(nn.Linear(width, classes))
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        super().__init__(*layers)


class Attention(nn.Module):
    """Causal self-attention with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, D) for (B, T, D)."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class TransformerBlock(nn.Module):
    """Attention and a feed-forward network, each after a layer norm and on a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, D) for (B, T, D)."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.feed_forward(self.norm2(x))
        return out


class Transformer(nn.Module):
    """A decoder in the manner of GPT-2: 4 layers, width 128, 4 heads, 64 places."""

    def __init__(self, depth: int = 4, width: int = 128, heads: int = 4, length: int = 64, symbols: int = 256) -> None:
        super().__init__()
        self.tokens = nn.Embedding(symbols, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, T, S) for symbols (B, T)."""
        logits: Tensor = self.head(self.norm(self.blocks(self.tokens(x) + self.places)))
        return logits


@dataclass
class Trained:
    """A model with all that one training step needs.

    Args:
        model: On its device.
        optimizer: Of all its parameters.
        inputs: One batch.
        targets: Its classes.
        autocast: Makes the context of the forward pass.
    """

    model: nn.Module
    optimizer: Optimizer
    inputs: Tensor
    targets: Tensor
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext

    def compute_loss(self) -> Tensor:
        """Make the forward pass."""
        with self.autocast():
            logits = self.model(self.inputs)
            return functional.cross_entropy(logits.flatten(0, -2), self.targets.flatten())


@dataclass(frozen=True)
class Subject:
    """What is trained.

    Args:
        titles: For the table; for each device on which it is measured, "cpu" or "cuda".
        make: Builds it for a device.
        solo_steps: Steps of a run in which memory is measured.
    """

    titles: dict[str, str]
    make: Callable[[str], Trained]
    solo_steps: int


def _resnet34(device: str) -> Trained:
    batch, side = (128, 224) if device == "cuda" else (32, 64)
    model = build_model("resnet34", num_classes=5, seed=0).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=generator).to(device)
    labels = torch.randint(0, 5, (batch,), generator=generator).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 6e-4, weight_decay=1e-4)
    if device == "cuda":
        return Trained(model, optimizer, images, labels, lambda: torch.autocast("cuda", torch.bfloat16))
    return Trained(model, optimizer, images, labels)


def _mlp(device: str) -> Trained:
    torch.manual_seed(0)
    model = Mlp().to(device)
    inputs, targets = torch.randn(32, 128).to(device), torch.randint(0, 10, (32,)).to(device)
    return Trained(model, torch.optim.SGD(model.parameters(), 1e-4), inputs, targets)


def _transformer(device: str) -> Trained:
    torch.manual_seed(0)
    model = Transformer().to(device)
    symbols = torch.randint(0, 256, (16, 65)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    return Trained(model, optimizer, symbols[:, :-1].contiguous(), symbols[:, 1:].contiguous())


_MLP = "MLP, 50 linear layers of width 128, batch 32, SGD"
SUBJECTS: dict[str, Subject] = {
    "resnet34": Subject(
        {
            "cpu": "ResNet-34, batch 32, 64 px, Adam",
            "cuda": "ResNet-34, batch 128, 224 px, bf16 autocast, Adam",
        },
        _resnet34,
        6,
    ),
    "mlp": Subject({"cpu": _MLP, "cuda": _MLP}, _mlp, 80),
    "transformer": Subject({"cpu": "transformer, 4 layers of width 128, 64 places, batch 16, AdamW"}, _transformer, 30),
}


def make_subject(name: str, device: str, *, out_of_place: bool = False, small: bool = False) -> Trained:
    """Build a subject.

    Args:
        name: One of ``SUBJECTS``.
        device: "cpu" or "cuda".
        out_of_place: Let activations write into a tensor of their own, for ways that need it.
        small: With a batch of two, and small images, where the time of a step does not matter.

    Returns:
        The same weights and data at every call.
    """
    trained = SUBJECTS[name].make(device)
    if out_of_place:
        for module in trained.model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False
    if small:
        trained.inputs, trained.targets = trained.inputs[:2], trained.targets[:2]
        if trained.inputs.ndim == 4:
            trained.inputs = trained.inputs[..., :32, :32].contiguous()
    return trained


def is_in_place(model: nn.Module) -> bool:
    """Return whether a module of the model overwrites its input."""
    return any(getattr(module, "inplace", False) for module in model.modules())
