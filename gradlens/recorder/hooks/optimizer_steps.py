"""The hooks on optimizers: before and after each step, and after a closure."""

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
        optimizers: The optimizers; the functions get the index of one.
        on_step: Called before a step without a closure.
        on_closure: Called in a step with a closure, when that has returned for the first time.
        on_stepped: Called after a step.

    Returns:
        Handles that remove the hooks.
    """
    handles: list[Any] = []
    for k, optimizer in enumerate(optimizers):
        handles.append(optimizer.register_step_pre_hook(_before(k, on_step, on_closure)))
        handles.append(optimizer.register_step_post_hook(_after(k, on_stepped)))
    return handles


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


def _before(k: int, on_step: Callable[[int, Optimizer], None], on_closure: Callable[[int], None]) -> Callable[..., Any]:
    """Return the hook before a step; it wraps a closure, because the closure computes the gradients."""

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
