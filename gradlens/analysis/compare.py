"""Compare accuracy and loss of several runs; seeds are grouped and give intervals.

Runs are compared over epochs, or, where no epochs were logged, by their logged scalars over steps.
Shapes: S seeds, E epochs (over steps: the steps of ``StepWindow.grid``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gradlens.analysis.groups import (
    Group,
    compared_settings,
    group_runs,
    label_runs,
    length_of,
    n_epochs,
    repeated_runs,
)
from gradlens.analysis.stats import Interval, difference_interval
from gradlens.analysis.step_curves import has_scalars, logged_scalars, make_window
from gradlens.analysis.unequal import noted_settings, say_lengths, say_names, say_settings, say_states
from gradlens.errors import ConfigError
from gradlens.format import plural, say_decimals
from gradlens.lazy import shown_by
from gradlens.run import EPOCH_COLUMNS, Run

# The four rows of the table of the last epoch, in order.
FINAL_ROWS = {
    "train_accuracy": "training accuracy",
    "val_accuracy": "validation accuracy",
    "train_loss": "training loss",
    "val_loss": "validation loss",
}


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
        unfinished: Runs that have no finished epoch, or over steps no logged scalar; they are left out.
    """

    groups: tuple[Group, ...]
    repeats: tuple[Run, ...] = ()
    unfinished: tuple[Run, ...] = ()

    @property
    def unit(self) -> Literal["epoch", "step"]:
        """What the runs are compared over."""
        return self.groups[0].unit

    @property
    def columns(self) -> Mapping[str, str]:
        """The compared quantities: column of the table of epochs, or scalar, to title."""
        return columns_of(self.groups)

    @property
    def unequal(self) -> list[str]:
        """In what the runs are not equal, a sentence each: length, state, data and settings, runs left out."""
        missing = [sentence for sentence in self.left_out() if "seed" not in sentence]
        return [*say_unequal(self.groups), *missing]

    def table(self, references: Sequence[Reference] = ()) -> list[dict[str, Any]]:
        """Return the table at the last epoch or step that all have.

        Args:
            references: As in ``final_table``.

        Returns:
            Rows as in ``final_table``.
        """
        return final_table(list(self.groups), references)

    def left_out(self) -> list[str]:
        """Return a sentence for each run that was left out, with the reason."""
        lacks = "has not finished an epoch" if self.unit == "epoch" else "has no logged scalar"
        reasons = (("repeats a seed of the same model and settings", self.repeats), (lacks, self.unfinished))
        return [f"{run.name} {why}: it is left out" for why, runs in reasons for run in runs]

    def __repr__(self) -> str:
        """Return the groups in one line; ``print`` shows the table."""
        return f"Comparison({'; '.join(f'{group.label}, {group.say_extent()}' for group in self.groups)})"

    def __str__(self) -> str:
        """Return the table as text; the first line says in what the runs are not equal."""
        rows = [(say_end(self.groups), *self.columns.values())]
        rows += [(g.label, *(say_interval(g.final(column)) for column in self.columns)) for g in self.groups]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        unequal = say_unequal(self.groups)
        return "\n".join([*(["not equal: " + "; ".join(unequal)] if unequal else []), *lines, *self.left_out()])

    _repr_html_ = shown_by("comparison_card")


def compare_runs(runs: Sequence[Run], *, by: Literal["epoch", "step"] | None = None) -> Comparison:
    """Compare accuracy and loss of runs; runs that differ only in the seed form a group.

    Args:
        runs: The runs.
        by: Compare the tables of epochs, or the logged scalars over steps. None: epochs, but steps where fewer than two
            runs have finished an epoch and more have logged scalars.

    Returns:
        The comparison, at the last epoch or step that all runs have; ``print`` shows the table.

    Raises:
        ConfigError: No run has finished an epoch, or logged a scalar.
    """
    finished = [run for run in runs if n_epochs(run)]
    logged = [run for run in runs if len(run.steps) and has_scalars(run)]
    if by is None:
        by = "step" if len(finished) < 2 and len(logged) > len(finished) else "epoch"
    kept = finished if by == "epoch" else logged
    if not kept:
        what = "finished an epoch" if by == "epoch" else "logged a scalar"
        other = "; --by step compares logged scalars" if logged else "; --by epoch compares epochs" if finished else ""
        tip = f"recorder.log(loss=loss) after each step is enough, recorder.log_epoch(...) adds epochs{other}"
        raise ConfigError(f"nothing to compare: no run has {what}", tip=tip)
    left_out = tuple(run for run in runs if all(run is not one for one in kept))
    groups = group_runs(kept)
    members = [run for group in groups for run in group.runs]
    if by == "step":
        window = make_window(members)
        groups = [replace(group, end=window.end, window=window) for group in groups]
    else:
        end = min(map(n_epochs, members))
        groups = [replace(group, end=end) for group in groups]
    return Comparison(tuple(groups), tuple(repeated_runs(kept)), left_out)


def columns_of(groups: Sequence[Group]) -> Mapping[str, str]:
    """Return the compared quantities of groups: column of the table of epochs, or scalar, to title.

    What no run logged is left out: accuracy and loss come first, then other columns, losses and accuracies among them.
    """
    if groups[0].window is not None:
        return logged_scalars(run for group in groups for run in group.runs)
    own = dict.fromkeys(name for group in groups for run in group.runs for name in run.epochs)
    more = sorted(own.keys() - set(EPOCH_COLUMNS), key=lambda name: ("loss" not in name and "acc" not in name, name))
    titles = FINAL_ROWS | {name: name.replace("_", " ") for name in more}
    logged = {name: title for name, title in titles.items() if any(group.logged(name) for group in groups)}
    return logged or FINAL_ROWS


def are_equally_long(groups: Sequence[Group]) -> bool:
    """Return whether all runs of groups have the same number of epochs, or the same last step."""
    return len({length_of(run, group.unit) for group in groups for run in group.runs}) == 1


def say_end(groups: Sequence[Group]) -> str:
    """Return where groups are compared: ``last epoch``, or ``epoch 16``; over steps with the width of the window."""
    window, end = groups[0].window, groups[0].end
    if window is not None:
        return f"step {window.end:,}" + (f", mean of {window.width:,} steps" if window.width > 1 else "")
    return "last epoch" if end is None or are_equally_long(groups) else f"epoch {end:,}"


def say_unequal(groups: Sequence[Group]) -> list[str]:
    """Return in what runs are not equal, a sentence each: length, state, data and settings."""
    named = list(zip(label_runs(runs := [r for g in groups for r in g.runs]), runs, strict=True))
    said = []
    end = groups[0].end
    without = [name for name, run in named if not n_epochs(run)]
    if groups[0].window is not None and 0 < len(without) < len(named):
        said.append(f"{say_names(without)} logged no epochs, so that all are compared over steps")
    if end is not None:
        said.append(say_lengths([(name, length_of(r, groups[0].unit)) for name, r in named], groups[0].unit, end))
    said.append(say_states(named))
    said.append(say_settings([(name, noted_settings(r) | compared_settings(r)) for name, r in named]))
    return [sentence for sentence in said if sentence]


def final_table(
    groups: list[Group], references: Sequence[Reference] = (), *, own: bool = False
) -> list[dict[str, Any]]:
    """Return the table of the last epoch, with one row per quantity and one column per group.

    Args:
        groups: The columns.
        references: Numbers from other sources; columns are added for those whose model is among the groups.
        own: Whether to take each run's own last epoch or step, not the last that all have.

    Returns:
        Rows with ``quantity`` and ``column``, an ``Interval`` for each group's label, and for each
        reference's label its number, NaN where it has none. All rows have the same keys.
    """
    rows: list[dict[str, Any]] = []
    for column, title in columns_of(groups).items():
        row: dict[str, Any] = {"quantity": title, "column": column}
        for group in groups:
            row[group.label] = group.final(column, own=own)
        for reference in references:
            if any(group.model == reference.model for group in groups):
                row[reference.label] = reference.numbers.get(column, math.nan)
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
        tied: The groups whose mean is that of the best, which is one of them.
    """

    column: str
    best: Group
    other: Group
    difference: Interval
    tied: tuple[Group, ...]

    @property
    def is_shown(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.difference.low > 0 or self.difference.high < 0

    def say_runs(self) -> str:
        """Return by how many runs the best is ahead, where one of the groups has a single one."""
        best, other = len(self.best.runs), len(self.other.runs)
        if best != other:
            return f"{plural(best, 'run')} against {plural(other, 'run')}"
        return "one seed only" if self.best.seeds and self.other.seeds else "one run each"

    def say_equal(self, quantity: str) -> str:
        """Return that the groups with the mean of the best are equal: "a, b and c are equal in validation loss"."""
        *most, last = (group.label for group in self.tied)
        return f"{', '.join(most)} and {last} are equal in {quantity}"


def find_lead(groups: list[Group]) -> Lead | None:
    """Compare the two best groups in validation accuracy; without it in validation loss, then in those of training.

    Over steps, and where none of these was logged: in a scalar or column whose name says accuracy, then in one whose
    name says loss; validation before training.

    Args:
        groups: The groups.

    Returns:
        The difference, or None where fewer than two groups have any of these.
    """
    for column, sign in _judged_columns(groups):
        known = [group for group in groups if np.isfinite(group.final(column).mean)]
        if len(known) > 1:
            known.sort(key=lambda group: sign * group.final(column).mean, reverse=True)
            best, other = known[:2]
            tied = tuple(group for group in known if group.final(column).mean == best.final(column).mean)
            return Lead(column, best, other, difference_interval(best.lasts(column), other.lasts(column)), tied)
    return None


def _judged_columns(groups: Sequence[Group]) -> list[tuple[str, int]]:
    """Return the quantities that may decide which group is ahead, each with 1 where more is better, else -1."""
    if groups[0].window is None:
        named = [("val_accuracy", 1), ("val_loss", -1), ("train_accuracy", 1), ("train_loss", -1)]
        return [*named, *_by_name([name for name in columns_of(groups) if name not in FINAL_ROWS])]
    return _by_name(columns_of(groups))


def _by_name(names: Collection[str]) -> list[tuple[str, int]]:
    """Return the quantities whose names say accuracy or loss, as ``_judged_columns`` does."""
    found = [(name, 1) for name in names if "acc" in name]
    found += [(name, -1) for name in names if "loss" in name]
    return sorted(found, key=lambda item: (-item[1], "val" not in item[0]))


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
    text = say_decimals(interval.mean, digits)
    if interval.n > 1:
        text += f" ± {interval.std:.{digits}f}" if "e" not in text else f" ± {interval.std:.2e}"
    return f"{text} ({interval.n} of {interval.n + interval.left_out})" if interval.left_out else text
