"""The gradients of layers' outputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradlens.recorder.norms import SMALL, Reducer, exact_norm, list_norms, local_part, norm
from gradlens.recorder.row import Part


class OutputGradients:
    """Takes gradients while a backward pass runs.

    Small ones are kept until it is over, and reduced together; of large ones the norm is taken at once, so that no more
    than 64 kB a layer is kept alive.
    """

    def __init__(self) -> None:
        self._reducer = Reducer()
        self.clear()

    def clear(self) -> None:
        """Forget all gradients."""
        self.parts: list[Part] = []
        self._small: list[Tensor] = []
        self._small_layers: list[int] = []
        self._large: list[tuple[int, float]] = []
        self._large_on_device: list[tuple[int, Tensor]] = []

    def take(self, layer: int, grad: Tensor) -> None:
        """Take the gradient of one output of a layer."""
        if type(grad) is not Tensor:
            grad = local_part(grad)
        if grad.numel() <= SMALL:
            self._small.append(grad)
            self._small_layers.append(layer)
        elif grad.is_cpu:
            self._large.append((layer, norm(grad)))
        else:
            self._large_on_device.append((layer, exact_norm(grad)))

    @torch.no_grad()
    def end_backward(self, scale: Tensor | None) -> None:
        """Reduce what was kept.

        Args:
            scale: The loss scale.
        """
        if self._small:
            layers = tuple(self._small_layers)
            self.parts.append(Part(np.array(layers), list_norms(self._small, self._reducer, layers), None, scale))
        if self._large:
            where, norms = zip(*self._large, strict=True)
            self.parts.append(Part(np.array(where), np.array(norms), None, scale))
        if self._large_on_device:
            places, tensors = zip(*self._large_on_device, strict=True)
            for device in {tensor.device for tensor in tensors}:
                here = [i for i, tensor in enumerate(tensors) if tensor.device == device]
                stacked = torch.stack([tensors[i] for i in here])
                self.parts.append(Part(np.array(places)[here], stacked, None, scale))
        self._small, self._small_layers, self._large, self._large_on_device = [], [], [], []
