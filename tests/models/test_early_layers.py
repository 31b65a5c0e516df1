"""Interventions in the layers next to the input."""

import copy

import torch
from torch import nn

from gradlens.models import build_model
from gradlens.models.early_layers import EARLY, early_parameters, replace_by_noise


def gradients(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_noise_has_the_gradients_norm_and_not_its_direction_and_later_layers_keep_theirs() -> None:
    model = build_model("resnet20", num_classes=5, seed=0)
    noisy = copy.deepcopy(model)
    replace_by_noise(noisy, EARLY, seed=0)
    early = {id(parameter) for parameter in early_parameters(noisy, EARLY)}
    torch.manual_seed(1)
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(0, 5, (4,))

    true, found, again = (
        gradients(model, images, labels),
        gradients(noisy, images, labels),
        gradients(noisy, images, labels),
    )
    names = {name for name, parameter in noisy.named_parameters() if id(parameter) in early}
    assert 12 < len(names) < len(true) / 2
    for name in true:
        if name not in names:
            torch.testing.assert_close(found[name], true[name])
            continue
        torch.testing.assert_close(found[name].norm(), true[name].norm())
        if true[name].numel() > 1000:
            cosine = nn.functional.cosine_similarity(found[name].flatten(), true[name].flatten(), dim=0)
            assert abs(float(cosine)) < 0.15
        assert not torch.equal(found[name], again[name])


def test_the_model_of_the_experiment_begins_as_resnet34() -> None:
    noisy = build_model("gradlens.models.early_layers:resnet34_noise", num_classes=5, seed=3)
    for ours, theirs in zip(
        noisy.parameters(), build_model("resnet34", num_classes=5, seed=3).parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
