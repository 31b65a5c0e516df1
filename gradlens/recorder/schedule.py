"""The rules that choose which optimizer steps are recorded."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable

from gradlens.errors import ConfigError

Every = int | str | Callable[[int], bool]

BUDGET = 0.01
"""Share of the training time that ``every="auto"`` may cost."""


def log_spaced(per_decade: int = 20) -> Callable[[int], bool]:
    """Return a rule for ``every=`` that records steps evenly spaced in log(step).

    Args:
        per_decade: Steps recorded between 10 and 100, between 100 and 1,000, and so on.

    Returns:
        A callable ``step -> bool``.

    Raises:
        ConfigError: ``per_decade`` is not a whole number of at least 1.
    """
    if not isinstance(per_decade, int) or per_decade < 1:
        raise ConfigError(f"log_spaced: per_decade must be a whole number from 1, got {per_decade!r}", tip="try 20")

    def wanted(step: int) -> bool:
        if step < 2:
            return True
        return math.floor(per_decade * math.log10(step)) > math.floor(per_decade * math.log10(step - 1))

    return wanted


class Clock:
    """Measures the overhead of the recorder.

    The recorder's time in the training thread is measured in its own code, and estimated for the calls of its hooks by
    torch (``seconds_per_hook``). The processor time of its writing thread is added, as if training had waited for it.
    A step's own time is the wall time from step to step minus the recorder's time. Its median is used for all steps,
    so that pauses (validation, a sleeping machine) do not count. Work on an accelerator is not included.

    Args:
        writer_seconds: Returns the processor time of the writing thread so far.
    """

    def __init__(self, writer_seconds: Callable[[], float] = lambda: 0.0) -> None:
        self._bare: deque[float] = deque(maxlen=501)
        self._row_costs: deque[float] = deque(maxlen=32)
        self._writer_seconds = writer_seconds
        self._total = 0.0
        self._steps = self._rows = 0

    def add_step(self, seconds: float, cost: float) -> None:
        """Add one step.

        Args:
            seconds: Wall time since the previous step.
            cost: The recorder's part of it, in seconds.
        """
        self._steps += 1
        self._total += cost
        self._bare.append(max(seconds - cost, 0.0))

    def add_row(self, cost: float) -> None:
        """Add the cost of one recorded row, in seconds."""
        self._rows += 1
        self._row_costs.append(cost)

    @property
    def rows(self) -> tuple[int, float]:
        """Number of rows whose cost is known, and the cost of the newest of them in seconds."""
        return self._rows, self._row_costs[-1] if self._row_costs else math.nan

    @property
    def bare_step(self) -> float:
        """The median step without the recorder, in seconds; 0 before the second step."""
        return statistics.median(self._bare) if self._bare else 0.0

    @property
    def overhead(self) -> float:
        """The recorder's time divided by the training time without it; NaN before the second step."""
        bare = self.bare_step * self._steps
        return (self._total + self._writer_seconds()) / bare if bare > 0 else math.nan

    def interval(self, budget: float) -> int:
        """Return the interval in steps at which rows stay within a budget.

        While the cost so far exceeds the budget by more than one row, as after the expensive first row, the interval is
        doubled. So the budget is kept in the long run, without a long gap at the start, where training changes most.

        Args:
            budget: Allowed cost as a fraction of the training time.
        """
        if not self._row_costs or self.bare_step <= 0:
            return 1
        cost = statistics.fmean(self._row_costs) + self._writer_seconds() / self._rows
        too_much = self._total + self._writer_seconds() - cost > budget * self.bare_step * self._steps
        return max(1, math.ceil(cost / (budget * self.bare_step) * (2 if too_much else 1)))


class AutoEvery:
    """The rule "auto": as often as possible within the budget, given the cost of earlier rows.

    Args:
        clock: Measures the cost.
        budget: Share of the training time.
    """

    def __init__(self, clock: Clock, budget: float = BUDGET) -> None:
        self._clock = clock
        self._budget = budget
        self._next = 0

    def __call__(self, step: int) -> bool:
        """Return whether a step is recorded."""
        return step >= self._next

    def note_row(self, step: int) -> None:
        """Choose the next step to record, after a row at this step."""
        self.set_next(step + self._clock.interval(self._budget))

    @property
    def next(self) -> int:
        """The next step to record."""
        return self._next

    def set_next(self, step: int) -> None:
        """Use the choice of another rank."""
        self._next = step


class AutoMetrics:
    """The rule "auto" for single metrics: as often as possible within the budget, given what they add to a row's cost.

    Args:
        clock: Measures the cost.
        budget: Share of the training time.
    """

    def __init__(self, clock: Clock, budget: float = BUDGET) -> None:
        self._clock = clock
        self._budget = budget
        self._costs: dict[bool, deque[float]] = {had: deque(maxlen=8) for had in (False, True)}
        self._known = self._next = 0
        self._had = False

    def __call__(self, step: int) -> bool:
        """Return whether the metrics are measured at a step; to be called once for each recorded step, in order."""
        rows, cost = self._clock.rows
        if rows > self._known:
            self._known = rows
            self._costs[self._had].append(cost)
        self._had = step >= self._next
        if self._had:
            self._next = step + self._interval()
        return self._had

    def _interval(self) -> int:
        without, measured = self._costs[False], self._costs[True]
        if not (without and measured and self._clock.bare_step > 0):
            return 2  # a row with the metrics and one without, to compare them
        added = statistics.median(measured) - statistics.median(without)
        return max(1, math.ceil(added / (self._budget * self._clock.bare_step)))


def make_rule(every: Every, clock: Clock) -> Callable[[int], bool]:
    """Return the rule for a value of ``every``.

    Args:
        every: See ``gradlens.record``.
        clock: Measures the recorder's cost, for "auto".

    Returns:
        A function that returns whether a step is recorded.

    Raises:
        ConfigError: ``every`` is not an allowed value.
    """
    if every == "auto":
        return AutoEvery(clock)
    if callable(every):
        return every
    if isinstance(every, int) and not isinstance(every, bool) and every >= 1:
        return lambda step: step % every == 0
    raise ConfigError(f'every must be a whole number from 1, a callable step -> bool, or "auto"; got {every!r}')
