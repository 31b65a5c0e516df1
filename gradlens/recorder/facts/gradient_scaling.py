"""How gradients are scaled between the backward pass and the step: clipping by norm, and the loss scale."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from gradlens.recorder.facts.parameter_states import Facts

FRAMES = 12
"""Callers of an optimizer's step among which a GradScaler is looked for."""


class Clipping:
    """Calls of ``clip_grad_norm_``."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, float], Facts] = {}

    def note(self, when: str, max_norm: float, total_norm: Tensor, count: int, of: int, step: int) -> None:
        """Note a call.

        Args:
            when: See ``docs/facts.md``.
            max_norm: The largest norm allowed.
            total_norm: The norm found; it is read when the facts are.
            count: Parameters of the model with a gradient that were in the call.
            of: Parameters of the model with a gradient.
            step: The step in progress.
        """
        fact = self._calls.setdefault(
            (when, max_norm), {"when": when, "max_norm": max_norm, "first_step": step, "norms": []}
        )
        fact |= {"count": count, "of": of, "last_step": step}
        fact["norms"].append(total_norm.detach().clone())

    def facts(self) -> list[Facts]:
        """Return what is stored."""
        found = []
        for call in list(self._calls.values())[:16]:
            norms = call["norms"] = [float(norm) for norm in call["norms"]]
            coefficients = [min(1.0, call["max_norm"] / (norm + 1e-6)) for norm in norms]
            fact = {name: value for name, value in call.items() if name != "norms"}
            fact |= {"total_norm": _spread(norms), "coefficient": _spread(coefficients)}
            found.append(fact | {"looks": len(norms)})
        return found


def _spread(values: Sequence[float]) -> list[float]:
    return [min(values), statistics.median(values), max(values)]


class Scaling:
    """The loss scale: of a GradScaler, or by a constant.

    Args:
        scaler: The GradScaler that the recorder was given.
    """

    def __init__(self, scaler: GradScaler | None) -> None:
        self._given = scaler is not None and scaler.is_enabled()
        self._scaler = scaler
        self._facts: Facts = {"scaler_given": self._given, "scaler_seen": False, "scale": None, "root_factor": None}
        self._facts |= {"unscaled": None, "since": None}

    def note_root(self, tensors: Sequence[Tensor], step: int) -> None:
        """Note the constant by which a loss was multiplied last."""
        node = tensors[0].grad_fn if len(tensors) == 1 and tensors[0].numel() == 1 else None
        if node is None or node.name() not in ("MulBackward0", "MulBackward1", "DivBackward0"):
            return
        below = [child for child, _ in node.next_functions if child is not None]
        other = getattr(node, "_saved_other", None) if len(below) == 1 else None
        if isinstance(other, Tensor) and other.numel() != 1:
            return
        if other is not None and float(other):
            factor = 1 / float(other) if node.name().startswith("Div") else float(other)
            if factor != 1:
                self._facts["root_factor"] = factor
                self._facts["since"] = step if self._facts["since"] is None else self._facts["since"]

    def note_step(self, optimizer: Optimizer | None, step: int) -> None:
        """Look for a GradScaler among the callers of an optimizer's step."""
        frame = sys._getframe()
        for _ in range(FRAMES):
            if frame.f_back is None:
                return
            frame = frame.f_back
            owner = frame.f_locals.get("self") if frame.f_code.co_filename.endswith("grad_scaler.py") else None
            if isinstance(owner, GradScaler) and owner.is_enabled():
                self._scaler = owner
                state = owner._per_optimizer_states.get(id(optimizer), {})
                self._facts["scaler_seen"] = True
                self._facts["scale"] = float(owner.get_scale())
                self._facts["unscaled"] = getattr(state.get("stage"), "name", "") != "READY"
                self._facts["since"] = step if self._facts["since"] is None else self._facts["since"]
                return

    def is_scaled(self, optimizers: Sequence[Optimizer]) -> bool:
        """Return whether gradients still carry the scale of a known GradScaler."""
        if self._scaler is None or not self._scaler.is_enabled() or not optimizers:
            return False
        stages = [self._scaler._per_optimizer_states.get(id(optimizer), {}).get("stage") for optimizer in optimizers]
        return all(getattr(stage, "name", "READY") == "READY" for stage in stages)

    def facts(self) -> Facts:
        """Return what is stored."""
        return dict(self._facts)
