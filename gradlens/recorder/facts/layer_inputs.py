"""What data the first layers get, and how recurrent and attention layers read the first dimension of their inputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.recorder.facts.parameter_states import Facts, sample

MOST_INPUTS = 8
LEAST_EXAMPLES = 4
"""Examples that are no chance."""
STATISTICS = ("least", "largest", "mean", "rms")
MOST_ELEMENTS = 2**20
"""About so many elements of a tensor are looked at."""


class LayerInputs:
    """The inputs of layers that are fed with data, and of layers that can take the batch first or second."""

    def __init__(self) -> None:
        self._facts: dict[str, Facts] = {}
        self._first: dict[str, Tensor] = {}
        """Some elements of the first input of each layer."""
        self._equal: list[tuple[str, Tensor]] = []
        """For calls that are not read yet: the layer, and whether its input was the first one."""
        self._alike: list[tuple[str, Tensor]] = []
        """For calls that are not read yet: the layer, and whether all examples were the same."""
        self._unread: dict[str, Tensor] = {}
        self._rms: dict[str, Tensor] = {}
        self._padding: dict[str, Tensor] = {}
        """Share of single indices that are the ``padding_idx`` of an embedding."""
        self._padded: dict[str, Tensor] = {}
        """Share of sequences of indices that end with 0 and do not begin with it."""

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
        if is_data and (fact is not None or len(self._facts) < MOST_INPUTS):
            self._compare_examples(name, inputs)
        if fact is not None:
            fact["last_step"], fact["calls"] = step, fact["calls"] + 1
            if fact["same"] and is_data:
                now, then = sample(inputs), self._first[name]
                fact["same"] = now.shape == then.shape and now.device == then.device
                if fact["same"]:
                    self._equal.append((name, (now == then).all()))
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
            "output_rms": None,
        }
        if is_data and not inputs.is_complex():
            self._unread[name] = _spread(inputs)
            self._facts[name]["dtype"] = str(inputs.dtype).removeprefix("torch.")
            if isinstance(module, nn.Embedding) and inputs.dim() == 2:
                self._padded[name] = ((inputs[:, -1] == 0) & (inputs[:, 0] != 0)).float().mean()
            padding = getattr(module, "padding_idx", None)
            if isinstance(module, nn.Embedding) and inputs.dim() == 1 and padding is not None:
                self._facts[name]["padding_idx"] = int(padding)
                self._padding[name] = (inputs == padding).float().mean()
        if made:
            self._rms[name] = _rms(thinned(made[0]).float())

    def _compare_examples(self, name: str, inputs: Tensor) -> None:
        """Note whether all examples of a batch of numbers are the same; no value is looked at."""
        is_batch = inputs.is_floating_point() and inputs.dim() > 1 and inputs.shape[0] >= LEAST_EXAMPLES
        if is_batch and inputs.numel() <= MOST_ELEMENTS:
            self._alike.append((name, (inputs == inputs[:1]).all()))

    def facts(self) -> list[Facts]:
        """Return what is stored; this waits for an accelerator where calls were noted since."""
        for name, alike in self._alike:
            self._facts[name]["examples_alike"] = self._facts[name].get("examples_alike", True) and bool(alike.tolist())
        self._alike = []
        for name, equal in self._equal:
            self._facts[name]["same"] &= bool(equal.tolist())
        for name, stats in self._unread.items():
            finite, *values = stats.tolist()
            known = math.isfinite(values[0])
            self._facts[name] |= {"finite": bool(finite)} | (
                dict(zip(STATISTICS, values, strict=True)) if known else {}
            )
        for name, rms in self._rms.items():
            size: Any = rms.tolist()  # a number, of a tensor without dimensions
            self._facts[name] |= {"output_rms": size if math.isfinite(size) else None}
            self._facts[name]["finite_output"] = math.isfinite(size)
        for name, share in self._padded.items():
            self._facts[name]["padded"] = float(share)
        for name, share in self._padding.items():
            self._facts[name]["padding_share"] = float(share)
        self._equal, self._unread, self._rms, self._padded, self._padding = [], {}, {}, {}, {}
        return list(self._facts.values())

    def forget(self) -> None:
        """Forget all tensors."""
        self._first.clear()


def thinned(tensor: Tensor) -> Tensor:
    """Return a tensor's elements in a row, evenly spaced ones of a very large tensor."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(flat.numel() // MOST_ELEMENTS, 1)]


@torch.no_grad()
def _spread(inputs: Tensor) -> Tensor:
    """Return (5,): whether all values are finite, and the ``STATISTICS`` of those that are; no value is looked at."""
    values = thinned(inputs).float()
    finite = values.isfinite()
    count, zeros = finite.sum(), torch.where(finite, values, 0.0)
    least, largest = (torch.where(finite, values, end * math.inf) for end in (1, -1))
    mean = zeros.sum() / count
    rms = (zeros.square().sum() / count).sqrt()
    parts = (finite.all(), least.min(), largest.max(), mean, rms)
    return torch.stack([each.float() for each in parts])


@torch.no_grad()
def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()
