"""Units that are off: every weight of theirs got a gradient of exactly 0 in several recordings in succession.

A unit is an output of a layer: a row of a linear layer's weight or a filter of a convolution, with its bias. Behind a
ReLU its gradient is exactly 0 for a batch if no example switches it on. A sparse unit is on for some other batch, so a
unit counts as dead only if it was off in each of the last ``WINDOW`` recordings. The gradients are read where they are,
right before the optimizer's step, so no hook and no forward pass is needed.

Source: smdebug's DeadRelu judges activations in the same way; the window is this project's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlens.metrics import DEAD_UNITS
from gradlens.recorder.measured_row import Part
from gradlens.recorder.measurer import Context, Measurer
from gradlens.recorder.norms import local_part
from gradlens.recorder.ratios import OFF, UNITS

WINDOW = 3
"""Recordings in succession in which a dead unit is off; so few because the diagnosis judges it over several values."""


class DeadUnits(Measurer):
    """Counts units that are off in ``WINDOW`` recordings in succession.

    Args:
        context: What is measured.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        read = [{id(parameter) for parameter in own} for own in context.own]
        self._layers = [
            (i, module)
            for i, module in enumerate(context.modules.values())
            if _has_units(module) and id(module.weight) in read[i]
        ]
        self._active: dict[int, deque[Tensor]] = {i: deque(maxlen=WINDOW) for i, _ in self._layers}
        self.clear()

    def clear(self) -> None:
        """Forget the step in progress."""
        self._off: list[tuple[int, Tensor, int]] = []

    def before_step(self, due: Sequence[str], row: int) -> None:
        """Read which units have a gradient, if the metric is due."""
        for layer, module in self._layers if DEAD_UNITS in due else ():
            now, known = _active_units(module), self._active[layer]
            if now is None or (known and known[-1].shape != now.shape):
                known.clear()
            if now is None:
                continue
            if known and known[-1].device != now.device:
                moved = [each.to(now.device) for each in known]
                known.clear()
                known.extend(moved)
            known.append(now)
            if len(known) == WINDOW:
                ever = torch.stack(list(known)).any(dim=0)
                self._off.append((layer, len(ever) - torch.count_nonzero(ever), len(ever)))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the last recordings: layer name to (k, U) whether a unit had a gradient, k <= ``WINDOW``."""
        names = list(self.context.modules)
        return {names[i]: torch.stack(list(known)).cpu() for i, known in self._active.items() if known}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember the recordings that ``state_dict`` returned."""
        names = list(self.context.modules)
        for i, known in self._active.items():
            known.clear()
            known.extend(state[names[i]].bool() if names[i] in state else ())

    def parts(self, scale: Tensor | float | None) -> dict[str, list[Part]]:
        """Return the number of units that are off, and of all units."""
        if not self._off:
            return {}
        layers, off, units = zip(*self._off, strict=True)
        counts = torch.stack([each.to(off[0].device) for each in off]).float()
        where = np.array(layers)
        values: Any = counts.double().numpy() if counts.is_cpu else counts
        return {OFF: [Part(where, values)], UNITS: [Part(where, np.array(units, dtype=np.float64))]}


def _has_units(module: Any) -> bool:
    """Return whether each row of a module's weight makes one output."""
    weight = getattr(module, "weight", None)
    outputs = getattr(module, "out_features", None) or getattr(module, "out_channels", None)
    if isinstance(weight, nn.UninitializedParameter) or not isinstance(weight, nn.Parameter) or weight.dim() < 2:
        return False
    return bool(outputs == weight.shape[0]) and not getattr(module, "transposed", False)


def _active_units(module: Any) -> Tensor | None:
    """Return (U,) whether a unit's weights or bias have a gradient other than 0; None where there is no gradient."""
    weight = module.weight
    grad = weight.grad
    if grad is None or grad.is_sparse:
        return None
    rows = local_part(grad).detach()
    if rows.shape[1:] != weight.shape[1:] or not rows.numel():  # sharded within units
        return None
    active: Tensor = torch.linalg.vector_norm(rows.flatten(1), ord=float("inf"), dim=1) != 0
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter) and bias.grad is not None:
        own = local_part(bias.grad).detach()
        active = active | (own != 0) if own.shape == active.shape else active
    return active


MEASURER = DeadUnits
