"""Optimizers that are none of torch's (fastai's, TorchOpt's, home-made ones): anything that steps its parameters.

They have no hooks. ``step`` of the object itself is replaced while there are hooks, by a function that calls them
before and after it, as torch does for its own optimizers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

DEPTH = 4
"""Levels of collections in which parameters are looked for."""
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
        self._found = [] if _has_groups(optimizer) else [{"params": find_parameters(optimizer)}]
        self._own_step: Any = None
        """What the object itself had as ``step``; None if it has that of its class."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameters, grouped as torch does; without a learning rate where none is known."""
        if self._found:
            return [each | _rate(self.optimizer) for each in self._found]
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
    if isinstance(optimizer, nn.Module | type):
        return None
    kind: type[OtherOptimizer] = type(type(optimizer).__name__, (OtherOptimizer,), {})
    followed = kind(optimizer)
    return followed if any(group["params"] for group in followed.param_groups) else None


def _has_groups(optimizer: Any) -> bool:
    given = getattr(optimizer, "param_groups", None)
    return isinstance(given, list | tuple) and len(given) > 0


def find_groups(optimizer: Any) -> list[dict[str, Any]]:
    """Return the ``param_groups`` of an object as torch has them; those of others may be collections of parameters."""
    return [
        {**group, "params": find_parameters(group.get("params"))}
        if isinstance(group, Mapping)
        else {"params": find_parameters(group)} | _rate(optimizer)
        for group in optimizer.param_groups
    ]


def find_parameters(holder: Any) -> list[Tensor]:
    """Return the tensors that can be trained in a collection, in nested ones, or in the attributes of an object."""
    values = holder if _is_collection(holder) else getattr(holder, "__dict__", {})
    return list({id(tensor): tensor for tensor in _tensors(values, DEPTH)}.values())


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.requires_grad and value.is_leaf:
            yield value
    elif depth and _is_collection(value):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each, depth - 1)


def _is_collection(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes) and not hasattr(value, "__array__")


def _rate(optimizer: Any) -> dict[str, float]:
    for name in RATES:
        rate = getattr(optimizer, name, None)
        if isinstance(rate, int | float) and not isinstance(rate, bool) and math.isfinite(rate):
            return {"lr": float(rate)}
    return {}
