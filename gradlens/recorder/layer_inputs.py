"""What data the first layers get, and how recurrent and attention layers read the first dimension of their inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradlens.recorder.parameter_states import Facts, sample

MOST_INPUTS = 8
MOST_ELEMENTS = 2**20
"""About so many elements of a tensor are looked at."""


class LayerInputs:
    """The inputs of layers that are fed with data, and of layers that can take the batch first or second."""

    def __init__(self) -> None:
        self._facts: dict[str, Facts] = {}
        self._first: dict[str, Tensor] = {}
        """Some elements of the first input of each layer."""

    def note_call(self, name: str, module: nn.Module, inputs: Tensor, outputs: list[Tensor], step: int) -> None:
        """Note what a module got; the first call of each step counts.

        Args:
            name: Its name.
            module: A module with parameters.
            inputs: Its first argument.
            outputs: What it returned.
            step: The step in progress.
        """
        fact = self._facts.get(name)
        if fact is not None and fact["last_step"] == step:
            return
        batch_first = getattr(module, "batch_first", None)
        is_data = inputs.grad_fn is None and not isinstance(inputs, nn.Parameter)
        if not (is_data or isinstance(batch_first, bool)) or not inputs.numel():
            return
        if fact is not None:
            fact["last_step"], fact["calls"] = step, fact["calls"] + 1
            if fact["same"] and is_data:
                now, then = sample(inputs), self._first[name]
                fact["same"] = now.shape == then.shape and now.device == then.device and bool((now == then).all())
            return
        if len(self._facts) >= MOST_INPUTS:
            return
        made = [tensor for tensor in outputs[:1] if tensor.is_floating_point()]
        self._first[name] = sample(inputs)
        self._facts[name] = {
            "layer": name,
            "kind": type(module).__name__,
            "batch_first": batch_first if isinstance(batch_first, bool) else None,
            "shape": list(inputs.shape),
            "data": is_data,
            "since": step,
            "last_step": step,
            "calls": 1,
            "same": is_data,
            **(_spread(inputs) if is_data and not inputs.is_complex() else {}),
            "output_rms": float(thinned(made[0]).float().square().mean().sqrt()) if made else None,
        }

    def facts(self) -> list[Facts]:
        """Return what is stored."""
        return list(self._facts.values())

    def forget(self) -> None:
        """Forget all tensors."""
        self._first.clear()


def thinned(tensor: Tensor) -> Tensor:
    """Return a tensor's elements in a row, evenly spaced ones of a very large tensor."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(flat.numel() // MOST_ELEMENTS, 1)]


@torch.no_grad()
def _spread(inputs: Tensor) -> dict[str, Any]:
    values = thinned(inputs).float()
    values, total = values[values.isfinite()], values.numel()
    if not values.numel():
        return {"finite": False}
    return {
        "finite": values.numel() == total,
        "dtype": str(inputs.dtype).removeprefix("torch."),
        "least": float(values.min()),
        "largest": float(values.max()),
        "mean": float(values.mean()),
        "rms": float(values.square().mean().sqrt()),
    }
