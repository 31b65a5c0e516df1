"""Which metrics a row has: each metric has an interval of its own, in rows by default, or by a rule of the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from gradlens.errors import ConfigError
from gradlens.metrics import GRADIENT_NORMS, NONFINITE_COUNT, UPDATE_RATIO, get_metric
from gradlens.recorder.schedule import AutoMetrics, Clock, Every, make_rule


class Intervals(dict[str, int]):
    """Metric to its interval in rows, as the file says it; and which metrics are due in a row.

    Args:
        every: Metric to its interval in rows.
        rules: Metric to a function that returns whether it is measured at a step, where the user gave an interval.
    """

    def __init__(self, every: Mapping[str, int], rules: Mapping[str, Callable[[int], bool]]) -> None:
        super().__init__(every)
        self._rules = rules
        self._step = -1
        self._chosen: set[str] = set()

    def due(self, row: int, step: int) -> list[str]:
        """Return the metrics to measure.

        Args:
            row: Index of the row in progress.
            step: Index of its optimizer step; every rule is asked once about each.
        """
        if step != self._step:
            asked = {id(rule): bool(rule(step)) for rule in self._rules.values()}
            self._chosen = {name for name, rule in self._rules.items() if asked[id(rule)]}
            self._step = step
        return [name for name, n in self.items() if (name in self._chosen if name in self._rules else row % n == 0)]


def make_intervals(
    metrics: Iterable[str],
    every: Every | Mapping[str, Every],
    clock: Clock,
    *,
    optimizers: int,
    scaled: bool,
    several_ranks: bool,
) -> tuple[Intervals, Callable[[int], bool]]:
    """Return the interval of each metric, and the rule that chooses the steps to record.

    Args:
        metrics: Names of all metrics to record.
        every: See ``gradlens.record``.
        clock: Measures the recorder's cost, for "auto".
        optimizers: Number of optimizers; without one, there is no update to measure.
        scaled: Whether a GradScaler is in use, so that ``nonfinite_count`` is recorded too.
        several_ranks: Whether several processes record together.

    Raises:
        ConfigError: A metric's name or a value of ``every`` is not allowed.
    """
    names = dict.fromkeys((metrics,) if isinstance(metrics, str) else metrics)
    if scaled:
        names.setdefault(NONFINITE_COUNT)
    rows = {name: get_metric(name).every for name in names if optimizers or name != UPDATE_RATIO}
    if not isinstance(every, Mapping):
        return Intervals(rows, {}), make_rule(every, clock)
    _check_names(every, names)
    given = [every[name] for name in GRADIENT_NORMS if name in every]
    if any(one != given[0] for one in given):
        raise ConfigError(
            f"every: {' and '.join(GRADIENT_NORMS)} are in every row, and got different intervals: {given}",
            tip="give one of them only",
        )
    of_rows = given[0] if given else 1
    auto = AutoMetrics(clock)
    rules: dict[str, Callable[[int], bool]] = {}
    for name, value in every.items():
        if name in GRADIENT_NORMS or name not in rows:
            continue
        if value == "auto" and several_ranks:
            raise ConfigError(f'every: "auto" for {name} alone is not possible with several ranks', tip="give a number")
        rules[name] = auto if value == "auto" else _first_from(value) if _is_count(value) else make_rule(value, clock)
        regular = _is_count(value) and _is_count(of_rows)
        rows[name] = max(1, -(-value // of_rows)) if regular else max(2, rows[name])  # type: ignore[operator]
    return Intervals(rows, rules), make_rule(of_rows, clock)


def _check_names(every: Mapping[str, Every], names: Iterable[str]) -> None:
    for name in every:
        get_metric(name)
        if name not in names:
            raise ConfigError(f"every: {name} is not recorded", tip=f'add metrics="{name}"')


def _is_count(value: Every) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _first_from(interval: Every) -> Callable[[int], bool]:
    """Return a rule that chooses the first row at or after each multiple of the interval."""
    assert isinstance(interval, int)
    last = -1

    def wanted(step: int) -> bool:
        nonlocal last
        before, last = last, step // interval
        return last != before

    return wanted
