"""When a backward pass is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def in_backward() -> int:
    """Return the number of the backward pass that runs in this thread; -1 where none does."""
    return int(torch._C._current_graph_task_id())


class BackwardWatch:
    """Hears from parameters that a backward pass runs, and leaves word with autograd's engine to be called at its end.

    Data-parallel wrappers finish their reduction in a callback at that moment; a callback that queues another one comes
    after theirs. A few parameters suffice: those that got the first and the last gradient of each pass while it
    learnt.

    Args:
        on_end: Called at the end of each backward pass, gradients reduced between ranks included.
    """

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end
        self._handles: dict[int, Any] = {}
        self._learning = True
        self._running = -1
        self._first = self._last = 0
        self._chosen: set[int] = set()

    def place(self, parameters: Iterable[Tensor]) -> None:
        """Place hooks on all parameters that can get a gradient."""
        for parameter in parameters:
            if parameter.requires_grad and parameter.is_leaf and id(parameter) not in self._handles:
                place: Any = parameter.register_post_accumulate_grad_hook
                self._handles[id(parameter)] = place(self._on_grad)

    def settle(self) -> None:
        """Keep the hooks of the parameters that suffice, and learn no more."""
        self._learning = False
        if not self._chosen:
            return
        for key in [key for key in self._handles if key not in self._chosen]:
            self._handles.pop(key).remove()

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._running = -1

    @property
    def broken_off(self) -> bool:
        """Whether a backward pass began, and did not come to its end."""
        return self._running not in (-1, in_backward())

    def forget(self) -> None:
        """Forget a pass that was broken off."""
        self._running = -1

    def _on_grad(self, parameter: Tensor) -> None:
        if self._running == -1 or self.broken_off:
            self._begin()
            self._first = id(parameter)
        self._last = id(parameter)

    def _begin(self) -> None:
        engine = torch.autograd.Variable._execution_engine
        try:
            engine.queue_callback(lambda: engine.queue_callback(self._end))
        except RuntimeError:  # no pass runs here: a wrapper calls the hooks at a time of its own
            return
        self._running = in_backward()

    def _end(self) -> None:
        self._running = -1
        if self._learning:
            self._chosen |= {self._first, self._last}
        self._on_end()
