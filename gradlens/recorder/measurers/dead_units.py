"""Units that are off: every weight of theirs got a gradient of exactly 0 in several recordings in succession.

A unit is an output of a layer: a row of a linear layer's weight or a filter of a convolution, with its bias. Behind a
ReLU its gradient is exactly 0 for a batch if no example switches it on. A sparse unit is on for some other batch, so a
unit counts as dead only if it was off in each of the last ``WINDOW`` recordings. The gradients are read where they are,
right before the optimizer's step, so no hook and no forward pass is needed.

Source: smdebug's DeadRelu judges activations in the same way; the window is this project's choice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradlens.metrics import DEAD_FRACTION
from gradlens.recorder.layers import own_parameter
from gradlens.recorder.measured_row import Part
from gradlens.recorder.measurer import Context, Measurer
from gradlens.recorder.norms import local_part
from gradlens.recorder.ratios import OFF, UNITS

WINDOW = 3
"""Recordings in succession in which a dead unit is off; so few because the diagnosis judges it over several values."""

ON_HOST = (torch.float32, torch.float64, torch.float16)
"""Types of gradients on the CPU that numpy reads."""
CPU = torch.device("cpu")
Units = Tensor | NDArray[np.bool_]
"""Whether each unit had a gradient: an array on the CPU where numpy can read the gradients."""


class DeadUnits(Measurer):
    """Counts units that are off in ``WINDOW`` recordings in succession.

    Args:
        context: What is measured.
    """

    reads_parameters = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        read = [{id(parameter) for parameter in own} for own in context.own]
        self._layers = [
            (i, module)
            for i, module in enumerate(context.modules.values())
            if _has_units(module) and id(own_parameter(module, "weight")) in read[i]
        ]
        self._active: dict[int, deque[Units]] = {i: deque(maxlen=WINDOW) for i, _ in self._layers}
        self.clear()

    def clear(self) -> None:
        """Forget the step in progress."""
        self._off: list[tuple[int, Tensor | int, int]] = []

    def before_step(self, due: Sequence[str], row: int) -> None:
        """Read which units have a gradient, if the metric is due."""
        for layer, module in self._layers if DEAD_FRACTION in due else ():
            now, known = _active_units(module), self._active[layer]
            if now is None or (known and known[-1].shape != now.shape):
                known.clear()
            if now is None:
                continue
            if known and _device(known[-1]) != _device(now):
                moved = [_move(each, _device(now)) for each in known]
                known.clear()
                known.extend(moved)
            known.append(now)
            if len(known) == WINDOW:
                self._off.append((layer, _count_off(known), len(now)))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the last recordings: layer name to (k, U) whether a unit had a gradient, k <= ``WINDOW``."""
        names = list(self.context.modules)
        return {
            names[i]: torch.stack([_move(each, CPU) for each in known]) for i, known in self._active.items() if known
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember the recordings that ``state_dict`` returned."""
        names = list(self.context.modules)
        for i, known in self._active.items():
            known.clear()
            known.extend(state[names[i]].bool().cpu().numpy() if names[i] in state else ())

    def parts(self, scale: Tensor | float | None) -> dict[str, list[Part]]:
        """Return the number of units that are off, and of all units."""
        if not self._off:
            return {}
        layers, off, units = zip(*self._off, strict=True)
        where = np.array(layers)
        on_device = next((each.device for each in off if isinstance(each, Tensor)), None)
        values: Any = np.array(off, dtype=np.float64) if on_device is None else None
        if on_device is not None:
            values = torch.stack([torch.as_tensor(each).to(on_device) for each in off]).float()
        return {OFF: [Part(where, values)], UNITS: [Part(where, np.array(units, dtype=np.float64))]}


def _has_units(module: Any) -> bool:
    """Return whether each row of a module's weight makes one output."""
    weight = own_parameter(module, "weight")
    outputs = getattr(module, "out_features", None) or getattr(module, "out_channels", None)
    if isinstance(weight, nn.UninitializedParameter) or not isinstance(weight, nn.Parameter) or weight.dim() < 2:
        return False
    return bool(outputs == weight.shape[0]) and not getattr(module, "transposed", False)


def _device(units: Units) -> torch.device:
    return units.device if isinstance(units, Tensor) else CPU


def _move(units: Units, device: torch.device) -> Tensor:
    return torch.as_tensor(units).to(device)


def _active_units(module: Any) -> Units | None:
    """Return (U,) whether a unit's weights or bias have a gradient other than 0; None where there is no gradient."""
    weight = own_parameter(module, "weight")
    grad = None if weight is None else weight.grad
    if weight is None or grad is None or grad.is_sparse:
        return None
    rows = local_part(grad).detach()
    if rows.shape[1:] != weight.shape[1:] or not rows.numel():  # sharded within units
        return None
    bias = own_parameter(module, "bias")
    own = local_part(bias.grad).detach() if bias is not None and bias.grad is not None else None
    if own is not None and own.shape != rows.shape[:1]:
        own = None
    if rows.is_cpu and rows.dtype in ON_HOST:
        return _active_on_host(rows, own)
    active: Tensor = torch.linalg.vector_norm(rows.flatten(1), ord=float("inf"), dim=1) != 0
    return active if own is None else active | (own != 0)


def _active_on_host(rows: Tensor, own: Tensor | None) -> NDArray[np.bool_]:
    """Return the same by numpy, whose calls are short; weights are read only of units that one number leaves open.

    Args:
        rows: (U, ...) gradient of the weight.
        own: (U,) gradient of the bias.
    """
    active: NDArray[np.bool_] = (rows.flatten(1)[:, 0] if own is None else own).numpy() != 0
    if not active.all():
        open_ = np.flatnonzero(~active)
        active[open_] = rows.flatten(1).numpy()[open_].any(axis=1)
    return active


def _count_off(known: Sequence[Units]) -> Tensor | int:
    """Return how many units had no gradient in any recording: a number where the recordings are on the CPU."""
    if all(isinstance(each, np.ndarray) for each in known):
        return len(known[0]) - int(np.count_nonzero(np.logical_or.reduce(known)))
    ever = torch.stack([torch.as_tensor(each) for each in known]).any(dim=0)
    return len(ever) - torch.count_nonzero(ever)


MEASURER = DeadUnits
