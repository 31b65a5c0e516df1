"""A slow and simple computation of a model's gradients: probes added to the outputs of a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlens.recorder.layers import choose_layers, own_parameters
from tests.recorder.case import Case, floats


def norm64(tensors: list[Tensor]) -> float:
    """Return the norm of several tensors together, in float64."""
    return float(np.linalg.norm([np.linalg.norm(dense(t).reshape(-1)) for t in tensors])) if tensors else 0.0


def dense(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
    return tensor.resolve_conj().to(torch.complex128 if tensor.is_complex() else torch.float64).numpy()


@dataclass
class Seen:
    """What probes found: gradients of every backward pass, and copies of the outputs of calls that got any."""

    grads: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    @property
    def rms(self) -> float:
        numel = sum(dense(output).size * (1 + output.is_complex()) for output in self.outputs)
        return norm64(self.outputs) / np.sqrt(numel) if numel else np.nan


def add_probes(output: Any, seen: Seen) -> Any:
    """Return an output with a zero added to each tensor, each once; its gradients of every backward pass are found."""
    known: dict[int, Tensor] = {}
    copies = [tensor.detach().clone() for tensor in floats(output)]

    def find(grad: Tensor) -> None:
        seen.grads.append(grad)
        seen.outputs.extend(copies)
        copies.clear()

    def change(part: Any) -> Any:
        if isinstance(part, Tensor):
            if not (part.requires_grad and (part.is_floating_point() or part.is_complex())):
                return part
            if id(part) not in known:
                probe = torch.zeros_like(part, requires_grad=True)
                probe.register_hook(find)
                known[id(part)] = part + probe
            return known[id(part)]
        if isinstance(part, Mapping):
            return type(part)({key: change(value) for key, value in part.items()})
        if is_dataclass(part):
            return replace(part, **{f.name: change(getattr(part, f.name)) for f in fields(part)})
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*map(change, part))
        return type(part)(map(change, part)) if isinstance(part, list | tuple) else part

    return change(output)


def without_recorder(model: nn.Module) -> nn.Module:
    """Return an independent copy; lazy modules lose their first hooks in a copy, so they are copied before any."""
    return copy.deepcopy(model)


@dataclass
class Truth:
    """What a recorder should find: layer to value; NaN where there is no gradient."""

    activation_grad_norm: dict[str, float]
    param_grad_norm: dict[str, float]
    param_norm: dict[str, float]
    update_ratio: dict[str, float]
    nonfinite_count: dict[str, float]
    activation_rms: dict[str, float]


def find_truth(case: Case, model: nn.Module, step: int, state: dict[str, Any] | None = None) -> Truth:
    """Train an independent copy for one step, with probes on every output; ``state`` is that of its optimizer."""
    model = without_recorder(model)
    modules = choose_layers(model, case.layers)
    asked = {name: Seen() for name in modules}
    handles = [
        module.register_forward_hook(lambda m, args, out, name=name: add_probes(out, asked[name]))
        for name, module in modules.items()
    ]
    optimizer = case.optimizer(model)
    if state is not None:
        optimizer.load_state_dict(copy.deepcopy(state))
    args, kwargs = case.inputs(step)
    torch.manual_seed(step)
    model.zero_grad()
    case.backward(case.loss(model(*args, **kwargs)))
    for handle in handles:
        handle.remove()
    own = {name: own_parameters(module) for name, module in modules.items()}
    grads = {name: [p.grad for p in parameters if p.grad is not None] for name, parameters in own.items()}
    before = {name: [p.detach().clone() for p in parameters] for name, parameters in own.items()}
    optimizer.step()
    change = {name: norm64([p - old for p, old in zip(own[name], before[name], strict=True)]) for name in own}
    size = {name: norm64(weights) for name, weights in before.items()}
    return Truth(
        {name: norm64(seen.grads) if seen.grads else np.nan for name, seen in asked.items()},
        {name: norm64(mine) if mine else np.nan for name, mine in grads.items()},
        {name: size[name] if own[name] else np.nan for name in own},
        {name: change[name] / size[name] if own[name] and size[name] else np.nan for name in own},
        {name: 0.0 if mine else np.nan for name, mine in grads.items()},
        {name: seen.rms for name, seen in asked.items()},
    )
