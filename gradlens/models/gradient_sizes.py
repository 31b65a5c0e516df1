"""An intervention under SGD: each layer's gradient gets the size, relative to the last layer's, of another run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradlens.errors import ConfigError
from gradlens.metrics import PARAM_GRAD_NORM
from gradlens.run import FloatArray, Run


def follow_sizes(model: nn.Module, optimizer: Optimizer, run: Run, first_step: int = 0) -> None:
    """Scale the gradient of each layer before each step of the optimizer; directions are kept.

    The norm of a layer's gradient over that of the last layer's becomes what it is in ``run`` at the same step; the
    last layer keeps its own gradient, whose size no other layer has changed. A layer is a module with parameters of its
    own. Only an optimizer whose steps grow with the gradient shows an effect, as SGD's do; Adam divides sizes out.

    Args:
        model: The model, on its device.
        optimizer: The optimizer of its parameters.
        run: A run with these layers, the norms among them. Where a step has no row, the row before it counts.
        first_step: The number of steps that a resumed training has made.

    Raises:
        ConfigError: The run lacks a layer, or a gradient in a row.
    """
    layers = {name: list(module.parameters(recurse=False)) for name, module in model.named_modules()}
    layers = {name: parameters for name, parameters in layers.items() if parameters}
    sizes, last, step = relative_sizes(run, list(layers)), layers[run.layers[-1].name], first_step
    steps = np.asarray(run.steps)

    def scale(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal step
        row = max(int(np.searchsorted(steps, step, side="right")) - 1, 0)
        step += 1
        unit = whole_norm(last)
        for parameters, size in zip(layers.values(), sizes[row], strict=True):
            own = whole_norm(parameters)
            factor = torch.where(own > 0, float(size) * unit / own, torch.ones_like(own))
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    optimizer.register_step_pre_hook(scale)


def whole_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the L2 norm of the gradients of all parameters together; 0 where none has one."""
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=parameters[0].device)


def relative_sizes(run: Run, names: list[str]) -> FloatArray:
    """Return the gradients' norms over the last layer's: (T, L), rows by layers in the order of ``names``."""
    columns = {layer.name: i for i, layer in enumerate(run.layers)}
    missing = [name for name in names if name not in columns]
    if missing or len(columns) != len(names):
        which = f"has no layer {missing[0]}" if missing else "has other layers"
        raise ConfigError(f"{run.path} {which}: its gradients' sizes are no example", tip="record it with --norms")
    norms = run.metric(PARAM_GRAD_NORM).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = norms[:, [columns[name] for name in names]] / norms[:, -1:]
    if len(found) == 0 or not np.isfinite(found).all():
        raise ConfigError(f"{run.path} does not have every layer's gradient in every row")
    return found
