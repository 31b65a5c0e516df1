"""The models: small ones, whose numbers are compared with float64, and three large ones, whose steps are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.overhead.subjects import Mlp, Transformer
from gradlens.models import build_model

BATCH = 8
CLASSES = 5


class ConvNet(nn.Module):
    """Batch norm, an activation that overwrites its input, and ``x += shortcut``.

    Args:
        channels: Of both convolutions.
    """

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.block, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, 3, H, W)."""
        shortcut = self.relu(self.norm1(self.stem(x)))
        x = self.norm2(self.block(shortcut))
        x += shortcut
        logits: Tensor = self.head(self.relu(x).mean((2, 3)))
        return logits


class Encoder(nn.Module):
    """One layer of torch's own transformer encoder, between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) for vectors (B, T, 12)."""
        logits: Tensor = self.head(self.layer(self.embed(x)).mean(1))
        return logits


class Recurrent(nn.Module):
    """Two layers of LSTM, and a linear layer on the last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) for vectors (B, T, 12)."""
        logits: Tensor = self.head(self.lstm(x)[0][:, -1])
        return logits


class Embedded(nn.Module):
    """An embedding, averaged over a text.

    Args:
        sparse: Whether the embedding's gradient is a sparse tensor.
    """

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 16, sparse=sparse)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) for symbols (B, T)."""
        logits: Tensor = self.head(self.tokens(x).mean(1))
        return logits


class Silent(nn.Module):
    """A branch that is multiplied by 0: its gradients are exactly 0."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.silent = nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) for vectors (B, 16)."""
        x = functional.relu(self.stem(x))
        logits: Tensor = self.head(x + 0 * self.silent(x))
        return logits


class TwoStreams(nn.Module):
    """Two branches, of which one runs on a stream of its own where there is a GPU.

    Args:
        busy: Cycles that the GPU is kept waiting on that stream, before the branch and in its backward pass, to make a
            race likely.
    """

    def __init__(self, busy: int = 0) -> None:
        super().__init__()
        self.stem, self.here, self.there = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)
        self.busy = busy
        self.stream: torch.cuda.Stream | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) for vectors (B, 16)."""
        x = functional.relu(self.stem(x))
        if not x.is_cuda:
            other = self.there(x)
        else:
            other = self._on_stream(x)
        logits: Tensor = self.head(functional.relu(self.here(x) + other))
        return logits

    def _on_stream(self, x: Tensor) -> Tensor:
        current = torch.cuda.current_stream()
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(self.busy)
            other: Tensor = self.there(x) * 1.0
            if other.requires_grad:
                other.register_hook(lambda grad: torch.cuda._sleep(self.busy))
        current.wait_stream(self.stream)
        x.record_stream(self.stream)
        other.record_stream(current)
        return other


@dataclass(frozen=True)
class Case:
    """A small model with its data.

    Args:
        name: For the table.
        make: Builds the model; call ``build`` instead, which always gives the same weights.
        shape: Of a batch of inputs.
        symbols: Inputs are whole numbers below this; 0: normal numbers.
        scale: Factor of the loss; the learning rate is divided by it.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    symbols: int = 0
    scale: float = 1.0

    def build(self) -> nn.Module:
        """Return the model on the CPU, always with the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make()

    def inputs(self, step: int) -> Tensor:
        """Return the batch of a step on the CPU."""
        generator = torch.Generator().manual_seed(step)
        if self.symbols:
            return torch.randint(self.symbols, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator)

    def loss(self, output: Tensor) -> Tensor:
        """Return the loss of logits (B, classes)."""
        targets = torch.arange(len(output), device=output.device) % output.shape[-1]
        precise = output if output.dtype == torch.float64 else output.float()
        return functional.cross_entropy(precise, targets) * self.scale


def _mlp() -> nn.Module:
    layers: list[nn.Module] = []
    for width in (16, 32, 32, 32, 32):
        layers += [nn.Linear(width, 32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, CLASSES))


MLP = Case("MLP", _mlp, (BATCH, 16))
CONV = Case("convolutions, batch norm, in-place ReLU", ConvNet, (BATCH, 3, 12, 12))
LARGE = Case("convolutions with large outputs", lambda: ConvNet(16), (16, 3, 64, 64))
"""Its outputs have 2**20 elements: the recorder reduces gradients above 2**19 at once, within the backward pass."""
ENCODER = Case("transformer encoder layer", Encoder, (BATCH, 6, 12))
LSTM = Case("LSTM", Recurrent, (BATCH, 6, 12))
EMBEDDING = Case("embedding", Embedded, (BATCH, 6), symbols=50)
SPARSE = Case("embedding, sparse gradient", lambda: Embedded(sparse=True), (BATCH, 6), symbols=50)
TINY = Case("MLP, gradients near 1e-27", _mlp, (BATCH, 16), scale=1e-25)
HUGE = Case("MLP, gradients near 1e18", _mlp, (BATCH, 16), scale=1e20)
ZEROS = Case("a branch times 0", Silent, (BATCH, 16))


@dataclass(frozen=True)
class Subject:
    """What is timed.

    Args:
        name: Short.
        title: For the table.
        make: Gets the device and whether it is to be small; returns the model.
        data: Gets the batch size and whether it is to be small; returns inputs and targets, on the CPU.
        batches: Batch sizes, the first that fits is taken.
        optimizer: Makes the optimizer.
        autocast: Whether the forward pass runs in bfloat16.
    """

    name: str
    title: str
    make: Callable[[str, bool], nn.Module]
    data: Callable[[int, bool], tuple[Tensor, Tensor]]
    batches: tuple[int, ...]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    autocast: bool


def _resnet(device: str, small: bool) -> nn.Module:
    net = build_model("resnet20" if small else "resnet34", num_classes=10 if small else 1000, seed=0)
    return net.to(device, memory_format=torch.channels_last)


def _images(batch: int, small: bool) -> tuple[Tensor, Tensor]:
    side, classes = (16, 10) if small else (224, 1000)
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(1))
    return images.to(memory_format=torch.channels_last), labels


def _gpt(device: str, small: bool) -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):  # weights drawn there: the host would take seconds
        net = Transformer(1, 32, 2, 16, 64) if small else Transformer(12, 768, 12, 512, 32768)
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    net.head.weight = net.tokens.weight
    return net


def _text(batch: int, small: bool) -> tuple[Tensor, Tensor]:
    length, symbols = (16, 64) if small else (512, 32768)
    text = torch.randint(symbols, (batch, length + 1), generator=torch.Generator().manual_seed(0))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def _deep_mlp(device: str, small: bool) -> nn.Module:
    torch.manual_seed(0)
    return Mlp(6, 32).to(device) if small else Mlp().to(device)


def _vectors(batch: int, small: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 32 if small else 128, generator=generator), torch.arange(batch) % 10


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(
            "resnet34",
            "ResNet-34, batch 128, 224 px, bf16 autocast, channels_last, Adam",
            _resnet,
            _images,
            (128, 64, 32),
            lambda net: torch.optim.Adam(net.parameters(), 1e-4),
            True,
        ),
        Subject(
            "gpt",
            "GPT, 12 layers, width 768, 32,768 symbols, sequence 512, bf16 autocast, AdamW",
            _gpt,
            _text,
            (32, 16, 8, 4),
            lambda net: torch.optim.AdamW(net.parameters(), 1e-4),
            True,
        ),
        Subject(
            "mlp",
            "MLP, 50 linear layers of width 128, batch 32, SGD",
            _deep_mlp,
            _vectors,
            (32,),
            lambda net: torch.optim.SGD(net.parameters(), 1e-4),
            False,
        ),
    )
}
