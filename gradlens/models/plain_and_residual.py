"""Plain and residual models: the ImageNet layout (18, 34) and the CIFAR family (6n+2).

Source: He, Zhang, Ren & Sun 2015, Deep Residual Learning for Image Recognition, table 1 (ImageNet) and
sec. 4.2 (CIFAR). Modules have the names of torchvision, so its weights can be loaded.
"""

from __future__ import annotations

import math
import zlib
from typing import Literal

import torch
from torch import Tensor, nn

from gradlens.models.blocks import Activation, Block, Carries, Shortcut, activation_layer
from gradlens.specs import ModelSpec

IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
IMAGENET_CHANNELS = (64, 128, 256, 512)
CIFAR_CHANNELS = (16, 32, 64)

Init = Literal["he", "default", "delta-orthogonal", "looks-linear"]


class ResidualNet(nn.Module):
    """Stages of blocks between a stem and a classifier.

    Args:
        blocks: Number of blocks in each stage.
        channels: Number of channels in each stage.
        imagenet_stem: Whether the stem is a 7x7 convolution of stride 2 with max pooling; else one 3x3 convolution.
        shortcut: "A", "B", or None for the plain model.
        norm: Whether batch norms follow the convolutions.
        num_classes: Number of outputs.
        carries: What the shortcuts carry; see ``Block``.
        activation: "relu" or "sigmoid".
        branch_scale: As in ``Block``.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        channels: tuple[int, ...],
        *,
        imagenet_stem: bool,
        shortcut: Shortcut,
        norm: bool,
        num_classes: int,
        carries: Carries = "both",
        activation: Activation = "relu",
        branch_scale: float | None = None,
    ) -> None:
        super().__init__()
        kernel, stride, padding = (7, 2, 3) if imagenet_stem else (3, 1, 1)
        self.conv1 = nn.Conv2d(3, channels[0], kernel, stride, padding, bias=not norm)
        self.bn1: nn.Module = nn.BatchNorm2d(channels[0]) if norm else nn.Identity()
        self.activation = activation_layer(activation)
        self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1) if imagenet_stem else nn.Identity()
        self.n_stages = len(blocks)
        inputs = channels[0]
        for i, (count, outputs) in enumerate(zip(blocks, channels, strict=True)):
            stage = nn.Sequential()
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                block = Block(
                    inputs,
                    outputs,
                    stride,
                    shortcut=shortcut,
                    norm=norm,
                    carries=carries,
                    activation=activation,
                    branch_scale=branch_scale,
                )
                stage.append(block)
                inputs = outputs
            self.add_module(f"layer{i + 1}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) for images (B, 3, H, W)."""
        x = self.maxpool(self.activation(self.bn1(self.conv1(x))))
        for i in range(self.n_stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def build_from_spec(
    spec: ModelSpec, *, num_classes: int, seed: int, init: Init = "he", shortcut: Literal["A", "B"] = "A"
) -> ResidualNet:
    """Build a plain or residual model whose weights depend only on the seed and on each weight's name.

    So a plain model, a residual model and its variants with the same depth and seed start from equal weights in all
    parameters that they share.

    Args:
        spec: A parsed registry name.
        num_classes: Number of outputs.
        seed: Seed of the weights.
        init: As in ``initialise``.
        shortcut: Shortcut option of residual models; plain models have none.

    Returns:
        The model, on the CPU, in training mode.
    """
    imagenet = spec.depth in IMAGENET_BLOCKS
    blocks = IMAGENET_BLOCKS[spec.depth] if imagenet else ((spec.depth - 2) // 6,) * 3
    scales = {"whole": None, "from zero": 0.0, "from scale": sum(blocks) ** -0.5}
    with torch.random.fork_rng(devices=[]):  # the constructors initialise weights; keep the global random state
        model = ResidualNet(
            blocks,
            IMAGENET_CHANNELS if imagenet else CIFAR_CHANNELS,
            imagenet_stem=imagenet,
            shortcut=shortcut if spec.family == "resnet" else None,
            norm=spec.norm,
            num_classes=num_classes,
            carries=spec.carries,
            activation=spec.activation,
            branch_scale=scales[spec.branch],
        )
    initialise(model, seed, init)
    return model


@torch.no_grad()
def initialise(model: nn.Module, seed: int, init: Init) -> None:
    """Initialise all convolutions and linear layers, with a separate generator for each parameter.

    Args:
        model: A model of convolutions, linear layers and batch norms.
        seed: Determines the values, together with each parameter's name.
        init: "he" for convolutions with Normal(0, sqrt(2 / fan_out)) and biases 0, as torchvision does it. The
            classifier, and with "default" every layer, gets Uniform(+-1 / sqrt(fan_in)), as PyTorch does it.
            "delta-orthogonal" and "looks-linear" for convolutions as in ``delta_orthogonal_`` and ``looks_linear_``,
            with biases 0; with the latter, the classifier's weights are mirrored, too.

    Source:
        He et al. 2015, Delving Deep into Rectifiers, sec. 2.2.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        weight, bias, generator = module.weight, module.bias, _generator(name, "w", seed)
        if init == "default" or isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(weight[0].numel())
            nn.init.uniform_(weight, -bound, bound, generator=generator)
            if init == "looks-linear":
                half = weight.shape[1] // 2
                weight[:, half:] = -weight[:, :half]
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound, generator=_generator(name, "b", seed))
            continue
        if init == "he":
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif init == "delta-orthogonal":
            delta_orthogonal_(weight, math.sqrt(2), generator)
        else:
            looks_linear_(weight, generator)
        if bias is not None:
            nn.init.zeros_(bias)


def delta_orthogonal_(weight: Tensor, gain: float, generator: torch.Generator) -> None:
    """Fill a convolution's weight with zeros and, at the kernel's centre, a random orthogonal matrix times ``gain``.

    A gain of sqrt(2) makes up for the half of the signal that a ReLU removes.

    Args:
        weight: (outputs, inputs, K, K) with K odd.
        gain: Factor of the matrix.
        generator: Determines the values.

    Source: Xiao et al. 2018, Dynamical Isometry and a Mean Field Theory of CNNs, algorithm 1.
    """
    matrix = torch.empty(weight.shape[:2], dtype=weight.dtype, device=weight.device)
    nn.init.orthogonal_(matrix, gain, generator=generator)
    nn.init.zeros_(weight)
    weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = matrix


def looks_linear_(weight: Tensor, generator: torch.Generator) -> None:
    """Fill a convolution's weight so that a plain model without batch norm is linear between its ReLUs.

    Channels come in pairs of opposite sign before each ReLU: one of a pair passes it where the other is 0, so their
    difference is what went in. The matrix of the differences is delta-orthogonal.

    Args:
        weight: (outputs, inputs, K, K) with an even number of outputs; with an odd number of inputs (an image's
            channels), these are no pairs.
        generator: Determines the values.

    Source: Balduzzi et al. 2017, The Shattered Gradients Problem, sec. 4.
    """
    outputs, inputs = weight.shape[0] // 2, weight.shape[1] // (2 if weight.shape[1] % 2 == 0 else 1)
    delta_orthogonal_(weight[:outputs, :inputs], 1.0, generator)
    weight[:outputs, inputs:] = -weight[:outputs, : weight.shape[1] - inputs]
    weight[outputs:] = -weight[:outputs]


def _generator(name: str, part: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{part}".encode()))
