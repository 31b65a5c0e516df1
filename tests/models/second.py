"""A second, simple implementation of plain and residual models: functions of a state dict, after the paper's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class NoGradient(torch.autograd.Function):
    """The tensor itself, without a gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


class GradientOnly(torch.autograd.Function):
    """The branch, and a gradient for the shortcut as if it had been added."""

    @staticmethod
    def forward(ctx: Any, branch: Tensor, shortcut: Tensor) -> Tensor:
        return branch.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.clone()


class SecondNet:
    """The expected computation of the model with a name.

    Args:
        name: A name of the registry.
        weights: Parameter name to leaf.
    """

    def __init__(self, name: str, weights: Mapping[str, Tensor]) -> None:
        head, *self.words = name.split("-")
        self.residual, self.weights = head.startswith("resnet"), weights
        self.depth = int(head.removeprefix("plain").removeprefix("resnet"))
        self.act = torch.sigmoid if "sigmoid" in self.words else torch.relu

    def __call__(self, x: Tensor) -> Tensor:
        imagenet = self.depth in STAGES
        x = self.act(self.conv("conv1", "bn1", x, 2 if imagenet else 1))
        if imagenet:
            x = functional.max_pool2d(x, 3, 2, 1)
        for i, count in enumerate(STAGES.get(self.depth, ((self.depth - 2) // 6,) * 3)):
            for j in range(count):
                x = self.block(f"layer{i + 1}.{j}.", x, 2 if i and not j else 1)
        return x.mean((2, 3)) @ self.weights["fc.weight"].T + self.weights["fc.bias"]

    def conv(self, name: str, norm: str, x: Tensor, stride: int) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        x = functional.conv2d(x, weight, self.weights.get(f"{name}.bias"), stride, weight.shape[-1] // 2)
        if "nobn" in self.words:
            return x
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (self.weights[f"{norm}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def block(self, name: str, x: Tensor, stride: int) -> Tensor:
        branch = self.act(self.conv(f"{name}conv1", f"{name}bn1", x, stride))
        branch = self.conv(f"{name}conv2", f"{name}bn2", branch, 1)
        if f"{name}alpha" in self.weights:
            branch = self.weights[f"{name}alpha"] * branch
        if not self.residual:
            return self.act(branch)
        if "valueonly" in self.words:
            return self.act(branch + self.shortcut(name, NoGradient.apply(x), branch, stride))
        if "gradonly" in self.words:
            return self.act(GradientOnly.apply(branch, self.shortcut(name, x, branch, stride)))
        return self.act(branch + self.shortcut(name, x, branch, stride))

    def shortcut(self, name: str, x: Tensor, branch: Tensor, stride: int) -> Tensor:
        if x.shape == branch.shape:
            return x
        if f"{name}downsample.0.weight" in self.weights:
            return self.conv(f"{name}downsample.0", f"{name}downsample.1", x, stride)
        padded = torch.zeros_like(branch)
        padded[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
        return padded
