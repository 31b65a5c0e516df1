"""Compare accuracy and loss of several runs; seeds are grouped and give intervals.

Shapes: S seeds, E epochs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradlens.analysis.stats import Interval, difference_interval, mean_interval
from gradlens.errors import ConfigError
from gradlens.format import plural
from gradlens.lazy import shown_by
from gradlens.run import FloatArray, Run

# The four rows of the table of the last epoch, in order.
FINAL_ROWS = {
    "train_accuracy": "training accuracy",
    "val_accuracy": "validation accuracy",
    "train_loss": "training loss",
    "val_loss": "validation loss",
}

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
    """Runs that differ only in the seed."""

    label: str
    model: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted(run.seed for run in self.runs)

    def curve(self, column: str) -> FloatArray:
        """Return a column of the table of epochs for each run.

        Args:
            column: Name of the column.

        Returns:
            (S, E) in the column's unit; NaN where a run ended earlier.
        """
        length = max((len(run.epochs.get("epoch", ())) for run in self.runs), default=0)
        curves = np.full((len(self.runs), length), np.nan)
        for row, run in zip(curves, self.runs, strict=True):
            values = run.epochs.get(column, np.empty(0))
            row[: len(values)] = values
        return curves

    def mean_curve(self, column: str) -> list[Interval]:
        """Return the mean over seeds of a column for each epoch, (E,)."""
        return [mean_interval(values) for values in self.curve(column).T]

    def say_extent(self) -> str:
        """Return the numbers of seeds and epochs as text: ``3 seeds, 16 to 25 epochs``."""
        counts = sorted(len(run.epochs.get("epoch", ())) for run in self.runs)
        epochs = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
        return f"{plural(len(self.runs), 'seed')}, {epochs} {'epoch' if epochs == '1' else 'epochs'}"

    def final(self, column: str) -> Interval:
        """Return the mean of a column over the last epochs of the runs."""
        return mean_interval(self.lasts(column))

    def lasts(self, column: str) -> FloatArray:
        """Return a column in the last epoch of each run, (S,); runs without the column are left out."""
        lasts = [values[-1] for run in self.runs if len(values := run.epochs.get(column, np.empty(0)))]
        return np.array(lasts, dtype=np.float64)

    _repr_html_ = shown_by("group_card")


@dataclass(frozen=True)
class Reference:
    """Numbers of the last epoch from another source, to be shown next to those of runs.

    Args:
        label: Label of the numbers.
        model: The model that they describe.
        numbers: Column of the table of epochs to value.
    """

    label: str
    model: str
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """A comparison of groups of runs.

    Args:
        groups: Each holds runs that differ only in the seed.
        repeats: Runs that repeat the model, the settings and the seed of an earlier one; they are left out.
        unfinished: Runs that have not finished an epoch; they are left out.
    """

    groups: tuple[Group, ...]
    repeats: tuple[Run, ...] = ()
    unfinished: tuple[Run, ...] = ()

    def table(self, references: Sequence[Reference] = ()) -> list[dict[str, Any]]:
        """Return the table of the last epoch.

        Args:
            references: As in ``final_table``.

        Returns:
            Rows as in ``final_table``.
        """
        return final_table(list(self.groups), references)

    def left_out(self) -> list[str]:
        """Return a sentence for each run that was left out, with the reason."""
        reasons = (("repeats a seed of the same model and settings", self.repeats),
                   ("has not finished an epoch", self.unfinished))  # fmt: skip
        return [f"{run.name} {why}: it is left out" for why, runs in reasons for run in runs]

    def __repr__(self) -> str:
        """Return the groups in one line; ``print`` shows the table of the last epoch."""
        return f"Comparison({'; '.join(f'{group.label}, {group.say_extent()}' for group in self.groups)})"

    def __str__(self) -> str:
        """Return the table of the last epoch as text."""
        rows = [("last epoch", *FINAL_ROWS.values())]
        rows += [(g.label, *(say_interval(g.final(column)) for column in FINAL_ROWS)) for g in self.groups]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines + self.left_out())

    _repr_html_ = shown_by("comparison_card")


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Compare accuracy and loss of runs; runs that differ only in the seed form a group.

    Args:
        runs: The runs.

    Returns:
        The comparison; ``print`` shows the table of the last epoch.

    Raises:
        ConfigError: No run has finished an epoch.
    """
    finished = [run for run in runs if len(run.epochs.get("epoch", ()))]
    if not finished:
        raise ConfigError("nothing to compare: no run has finished an epoch")
    unfinished = tuple(run for run in runs if not len(run.epochs.get("epoch", ())))
    return Comparison(tuple(group_runs(finished)), tuple(repeated_runs(finished)), unfinished)


def repeated_runs(runs: list[Run]) -> list[Run]:
    """Return the runs that repeat the model, the settings and the seed of an earlier one."""
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
    first is kept. A run without a seed is a group of its own.

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
    for members in grouped.values():
        label = ", ".join([_name(members[0]), *_say_differences(members[0], firsts)])
        groups.append(Group(label, _name(members[0]), tuple(sorted(members, key=lambda run: run.seed))))
    families = find_families([group.model for group in groups])
    if families is None:
        return groups
    order = sorted(range(len(groups)), key=lambda i: (families[i].rank, families[i].depth))
    return [groups[i] for i in order]


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
    for run in runs:
        seed = [f"seed {run.seed}"] if run.seed >= 0 else []
        labels.append(", ".join([_name(run), *_say_differences(run, runs), *seed]))
    return labels


def _say_differences(run: Run, others: list[Run]) -> list[str]:
    """Return the settings in which runs of a run's model differ: ``split=random``."""
    twins = [compared_settings(other) for other in others if _name(other) == _name(run)]
    keys = sorted({key for settings in twins for key in settings})
    varying = [key for key in keys if len({_text(settings.get(key)) for settings in twins}) > 1]
    return [f"{key}={_show(compared_settings(run).get(key))}" for key in varying]


def compared_settings(run: Run) -> dict[str, Any]:
    """Return the settings by which a run is compared: all but the model, the seed, and those of recording."""
    return {key: value for key, value in run.config.items() if key not in NOT_COMPARED}


def _key(run: Run) -> str:
    return _text([_name(run), compared_settings(run)])


def _name(run: Run) -> str:
    """Return the name of a run's group: its model, or the run's own name where it has no seed."""
    return (run.model or run.name) if run.seed >= 0 else run.name


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _show(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def final_table(groups: list[Group], references: Sequence[Reference] = ()) -> list[dict[str, Any]]:
    """Return the table of the last epoch, with one row per quantity and one column per group.

    Args:
        groups: The columns.
        references: Numbers from other sources; columns are added for those whose model is among the groups.

    Returns:
        Rows with ``quantity`` and ``column``, an ``Interval`` for each group's label, and the number for each
        reference's label.
    """
    rows: list[dict[str, Any]] = []
    for column, title in FINAL_ROWS.items():
        row: dict[str, Any] = {"quantity": title, "column": column}
        for group in groups:
            row[group.label] = group.final(column)
        for reference in references:
            if any(group.model == reference.model for group in groups):
                row[reference.label] = reference.numbers[column]
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Lead:
    """The difference between the best group and the second best in one quantity of the last epoch.

    Args:
        column: The quantity: a column of the table of epochs.
        best: The best group.
        other: The second best group.
        difference: Best minus other, with its interval over seeds.
    """

    column: str
    best: Group
    other: Group
    difference: Interval

    @property
    def is_shown(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.difference.low > 0 or self.difference.high < 0


def find_lead(groups: list[Group]) -> Lead | None:
    """Compare the two best groups in validation accuracy; without it in validation loss, then in training loss.

    Args:
        groups: The groups.

    Returns:
        The difference, or None where fewer than two groups have any of these.
    """
    for column, sign in (("val_accuracy", 1), ("val_loss", -1), ("train_loss", -1)):
        known = [group for group in groups if np.isfinite(group.final(column).mean)]
        if len(known) > 1:
            known.sort(key=lambda group: sign * group.final(column).mean, reverse=True)
            best, other = known[:2]
            return Lead(column, best, other, difference_interval(best.lasts(column), other.lasts(column)))
    return None


def say_interval(interval: Interval, digits: int = 3) -> str:
    """Return a mean with its standard deviation between seeds as text: ``0.731 ± 0.012``.

    Args:
        interval: The mean and its interval.
        digits: Number of decimals.

    Returns:
        The text; ``(2 of 3)`` is appended where values that are not finite were left out.
    """
    if interval.n == 0:
        return "not finite" if interval.left_out else "-"
    text = f"{interval.mean:.{digits}f}"
    if interval.n > 1:
        text += f" ± {interval.std:.{digits}f}"
    return f"{text} ({interval.n} of {interval.n + interval.left_out})" if interval.left_out else text
