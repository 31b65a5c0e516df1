"""In what runs that are compared are not equal: length, state, data, settings; one sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradlens.format import plural
from gradlens.run import Run

MOST_NAMED = 3
"""More runs, or more settings, than these are counted."""


def say_lengths(counts: Sequence[tuple[str, int]], unit: str, end: int) -> str:
    """Say that runs have different lengths, and where they are compared; "" for equal lengths.

    Args:
        counts: Name and number of epochs, or of steps, of each run.
        unit: "epoch" or "step".
        end: The last epoch, or the last step, that all have.

    Returns:
        The sentence.
    """
    numbers = sorted({count for _, count in counts})
    if len(numbers) < 2:
        return ""
    if len(counts) <= MOST_NAMED:
        said = ", ".join(f"{name} has {plural(count, unit)}" for name, count in counts)
    else:
        said = f"the runs have {numbers[0]:,} to {numbers[-1]:,} {unit}s"
    return f"{said}; the comparison is at {unit} {end:,}, the last that all have"


def say_states(runs: Sequence[tuple[str, Run]]) -> str:
    """Say which runs are not complete; "" where all are.

    Args:
        runs: Name and run.

    Returns:
        The sentence.
    """
    said = []
    for status, what in (("running", "still running"), ("interrupted", "interrupted"), ("failed", "failed")):
        names = [name for name, run in runs if run.status == status]
        if names:
            said.append(f"{say_names(names)} {'is' if len(names) == 1 else 'are'} {what}")
    return "; ".join(said)


def say_settings(settings: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Name the settings in which runs differ, data first, with the values; "" where none differs.

    Args:
        settings: Name and settings of each run or group.

    Returns:
        The sentence.
    """
    if len(settings) < 2:
        return ""
    keys = sorted({key for _, values in settings for key in values}, key=lambda key: (key != "data", key))
    varying = []
    for key in keys:
        values = list(dict.fromkeys(_show(found.get(key)) for _, found in settings))
        if len(values) > 1:
            more = f" and {len(values) - MOST_NAMED} more" if len(values) > MOST_NAMED else ""
            varying.append(f"{key.replace('_', ' ')} {' | '.join(values[:MOST_NAMED])}{more}")
    if not varying:
        return ""
    more = f"; and {plural(len(varying) - MOST_NAMED, 'more setting')}" if len(varying) > MOST_NAMED else ""
    return f"different settings: {'; '.join(varying[:MOST_NAMED])}{more}"


def noted_settings(run: Run) -> dict[str, Any]:
    """Return the settings that the recorder noted by itself: optimizer, its first learning rate, its options."""
    optimizers = run.facts.get("optimizers") or []
    if not isinstance(optimizers, list) or len(optimizers) != 1 or not isinstance(optimizers[0], Mapping):
        return {}
    found: dict[str, Any] = {"optimizer": optimizers[0].get("class")}
    groups = optimizers[0].get("groups") or []
    if isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], Mapping):
        rate, options = groups[0].get("lr"), groups[0].get("settings")
        found |= {"lr": rate.get("first")} if isinstance(rate, Mapping) else {}
        if isinstance(options, Mapping):
            found |= {key: value for key, value in options.items() if key != "initial_lr"}  # a scheduler's copy of lr
    return found


def say_names(names: Sequence[str]) -> str:
    """Return a few names as a list; where there are more, their number."""
    if len(names) > MOST_NAMED:
        return plural(len(names), "run")
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def _show(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value) or "none"
