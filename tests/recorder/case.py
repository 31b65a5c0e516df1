"""A test case: a model and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.metrics import BATCH_COHERENCE, GRADIENT_THROUGH_TIME, METRICS, METRICS_OF_PATHS

OTHERS = ("zero_fraction", "dead_fraction", "grad_coherence", BATCH_COHERENCE, GRADIENT_THROUGH_TIME, *METRICS_OF_PATHS)
KNOWN_METRICS = tuple(name for name in METRICS if name not in OTHERS)
"""Metrics whose expected values ``truth`` computes for any model."""
GRADIENTS_AND_WEIGHTS = tuple(name for name in KNOWN_METRICS if name != "activation_rms")
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matrix(step: int) -> Inputs:
    return (rand(6, 8, seed=step),), {}


def sequence(step: int) -> Inputs:
    return (rand(3, 5, 8, seed=step),), {}


def images(step: int) -> Inputs:
    return (rand(4, 3, 12, 12, seed=step),), {}


def tokens(step: int) -> Inputs:
    return (torch.randint(0, 10, (4, 6), generator=torch.Generator().manual_seed(step)),), {}


def floats(output: Any) -> list[Tensor]:
    """Return the tensors of numbers in an output, each once."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() or output.is_complex() else []
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif is_dataclass(output):
        parts = [getattr(output, f.name) for f in fields(output)]
    else:
        parts = list(output) if isinstance(output, list | tuple) else []
    return list({id(t): t for part in parts for t in floats(part)}.values())


def squares(output: Any) -> Tensor:
    """Return a loss of everything in an output; the weights keep the symmetric cases apart."""
    total = torch.zeros(())
    for i, tensor in enumerate(floats(output)):
        numbers = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        weights = torch.linspace(0.5, 1.5, numbers.numel(), dtype=numbers.dtype).view(numbers.shape)
        total = total + (weights * (numbers - 0.3 * (i + 1)) ** 2).sum()
    return total


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)


@dataclass(frozen=True)
class Case:
    """One model and how it is trained."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs] = matrix
    loss: Callable[[Any], Tensor] = squares
    layers: Any = None
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd
    backward: Callable[[Tensor], None] = lambda loss: loss.backward()
    before_step: Callable[[nn.Module, int], None] = lambda model, step: None
    rtol: float = 1e-5
    silent: tuple[str, ...] = ()
    """Layers whose outputs never get a gradient, although they own parameters that do."""
