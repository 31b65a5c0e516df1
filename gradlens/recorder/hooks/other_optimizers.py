"""Optimizers that are none of torch's (fastai's, TorchOpt's, home-made ones): anything that steps its parameters.

They have no hooks. ``step`` of the object itself is replaced while there are hooks, by a function that calls them
before and after it, as torch does for its own optimizers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

RATES = ("lr", "learning_rate")
"""Attributes of a home-made optimizer that hold its learning rate."""


class OtherOptimizer:
    """What the recorder needs of an optimizer, for an object that has a ``step`` and holds parameters.

    Args:
        optimizer: The object.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self._before: dict[int, Callable[..., Any]] = {}
        self._after: dict[int, Callable[..., Any]] = {}
        self._count = 0
        self._own_step: Any = None
        """What the object itself had as ``step``; None if it has that of its class."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameters, grouped as torch does; without a learning rate where none is known."""
        return find_groups(self.optimizer)

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> Handle:
        """Call a function before each step.

        Returns:
            What removes it again.
        """
        return self._add(self._before, hook)

    def register_step_post_hook(self, hook: Callable[..., Any]) -> Handle:
        """Call a function after each step.

        Returns:
            What removes it again.
        """
        return self._add(self._after, hook)

    def _add(self, hooks: dict[int, Callable[..., Any]], hook: Callable[..., Any]) -> Handle:
        if not (self._before or self._after):
            self._put()
        self._count += 1
        hooks[self._count] = hook
        return Handle(self, hooks, self._count)

    def _put(self) -> None:
        self._own_step = vars(self.optimizer).get("step")
        step = self.optimizer.step

        @functools.wraps(step)
        def stepped(*args: Any, **kwargs: Any) -> Any:
            args = (self.optimizer, *args)
            for hook in list(self._before.values()):
                changed = hook(self.optimizer, args, kwargs)
                args, kwargs = (args, kwargs) if changed is None else changed
            result = step(*args[1:], **kwargs)
            for hook in list(self._after.values()):
                hook(self.optimizer, args, kwargs)
            return result

        self.optimizer.step = stepped

    def put_back(self) -> None:
        """Give the object its own ``step`` again, if no hook is left."""
        if self._before or self._after:
            return
        if self._own_step is None:
            vars(self.optimizer).pop("step", None)
        else:
            self.optimizer.step = self._own_step


class Handle:
    """Removes a hook.

    Args:
        owner: What has it.
        hooks: Where it is.
        key: Its key there.
    """

    def __init__(self, owner: OtherOptimizer, hooks: dict[int, Callable[..., Any]], key: int) -> None:
        self._owner, self._hooks, self._key = owner, hooks, key

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        if self._hooks.pop(self._key, None) is not None:
            self._owner.put_back()


def follow(optimizer: Any) -> OtherOptimizer | None:
    """Return what can be followed of an object that is no optimizer of torch.

    Returns:
        An object of a class with the same name; None if there is no ``step`` that can be replaced, or no parameter.
    """
    if not callable(getattr(optimizer, "step", None)) or not hasattr(optimizer, "__dict__"):
        return None
    if isinstance(optimizer, nn.Module | type) or not any(group["params"] for group in find_groups(optimizer)):
        return None
    kind: type[OtherOptimizer] = type(type(optimizer).__name__, (OtherOptimizer,), {})
    return kind(optimizer)


def find_groups(optimizer: Any) -> list[dict[str, Any]]:
    """Return the parameters that an object holds, as groups: its ``param_groups``, or the tensors of its attributes."""
    given = getattr(optimizer, "param_groups", None)
    if isinstance(given, list | tuple) and given:
        if all(isinstance(group, Mapping) for group in given):
            return [{**group, "params": _tensors(group.get("params"))} for group in given]
        return [{"params": _tensors(group)} | _rate(optimizer) for group in given]
    held = {id(p): p for value in vars(optimizer).values() for p in _tensors(value)}
    return [{"params": list(held.values())} | _rate(optimizer)]


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors that can be trained in a value: it, its entries, or those of groups in it."""
    if isinstance(value, Tensor):
        return [value] if value.requires_grad and value.is_leaf else []
    if isinstance(value, Mapping):
        value = value.values()
    if isinstance(value, list | tuple | set) or (isinstance(value, Iterable) and type(value).__name__ == "dict_values"):
        return [tensor for each in value for tensor in _tensors(each)]
    return []


def _rate(optimizer: Any) -> dict[str, float]:
    for name in RATES:
        rate = getattr(optimizer, name, None)
        if isinstance(rate, int | float) and not isinstance(rate, bool) and math.isfinite(rate):
            return {"lr": float(rate)}
    return {}
