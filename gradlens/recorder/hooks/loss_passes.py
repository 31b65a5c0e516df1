"""Distinguish the backward passes of the loss from others."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

TRIAL = 8
"""Number of rows in which passes are distinguished after a suspicious one."""


class Passes:
    """Distinguishes passes that reach parameters from passes that do not.

    ``torch.autograd.grad(..., create_graph=True)``, as in a gradient penalty or a physics-informed loss, also calls the
    hooks of layers, but not with gradients of the loss. Such a pass replaces and changes no parameter's gradient. Under
    ``fully_shard`` this is no evidence, because gradients of micro-batches are stored elsewhere, so all passes count.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = list(model.parameters())
        self._parameters = [] if any(hasattr(p, "device_mesh") for p in parameters) else parameters
        self._before: list[tuple[Any, int]] = []
        self._most = 0
        self._rows_left = 0
        self.others_seen = False
        """Whether a step had passes that reached no parameter as well as passes that did."""

    def begin(self) -> None:
        """Remember the parameters' gradients before a pass."""
        self._before = [_state(parameter) for parameter in self._parameters]

    def left_gradients_unchanged(self) -> bool:
        """Return whether the pass that has just ended changed no parameter's gradient; False if unknown."""
        before, self._before = self._before, []
        now = [_state(parameter) for parameter in self._parameters]
        return bool(before) and all(_is_same(a, b) for a, b in zip(before, now, strict=True))

    def is_suspicious(self, taken: int, *, learning: bool) -> bool:
        """Return whether two passes may have been taken for one: more gradients arrived than in any pass before.

        Args:
            taken: Number of gradients of outputs in the pass.
            learning: Whether the pass belongs to the first row.

        Returns:
            Whether the pass is suspicious; always False in the first row.
        """
        if taken <= self._most:
            return False
        self._most = taken
        if not learning:
            self._rows_left = TRIAL
        return not learning

    def end_row(self) -> bool:
        """Return, after one more row in which passes were distinguished, whether that may end (a false alarm)."""
        self._rows_left -= 1
        return self._rows_left < 0 and not self.others_seen


def _state(parameter: nn.Parameter) -> tuple[Any, int]:
    grad = parameter.grad
    return (None, -1) if grad is None else (weakref.ref(grad), grad._version)


def _is_same(before: tuple[Any, int], now: tuple[Any, int]) -> bool:
    (old, old_version), (new, new_version) = before, now
    if old is None or new is None:
        return old is new
    return old() is new() and old_version == new_version
