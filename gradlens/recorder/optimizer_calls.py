"""The calls of the optimizers: before their steps, at closures and after, whether or not something wraps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradlens.recorder.hooks.optimizer_steps import place_step_hooks, place_wrapper_hooks


class OptimizerCalls:
    """Tells when an optimizer is about to step, when a closure returns, and when the step is over.

    The step of an optimizer in a wrapper is over when that of the wrapper is, which may change the weights once more.

    Args:
        optimizers: The optimizers.
        wrappers: Optimizers that call the step of another one in their own, each with the index of that.
        before: Is called with the index of an optimizer and the scale that its gradients carry.
        closure: Is called with the index when a closure returns.
        after: Is called with the index.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        wrappers: Sequence[tuple[int, Optimizer]],
        *,
        before: Callable[[int, Tensor | None], None],
        closure: Callable[[int], None],
        after: Callable[[int], None],
    ) -> None:
        self._optimizers, self._wrappers = optimizers, wrappers
        self._before, self._closure, self._after = before, closure, after
        self._inside: set[int] = set()
        """Optimizers whose wrapper is in its step."""
        self._waiting: set[int] = set()
        """Optimizers that have stepped while their wrapper goes on."""
        self._handles: list[Any] = []
        self._before_hooks: list[tuple[Optimizer, Any]] = []

    def place(self) -> None:
        """Place the hooks."""
        self._handles = place_step_hooks(self._optimizers, self._on_step, self._on_closure, self._on_stepped)
        self._before_hooks = [
            (optimizer, handle)
            for optimizer, handle in zip(self._optimizers, self._handles[::2], strict=True)
            if isinstance(optimizer, Optimizer)
        ]
        self._handles += place_wrapper_hooks(self._wrappers, self._on_wrapper)

    def come_last(self) -> None:
        """Have the hooks before a step called after those placed since by the user, which may change gradients."""
        for optimizer, handle in self._before_hooks:
            hooks: Any = optimizer._optimizer_step_pre_hooks
            if next(reversed(hooks), None) != handle.id and handle.id in hooks:
                hooks.move_to_end(handle.id)

    def remove(self) -> None:
        """Remove the hooks."""
        self._before_hooks = []
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _on_step(self, k: int, optimizer: Optimizer) -> None:
        self._end_waiting(k)
        self._before(k, getattr(optimizer, "grad_scale", None))

    def _on_closure(self, k: int) -> None:
        self._end_waiting(k)
        self._closure(k)

    def _end_waiting(self, k: int) -> None:
        """End a step whose wrapper failed after it."""
        if k in self._waiting:
            self._waiting.discard(k)
            self._after(k)

    def _on_stepped(self, k: int) -> None:
        if k in self._inside:
            self._waiting.add(k)
        else:
            self._after(k)

    def _on_wrapper(self, k: int, begins: bool) -> None:
        if begins:
            self._inside.add(k)
            return
        self._inside.discard(k)
        if k in self._waiting:
            self._waiting.discard(k)
            self._on_stepped(k)
