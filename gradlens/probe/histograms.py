"""Hooks that count, in one pass: the sizes of gradients' entries, dead units, outputs that are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradlens.probe.plan import BIAS, BROKEN, Entries
from gradlens.recorder.layers import output_tensors

CHUNK = 1 << 22
"""Elements that are counted at a time, to bound the memory that it takes."""
SWITCHES = frozenset(
    f"aten::{name}{inplace}"
    for name in ("relu", "hardtanh", "hardswish", "threshold", "hardshrink", "softshrink", "relu6")
    for inplace in ("", "_")
)
"""Activation functions that put out exactly 0 over a range of inputs, however they are called."""


def count_entries(grad: Tensor) -> Entries:
    """Count a gradient's entries by their exponents; of a complex one real and imaginary parts, each for itself."""
    grad = grad.detach()
    if grad.layout is not torch.strided:
        values = grad.coalesce().values() if grad.is_sparse else grad.to_dense()
        held = count_entries(values)
        return Entries(held.zeros + grad.numel() - values.numel(), held.exponents)
    if grad.is_complex():
        grad = torch.view_as_real(grad.resolve_conj())
    flat = grad.reshape(-1)
    counts, zeros = torch.zeros(256, dtype=torch.int64), 0
    for part in torch.split(flat, CHUNK):
        nonzero = int(torch.count_nonzero(part))
        zeros += part.numel() - nonzero
        found = torch.bincount(_exponents(part), minlength=256)
        found[0] -= part.numel() - nonzero
        counts += found.cpu()
    return Entries(zeros, counts.numpy().astype(np.int64))


def _exponents(values: Tensor) -> Tensor:
    """Return float32's exponent of each entry, 0 for zeros and what is below its normal range."""
    if values.dtype == torch.float64:
        exponents = (torch.frexp(values)[1] - 1 + BIAS).clamp(0, BROKEN - 1)
        exponents = torch.where(values == 0, 0, exponents)
        return torch.where(torch.isfinite(values), exponents, BROKEN)
    bits = values.float().contiguous().view(torch.int32)
    return (bits >> 23) & 255


class Counting(TorchDispatchMode):
    """Counts while a model runs and its loss goes back; a context manager around the forward pass.

    Args:
        layers: Name to module: those that are recorded.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outputs: dict[str, Entries] = {}
        """Layer to the entries of its output's gradient, filled by the backward pass."""
        self.broken: list[str] = []
        """Layers whose output is not finite, in the order in which they ran."""
        self._layers = layers
        self._alive: dict[tuple[str, int], Tensor] = {}
        self._behind: tuple[str, nn.Module] | None = None
        self._nth = 0
        self._handles: list[Any] = []

    def __enter__(self) -> Counting:
        """Place the hooks."""
        for name, module in self._layers.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks on modules; those on outputs stay for the backward pass."""
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    @property
    def units(self) -> dict[str, tuple[int, int]]:
        """Layer to (dead, all) units behind its activation functions."""
        found: dict[str, tuple[int, int]] = {}
        for (name, _), alive in self._alive.items():
            dead, total = found.get(name, (0, 0))
            found[name] = dead + int((~alive).sum()), total + alive.numel()
        return found

    def _hook(self, name: str) -> Any:
        def ran(module: nn.Module, args: Any, output: Any) -> None:
            self._behind, self._nth = (name, module), 0
            for tensor in output_tensors(output):
                if name not in self.broken and not bool(torch.isfinite(tensor).all()):
                    self.broken.append(name)
                if tensor.requires_grad:
                    tensor.register_hook(lambda grad: self._count(name, grad))  # type: ignore[no-untyped-call]

        return ran

    def _count(self, name: str, grad: Tensor) -> None:
        self.outputs[name] = self.outputs.get(name, Entries()) + count_entries(grad)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and look at what an activation function puts out."""
        output = func(*args, **(kwargs or {}))
        if func._schema.name in SWITCHES and self._behind is not None and isinstance(output, Tensor):
            self._look(*self._behind, output)
        return output

    def _look(self, name: str, module: nn.Module, output: Tensor) -> None:
        if output.dim() < 2:
            return
        axis = unit_axis(module, output)
        alive = (output != 0).any(dim=[i for i in range(output.dim()) if i != axis])
        key = name, self._nth
        self._nth += 1
        before = self._alive.get(key)
        self._alive[key] = alive if before is None or before.shape != alive.shape else before | alive


def unit_axis(module: nn.Module, output: Tensor) -> int:
    """Return which axis of what follows a layer counts its units: its channels, or the last one of linear layers."""
    channels = getattr(module, "out_channels", getattr(module, "out_features", None))
    last = output.dim() - 1
    order = (last, 1) if hasattr(module, "out_features") else (1, last)
    return next((axis for axis in order if output.shape[axis] == channels), 1 if output.dim() != 3 else last)
