"""Interventions in the layers next to the input: not trained, or trained with noise in place of their gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradlens.models.registry import build_model

EARLY = 0.34
"""Share of the layers that the experiment ``interventions`` calls early: the first 12 of 34."""


def early_parameters(model: nn.Module, share: float) -> list[nn.Parameter]:
    """Return the parameters of the first layers and of the norms between them.

    Args:
        model: A model whose modules are in order of execution, as those of plain and residual models are.
        share: Share of the convolutions and linear layers; rounded down to a whole number of them.
    """
    weighted = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    early = weighted[: int(share * len(weighted))]
    left = set(map(id, early))
    found: list[nn.Parameter] = []
    for module in model.modules():
        if not left and isinstance(module, nn.Conv2d | nn.Linear):
            break
        left.discard(id(module))
        if early and not any(True for _ in module.children()):
            found += module.parameters(recurse=False)
    return found


def freeze(model: nn.Module, share: float) -> None:
    """Keep the first layers as they are: their parameters, and those of the norms between them, get no gradient."""
    for parameter in early_parameters(model, share):
        parameter.requires_grad_(False)


def replace_by_noise(model: nn.Module, share: float, seed: int) -> None:
    """Give the first layers noise in place of their gradient: Gaussian, of the gradient's norm, in every step anew.

    The size of the gradient is kept and its direction is lost. The layers pass on the true gradient of their inputs.

    Args:
        model: See ``early_parameters``.
        share: See ``early_parameters``.
        seed: Seed of the noise. A resumed run draws other noise than one that was not stopped.
    """
    draws = torch.Generator().manual_seed(seed)

    def noise(grad: Tensor) -> Tensor:
        drawn = torch.randn(grad.shape, generator=draws).to(grad)
        scaled: Tensor = drawn * (grad.norm() / drawn.norm())
        return scaled

    for parameter in early_parameters(model, share):
        parameter.register_hook(noise)  # type: ignore[no-untyped-call]


def resnet34_noise(num_classes: int) -> nn.Module:
    """Return resnet34 whose first third of the layers gets noise in place of its gradient.

    It is built as the model ``gradlens.models.early_layers:resnet34_noise``, with the weights that resnet34 has for
    the same seed.
    """
    seed = torch.initial_seed()
    model = build_model("resnet34", num_classes=num_classes, seed=seed)
    replace_by_noise(model, EARLY, seed)
    return model
