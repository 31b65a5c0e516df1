"""Where hooks are placed on the layers, and when they are placed and removed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from gradlens.recorder.hooks.layer_hooks import PLACE, ForwardHook, LayerHook, LearningHook, OnError
from gradlens.recorder.layers import Learned, takes_hooks
from gradlens.recorder.output_gradients import OutputGradients
from gradlens.recorder.ranks.distributed import Ranks


class LayerHooks:
    """The hooks of all layers, placed in recorded steps only.

    Args:
        modules: The layers.
        outputs: Receives the gradients.
        learned: What the first row shows about the layers.
        ranks: The processes that record together.
        on_error: Called with an error.
        on_pass: Called during a backward pass, by learning hooks, and by hooks of layers that come first in a pass.
        on_left_over: Called if gradients of an earlier backward pass are left.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        outputs: OutputGradients,
        learned: Learned,
        ranks: Ranks | None,
        on_error: OnError,
        *,
        on_pass: Callable[[], None],
        on_left_over: Callable[[], None],
    ) -> None:
        self._modules, self._outputs, self._learned, self._ranks = modules, outputs, learned, ranks
        self._on_error, self._on_pass, self._on_left_over = on_error, on_pass, on_left_over
        self._places: list[Place] = []
        self._placed = self._quick = False

    @property
    def are_quick(self) -> bool:
        """Whether the hooks placed are quick ones, which do not tell one pass from the next."""
        return self._placed and self._quick

    def put(self) -> None:
        """Place the hooks, if they are not placed."""
        if self._placed:
            return
        if not self._places:
            self._places = self._find_places()
        for place in self._places:
            place.put()
        self._placed = True

    def remove(self) -> None:
        """Remove the hooks, if they are placed."""
        if self._placed:
            for place in self._places:
                place.clear()
        self._placed = False

    def renew(self) -> None:
        """Remove the hooks; their kind and places are chosen again when they are placed next."""
        self.remove()
        self._places = []

    def _find_places(self) -> list[Place]:
        learned, outputs = self._learned, self._outputs
        self._quick = not (learned.open or learned.compiled or learned.stays_on)
        if not self._quick:
            return [
                ForwardPlace(
                    module,
                    LearningHook(layer, outputs, self._on_error, module=module, learned=learned, on_pass=self._on_pass),
                )
                for layer, module in enumerate(self._modules.values())
            ]
        directly = self._may_place_directly
        hooks = [
            LayerHook(
                layer,
                outputs,
                self._on_error,
                on_base=layer in learned.on_base,
                on_left_over=self._on_left_over,
                on_pass=self._on_pass if layer in learned.first_in_pass else None,
            )
            for layer in range(len(self._modules))
        ]
        modules = self._modules.values()
        return [find_place(module, hook, directly=directly) for module, hook in zip(modules, hooks, strict=True)]

    @property
    def _may_place_directly(self) -> bool:
        """Whether no copy of a layer can run instead of it: copies by ``nn.DataParallel`` would call the original."""
        alone = self._ranks is not None or torch.cuda.device_count() <= 1
        return alone and not self._learned.replicated


class Place(Protocol):
    """A place where a hook can be placed and removed, row by row."""

    def put(self) -> None:
        """Place the hook."""

    def clear(self) -> None:
        """Remove the hook."""


class ForwardPlace:
    """A place among the forward hooks of a module.

    Args:
        module: The module.
        hook: Its hook.
    """

    def __init__(self, module: nn.Module, hook: ForwardHook) -> None:
        self._module, self._hook = module, hook
        self._handle: Any = None

    def put(self) -> None:
        """Place the hook."""
        self._handle = self._module.register_forward_hook(self._hook) if takes_hooks(self._module) else None

    def clear(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()


class DirectPlace:
    """The attribute for a compiled call of a module; or its forward hooks, if the attribute is in use by then.

    Args:
        module: The module.
        hook: Its hook.
    """

    def __init__(self, module: nn.Module, hook: LayerHook) -> None:
        self._attributes = module.__dict__
        self._hooked = hook.around(module)
        self._other = ForwardPlace(module, hook)

    def put(self) -> None:
        """Place the hook."""
        if self._attributes.setdefault(PLACE, self._hooked) is not self._hooked:
            self._other.put()

    def clear(self) -> None:
        """Remove the hook."""
        if self._attributes.get(PLACE) is self._hooked:
            del self._attributes[PLACE]
        else:
            self._other.clear()


def find_place(module: nn.Module, hook: LayerHook, *, directly: bool) -> Place:
    """Return the place for a hook.

    Args:
        module: A layer.
        hook: Its hook.
        directly: Whether the attribute for a compiled call may be used, where the module allows it.
    """
    return DirectPlace(module, hook) if directly and _allows_direct_place(module) else ForwardPlace(module, hook)


def _allows_direct_place(module: nn.Module) -> bool:
    """Return whether the attribute exists, is unused, and is left out when the module is copied or pickled."""
    kind = type(module)
    return (
        takes_hooks(module)
        and kind.__call__ is nn.Module.__call__
        and kind.__getstate__ is nn.Module.__getstate__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and not hasattr(kind, "__deepcopy__")
        and getattr(kind, PLACE, True) is None
        and PLACE not in module.__dict__
        and _is_left_out()
    )


@functools.cache
def _is_left_out() -> bool:
    """Return whether this version of torch calls the attribute's value, and leaves it out of copies."""
    probe = nn.Identity()
    probe.__dict__[PLACE] = lambda x: x + 1
    return bool(probe(1) == 2 and copy.deepcopy(probe)(1) == 1)
