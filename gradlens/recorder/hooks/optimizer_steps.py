"""The hooks on optimizers: before and after each step, and in the closure of one that has one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

from gradlens.recorder.hooks.compiled import outside_graphs


def place_step_hooks(
    optimizers: Sequence[Optimizer],
    on_step: Callable[[int, Optimizer], None],
    on_closure: Callable[[int], None],
    on_stepped: Callable[[int], None],
) -> list[Any]:
    """Place hooks on optimizers.

    Args:
        optimizers: Their index is what the others are told.
        on_step: Called before a step; with a closure, only ``on_closure`` is.
        on_closure: Called in a step when its closure has returned for the first time.
        on_stepped: Called after a step.

    Returns:
        Handles to remove the hooks.
    """
    handles: list[Any] = []
    for k, optimizer in enumerate(optimizers):
        handles.append(optimizer.register_step_pre_hook(_before(k, on_step, on_closure)))
        handles.append(optimizer.register_step_post_hook(_after(k, on_stepped)))
    return handles


def _before(k: int, on_step: Callable[[int, Optimizer], None], on_closure: Callable[[int], None]) -> Callable[..., Any]:
    """Return what an optimizer calls before its step; a closure is wrapped, since it computes the gradient."""

    @outside_graphs
    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        closure = next((value for value in (*args[1:], *kwargs.values()) if callable(value)), None)
        if closure is None:
            on_step(k, optimizer)
            return None
        watched = _watch(closure, k, on_closure)
        args = tuple(watched if value is closure else value for value in args)
        return args, {name: watched if value is closure else value for name, value in kwargs.items()}

    return before


def _watch(closure: Callable[[], Any], k: int, on_closure: Callable[[int], None]) -> Callable[[], Any]:
    first = True

    def watched() -> Any:
        nonlocal first
        result = closure()
        if first:
            first = False
            on_closure(k)
        return result

    return watched


def _after(k: int, on_stepped: Callable[[int], None]) -> Callable[..., None]:
    @outside_graphs
    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        on_stepped(k)

    return after
