"""Notice what a pipeline's schedule does with gradients: it divides them, and may compute them in two passes.

``torch.distributed.pipelining`` runs a backward pass for each micro-batch with that one's own mean loss, and divides
the parameters' gradients at the end (``scale_grads=True``). Gradients of outputs must be divided by the same number,
and the division must not look like clipping. A model may hold several stages, each of which is divided on its own.
Schedules without bubbles compute the gradients of a stage's input in one pass, and those of its weights in another,
from which gradients of outputs cannot be read off.
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
        on_scaled: Called with the number by which gradients were divided, and the modules of the stage; None for the
            modules if they are all of the model.
        on_split: Called when the gradients of a stage's weights are computed in a pass of their own.
    """

    def __init__(
        self,
        model: nn.Module,
        on_scaled: Callable[[float, set[nn.Module] | None], None],
        on_split: Callable[[], None],
    ) -> None:
        self._model, self._on_scaled, self._on_split = model, on_scaled, on_split

    def put(self) -> None:
        """Begin to observe, if the program uses pipelines."""
        base = _stage_class()
        if base is None:
            return
        if not _watches:
            for name, observed in OBSERVED.items():
                setattr(base, name, observed(getattr(base, name)))
        _watches.add(self)

    def remove(self) -> None:
        """Observe no more."""
        _watches.discard(self)
        base = _stage_class()
        for name in OBSERVED if base is not None and not _watches else ():
            usual = getattr(getattr(base, name), "__wrapped__", None)
            if usual is not None:
                setattr(base, name, usual)

    def see(self, stage: Any, factor: float) -> None:
        """Handle a division of the gradients of a stage."""
        stages, mine = set(stage.submod.modules()), set(self._model.modules())
        if self._model in stages:
            self._on_scaled(float(factor), None)
        elif stage.submod in mine:
            self._on_scaled(float(factor), stages)

    def see_split(self, stage: Any) -> None:
        """Handle a pass for the weights of a stage alone."""
        if self._model in stage.submod.modules() or stage.submod in self._model.modules():
            self._on_split()


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


def _observed_weights(usual: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(usual)
    def backward_weight_one_chunk(stage: Any, *more: Any, **options: Any) -> None:
        for watch in list(_watches):
            watch.see_split(stage)
        usual(stage, *more, **options)

    return backward_weight_one_chunk


OBSERVED = {"scale_grads": _observed, "backward_weight_one_chunk": _observed_weights}
"""Methods of a stage, and what is put in their place."""
