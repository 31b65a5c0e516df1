"""Which backward passes are those of the loss."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

TRIAL = 8
"""Rows in which passes are told apart on a mere suspicion."""


class Passes:
    """Tells passes that reach the parameters from those that do not.

    ``torch.autograd.grad(..., create_graph=True)``, as in a gradient penalty or a physics-informed loss, runs through
    the layers too, and calls their hooks; but what comes there is no gradient of the loss. It is known by what it
    leaves alone: no parameter's gradient is another one, or has other contents, after it. Under ``fully_shard`` that
    says nothing, since gradients of micro-batches are kept elsewhere, and all passes count.

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
        """Whether there were passes that reached no parameter beside others that did."""

    def begin(self) -> None:
        """Look at the parameters' gradients before a pass."""
        self._before = [_state(parameter) for parameter in self._parameters]

    def left_parameters_alone(self) -> bool:
        """Say, at the end of a pass, whether it left the gradients of all parameters as they were; False if unknown."""
        before, self._before = self._before, []
        now = [_state(parameter) for parameter in self._parameters]
        return bool(before) and all(_is_same(a, b) for a, b in zip(before, now, strict=True))

    def is_suspicious(self, taken: int, *, learning: bool) -> bool:
        """Say whether two passes may have passed for one: more gradients came than in any before.

        Args:
            taken: How many gradients of outputs came.
            learning: Whether it is a pass of the first row.
        """
        if taken <= self._most:
            return False
        self._most = taken
        if not learning:
            self._rows_left = TRIAL
        return not learning

    def end_row(self) -> bool:
        """Count a row in which passes were told apart, and say whether that may end: it was a false suspicion."""
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
