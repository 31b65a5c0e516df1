"""Updates that are lost because 16-bit weights have no number so near: an element with a gradient stays as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gradlens.recorder.facts.parameter_states import Facts, ParameterState, difference_of, sample, to_host

SHORT = (torch.float16, torch.bfloat16)


class Rounding:
    """Counts which elements of 16-bit parameters a step changes.

    Args:
        states: The states of the model's parameters.
    """

    def __init__(self, states: Mapping[int, ParameterState]) -> None:
        self._states = states
        self._counts: dict[str, list[Tensor]] = {}
        """Type to (2,) per parameter, unread: sampled elements with a gradient, and those of them that changed."""
        self._facts: list[Facts] = []

    def after_step(self, keys: Iterable[int]) -> None:
        """Compare parameters with their samples from before the step.

        Args:
            keys: ``id`` of the optimizer's parameters.
        """
        for key in keys:
            state = self._states.get(key)
            if state is None or state.sample is None or state.sample.dtype not in SHORT:
                continue
            grad = state.parameter.grad
            if grad is None or grad.layout != torch.strided or grad.shape != state.parameter.shape:
                continue
            changed, pulled = difference_of(sample(state.parameter), state.sample), sample(grad) != 0
            if changed is not None:
                counts = torch.stack([pulled.sum(), (pulled & changed).sum()])
                self._counts.setdefault(str(state.sample.dtype).removeprefix("torch."), []).append(counts)

    def read(self, step: int) -> None:
        """Read the counts of a step; an accelerator is waited for here.

        Args:
            step: The step in progress.
        """
        taken, self._counts = self._counts, {}
        sums = {dtype: [sum(column) for column in zip(*to_host(each), strict=True)] for dtype, each in taken.items()}
        self._facts = [
            {"dtype": dtype, "unchanged": 1 - changed / pulled, "step": step}
            for dtype, (pulled, changed) in sums.items()
            if pulled
        ] or self._facts

    def facts(self) -> list[Facts]:
        """Return what the last step that was looked at has shown."""
        return self._facts
