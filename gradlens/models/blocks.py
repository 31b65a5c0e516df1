"""The block of which plain and residual models consist.

Source: He, Zhang, Ren & Sun 2015, Deep Residual Learning for Image Recognition, fig. 2 and sec. 3.3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Shortcut = Literal["A", "B"] | None
Carries = Literal["both", "value", "gradient"]
Activation = Literal["relu", "sigmoid"]


def conv3x3(inputs: int, outputs: int, stride: int, *, norm: bool) -> nn.Conv2d:
    """Return a 3x3 convolution, with a bias only if no batch norm follows."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=not norm)


def norm_layer(channels: int, norm: bool) -> nn.Module:
    """Return a batch norm, or the identity."""
    return nn.BatchNorm2d(channels) if norm else nn.Identity()


def activation_layer(activation: Activation) -> nn.Module:
    """Return an activation function."""
    return nn.Sigmoid() if activation == "sigmoid" else nn.ReLU(inplace=True)


class PadShortcut(nn.Module):
    """Shortcut option A: every stride-th pixel, and zeros for the new channels; no parameters.

    Source: He et al. 2015, sec. 3.3.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H/stride, W/stride) for (B, inputs, H, W)."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        """Return the stride and the number of padded channels, for ``repr``."""
        return f"stride={self.stride}, extra_channels={self.extra}"


def make_shortcut(shortcut: Shortcut, inputs: int, outputs: int, stride: int, *, norm: bool) -> nn.Module | None:
    """Return the shortcut's module where shapes change: zero padding (A) or a projection (B); else None."""
    if shortcut is None or (stride == 1 and inputs == outputs):
        return None
    if shortcut == "A":
        return PadShortcut(inputs, outputs, stride)
    projection = nn.Conv2d(inputs, outputs, 1, stride, bias=not norm)
    return nn.Sequential(projection, nn.BatchNorm2d(outputs)) if norm else nn.Sequential(projection)


class Block(nn.Module):
    """Two 3x3 convolutions, each followed by batch norm (or nothing) and ReLU; residual where it has a shortcut.

    The plain block is the residual block without the addition. Two variants separate the two effects of the shortcut.
    If it carries only the value, the block's output equals that of the residual block, and no gradient returns through
    the shortcut to the block's input (but it reaches the weights of a projection). If it carries only the gradient, the
    output equals that of the plain block, and the gradient returns as in the residual block. Two more variants multiply
    the branch by a trained factor: SkipInit, where it begins at 0 and the block begins as its shortcut.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        stride: Stride of the first convolution.
        shortcut: "A", "B", or None for the plain block.
        norm: Whether batch norms follow the convolutions.
        carries: What the shortcut carries: "both", only the "value" or only the "gradient".
        activation: "relu" or "sigmoid".
        branch_scale: The value at which the trained factor of the branch begins; None for a branch without one.

    Source: De & Smith 2020, Batch Normalization Biases Residual Blocks Towards the Identity Function, sec. 4.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        *,
        shortcut: Shortcut,
        norm: bool,
        carries: Carries = "both",
        activation: Activation = "relu",
        branch_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride, norm=norm)
        self.bn1 = norm_layer(outputs, norm)
        self.conv2 = conv3x3(outputs, outputs, 1, norm=norm)
        self.bn2 = norm_layer(outputs, norm)
        self.activation = activation_layer(activation)
        self.residual = shortcut is not None
        self.carries = carries
        self.alpha = None if branch_scale is None else nn.Parameter(torch.tensor(branch_scale))
        self.downsample = make_shortcut(shortcut, inputs, outputs, stride, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H/stride, W/stride) for (B, inputs, H, W)."""
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.alpha is not None:
            out = out * self.alpha
        if self.residual:
            out = out + self._through_shortcut(x)
        activated: Tensor = self.activation(out)
        return activated

    def _through_shortcut(self, x: Tensor) -> Tensor:
        """Return what the shortcut adds to the branch."""
        taken = x.detach() if self.carries == "value" else x
        carried: Tensor = taken if self.downsample is None else self.downsample(taken)
        return carried - carried.detach() if self.carries == "gradient" else carried
