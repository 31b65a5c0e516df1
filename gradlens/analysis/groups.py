"""Groups of runs that differ only in the seed: how they are found, named, and averaged.

Shapes: S seeds, E epochs (over steps: the steps of ``StepWindow.grid``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gradlens.analysis.stats import Interval, mean_interval
from gradlens.analysis.step_curves import StepWindow, was_logged
from gradlens.config import LATER
from gradlens.format import plural
from gradlens.lazy import shown_by
from gradlens.run import FloatArray, Run, jsonable

# These settings describe how a run was recorded or run, not what was trained.
NOT_COMPARED = {
    "seed",
    "model",
    "every",
    "workers",
    "device",
    "data_facts",
    "skip_broken",
    "allow_outside",
    "on_nonfinite",
    "on_record_error",
    "metrics",
    "norms",
    "recipe",
}


LEAST_DEPTHS = 3
"""Models of fewer depths do not form a family."""


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed.

    Args:
        label: Label of the group.
        model: The model's name; the run's name where it has no seed.
        runs: The runs, by seed.
        end: The last epoch, counted from 1, or the last step, that all compared runs have; None: each run's own last.
        window: How scalars are averaged where runs are compared over steps; None: over epochs.
    """

    label: str
    model: str
    runs: tuple[Run, ...]
    end: int | None = None
    window: StepWindow | None = None

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order; none for a run without a seed."""
        return sorted(run.seed for run in self.runs if run.seed >= 0)

    @property
    def unit(self) -> Literal["epoch", "step"]:
        """What the runs are compared over."""
        return "epoch" if self.window is None else "step"

    @property
    def positions(self) -> FloatArray:
        """(E,) epochs from 1, or steps, at which ``curve`` has its values."""
        if self.window is not None:
            return self.window.grid.astype(np.float64)
        return np.arange(1.0, max((n_epochs(run) for run in self.runs), default=0) + 1)

    def curve(self, column: str) -> FloatArray:
        """Return a column of the table of epochs, or a scalar over steps, for each run.

        Args:
            column: Name of the column, or of the scalar.

        Returns:
            (S, E) in the column's unit; NaN where a run ended earlier.
        """
        if self.window is not None:
            unknown = np.full(len(self.window.grid), np.nan)
            return np.array([self.window.curve(r, column) if was_logged(r, column) else unknown for r in self.runs])
        length = len(self.positions)
        curves = np.full((len(self.runs), length), np.nan)
        for row, run in zip(curves, self.runs, strict=True):
            values = run.epochs.get(column, np.empty(0))
            row[: len(values)] = values
        return curves

    def mean_curve(self, column: str) -> list[Interval]:
        """Return the mean over seeds of a column for each epoch, (E,)."""
        return [_interval(values, column) for values in self.curve(column).T]

    def say_length(self) -> str:
        """Return the number of epochs, or of steps, as text: ``16 to 25 epochs``."""
        counts = sorted(length_of(run, self.unit) for run in self.runs)
        number = f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"
        return f"{number} {self.unit if number == '1' else self.unit + 's'}"

    def say_extent(self) -> str:
        """Return the numbers of seeds and epochs as text: ``3 seeds, 16 to 25 epochs``; no seeds if none was given."""
        seeds = [plural(len(self.runs), "seed")] if self.seeds else []
        return ", ".join([*seeds, self.say_length()])

    def final(self, column: str, *, own: bool = False) -> Interval:
        """Return the mean of a column over the runs, at the last epoch or step that all compared runs have.

        Args:
            column: Name of the column, or of the scalar.
            own: Whether to take each run's own last epoch or step instead.

        Returns:
            The mean and its interval, in the column's unit.
        """
        return _interval(self.lasts(column, own=own), column)

    def lasts(self, column: str, *, own: bool = False) -> FloatArray:
        """Return a column of each run where ``final`` takes it, (S,); runs that do not have the column are left out."""
        if not self.logged(column):
            return np.empty(0)
        if self.window is not None:
            lasts = [self.window.final(run, column, own=own) for run in self.runs if was_logged(run, column)]
        else:
            at = -1 if own or self.end is None else self.end - 1
            lasts = [values[at] for run in self.runs if len(values := run.epochs.get(column, np.empty(0)))]
        return np.array(lasts, dtype=np.float64)

    def logged(self, column: str) -> bool:
        """Return whether a column was logged: one that never was is NaN in all epochs of all runs.

        ``gradlens run`` logs all columns, so that there NaN in all epochs is a loss that was never finite.

        Args:
            column: Name of the column, or of the scalar.
        """
        if self.window is not None:
            return any(was_logged(run, column) for run in self.runs)
        known = any(not np.isnan(run.epochs[column]).all() for run in self.runs if column in run.epochs)
        return known or any("recipe" in run.config and column in run.epochs for run in self.runs)

    _repr_html_ = shown_by("group_card")


def _interval(values: FloatArray, column: str) -> Interval:
    """Return the mean of a column; an interval of an accuracy ends at 0 and 1, beyond which no mean can be."""
    found = mean_interval(values)
    if found.n > 1 and column.endswith("accuracy") and np.nanmin(values) >= 0 and np.nanmax(values) <= 1:
        return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
    return found


def n_epochs(run: Run) -> int:
    """Return the number of finished epochs."""
    return len(run.epochs.get("epoch", ()))


def length_of(run: Run, unit: str) -> int:
    """Return the number of epochs, or of steps up to the last row."""
    return n_epochs(run) if unit == "epoch" else int(run.steps[-1]) + 1 if len(run.steps) else 0


def repeated_runs(runs: list[Run]) -> list[Run]:
    """Return the runs that repeat the model, the settings and the seed of an earlier one.

    Where runs have no seed, only the same file again is a repeat.
    """
    seen: set[tuple[str, int]] = set()
    repeats = []
    for run in runs:
        key = (_key(run), run.seed)
        if key in seen:
            repeats.append(run)
        seen.add(key)
    return repeats


def group_runs(runs: list[Run]) -> list[Group]:
    """Group runs by model and settings.

    The label of a group names only the settings in which groups of its model differ. Where runs repeat a seed, only the
    first is kept. A run without a seed is a group of its own, with the run's name.

    Args:
        runs: The runs.

    Returns:
        The groups in the order of their first runs; families of models (``find_families``) are ordered by depth.
    """
    repeats = {id(run) for run in repeated_runs(runs)}
    runs = [run for run in runs if id(run) not in repeats]
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(_key(run), []).append(run)
    groups = []
    firsts = [members[0] for members in grouped.values()]
    names = _names(firsts)
    for members, name in zip(grouped.values(), names, strict=True):
        label = ", ".join([name, *_say_differences(members[0], firsts)])
        groups.append(Group(label, name, tuple(sorted(members, key=lambda run: run.seed))))
    families = find_families([group.model for group in groups])
    if families is None:
        return groups
    order = sorted(range(len(groups)), key=lambda i: (families[i].rank, families[i].depth))
    return [groups[i] for i in order]


def _names(runs: Sequence[Run]) -> list[str]:
    """Return the names of runs: the model's, or without a seed the file's, with folders where two would be the same."""
    names = [group_name(run) for run in runs]
    for depth in range(1, max((len(run.path.parts) for run in runs), default=0)):
        twice = {name for name in names if names.count(name) > 1}
        alone = [run.seed < 0 and name in twice for run, name in zip(runs, names, strict=True)]
        if not any(alone):
            break
        longer = [Path(*run.path.parts[-1 - depth :]).with_name(run.name).as_posix() for run in runs]
        names = [more if is_twice else name for name, more, is_twice in zip(names, longer, alone, strict=True)]
    return names


@dataclass(frozen=True)
class Family:
    """The position of a model in a family of models that differ only in depth.

    Args:
        name: Name of the family: "plain-nobn" for "plain34-nobn".
        rank: Position of the family among the families, in order of first appearance.
        depth: Number of layers, according to the model's name.
        share: Position in the family, from 0 for the shallowest model to 1 for the deepest.
    """

    name: str
    rank: int
    depth: int
    share: float


def find_families(models: Sequence[str]) -> list[Family] | None:
    """Sort models that differ in depth into families.

    Args:
        models: Names of models.

    Returns:
        The position of each model; None unless each belongs to a family with at least three depths.
    """
    matches = [re.fullmatch(r"([a-z_]+)(\d+)(\D.*)?", model) for model in models]
    depths: dict[str, list[int]] = {}
    found: list[tuple[str, int]] = []
    for match in matches:
        if match is None:
            return None
        found.append((match[1] + (match[3] or ""), int(match[2])))
        depths.setdefault(found[-1][0], []).append(found[-1][1])
    if not depths or any(len(set(members)) < LEAST_DEPTHS for members in depths.values()):
        return None
    ranks = {name: rank for rank, name in enumerate(depths)}
    places = {name: sorted(set(members)) for name, members in depths.items()}
    return [
        Family(name, ranks[name], depth, places[name].index(depth) / (len(places[name]) - 1)) for name, depth in found
    ]


def label_runs(runs: list[Run]) -> list[str]:
    """Return a label for each run: its model, the settings in which runs of that model differ, and its seed."""
    labels = []
    for run, name in zip(runs, _names(runs), strict=True):
        seed = [f"seed {run.seed}"] if run.seed >= 0 else []
        labels.append(", ".join([name, *_say_differences(run, runs), *seed]))
    return labels


def _say_differences(run: Run, others: list[Run]) -> list[str]:
    """Return the settings in which runs of a run's model differ: ``split=random``."""
    if run.seed < 0:
        return []
    twins = [compared_settings(other) for other in others if other.seed >= 0 and group_name(other) == group_name(run)]
    keys = sorted({key for settings in twins for key in settings})
    varying = [key for key in keys if len({jsonable(settings.get(key)) for settings in twins}) > 1]
    return [f"{key}={show_setting(compared_settings(run).get(key))}" for key in varying]


def compared_settings(run: Run) -> dict[str, Any]:
    """Return the settings by which a run is compared: all but the model, the seed, and those of recording.

    A setting that ``gradlens run`` writes only where it is used has its usual value where it is not there.
    """
    usual = LATER if "recipe" in run.config else {}
    return {key: value for key, value in {**usual, **run.config}.items() if key not in NOT_COMPARED}


def _key(run: Run) -> str:
    return jsonable([group_name(run), compared_settings(run), "" if run.seed >= 0 else str(run.path)])


def group_name(run: Run) -> str:
    """Return the name of a run's group: its model, or the run's own name where it has no seed."""
    return (run.model or run.name) if run.seed >= 0 else run.name


def show_setting(value: Any) -> str:
    """Return the value of a setting for a label."""
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value) or "none"
