"""The settings of optimizers: groups, learning rates over time, and schedulers."""

from __future__ import annotations

import gc
import inspect
import math
import statistics
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradlens.recorder.facts.parameter_states import Facts, ParameterState, listed_states

NEAR_ZERO = 1e-3
"""A learning rate is near zero if it is at most this part of its largest value."""

MOST_COMPARED = 16
"""Parameters of an optimizer whose versions are compared."""


class LearningRate:
    """The learning rate of one group over time.

    Args:
        step: The first step.
        rate: The rate then.
    """

    def __init__(self, step: int, rate: float) -> None:
        self.first = self.last = self.largest = rate
        self.largest_step = self.since = step
        self.near_zero_since: int | None = None
        self._gaps: list[int] = []
        self.changes = 0

    def note(self, step: int, rate: float) -> None:
        """Note that the rate has changed."""
        self._gaps.append(step - self.since)
        del self._gaps[:-64]
        self.changes += 1
        self.last, self.since = rate, step
        if rate > self.largest:
            self.largest, self.largest_step = rate, step
        if rate > NEAR_ZERO * self.largest:
            self.near_zero_since = None
        elif self.near_zero_since is None:
            self.near_zero_since = step

    def facts(self) -> Facts:
        """Return what is stored."""
        between = self._gaps[1:]  # the time up to the first change is no distance between changes
        kept = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return kept | {"every": statistics.median(between) if between else None}


class OptimizerSettings:
    """The groups of the optimizers, and their learning rates.

    Args:
        optimizers: The optimizers.
        step: The step in progress.
    """

    def __init__(self, optimizers: Sequence[Optimizer], step: int) -> None:
        self._optimizers = optimizers
        self._steps = [0] * len(optimizers)
        self._rates: list[list[Any]] = [[] for _ in optimizers]
        self._curves: list[list[LearningRate]] = [[] for _ in optimizers]
        self._schedulers: list[list[weakref.ref[LRScheduler]] | None] = [None] * len(optimizers)
        self._schedules: list[list[Facts]] = [[] for _ in optimizers]
        self._wrote: list[bool | None] = [None] * len(optimizers)
        """Whether a step that was looked at wrote into a parameter with a gradient; None where there was none."""
        self._before: list[tuple[Tensor, int, int]] = []
        """Parameters with a gradient before a step, each with its version and the place of its data."""
        self.groups: dict[int, tuple[int, int]] = {}
        """``id`` of a parameter to its optimizer and its group there."""
        self.read_groups()
        for k in range(len(optimizers)):
            self._compare_rates(k, step)

    def read_groups(self) -> None:
        """Read which parameters are in which group."""
        self.groups = {
            id(parameter): (k, j)
            for k, optimizer in enumerate(self._optimizers)
            for j, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
        }

    def keys(self, k: int) -> list[int]:
        """Return the ``id`` of the parameters of an optimizer."""
        return [key for key, (optimizer, _) in self.groups.items() if optimizer == k]

    def at_step(self, k: int, step: int) -> None:
        """Compare the learning rates with those of the step before."""
        self._steps[k] += 1
        rates = [_rate(group) for group in self._optimizers[k].param_groups]
        if rates != self._rates[k] or any(isinstance(rate, Tensor) for rate in rates):
            self._compare_rates(k, step)

    def before_write(self, k: int) -> None:
        """Note the versions of an optimizer's parameters before a step that is looked at."""
        own = [p for group in self._optimizers[k].param_groups for p in group["params"] if p.grad is not None]
        self._before = [(p, p._version, _place(p)) for p in own[:MOST_COMPARED]]

    def after_write(self, k: int) -> None:
        """Note whether the step wrote into one of them."""
        if self._before:
            wrote = any(p._version != version or _place(p) != place for p, version, place in self._before)
            self._wrote[k] = self._wrote[k] or wrote
            self._before = []

    def _compare_rates(self, k: int, step: int) -> None:
        rates = [_rate(group) for group in self._optimizers[k].param_groups]
        curves = self._curves[k]
        changed = False
        for j, rate in enumerate(map(float, rates)):
            if j == len(curves):
                curves.append(LearningRate(step, rate))
            elif rate != curves[j].last:
                curves[j].note(step, rate)
                changed = True
        self._rates[k] = [rate for rate in rates if not isinstance(rate, Tensor)]
        if changed and self._schedulers[k] is None:
            self._schedulers[k] = find_schedulers(self._optimizers[k])

    def note_schedules(self) -> None:
        """Read the schedulers that are still there."""
        for k, references in enumerate(self._schedulers):
            found = [scheduler for scheduler in (reference() for reference in references or ()) if scheduler]
            if found:
                self._schedules[k] = [_describe_scheduler(scheduler) for scheduler in found]

    def facts(self, states: Mapping[int, ParameterState]) -> list[Facts]:
        """Return what is stored."""
        self.note_schedules()
        return [self._facts_of(k, optimizer, states) for k, optimizer in enumerate(self._optimizers)]

    def _facts_of(self, k: int, optimizer: Optimizer, states: Mapping[int, ParameterState]) -> Facts:
        foreign = [
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if id(parameter) not in states
        ]
        groups = []
        for group, curve in zip(optimizer.param_groups, self._curves[k], strict=False):
            own = [states[id(p)] for p in group["params"] if id(p) in states]
            listed = listed_states(own)
            del listed["names"]
            groups.append(listed | {"settings": _numbers(group), "lr": curve.facts()})
        return {
            "class": type(optimizer).__name__,
            "own": not type(optimizer).__module__.startswith("torch."),
            "made_with": _own_rate(optimizer),
            "wrote": self._wrote[k],
            "steps": self._steps[k],
            "groups": groups,
            "foreign": {"count": len(foreign), "numel": sum(parameter.numel() for parameter in foreign)},
            "schedulers": self._schedules[k],
        }


def _place(parameter: Tensor) -> int:
    """Return where a tensor's data are in memory; 0 where there is no such place."""
    try:
        return parameter.data_ptr()
    except RuntimeError:
        return 0


def _rate(group: Mapping[str, Any]) -> Any:
    """Return a group's learning rate; NaN where it has none, or the optimizer chooses it itself."""
    rate = group.get("lr")
    return math.nan if rate is None else rate


def _own_rate(optimizer: Optimizer) -> float | None:
    """Return the learning rate that an optimizer was made with, where it is another than its class has by itself."""
    try:
        usual = inspect.signature(type(optimizer).__init__).parameters["lr"].default
        given = float(optimizer.defaults["lr"])
        return None if isinstance(usual, int | float) and float(usual) == given else given
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):  # no such setting, or a wrapper
        return None


def _numbers(settings: Mapping[str, Any]) -> Facts:
    """Return the numbers, truth values and pairs of numbers among settings."""
    kinds = (bool, int, float)
    return {
        name: value
        for name, value in settings.items()
        if name not in ("lr", "params")
        and not name.startswith("_")
        and (isinstance(value, kinds) or (isinstance(value, tuple | list) and all(isinstance(v, kinds) for v in value)))
    }


def find_schedulers(optimizer: Optimizer) -> list[weakref.ref[LRScheduler]]:
    """Find the schedulers of an optimizer among all objects; done once, when a learning rate has changed."""
    found = []
    for holder in gc.get_referrers(optimizer):
        owners = [holder] if isinstance(holder, LRScheduler) else []
        if isinstance(holder, dict) and holder.get("optimizer") is optimizer:
            owners = [one for one in gc.get_referrers(holder) if isinstance(one, LRScheduler)]
        found += owners
    return [weakref.ref(scheduler) for scheduler in {id(one): one for one in found}.values()]


def _describe_scheduler(scheduler: LRScheduler) -> Facts:
    settings = {
        name: value
        for name, value in _numbers(vars(scheduler)).items()
        if isinstance(value, int | float) and name not in ("last_epoch", "verbose")
    }
    return {"class": type(scheduler).__name__, "calls": int(scheduler.last_epoch), "settings": settings}
