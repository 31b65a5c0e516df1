"""torchvision's unchanged classification models, each with the smallest images that it accepts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision import models

from tests.recorder.case import Case, Inputs, floats, rand

CLASSES = 10


def images(size: int, batch: int, step: int) -> Inputs:
    return (rand(batch, 3, size, size, seed=step),), {}


def cross_entropy(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the usual loss; auxiliary outputs count less, as in the papers."""
    main, *auxiliary = floats(output)
    labels = torch.arange(len(main)) % CLASSES
    loss = nn.functional.cross_entropy
    return loss(main, labels) + 0.3 * sum(loss(logits, labels) for logits in auxiliary)


def case(build: Callable[..., nn.Module], size: int, batch: int = 4, **options: object) -> Case:
    options = {"weights": None, "num_classes": CLASSES, **options}
    return Case(
        functools.partial(build, **options), functools.partial(images, size, batch), cross_entropy, optimizer=adamw
    )


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-3)


def vit_tiny(**options: object) -> nn.Module:
    """torchvision's vision transformer, but small."""
    sizes = {"image_size": 16, "patch_size": 4, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    options.pop("weights")
    return models.VisionTransformer(dropout=0.1, **sizes, **options)


def densenet_small(**options: object) -> nn.Module:
    """torchvision's densenet, but small; with checkpoints."""
    options.pop("weights")
    return models.DenseNet(growth_rate=4, block_config=(2, 3), num_init_features=8, drop_rate=0.1, **options)


QUICK: dict[str, Case] = {
    "resnet18": case(models.resnet18, 32),
    "mobilenet_v3_small": case(models.mobilenet_v3_small, 32),
    "vit, 3 layers": case(vit_tiny, 16),
}
SLOW: dict[str, Case] = {
    "resnet34": case(models.resnet34, 32),
    "densenet121": case(models.densenet121, 32),
    "densenet, memory efficient": case(densenet_small, 32, memory_efficient=True),
    "efficientnet_b0": case(models.efficientnet_b0, 32),
    "convnext_tiny": case(models.convnext_tiny, 32),
    "swin_t": case(models.swin_t, 64, batch=2),
    "googlenet": case(models.googlenet, 64, init_weights=False, aux_logits=True),
}
