"""When a backward pass is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gradlens.recorder.hooks.compiled import in_compiled_backward, outside_graphs


def in_backward() -> int:
    """Return the number of the backward pass that runs in this thread; -1 where none does."""
    return int(torch._C._current_graph_task_id())


class BackwardWatch:
    """Leaves word with autograd's engine to be called at the end of a backward pass.

    It hears of a pass by hooks on a few parameters, or from others (``begin``). Data-parallel wrappers finish their
    reduction in a callback at the end of the pass; a callback that queues another one comes after theirs.

    Args:
        on_begin: Called when it hears of a pass.
        on_end: Called at the end of each backward pass, gradients reduced between ranks included.
    """

    def __init__(self, on_begin: Callable[[], None], on_end: Callable[[], None]) -> None:
        self.unheard = False
        """Whether there were passes whose end is never heard of: compiled ones."""
        self.nested = False
        """Whether a pass began while another one ran, or after one that was broken off."""
        self._on_begin, self._on_end = on_begin, on_end
        self._parameters: list[Tensor] = []
        self._handles: list[Any] = []
        self._running = -1

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """Name the parameters to hear from: few, since torch goes on calling what was once there, at a small price."""
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
        self._running = -1

    def begin(self) -> None:
        """Hear that a backward pass runs in this thread."""
        if self._running != -1 and not self.broken_off:
            return
        if in_compiled_backward():
            self.unheard = True
            return
        self.nested |= self._running != -1
        engine = torch.autograd.Variable._execution_engine
        try:
            engine.queue_callback(lambda: engine.queue_callback(self._end))
        except RuntimeError:  # no pass runs here: a wrapper calls the hooks at a time of its own
            return
        self._running = in_backward()
        self._on_begin()

    @property
    def broken_off(self) -> bool:
        """Whether a backward pass began, and did not come to its end."""
        return self._running not in (-1, in_backward())

    def forget(self) -> None:
        """Forget a pass that was broken off."""
        self._running = -1

    @outside_graphs
    def _on_grad(self, parameter: Tensor) -> None:
        self.begin()

    @outside_graphs
    def _end(self) -> None:
        self._running = -1
        self._on_end()


def _place(parameter: Tensor, hook: Callable[[Tensor], None]) -> Any:
    place: Any = parameter.register_post_accumulate_grad_hook
    return place(hook)
