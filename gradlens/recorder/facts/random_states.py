"""Whether torch's random numbers are the same in every step: a seed that is set in the loop, or in forward."""

from __future__ import annotations

import torch
from torch import Tensor

from gradlens.recorder.facts.parameter_states import Facts


class RandomStates:
    """Compares the state of torch's generator on the CPU between the steps that are looked at.

    The state after the first module of a step has run tells whether the modules after it drew random numbers.
    """

    def __init__(self) -> None:
        self._step = -1
        self._begun: Tensor | None = None
        self._first: Tensor | None = None
        self._steps: list[int] = []
        self._same = True

    def note_call(self, step: int) -> None:
        """Take the state after the first module of a step has run.

        Args:
            step: The step in progress.
        """
        if step != self._step:
            self._step, self._begun = step, torch.random.get_rng_state()

    def before_backward(self, step: int) -> None:
        """Compare the state with that of earlier steps, if random numbers were drawn in this forward pass.

        Args:
            step: The step in progress.
        """
        begun, self._begun = self._begun, None
        if step != self._step or begun is None or torch.equal(now := torch.random.get_rng_state(), begun):
            return
        self._first = now if self._first is None else self._first
        self._same = self._same and torch.equal(now, self._first)
        self._steps.append(step)

    def facts(self) -> Facts:
        """Return ``random`` of docs/facts.md."""
        if not self._steps:
            return {}
        return {"drawn": len(self._steps), "same": self._same, "since": self._steps[0], "last_step": self._steps[-1]}
