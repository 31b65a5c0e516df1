"""Which optimizers are followed: those inside the wrappers that other libraries put around them.

A wrapper is often no optimizer of its own: Accelerate's, Lightning Fabric's, DeepSpeed's and Opacus' never call
``Optimizer.__init__`` and so have no hooks. All of them call the step of the optimizer inside, when gradients are
unscaled, reduced, clipped or made noisy, which is the moment when they are to be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.amp import GradScaler
from torch.optim import Optimizer

from gradlens.errors import RecorderError

Optimizers = Optimizer | Sequence[Optimizer] | None
INSIDE = ("optimizer", "original_optimizer")
"""Names under which wrappers hold what they wrap."""


def find_optimizers(given: Optimizers, scaler: GradScaler | None) -> tuple[list[Optimizer], GradScaler | None]:
    """Return the optimizers that step, each once, and the GradScaler in use.

    Args:
        given: What the user gave.
        scaler: The scaler that the user gave; None looks for one that a wrapper carries.

    Raises:
        RecorderError: Something is no optimizer and wraps none; or wrappers carry different scalers.
    """
    found: dict[int, Optimizer] = {}
    scalers: dict[int, GradScaler] = {}
    for one in [] if given is None else list(given) if isinstance(given, Sequence) else [given]:
        inner = _unwrap(one, scalers)
        # A wrapper that inherits from Optimizer has its methods, but not what they need.
        if not hasattr(inner, "register_step_pre_hook") or not hasattr(inner, "_optimizer_step_pre_hooks"):
            raise RecorderError(
                f"optimizer must be a torch.optim.Optimizer or several, got {type(inner).__name__}",
                tip="pass the torch optimizer that it wraps, or leave it out and call recorder.step()",
            )
        found[id(inner)] = inner
    if scaler is not None:
        return list(found.values()), scaler
    if len(scalers) > 1:
        raise RecorderError("the optimizers carry different GradScalers", tip="pass the one in use as scaler=")
    return list(found.values()), next(iter(scalers.values()), None)


def _unwrap(optimizer: Any, scalers: dict[int, GradScaler]) -> Any:
    """Return the innermost optimizer, and collect the scalers of its wrappers."""
    seen = set()
    while id(optimizer) not in seen:
        seen.add(id(optimizer))
        scaler: Any = getattr(optimizer, "scaler", None)
        if callable(getattr(scaler, "is_enabled", None)):
            scalers[id(scaler)] = scaler
        held = (getattr(optimizer, name, None) for name in INSIDE)
        optimizer = next((one for one in held if _is_optimizer(one)), optimizer)
    return optimizer


def _is_optimizer(thing: Any) -> bool:
    return callable(getattr(thing, "step", None)) and hasattr(thing, "param_groups")
