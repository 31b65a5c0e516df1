"""Notice what a pipeline's schedule does with gradients: it divides them, and may compute them in two passes.

``torch.distributed.pipelining`` runs a backward pass for each micro-batch with that one's own mean loss, and divides
the parameters' gradients at the end (``scale_grads=True``). Gradients of outputs must be divided by the same number,
and the division must not look like clipping. A model may hold several stages, each of which is divided on its own.
Schedules without bubbles compute the gradients of a stage's input in one pass, and those of its weights in another,
from which gradients of outputs cannot be read off. Before its first step a stage tries out its model on numbers of no
meaning, to learn the shapes of its outputs; nothing of this is recorded.
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
_trials: list[Any] = []
"""Stages that try out their models at this moment."""


class PipelineWatch:
    """Observes the stages of pipelines that run a model.

    Args:
        model: The model, which is a stage or part of one.
        on_scaled: Called with the number by which gradients were divided, and the modules of the stage; None for the
            modules if they are all of the model.
        on_split: Called when the gradients of a stage's weights are computed in a pass of their own.
        on_trial: Called with True when a stage begins to try out its model, and with False when that ends.
    """

    def __init__(
        self,
        model: nn.Module,
        on_scaled: Callable[[float, set[nn.Module] | None], None],
        on_split: Callable[[], None],
        on_trial: Callable[[bool], None],
    ) -> None:
        self._model, self._on_scaled, self._on_split, self._on_trial = model, on_scaled, on_split, on_trial

    def put(self) -> None:
        """Begin to observe, if the program uses pipelines."""
        found = _observed_methods()
        if not found:
            return
        if not _watches:
            for owner, name, observed in found:
                setattr(owner, name, observed(getattr(owner, name)))
        _watches.add(self)

    def remove(self) -> None:
        """Observe no more."""
        _watches.discard(self)
        for owner, name, _ in () if _watches else _observed_methods():
            usual = getattr(getattr(owner, name), "__wrapped__", None)
            if usual is not None:
                setattr(owner, name, usual)

    def see(self, stage: Any, factor: float) -> None:
        """Handle a division of the gradients of a stage."""
        stages, mine = set(stage.submod.modules()), set(self._model.modules())
        if self._model in stages:
            self._on_scaled(float(factor), None)
        elif stage.submod in mine:
            self._on_scaled(float(factor), stages)

    def see_split(self, stage: Any) -> None:
        """Handle a pass for the weights of a stage alone."""
        if self._is_of(stage):
            self._on_split()

    def see_trial(self, stage: Any, *, begins: bool) -> None:
        """Handle the beginning or the end of a trial of a stage's model."""
        if self._is_of(stage):
            self._on_trial(begins)

    def _is_of(self, stage: Any) -> bool:
        return self._model in stage.submod.modules() or stage.submod in self._model.modules()


def is_trial() -> bool:
    """Return whether a stage of a pipeline tries out its model at this moment."""
    return bool(_trials)


def _observed_methods() -> list[tuple[type, str, Callable[[Any], Any]]]:
    """Return those methods of stages that this version of torch has, each with its class; none without pipelines."""
    module = sys.modules.get(MODULE)
    owners = [(getattr(module, owner, None), name, observed) for owner, name, observed in OBSERVED]
    return [(owner, name, observed) for owner, name, observed in owners if owner is not None and name in vars(owner)]


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


def _observed_trial(usual: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(usual)
    def try_out(stage: Any, *more: Any, **options: Any) -> Any:
        watches = list(_watches)
        for watch in watches:
            watch.see_trial(stage, begins=True)
        _trials.append(stage)
        try:
            return usual(stage, *more, **options)
        finally:
            _trials.pop()
            for watch in watches:
                watch.see_trial(stage, begins=False)

    return try_out


OBSERVED = (
    ("_PipelineStageBase", "scale_grads", _observed),
    ("_PipelineStageBase", "backward_weight_one_chunk", _observed_weights),
    ("PipelineStage", "_shape_inference", _observed_trial),
    ("PipelineStage", "_forward_metadata_inference", _observed_trial),
    ("PipelineStage", "_backward_metadata_inference", _observed_trial),
)
"""Methods of stages, and what is put in their place."""
