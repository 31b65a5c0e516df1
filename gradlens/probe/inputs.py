"""What a model is probed with where no data are given: noise or tokens that suit its first layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradlens.probe.plan import Input, ProbePlan

NOISE_SEED = 20
"""Seed of the inputs, which are the same for every sample of weights."""
TORCHVISION_SIDES = {"inception_v3": 299}
Batch = tuple[Tensor, Tensor | None]
"""Inputs, and labels where the data has any."""


def suitable_input(plan: ProbePlan, model: nn.Module) -> Input:
    """Return an input that suits a model.

    Args:
        plan: Names the model and its source.
        model: The model.

    Returns:
        3x64x64 for the registry, 3x224x224 for torchvision; for other models by the first layer.
    """
    if plan.spec.source == "torchvision":
        side = TORCHVISION_SIDES.get(plan.spec.location, 224)
        return Input((3, side, side))
    if plan.spec.source == "registry":
        return Input((3, 64, 64))
    return first_input(model) or Input((3, 64, 64))


def first_input(model: nn.Module) -> Input | None:
    """Return an input for the layer that was registered first; None if the layers do not determine it."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.in_features:
            return Input((module.in_features,))
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.in_channels:
            dims = len(module.kernel_size)
            return Input((module.in_channels, *((16,) * 3 if dims == 3 else (64,) * dims)))
        if isinstance(module, nn.Embedding):
            return Input((32,), tokens=True, vocabulary=module.num_embeddings)
        if isinstance(module, nn.RNNBase):
            return Input((32, module.input_size))
    return None


def make_noise(plan: ProbePlan, model: nn.Module) -> Batch:
    """Sample inputs from Normal(0, 1), or tokens uniformly; they are the same for every sample of weights.

    Args:
        plan: Input and batch size, filled in.
        model: Its first embedding gives the vocabulary if the plan does not.

    Returns:
        Inputs (B, *shape), and None for the labels.
    """
    form, count = plan.input, plan.batch_size
    assert form is not None
    assert count is not None
    generator = torch.Generator().manual_seed(NOISE_SEED)
    if not form.tokens:
        return torch.randn(count, *form.shape, generator=generator), None
    first = next((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), 2)
    return torch.randint(form.vocabulary or first, (count, *form.shape), generator=generator), None
