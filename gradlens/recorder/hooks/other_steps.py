"""Count the steps of optimizers that were not given and change the model's parameters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gradlens.recorder.hooks.compiled import outside_graphs


class OtherSteps:
    """Counts steps of other optimizers from one row to the next, in steps of many backward passes only.

    It uses torch's hook for the steps of all optimizers, which is in place only while it counts.

    Args:
        model: The model.
        known: The optimizers that are followed, and their wrappers.
    """

    def __init__(self, model: nn.Module, known: Sequence[Any]) -> None:
        self._model, self._known = model, known
        self._handle: Any = None
        self._held: Collection[int] = ()
        self.count = 0
        """Steps counted since the last row."""
        self.name = ""
        """Class of the optimizer that stepped last."""

    def begin(self) -> None:
        """Begin to count, unless it does already."""
        if self._handle is None:
            given = {id(p) for one in self._known for group in one.param_groups for p in group["params"]}
            self._held = given or {id(parameter) for parameter in self._model.parameters()}
            self._handle = register_optimizer_step_pre_hook(outside_graphs(self._note))

    def end(self) -> None:
        """Stop counting, and forget what was counted."""
        self.count = 0
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _note(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if any(optimizer is one for one in self._known):
            return
        if any(id(p) in self._held for group in optimizer.param_groups for p in group["params"]):
            self.count += 1
            self.name = type(optimizer).__name__
