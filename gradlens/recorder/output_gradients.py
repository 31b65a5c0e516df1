"""Gradients of the outputs of layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradlens.recorder.measured_row import Indices, Part
from gradlens.recorder.norms import (
    NORMAL,
    Numbers,
    Reducer,
    exact_norm,
    list_norms,
    local_part,
    norm,
    norms_of_blocks,
    quick_blocks,
)

KEPT = 1 << 19
"""Largest number of elements (2 MB in float32) of a gradient that is kept until the backward pass ends. A call among
the operations of the model costs ten times one among similar calls; kept gradients use memory that the pass has freed.
"""
MOST_PLACES = 64


class OutputGradients:
    """Collects gradients during backward passes.

    Small gradients are kept until the pass ends, and their norms are computed together. The norm of a large gradient is
    computed at once.

    Args:
        n_layers: L.
        takes: Returns whether the gradient of a layer's output can be counted; called with those of a subclass of
            Tensor.
    """

    def __init__(self, n_layers: int, takes: Callable[[int, Tensor], bool] | None = None) -> None:
        self._takes = takes
        self.armed = False
        """Whether the step in progress is recorded."""
        self.kept: list[list[Tensor]] = [[] for _ in range(n_layers)]
        """(L,) lists of gradients; autograd appends to them directly."""
        self.count = 0
        """Number of gradients taken in the step in progress."""
        self.seconds = 0.0
        """Time spent on large gradients."""
        self._blocks: list[tuple[int, NDArray[np.float32]]] = []
        self._leaves: dict[int, Any] = {}
        self._large: list[tuple[int, float]] = []
        self._large_on_device: list[tuple[int, Tensor]] = []
        self._expected = [1.0] * n_layers
        self._reducer = Reducer()
        self._places: dict[tuple[int, ...], Indices] = {}

    def clear(self) -> None:
        """Forget the step in progress."""
        self.drop_pending()
        for handle in self._leaves.values():
            handle.remove()
        self._leaves.clear()
        self.count, self.seconds = 0, 0.0

    def drop_pending(self) -> None:
        """Drop gradients whose norms are not computed yet."""
        for grads in self.kept:
            grads.clear()
        self._blocks.clear()
        self._large.clear()
        self._large_on_device.clear()

    @property
    def pending(self) -> int:
        """Number of gradients taken whose norms are not collected yet."""
        return sum(map(len, self.kept)) + len(self._blocks) + len(self._large) + len(self._large_on_device)

    def attach_to_leaf(self, leaf: Tensor, on_grad: Callable[[Tensor], None]) -> None:
        """Attach a hook to an output that no operation made, such as a parameter, until the end of the step.

        A parameter outlives the step, so its hooks must be removed, or each step would add one more.
        """
        if id(leaf) not in self._leaves:
            self._leaves[id(leaf)] = leaf.register_hook(on_grad)  # type: ignore[no-untyped-call]

    def take(self, layer: int, grad: Tensor) -> None:
        """Take the gradient of one output of a layer."""
        if type(grad) is not Tensor:
            if self._takes is not None and not self._takes(layer, grad):
                return
            grad = local_part(grad)
        if grad.numel() <= KEPT:
            self.kept[layer].append(grad)
        elif grad.is_cpu:
            started = time.perf_counter()
            self._take_large(layer, grad.detach())
            self.seconds += time.perf_counter() - started
        else:
            self._large_on_device.append((layer, exact_norm(grad)))

    def _take_large(self, layer: int, grad: Tensor) -> None:
        blocks = quick_blocks(grad) if NORMAL[0] < self._expected[layer] < NORMAL[1] else None
        if blocks is not None:
            self._blocks.append((layer, blocks))
            return
        found = self._expected[layer] = norm(grad, self._expected[layer])
        self._large.append((layer, found))

    def take_kept(self) -> tuple[tuple[int, ...], list[Tensor]]:
        """Return the layers (n,) and the gradients (n,) that are kept, and empty the lists."""
        layers: list[int] = []
        grads: list[Tensor] = []
        for layer, mine in enumerate(self.kept):
            if mine:
                layers += [layer] * len(mine)
                grads += mine
                mine.clear()
        return tuple(layers), grads

    def collect(self, scale: Tensor | None) -> list[Part]:
        """Compute the norms of the gradients taken since the last call.

        Args:
            scale: The loss scale that the gradients carry.

        Returns:
            Their norms as parts of a row.
        """
        layers, grads = self.take_kept()
        found = [self.make_part(layers, list_norms(grads, self._reducer, layers), scale)] if grads else []
        return found + self.collect_reduced(scale)

    def collect_reduced(self, scale: Tensor | None) -> list[Part]:
        """Return the norms of large gradients as parts of a row.

        Args:
            scale: As in ``collect``.
        """
        found: list[Part] = []
        if self._blocks:
            layers, blocks = zip(*self._blocks, strict=True)
            self._blocks.clear()
            found.append(self.make_part(layers, norms_of_blocks(blocks), scale))
        if self._large:
            layers, norms = zip(*self._large, strict=True)
            self._large.clear()
            found.append(self.make_part(layers, np.array(norms), scale))
        if self._large_on_device:
            layers, tensors = zip(*self._large_on_device, strict=True)
            self._large_on_device.clear()
            for device in {tensor.device for tensor in tensors}:
                here = [i for i, tensor in enumerate(tensors) if tensor.device == device]
                stacked = torch.stack([tensors[i] for i in here])
                found.append(self.make_part([layers[i] for i in here], stacked, scale))
        return found

    def make_part(self, layers: Sequence[int], values: Numbers, scale: Tensor | None) -> Part:
        """Return norms as a part of a row.

        Args:
            layers: (n,) index of the layer of each norm.
            values: (n,) norms.
            scale: As in ``collect``.
        """
        key = tuple(layers)
        places = self._places.get(key)
        if places is None:
            if len(self._places) > MOST_PLACES:
                self._places.clear()
            places = self._places[key] = np.array(key)
        self.count += len(key)
        return Part(places, values, None, scale)
