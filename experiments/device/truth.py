"""What a recorder should find, in two ways that use nothing of the recorder.

- ``Spy``: the very gradients of the model that is recorded, fetched and reduced in float64 by numpy. It sees the
  gradient of an output before the node of the graph that made the output, and puts no hook on modules or tensors, so
  that the recorder goes the way that it goes without it.
- ``find_reference``: an independent copy in float64 on the CPU, whose gradients autograd computes anew.
"""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.device.models import Case

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
METRICS = ("activation_grad_norm", "param_grad_norm", "param_norm", "update_ratio")
"""The recorder's default metrics, all of which are compared."""

Truth = dict[str, dict[str, float]]
"""Metric to layer to value; NaN where there is no gradient."""


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that own a weight and are no norm, by name."""
    found = {name: module for name, module in model.named_modules() if not isinstance(module, NORMS)}
    return {name: module for name, module in found.items() if next(module.parameters(recurse=False), None) is not None}


def norm64(tensors: list[Tensor]) -> float:
    """Return the norm of several tensors together, computed in float64 by numpy; NaN of none."""
    if not tensors:
        return float("nan")
    return float(np.linalg.norm([np.linalg.norm(to_host(tensor).numpy().ravel()) for tensor in tensors]))


def to_host(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU, in float64 and dense; waits for the device."""
    tensor = tensor.detach()
    return (tensor.to_dense() if tensor.layout != torch.strided else tensor).to("cpu", torch.float64, copy=True)


def weights_of(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return copies of the weights of each layer."""
    return {name: [to_host(p) for p in layer.parameters(recurse=False)] for name, layer in layers_of(model).items()}


def gradients_of(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return copies of the gradients of each layer's weights, as they are now."""
    own = {name: list(layer.parameters(recurse=False)) for name, layer in layers_of(model).items()}
    return {name: [to_host(p.grad) for p in mine if p.grad is not None] for name, mine in own.items()}


def norms_of(tensors: Mapping[str, list[Tensor]], factor: float = 1.0) -> dict[str, float]:
    """Return the norm for each layer, times a factor."""
    return {name: norm64(mine) * factor for name, mine in tensors.items()}


def update_ratios(before: Mapping[str, list[Tensor]], after: Mapping[str, list[Tensor]]) -> dict[str, float]:
    """Return the norm of the change over the norm before it, for each layer."""
    change = {name: norm64([b - a for a, b in zip(mine, after[name], strict=True)]) for name, mine in before.items()}
    return {name: change[name] / norm64(mine) for name, mine in before.items()}


class Spy:
    """Keeps the norms of the gradients of layers' outputs.

    Args:
        model: Its layers' ``forward`` is wrapped until ``remove``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.on = True
        self._norms: dict[str, list[float]] = defaultdict(list)
        self._layers = layers_of(model)
        for name, layer in self._layers.items():
            layer.forward = functools.partial(self._forward, name, layer.forward)

    def remove(self) -> None:
        """Put every ``forward`` back."""
        for layer in self._layers.values():
            del layer.forward

    def take(self, factor: float = 1.0) -> dict[str, float]:
        """Return the norm for each layer since the last call, times a factor; NaN where no gradient came."""
        norms, self._norms = self._norms, defaultdict(list)
        missing = float("nan")
        return {name: float(np.linalg.norm(norms[name])) * factor if norms[name] else missing for name in self._layers}

    def _forward(self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        for tensor in tensors_in(output) if self.on else ():
            if tensor.grad_fn is not None:
                tensor.grad_fn.register_prehook(functools.partial(self._keep, name, tensor.output_nr))
        return output

    def _keep(self, name: str, place: int, grads: tuple[Tensor | None, ...]) -> None:
        grad = grads[place]
        if grad is not None:
            self._norms[name].append(norm64([grad]))


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a layer returned."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from tensors_in(part)


@contextmanager
def probed(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Add a zero to every output of a layer; the gradients of those zeros are the gradients of the outputs."""
    grads: dict[str, list[Tensor]] = {name: [] for name in layers_of(model)}

    def add(part: Any, mine: list[Tensor]) -> Any:
        if isinstance(part, Tensor):
            probe = torch.zeros_like(part, requires_grad=True)
            probe.register_hook(mine.append)
            return part + probe
        return tuple(add(each, mine) for each in part) if isinstance(part, tuple) else part

    handles = [
        layer.register_forward_hook(lambda module, args, output, mine=grads[name]: add(output, mine))
        for name, layer in layers_of(model).items()
    ]
    yield grads
    for handle in handles:
        handle.remove()


def find_reference(case: Case, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, x: Tensor) -> Truth:
    """Make one training step of a float64 copy on the CPU.

    Args:
        case: The model.
        state: The weights and buffers of the model that is recorded, before the step.
        optimizer: The optimizer of that model, before the step.
        x: The batch of the step.
    """
    model = case.build().double()
    model.load_state_dict({name: to_host(value) for name, value in state.items()})
    mine = type(optimizer)(model.parameters(), lr=0.1)
    mine.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # else both would count steps in one tensor
    for group in mine.param_groups:
        group |= {name: False for name in ("fused", "foreach", "capturable") if name in group}
    with probed(model) as outputs:
        case.loss(model(x.double() if x.is_floating_point() else x)).backward()
    grads, before = gradients_of(model), weights_of(model)
    mine.step()
    return {
        "activation_grad_norm": norms_of(outputs),
        "param_grad_norm": norms_of(grads),
        "param_norm": norms_of(before),
        "update_ratio": update_ratios(before, weights_of(model)),
    }


def largest_error(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the largest relative error; inf where one is 0 or NaN and the other is not."""
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.abs(found - truth) / np.abs(truth)
    errors[(found == truth) | (np.isnan(found) & np.isnan(truth))] = 0
    return float(np.nan_to_num(errors, nan=np.inf, posinf=np.inf).max(initial=0.0))
