"""Two small models, and a batch for each step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


class LastOfSequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.view(-1, 2, 2).transpose(0, 1))[0][-1])


def lstm() -> nn.Module:
    torch.manual_seed(0)
    return LastOfSequence()


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 4, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def backward(model: nn.Module, step: int, factor: float = 1.0) -> Tensor:
    x, y = data(step)
    loss = functional.cross_entropy(model(x), y) * factor
    loss.backward()
    return loss


def norms(model: nn.Module) -> list[float]:
    """Return the gradient norm of each linear layer as it stands."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [
        float(np.sqrt(sum(np.linalg.norm(p.grad.numpy().astype(np.float64)) ** 2 for p in layer.parameters())))
        for layer in linear
    ]
