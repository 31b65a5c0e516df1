"""Accuracy and loss of several runs side by side: seeds grouped, with intervals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradlens.analysis.stats import Interval, mean_interval
from gradlens.run import FloatArray, Run

# The four rows of the report's table, in its order.
FINAL_ROWS = {
    "train_accuracy": "training accuracy",
    "val_accuracy": "validation accuracy",
    "train_loss": "training loss",
    "val_loss": "validation loss",
}

# Final epoch, one run each. Source: the report that started this project, on five classes of Indonesian food.
REPORT_NUMBERS = {
    "plain34": {"train_accuracy": 0.52, "val_accuracy": 0.47, "train_loss": 1.24, "val_loss": 1.30},
    "resnet34": {"train_accuracy": 0.7379, "val_accuracy": 0.6712, "train_loss": 0.8046, "val_loss": 1.0348},
}

# These say how a run was watched, not what was trained.
NOT_COMPARED = {
    "seed",
    "model",
    "every",
    "workers",
    "device",
    "data_facts",
    "skip_broken",
    "on_nonfinite",
    "recipe",
}


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    label: str
    model: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted(run.seed for run in self.runs)

    def curve(self, column: str) -> FloatArray:
        """Return a column of the table of epochs, (S, E); NaN where a run ended earlier."""
        length = max((len(run.epochs.get("epoch", ())) for run in self.runs), default=0)
        curves = np.full((len(self.runs), length), np.nan)
        for row, run in zip(curves, self.runs, strict=True):
            values = run.epochs.get(column, np.empty(0))
            row[: len(values)] = values
        return curves

    def final(self, column: str) -> Interval:
        """Return the mean over seeds of each run's last epoch."""
        lasts = [values[-1] for run in self.runs if len(values := run.epochs.get(column, np.empty(0)))]
        return mean_interval(np.array(lasts, dtype=np.float64))


def group_runs(runs: list[Run]) -> list[Group]:
    """Group runs by model and settings; a label names the settings only where two groups of a model differ in them."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(_key(run), []).append(run)
    settings = [_settings(members[0]) for members in grouped.values()]
    varying = {key for values in settings for key in values if len({_text(other.get(key)) for other in settings}) > 1}
    groups = []
    for members, values in zip(grouped.values(), settings, strict=True):
        model = members[0].model or members[0].name
        twins = [other for other in grouped.values() if (other[0].model or other[0].name) == model]
        said = [f"{key}={_show(values.get(key))}" for key in sorted(varying)] if len(twins) > 1 else []
        ordered = tuple(sorted(members, key=lambda run: run.seed))
        groups.append(Group(", ".join([model, *said]), model, ordered))
    return groups


def _settings(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key not in NOT_COMPARED}


def _key(run: Run) -> str:
    known = _settings(run)
    # Runs recorded in somebody's own loop carry no configuration: the model's name must do.
    return _text([run.model or run.name, known])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _show(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def final_table(groups: list[Group], *, with_report: bool = False) -> list[dict[str, Any]]:
    """Return the table of the last epoch: a row per quantity, a column per group.

    Args:
        groups: The columns.
        with_report: Put the report's own number beside, where the model is one of its two.

    Returns:
        Rows with ``quantity`` and, per group label, an ``Interval``; with ``report LABEL`` the report's number.
    """
    rows: list[dict[str, Any]] = []
    for column, title in FINAL_ROWS.items():
        row: dict[str, Any] = {"quantity": title, "column": column}
        for group in groups:
            row[group.label] = group.final(column)
        if with_report:
            for model, numbers in REPORT_NUMBERS.items():
                if any(group.model == model for group in groups):
                    row[f"report {model}"] = numbers[column]
        rows.append(row)
    return rows


def say_interval(interval: Interval, digits: int = 3) -> str:
    """Write a mean with its standard deviation between seeds: ``0.731 ± 0.012``."""
    if interval.n == 0:
        return "-"
    mean = f"{interval.mean:.{digits}f}"
    return mean if interval.n == 1 else f"{mean} ± {interval.std:.{digits}f}"
