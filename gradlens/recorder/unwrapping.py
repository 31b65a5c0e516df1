"""Which optimizers are followed: those inside the wrappers that other libraries put around them.

A wrapper is often no optimizer of its own: Accelerate's, Lightning Fabric's, DeepSpeed's and Opacus' never call
``Optimizer.__init__`` and so have no hooks. All of them call the step of the optimizer inside, when gradients are
unscaled, reduced, clipped or made noisy, which is the moment when they are to be read.

============================  =======================================================================================
What is given                 What is followed
============================  =======================================================================================
Optimizer of torch            Itself, or the one that it holds under a name in ``INSIDE``, or under any name if that is
                              the only one with the same parameters (SAM, Lookahead).
Without hooks, holds others   The one under a name in ``INSIDE``; else every optimizer among its attributes, and in
                              lists and mappings there.
Without hooks, holds none     Its own ``step`` (``OtherOptimizer``), if it holds parameters.
Anything else                 Nothing: a RecorderError.
============================  =======================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch.amp import GradScaler
from torch.optim import Optimizer

from gradlens.errors import RecorderError
from gradlens.recorder.hooks.other_optimizers import follow

Optimizers = Optimizer | Sequence[Optimizer] | Mapping[str, Optimizer] | None
INSIDE = ("optimizer", "original_optimizer", "base_optimizer")
"""Names under which wrappers hold what they wrap."""


class Found(NamedTuple):
    """What was found in what the user gave."""

    optimizers: list[Optimizer]
    """The optimizers that step, each once."""
    wrappers: list[tuple[int, Optimizer]]
    """Optimizers that call the step of another one in their own, each with the index of that."""
    scaler: GradScaler | None


def find_optimizers(given: Optimizers, scaler: GradScaler | None) -> Found:
    """Return the optimizers that step, and the GradScaler in use.

    Args:
        given: What the user gave.
        scaler: The scaler that the user gave; None looks for one that a wrapper carries.

    Raises:
        RecorderError: Something is no optimizer and wraps none, or is one of DeepSpeed's ZeRO; or wrappers carry
            different scalers.
    """
    found: dict[int, Optimizer] = {}
    wrappers: list[tuple[int, Optimizer]] = []
    scalers: dict[int, GradScaler] = {}
    followed: dict[int, Any] = {}
    waiting: list[Any] = [given]
    while waiting:
        one = waiting.pop(0)
        if one is None or (isinstance(one, Sequence | Mapping) and not isinstance(one, str)):
            waiting[:0] = _listed(one)
            continue
        *outer, inner = _unwrap(one, scalers)
        _refuse_zero([*outer, inner])
        if not _has_hooks(inner):
            several = _held(inner)
            if several:
                waiting[:0] = several
                continue
            inner = followed.get(id(inner)) or follow(inner) or _refuse(inner)
            followed[id(inner.optimizer)] = inner
        found[id(inner)] = inner
        wrappers += [(list(found).index(id(inner)), each) for each in outer if _has_hooks(each)][:1]
    if scaler is None and len(scalers) > 1:
        raise RecorderError("the optimizers carry different GradScalers", tip="pass the one in use as scaler=")
    return Found(list(found.values()), wrappers, scaler or next(iter(scalers.values()), None))


def _refuse(thing: Any) -> Any:
    """Raise the RecorderError about something that cannot be followed."""
    kind = type(thing)
    name = kind.__name__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__name__} of {kind.__module__}"
    tip = "pass the torch optimizer that it wraps, or leave it out and call recorder.step() after loss.backward()"
    if kind.__module__.partition(".")[0] == "keras":
        tip = (
            "Keras: record torch.nn.ModuleList(model.layers) without optimizer=, and call recorder.step() in a "
            "callback's on_train_batch_end"
        )
    raise RecorderError(f"optimizer must be a torch.optim.Optimizer or several, got {name}", tip=tip)


def _listed(several: Sequence[Any] | Mapping[str, Any] | None) -> list[Any]:
    if several is None:
        return []
    return list(several.values() if isinstance(several, Mapping) else several)


def _held(wrapper: Any) -> list[Any]:
    """Return the optimizers among the attributes of an object, each once."""
    found: dict[int, Any] = {}
    for value in getattr(wrapper, "__dict__", {}).values():
        each: Iterable[Any] = [value]
        if isinstance(value, list | tuple | Mapping):
            each = _listed(value)
        found |= {id(one): one for one in each if one is not wrapper and (_is_optimizer(one) or follow(one))}
    return list(found.values())


def _refuse_zero(optimizers: Sequence[Any]) -> None:
    """Raise a RecorderError if one is DeepSpeed's, of ZeRO: it leaves nothing in ``p.grad``."""
    for one in optimizers:
        if any(kind.__name__ == "ZeROOptimizer" for kind in type(one).__mro__):
            raise RecorderError(
                f"{type(one).__name__}: DeepSpeed ZeRO keeps gradients in buffers of its own, and p.grad is None when "
                "it steps, so there is nothing to record",
                tip="train without ZeRO (stage 0 in float32), or with torch's fully_shard",
            )


def _unwrap(optimizer: Any, scalers: dict[int, GradScaler]) -> list[Any]:
    """Return an optimizer and those inside it, the innermost last, and collect the scalers of wrappers."""
    chain: list[Any] = []
    while not any(optimizer is each for each in chain):
        chain.append(optimizer)
        scaler: Any = getattr(optimizer, "scaler", None)
        if callable(getattr(scaler, "is_enabled", None)):
            scalers[id(scaler)] = scaler
        held = [getattr(optimizer, name, None) for name in INSIDE]
        optimizer = next((one for one in held if _is_optimizer(one)), _only_twin(optimizer) or optimizer)
    return chain


def _only_twin(optimizer: Any) -> Optimizer | None:
    """Return the optimizer of torch among the attributes of another one, if there is one with the same parameters."""
    if not _has_hooks(optimizer):
        return None
    held = {id(one): one for one in vars(optimizer).values() if isinstance(one, Optimizer) and _has_hooks(one)}
    twins = [one for one in held.values() if one is not optimizer and _parameters(one) == _parameters(optimizer)]
    return twins[0] if len(twins) == 1 else None


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _has_hooks(optimizer: Any) -> bool:
    """Return whether hooks can be placed: a wrapper may inherit the methods of Optimizer, but not what they need."""
    return hasattr(optimizer, "register_step_pre_hook") and hasattr(optimizer, "_optimizer_step_pre_hooks")


def _is_optimizer(thing: Any) -> bool:
    return callable(getattr(thing, "step", None)) and hasattr(thing, "param_groups")
