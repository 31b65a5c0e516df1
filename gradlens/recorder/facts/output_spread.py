"""Whether a model tells the examples of a batch apart: how far its outputs are from their mean over the batch."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from gradlens.recorder.facts.parameter_states import Facts, to_host

LEAST_EXAMPLES = 4
"""Fewest examples that are compared, and fewest places of a sequence."""
MOST_OUTPUTS = 4
MOST_FEATURES = 4096
"""About so many numbers per example are looked at."""
MOST_NUMBERS = 65_536
"""Only some examples of larger outputs are compared along the second dimension."""


class OutputSpread:
    """Measures, in each look, what the model as a whole returns and what the loss is computed from."""

    def __init__(self) -> None:
        self._facts: dict[str, Facts] = {}
        self._unread: dict[str, tuple[Tensor, int, bool]] = {}

    @torch.no_grad()
    def note_call(self, name: str, outputs: list[Tensor], known: Collection[str]) -> None:
        """Note what a module returned with a graph; the first call of each step counts.

        Args:
            name: Its name.
            outputs: What it returned.
            known: The modules from whose output the loss is computed, as far as is known.
        """
        made = [tensor for tensor in outputs[:1] if tensor.is_floating_point() and tensor.dim() > 1]
        if name in self._unread or not made or made[0].grad_fn is None or len(made[0]) < LEAST_EXAMPLES:
            return
        if name not in self._facts and (len(self._facts) + len(self._unread) >= MOST_OUTPUTS or name not in known):
            return
        rows, apart = made[0].detach().flatten(1), torch.zeros((), device=made[0].device)
        in_places = made[0].dim() == 3 and made[0].shape[1] >= LEAST_EXAMPLES
        if in_places:
            apart = _apart_along(made[0].detach()[:: max(made[0].numel() // MOST_NUMBERS, 1)].float())
        rows = rows[:, :: max(rows.shape[1] // MOST_FEATURES, 1)].float()
        numbers = torch.stack([(rows - rows.mean(0)).square().mean(), rows.square().mean(), apart.to(rows)])
        self._unread[name] = numbers, rows.shape[1], in_places

    def read(self, step: int) -> None:
        """Read what a step has shown; an accelerator is waited for here.

        Args:
            step: The step in progress.
        """
        taken, self._unread = self._unread, {}
        for (name, (_, features, in_places)), (apart, size, along) in zip(
            taken.items(), to_host([numbers for numbers, *_ in taken.values()]), strict=True
        ):
            if not size > 0:
                continue
            spread = (apart / size) ** 0.5
            fact = self._facts.setdefault(name, {"layer": name, "features": features, "first": spread, "since": step})
            fact |= {"before": fact.get("last"), "last": spread, "last_step": step}
            if in_places:
                fact["along"] = max(along, fact.get("along", 0.0))

    def facts(self) -> list[Facts]:
        """Return what was found."""
        return list(self._facts.values())


def _apart_along(outputs: Tensor) -> Tensor:
    """Return how far (B, T, F) outputs are from their mean over T, as a share of their size."""
    return ((outputs - outputs.mean(1, keepdim=True)).square().mean() / outputs.square().mean()).sqrt()
