"""Detect the beginning and the end of backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gradlens.recorder.hooks.compiled import in_compiled_backward, outside_graphs


def in_backward() -> int:
    """Return the number of the backward pass that runs in this thread; -1 for none."""
    return int(torch._C._current_graph_task_id())


class BackwardWatch:
    """Queues a callback with autograd's engine for the end of each backward pass.

    A pass is detected by hooks on a few parameters, or by a call of ``begin``. Data-parallel wrappers finish their
    reduction in a callback at the end of the pass. A callback that queues another one is called after theirs.

    Args:
        on_begin: Called when a pass is detected, with ``late``: whether parameters may have got gradients before.
        on_end: Called at the end of each pass, after gradients were reduced between ranks.
    """

    def __init__(self, on_begin: Callable[..., None], on_end: Callable[[], None]) -> None:
        self.missed_compiled_pass = False
        """Whether there were compiled passes, whose end is not detected."""
        self.nested = False
        """Whether a pass began during another one, or after one that failed."""
        self._on_begin, self._on_end = on_begin, on_end
        self._parameters: list[Tensor] = []
        self._handles: list[Any] = []
        self._running = -1

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """Choose the parameters with hooks: few, because torch keeps a small cost for each even after removal."""
        self.stop()
        self._parameters = [p for p in {id(p): p for p in parameters}.values() if p.requires_grad and p.is_leaf]

    def start(self) -> None:
        """Place the hooks."""
        if not self._handles:
            self._handles = [_place(parameter, self._on_grad) for parameter in self._parameters]

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.broken_off:
            self._running = -1

    def begin(self, *, late: bool = False) -> None:
        """Handle a backward pass that runs in this thread, if it is new.

        Args:
            late: Whether parameters may have got gradients in it before this call.
        """
        if self._running != -1 and not self.broken_off:
            return
        if in_compiled_backward():
            self.missed_compiled_pass = True
            return
        self.nested |= self._running != -1
        engine = torch.autograd.Variable._execution_engine
        try:
            engine.queue_callback(lambda: engine.queue_callback(self._end))
        except RuntimeError:  # no pass runs here: a wrapper calls the hooks at another time
            return
        self._running = in_backward()
        self._on_begin(late=late)

    @property
    def broken_off(self) -> bool:
        """Whether a backward pass began and did not reach its end."""
        return self._running not in (-1, in_backward())

    def forget(self) -> None:
        """Forget a pass that failed."""
        self._running = -1

    @outside_graphs
    def _on_grad(self, parameter: Tensor) -> None:
        self.begin(late=True)

    @outside_graphs
    def _end(self) -> None:
        self._running = -1
        self._on_end()


def _place(parameter: Tensor, hook: Callable[[Tensor], None]) -> Any:
    """Place a hook, also on a parameter that is frozen at this moment, as the discriminator while a generator steps."""
    place: Any = parameter.register_post_accumulate_grad_hook
    if parameter.requires_grad:
        return place(hook)
    parameter.requires_grad_(True)  # torch refuses the hook otherwise
    try:
        return place(hook)
    finally:
        parameter.requires_grad_(False)
