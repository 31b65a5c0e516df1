"""The recorder against autograd on an independent copy of the model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from gradlens.models import build_model
from gradlens.recorder import Recorder
from gradlens.recorder.layers import choose_layers
from gradlens.sinks import ListSink

TOLERANCE = 1e-5

MODELS = {
    "plain34": lambda: build_model("plain34", num_classes=5),
    "resnet34": lambda: build_model("resnet34", num_classes=5),
    "resnet34-B": lambda: build_model("resnet34", num_classes=5, shortcut="B"),
    "plain34-nobn": lambda: build_model("plain34-nobn", num_classes=5),
    "resnet20": lambda: build_model("resnet20", num_classes=5),
    "torchvision-resnet18": lambda: models.resnet18(num_classes=5),
}


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 64, 64, generator=generator), torch.randint(0, 5, (8,), generator=generator)


def norm64(tensor: Tensor) -> float:
    return float(np.linalg.norm(tensor.detach().numpy().astype(np.float64).ravel()))


def true_gradients(model: nn.Module, names: list[str], images: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """Ask autograd itself, for the outputs kept aside, with every in-place operation switched off."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    outputs: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def keep(name: str):
        def hook(module, args, output):
            outputs[name] = output

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in names]
    loss = functional.cross_entropy(model(images), labels)
    for handle in handles:
        handle.remove()
    output_grads = torch.autograd.grad(loss, [outputs[name] for name in names], retain_graph=True)
    own = {name: list(modules[name].parameters(recurse=False)) for name in names}
    param_grads = {name: torch.autograd.grad(loss, own[name], retain_graph=True) for name in names}
    return {
        "activation_grad_norm": {name: norm64(g) for name, g in zip(names, output_grads, strict=True)},
        "param_grad_norm": {
            name: float(np.sqrt(sum(norm64(g) ** 2 for g in grads))) for name, grads in param_grads.items()
        },
        "param_norm": {name: float(np.sqrt(sum(norm64(p) ** 2 for p in own[name]))) for name in names},
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.slow]
            * (name in ("resnet34", "resnet34-B", "plain34-nobn", "plain34", "torchvision-resnet18")),
        )
        for name in MODELS
    ],
)
def test_every_layer_and_metric_agrees_with_autograd_on_a_copy(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    optimizer = torch.optim.Adam(model.parameters(), 6e-4, weight_decay=1e-4)
    sink = ListSink()
    expected: list[dict[str, dict[str, float]]] = []
    with Recorder(model, sink, optimizer=optimizer) as recorder:
        for step in range(2):
            images, labels = batch(step)
            expected.append(true_gradients(model, list(choose_layers(model)), images, labels))
            before = {key: value.clone() for key, value in model.state_dict().items()}
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
            if step == 0:
                changes = {key: norm64(value - before[key]) for key, value in model.state_dict().items()}

    assert sink.header is not None
    names = [layer.name for layer in sink.header.layers]
    for metric in ("activation_grad_norm", "param_grad_norm", "param_norm"):
        rows = range(2) if metric != "param_norm" else range(1)
        for row in rows:
            truth = np.array([expected[row][metric][layer] for layer in names])
            np.testing.assert_allclose(sink.rows[row].metrics[metric], truth, rtol=TOLERANCE, err_msg=metric)

    parameters = {layer: [k for k, _ in model.named_parameters() if k.rpartition(".")[0] == layer] for layer in names}
    truth = np.array(
        [
            np.sqrt(sum(changes[key] ** 2 for key in parameters[layer])) / expected[0]["param_norm"][layer]
            for layer in names
        ]
    )
    found = sink.rows[0].metrics["update_ratio"]
    if sink.header.metrics["update_ratio"] == 1:  # weights of large models are copied in turn, the last layers later
        assert np.isfinite(found[:20]).all()
        assert np.isfinite(sink.rows[1].metrics["update_ratio"][np.isnan(found)]).all()
        truth[np.isnan(found)] = np.nan
    else:
        assert "update_ratio" not in sink.rows[1].metrics  # its interval is longer
    np.testing.assert_allclose(found, truth, rtol=TOLERANCE)
