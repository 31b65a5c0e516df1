"""Hooks that count the sizes of gradient entries, dead units, and outputs that are not finite, in one pass."""

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
"""Elements counted at a time; bounds the memory."""
ZERO_ACTIVATIONS = frozenset(
    f"aten::{name}{inplace}"
    for name in ("relu", "hardtanh", "hardswish", "threshold", "hardshrink", "softshrink", "relu6")
    for inplace in ("", "_")
)
"""Names in ATen of the activation functions whose output is exactly 0 for a range of inputs."""


def count_entries(grad: Tensor) -> Entries:
    """Count a gradient's entries by their exponents.

    Args:
        grad: A gradient of any shape and layout. Real and imaginary parts of complex entries are counted separately;
            missing entries of a sparse gradient count as zeros.

    Returns:
        The counts.
    """
    grad = grad.detach()
    if grad.layout is not torch.strided:
        values = grad.coalesce().values() if grad.is_sparse else grad.to_dense()
        stored = count_entries(values)
        return Entries(stored.zeros + grad.numel() - values.numel(), stored.exponents)
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
    """Return the float32 exponent of each entry; 0 for zeros and subnormal numbers."""
    if values.dtype == torch.float64:
        exponents = (torch.frexp(values)[1] - 1 + BIAS).clamp(0, BROKEN - 1)
        exponents = torch.where(values == 0, 0, exponents)
        return torch.where(torch.isfinite(values), exponents, BROKEN)
    bits = values.float().contiguous().view(torch.int32)
    return (bits >> 23) & 255


class Counting(TorchDispatchMode):
    """Count in the forward and backward pass of a model; a context manager around the forward pass.

    Args:
        layers: Name to module of the recorded layers.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outputs: dict[str, Entries] = {}
        """Layer to the entries of its output's gradient; filled in the backward pass."""
        self.broken: list[str] = []
        """Layers whose output is not finite, in order of execution."""
        self._layers = layers
        self._alive: dict[tuple[str, int], Tensor] = {}
        """Layer and number of the activation function after it, to which units were not always 0."""
        self._last_layer: tuple[str, nn.Module] | None = None
        self._activations_since = 0
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
        """Remove the hooks on modules; the hooks on outputs remain for the backward pass."""
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    @property
    def units(self) -> dict[str, tuple[int, int]]:
        """Layer to (dead, all) units after its activation functions."""
        found: dict[str, tuple[int, int]] = {}
        for (name, _), alive in self._alive.items():
            dead, total = found.get(name, (0, 0))
            found[name] = dead + int((~alive).sum()), total + alive.numel()
        return found

    def _hook(self, name: str) -> Any:
        def ran(module: nn.Module, args: Any, output: Any) -> None:
            self._last_layer, self._activations_since = (name, module), 0
            for tensor in output_tensors(output):
                if name not in self.broken and not bool(torch.isfinite(tensor).all()):
                    self.broken.append(name)
                if tensor.requires_grad:
                    tensor.register_hook(lambda grad: self._count(name, grad))  # type: ignore[no-untyped-call]

        return ran

    def _count(self, name: str, grad: Tensor) -> None:
        self.outputs[name] = self.outputs.get(name, Entries()) + count_entries(grad)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and examine the output of activation functions."""
        output = func(*args, **(kwargs or {}))
        if func._schema.name in ZERO_ACTIVATIONS and self._last_layer is not None and isinstance(output, Tensor):
            self._examine(*self._last_layer, output)
        return output

    def _examine(self, name: str, module: nn.Module, output: Tensor) -> None:
        if output.dim() < 2:
            return
        axis = unit_axis(module, output)
        alive = (output != 0).any(dim=[i for i in range(output.dim()) if i != axis])
        key = name, self._activations_since
        self._activations_since += 1
        before = self._alive.get(key)
        self._alive[key] = alive if before is None or before.shape != alive.shape else before | alive


def unit_axis(module: nn.Module, output: Tensor) -> int:
    """Return the axis of the units in an activation function's output after a layer.

    Args:
        module: The layer before the activation function.
        output: The activation function's output.

    Returns:
        The axis of the channels, or the last axis after linear layers.
    """
    channels = getattr(module, "out_channels", getattr(module, "out_features", None))
    last = output.dim() - 1
    order = (last, 1) if hasattr(module, "out_features") else (1, last)
    return next((axis for axis in order if output.shape[axis] == channels), 1 if output.dim() != 3 else last)
