"""The arms of ``experiments/interventions.toml``: how each learns, and what its gradient looked like before.

The runs are those of ``experiments/results/runs.jsonl.gz`` (``gradlens claims RUNS --keep experiments/results``), the
measures before training those of ``experiments/results/interventions-start.csv`` (``start.py``).
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gradlens.analysis.stats import Interval, mean_interval
from gradlens.study.kept_numbers import read_kept
from gradlens.study.measures import fieller
from gradlens.study.study_run import StudyRun

RESULTS = Path(__file__).resolve().parents[1] / "results"
START = RESULTS / "interventions-start.csv"
NOISE = "gradlens.models.early_layers:resnet34_noise"
ARMS = {
    ("arms", "plain34"): "plain34",
    ("arms", "resnet34-gradonly"): "gradient alone",
    ("arms", "resnet34-valueonly"): "value alone",
    ("scaled", "resnet34-skipinit"): "branch from 0",
    ("scaled", "resnet34-branchscale"): "branch from 1/4",
    ("looks-linear", "plain34"): "plain34, looks-linear",
    ("frozen", "plain34"): "plain34, early layers frozen",
    ("frozen", "resnet34"): "resnet34, early layers frozen",
    ("noise", NOISE): "resnet34, early noise",
    ("arms", "resnet34"): "resnet34",
}
"""Group and model of the experiment, to the arm's name in tables and figures."""
PLAIN, WHOLE = "plain34", "resnet34"
OUTCOMES = ("speed", "unseen")
"""Mean training accuracy over the epochs, and validation accuracy of the last one."""
EXPLANATIONS = {"size": -1, "growth": -1, "direction": 1, "identity": 1}
"""A measure before training, to the sign of its expected relation to learning."""

Values = Mapping[str, Mapping[int, float]]
"""Arm to seed to a value."""


@dataclass(frozen=True)
class Learned:
    """How the arms learned, for the seeds of which all arms are complete."""

    speed: Values
    unseen: Values

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted(self.speed[PLAIN])

    def share(self, arm: str, outcome: str) -> Interval:
        """Return the share of the gap between plain34 and resnet34 that an arm closes, with Fieller's interval."""
        values: Values = getattr(self, outcome)
        part, whole = (
            np.array([values[one][seed] - values[PLAIN][seed] for seed in self.seeds]) for one in (arm, WHOLE)
        )
        return fieller(part, whole)

    def gap(self, outcome: str) -> Interval:
        """Return resnet34 minus plain34, pairs of equal seed."""
        values: Values = getattr(self, outcome)
        return mean_interval(np.array([values[WHOLE][seed] - values[PLAIN][seed] for seed in self.seeds]))

    def difference(self, first: str, second: str) -> Interval:
        """Return how much faster the second arm trains than the first, pairs of equal seed."""
        return mean_interval(np.array([self.speed[second][seed] - self.speed[first][seed] for seed in self.seeds]))


def arm_of(run: StudyRun, arms: Mapping[tuple[str, str], str] = ARMS) -> str | None:
    """Return the arm of a run; None if it is of another experiment."""
    return arms.get((PurePath(run.place).parent.name, run.model))


def read_learned(folder: Path = RESULTS, arms: Mapping[tuple[str, str], str] = ARMS) -> Learned:
    """Read the kept runs of an experiment with these arms; a seed of which an arm is missing is left out."""
    speed: dict[str, dict[int, float]] = {arm: {} for arm in arms.values()}
    unseen: dict[str, dict[int, float]] = {arm: {} for arm in arms.values()}
    for run in read_kept(folder):
        arm = arm_of(run, arms)
        if arm is not None and run.status == "complete":
            speed[arm][run.seed] = float(run.epochs["train_accuracy"].mean())
            unseen[arm][run.seed] = float(run.epochs["val_accuracy"][-1])
    whole = set.intersection(*(set(values) for values in speed.values()))
    return Learned(*({arm: {s: one[arm][s] for s in whole} for arm in one} for one in (speed, unseen)))


def read_start(path: Path = START) -> dict[str, dict[str, dict[int, float]]]:
    """Read the measures before training: explanation to arm to seed to value."""
    found: dict[str, dict[str, dict[int, float]]] = {name: {arm: {} for arm in ARMS.values()} for name in EXPLANATIONS}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name in EXPLANATIONS:
                found[name][row["arm"]][int(row["seed"])] = float(row[name])
    return found
