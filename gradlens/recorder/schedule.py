"""Which optimizer steps are recorded."""

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
    """Return a rule for ``every=``: dense at first, then ever rarer, evenly spaced in log(step).

    Args:
        per_decade: Steps recorded between 10 and 100, between 100 and 1,000, and so on.

    Returns:
        A callable ``step -> bool``.

    Raises:
        ConfigError: ``per_decade`` is no whole number from 1.
    """
    if not isinstance(per_decade, int) or per_decade < 1:
        raise ConfigError(f"log_spaced: per_decade must be a whole number from 1, got {per_decade!r}", tip="20, say")

    def wanted(step: int) -> bool:
        if step < 2:
            return True
        return math.floor(per_decade * math.log10(step)) > math.floor(per_decade * math.log10(step - 1))

    return wanted


class Clock:
    """Keeps account of what the recorder costs.

    Its time in the training's thread is measured where its own code runs, and reckoned (``seconds_per_hook``) where
    torch calls its hooks; the processor time of its writing thread is added, as if training had waited for it. The
    step's own time is the wall time from step to step less that, and its median stands for all, so that pauses
    (validation, a sleeping machine) do not count. Work left to an accelerator is not in it.

    Args:
        elsewhere: Returns the processor time of the writing thread so far.
    """

    def __init__(self, elsewhere: Callable[[], float] = lambda: 0.0) -> None:
        self._bare: deque[float] = deque(maxlen=501)
        self._row_costs: deque[float] = deque(maxlen=32)
        self._elsewhere = elsewhere
        self._total = 0.0
        self._steps = self._rows = 0

    def add_step(self, seconds: float, cost: float) -> None:
        """Count one step: wall time since the last, and what of it was the recorder's."""
        self._steps += 1
        self._total += cost
        self._bare.append(max(seconds - cost, 0.0))

    def add_row(self, cost: float) -> None:
        """Count what one recorded row cost."""
        self._rows += 1
        self._row_costs.append(cost)

    @property
    def bare_step(self) -> float:
        """The median step without the recorder, in seconds; 0 before the second step."""
        return statistics.median(self._bare) if self._bare else 0.0

    @property
    def overhead(self) -> float:
        """The recorder's share: its time over the time that training took without it; NaN before the second step."""
        bare = self.bare_step * self._steps
        return (self._total + self._elsewhere()) / bare if bare > 0 else math.nan

    def interval(self, budget: float) -> int:
        """Return every how many steps a row may be recorded, so that it costs no more than the budget.

        While more than a row above that has been spent, as by the first row, it is twice as many: the budget is met in
        the end, and no long gap opens at the start, where a training changes most.
        """
        if not self._row_costs or self.bare_step <= 0:
            return 1
        cost = statistics.fmean(self._row_costs) + self._elsewhere() / self._rows
        too_much = self._total + self._elsewhere() - cost > budget * self.bare_step * self._steps
        return max(1, math.ceil(cost / (budget * self.bare_step) * (2 if too_much else 1)))


class AutoEvery:
    """The rule "auto": as often as the budget allows, by what the rows so far have cost.

    Args:
        clock: Keeps the account.
        budget: Share of the training time.
    """

    def __init__(self, clock: Clock, budget: float = BUDGET) -> None:
        self._clock = clock
        self._budget = budget
        self._next = 0

    def __call__(self, step: int) -> bool:
        """Say whether a step is recorded."""
        return step >= self._next

    def note_row(self, step: int) -> None:
        """Choose the next step after a row."""
        self.set_next(step + self._clock.interval(self._budget))

    @property
    def next(self) -> int:
        """The next step to record."""
        return self._next

    def set_next(self, step: int) -> None:
        """Take another rank's choice."""
        self._next = step


def make_rule(every: Every, clock: Clock) -> Callable[[int], bool]:
    """Return the rule that ``every`` stands for.

    Raises:
        ConfigError: It stands for none.
    """
    if every == "auto":
        return AutoEvery(clock)
    if callable(every):
        return every
    if isinstance(every, int) and not isinstance(every, bool) and every >= 1:
        return lambda step: step % every == 0
    raise ConfigError(f'every must be a whole number from 1, a callable step -> bool, or "auto"; got {every!r}')
