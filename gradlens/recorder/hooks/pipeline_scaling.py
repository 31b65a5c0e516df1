"""Notice that a pipeline's schedule divides the gradients of a stage by its number of micro-batches.

``torch.distributed.pipelining`` runs a backward pass for each micro-batch with that one's own mean loss, and divides
the parameters' gradients at the end (``scale_grads=True``). Gradients of outputs must be divided by the same number,
and the division must not look like clipping.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

MODULE = "torch.distributed.pipelining.stage"
_watches: weakref.WeakSet[PipelineWatch] = weakref.WeakSet()


class PipelineWatch:
    """Observes the stages of pipelines that run a model.

    Args:
        model: The model, which is a stage or part of one.
        on_scaled: Called with the number by which gradients were divided.
    """

    def __init__(self, model: nn.Module, on_scaled: Callable[[float], None]) -> None:
        self._model, self._on_scaled = model, on_scaled

    def put(self) -> None:
        """Begin to observe, if the program uses pipelines."""
        base = _stage_class()
        if base is None:
            return
        if not _watches:
            base.scale_grads = _observed(base.scale_grads)
        _watches.add(self)

    def remove(self) -> None:
        """Observe no more."""
        _watches.discard(self)
        base = _stage_class()
        if base is not None and not _watches and hasattr(base.scale_grads, "__wrapped__"):
            base.scale_grads = base.scale_grads.__wrapped__

    def see(self, stage: Any, factor: float) -> None:
        """Handle a division of the gradients of a stage."""
        stages, mine = list(stage.submod.modules()), list(self._model.modules())
        if any(each is self._model for each in stages) or any(each is stage.submod for each in mine):
            self._on_scaled(float(factor))


def _stage_class() -> Any:
    return getattr(sys.modules.get(MODULE), "_PipelineStageBase", None)


def _observed(usual: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(usual)
    def scale_grads(stage: Any, grad_scale_factor: int, *more: Any, **options: Any) -> None:
        usual(stage, grad_scale_factor, *more, **options)
        if grad_scale_factor != 1:
            for watch in list(_watches):
                watch.see(stage, grad_scale_factor)

    return scale_grads
