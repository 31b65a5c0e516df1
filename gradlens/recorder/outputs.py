"""The gradients of layers' outputs."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gradlens.recorder.norms import SMALL, Reducer, exact_norm, list_norms, local_part, norm
from gradlens.recorder.row import Indices, Part

MOST_PLACES = 64


class OutputGradients:
    """Takes gradients while backward passes run.

    Small ones are kept until the pass is over, and reduced together; of large ones the norm is taken at once, so that
    no more than 64 kB is kept alive for each call of a layer.

    Args:
        n_layers: L.
    """

    def __init__(self, n_layers: int) -> None:
        self.armed = False
        """Whether the step in progress is recorded."""
        self.kept: list[list[Tensor]] = [[] for _ in range(n_layers)]
        """(L,) small gradients of each layer; autograd itself appends to these lists."""
        self.count = 0
        """Gradients taken in the step in progress."""
        self.seconds = 0.0
        """Time that the large ones took."""
        self.parts: list[Part] = []
        """What was reduced in the step in progress."""
        self._large: list[tuple[int, float]] = []
        self._large_on_device: list[tuple[int, Tensor]] = []
        self._expected = [1.0] * n_layers
        self._reducer = Reducer()
        self._places: dict[tuple[int, ...], Indices] = {}

    def clear(self) -> None:
        """Forget the step in progress."""
        self.drop_pending()
        self.parts = []
        self.count, self.seconds = 0, 0.0

    def drop_pending(self) -> None:
        """Forget what was taken and is not reduced yet."""
        for grads in self.kept:
            grads.clear()
        self._large.clear()
        self._large_on_device.clear()

    @property
    def pending(self) -> bool:
        """Whether anything was taken and is not reduced yet."""
        return any(self.kept) or bool(self._large) or bool(self._large_on_device)

    def take(self, layer: int, grad: Tensor) -> None:
        """Take the gradient of one output of a layer."""
        if type(grad) is not Tensor:
            grad = local_part(grad)
        if grad.numel() <= SMALL:
            self.kept[layer].append(grad)
        elif grad.is_cpu:
            started = time.perf_counter()
            found = self._expected[layer] = norm(grad, self._expected[layer])
            self._large.append((layer, found))
            self.seconds += time.perf_counter() - started
        else:
            self._large_on_device.append((layer, exact_norm(grad)))

    def collect(self, scale: Tensor | None) -> None:
        """Reduce what was taken.

        Args:
            scale: The loss scale that the gradients carry.
        """
        small: list[int] = []
        grads: list[Tensor] = []
        for layer, mine in enumerate(self.kept):
            if mine:
                small += [layer] * len(mine)
                grads += mine
                mine.clear()
        if grads:
            key = tuple(small)
            self._add(key, list_norms(grads, self._reducer, key), scale)
        if self._large:
            layers, norms = zip(*self._large, strict=True)
            self._large.clear()
            self._add(layers, np.array(norms), scale)
        if self._large_on_device:
            layers, tensors = zip(*self._large_on_device, strict=True)
            self._large_on_device.clear()
            for device in {tensor.device for tensor in tensors}:
                here = [i for i, tensor in enumerate(tensors) if tensor.device == device]
                self._add([layers[i] for i in here], torch.stack([tensors[i] for i in here]), scale)

    def collect_apart(self, scale: Tensor | None) -> list[Part]:
        """Reduce what was taken, and return it instead of adding it to ``parts``.

        Args:
            scale: As in ``collect``.
        """
        parts, self.parts = self.parts, []
        self.collect(scale)
        apart, self.parts = self.parts, parts
        return apart

    def _add(self, layers: Sequence[int], values: Tensor | np.ndarray, scale: Tensor | None) -> None:
        key = tuple(layers)
        places = self._places.get(key)
        if places is None:
            if len(self._places) > MOST_PLACES:
                self._places.clear()
            places = self._places[key] = np.array(key)
        self.count += len(key)
        self.parts.append(Part(places, values, None, scale))
