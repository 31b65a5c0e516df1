"""The hooks on optimizers: before and after each step, and after a closure.

Torch calls hooks in ``step`` of every class of which an optimizer was ever made. So where a class calls ``step`` of its
base class, they are called twice: those of the inner call are left out.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradlens.recorder.hooks.compiled import outside_graphs

AROUND_STEP = Optimizer.profile_hook_step.__code__.co_filename
"""The file of torch's function around ``step``."""


def place_step_hooks(
    optimizers: Sequence[Optimizer],
    on_step: Callable[[int, Optimizer], None],
    on_closure: Callable[[int], None],
    on_stepped: Callable[[int], None],
) -> list[Any]:
    """Place hooks on optimizers.

    Args:
        optimizers: The optimizers; the functions get the index of one.
        on_step: Called before a step without a closure.
        on_closure: Called in a step with a closure, when that has returned for the first time.
        on_stepped: Called after a step.

    Returns:
        Handles that remove the hooks: for each optimizer, of the one before and of the one after its step.
    """
    handles: list[Any] = []
    for k, optimizer in enumerate(optimizers):
        nesting = _Nesting()
        handles.append(optimizer.register_step_pre_hook(_before(k, on_step, on_closure, nesting)))
        handles.append(optimizer.register_step_post_hook(_after(k, on_stepped, nesting)))
    return handles


class _Nesting:
    """Tells the step of an optimizer from that of its base class within it."""

    def __init__(self) -> None:
        self._depth = 0

    def begin(self, optimizer: Optimizer) -> bool:
        """Return whether the step that begins is within another one."""
        if self._depth and not _is_stepping(optimizer):
            self._depth = 0  # that step failed
        self._depth += 1
        return self._depth > 1

    def end(self) -> bool:
        """Return whether the step that ends is within another one."""
        self._depth = max(self._depth - 1, 0)
        return self._depth > 0


def _is_stepping(optimizer: Optimizer) -> bool:
    """Return whether torch's function around ``step`` is called for an optimizer twice at this moment."""
    frame: FrameType | None = sys._getframe(1)
    found = 0
    while frame is not None and found < 2:
        if frame.f_code.co_filename == AROUND_STEP:
            found += frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return found > 1


def place_wrapper_hooks(
    wrappers: Sequence[tuple[int, Optimizer]], on_wrapper: Callable[[int, bool], None]
) -> list[Any]:
    """Place hooks on optimizers that call the step of another one in their own.

    Args:
        wrappers: The wrappers, each with the index of the optimizer inside.
        on_wrapper: Called with that index, and with whether the wrapper's step begins or ends.

    Returns:
        Handles that remove the hooks.
    """
    handles: list[Any] = []
    for k, wrapper in wrappers:
        handles.append(wrapper.register_step_pre_hook(outside_graphs(lambda *_, k=k: on_wrapper(k, True))))
        handles.append(wrapper.register_step_post_hook(outside_graphs(lambda *_, k=k: on_wrapper(k, False))))
    return handles


def _before(
    k: int, on_step: Callable[[int, Optimizer], None], on_closure: Callable[[int], None], nesting: _Nesting
) -> Callable[..., Any]:
    """Return the hook before a step; it wraps a closure, because the closure computes the gradients."""

    @outside_graphs
    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if nesting.begin(optimizer):
            return None
        closure = next((value for value in (*args[1:], *kwargs.values()) if _is_closure(value)), None)
        if closure is None:
            on_step(k, optimizer)
            return None
        watched = _watch(closure, k, on_closure)
        args = tuple(watched if value is closure else value for value in args)
        return args, {name: watched if value is closure else value for name, value in kwargs.items()}

    return before


def _is_closure(value: Any) -> bool:
    """Return whether an argument of ``step`` is a closure; some optimizers are given their model there."""
    return callable(value) and not isinstance(value, nn.Module | type)


def _watch(closure: Callable[..., Any], k: int, on_closure: Callable[[int], None]) -> Callable[..., Any]:
    first = True

    @functools.wraps(closure)
    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal first
        result = closure(*args, **kwargs)
        if first:
            first = False
            on_closure(k)
        return result

    return watched


def _after(k: int, on_stepped: Callable[[int], None], nesting: _Nesting) -> Callable[..., None]:
    @outside_graphs
    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not nesting.end():
            on_stepped(k)

    return after
