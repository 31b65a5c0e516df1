"""Notices that a module registers a parameter, as where a weight is replaced by another one.

One hook of torch for all modules: it costs nothing in a step, and is called for models beside the recorded one, too.
"""

from __future__ import annotations

import weakref

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.hooks import RemovableHandle


class Registrations:
    """Notices registrations of parameters from ``start`` to ``stop``."""

    def __init__(self) -> None:
        self.seen = False
        """Whether there was one since this was last set to False."""
        self._handle: RemovableHandle | None = None

    def start(self) -> None:
        """Place the hook."""
        me = weakref.ref(self)

        def note(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
            found = me()
            if found is not None:
                found.seen = True

        self._handle = register_module_parameter_registration_hook(note)

    def stop(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
