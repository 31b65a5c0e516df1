"""Compute the numbers of the story (``docs/study.md``) from what is kept in the repository.

    python experiments/story/values.py

Each number is computed from values of single runs: the last epochs that are listed next to the figures, the steps of
``experiments/results/collapse.csv.gz``, and the ratios of ``experiments/results/first-step.csv``. What only a mean was
kept of is not among them.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.collapse.analyse import CONFIRMATORY, EXPLORATORY, mean_over, of, read_steps
from gradlens.analysis.stats import Interval
from gradlens.study.evidence import Evidence
from gradlens.study.measures import fieller, paired
from gradlens.study.next_experiments import seeds_that_decide

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"
FIGURES = ROOT / "figures"
HALVES = {"the gradient alone": "resnet34-gradonly", "the forward value alone": "resnet34-valueonly"}
"""What the shortcut passes, to the model."""
COPIES = "val_share_exact_copy_in_train"


@dataclass(frozen=True)
class Ends:
    """The last epochs of the runs that a figure shows, by model and seed."""

    runs: tuple[Mapping[str, object], ...]

    def of(self, model: str, column: str, **settings: object) -> dict[int, float]:
        """Return seed to a value of the last epoch, for the runs of a model with these settings."""
        return {
            int(run["seed"]): float(run["last_epoch"][column])  # type: ignore[call-overload, index]
            for run in self.runs
            if run["model"] == model and _has(run, settings)
        }


def _has(run: Mapping[str, object], settings: Mapping[str, object]) -> bool:
    return all(run["config"][key] == value for key, value in settings.items())  # type: ignore[index]


def ends_of(figure: str) -> Ends:
    """Return what the JSON file next to a figure lists."""
    return Ends(tuple(json.loads((FIGURES / f"{figure}.json").read_text(encoding="utf-8"))["runs"]))


def first_step(model: str) -> Interval:
    """Return log10 of the gradient norm at the first layer over that at the last hidden one, before training."""
    with (RESULTS / "first-step.csv").open(encoding="utf-8") as file:
        return mean_over([float(row["decades"]) for row in csv.DictReader(file) if row["model"] == model])


def leads(seeds: range = range(20)) -> list[int]:
    """Return by how many steps the features were lost before the gradient ratio, without batch norm."""
    found = of(read_steps(RESULTS / "collapse.csv.gz"), "recipe", seeds)
    return [run.lost["ratio"] - run.lost["spread"] for run in found.values()]


def share(model: str, column: str) -> Interval:
    """Return the share of the gap between plain34 and resnet34 that a model closes in the last epoch."""
    ends = ends_of("cause-compare")
    plain, half, whole = (ends.of(one, column) for one in ("plain34", model, "resnet34"))
    seeds = sorted(plain.keys() & half.keys() & whole.keys())
    return fieller(*(np.array([one[seed] - plain[seed] for seed in seeds]) for one in (half, whole)))


def gain(figure: str, column: str = "val_accuracy") -> Interval:
    """Return resnet34 minus plain34 in the last epoch, pairs of equal seed, copies on one side of the split."""
    ends = ends_of(figure)
    return paired(*(ends.of(model, column, split="group") for model in ("plain34", "resnet34")))


def copies() -> list[float]:
    """Return, for each random split, the share of validation images with a byte-identical copy in training."""
    runs = (run for run in ends_of("report-compare").runs if _has(run, {"split": "random"}))
    shares = {run["seed"]: run["config"]["data_facts"][COPIES] for run in runs}  # type: ignore[index]
    return [float(one) for one in shares.values()]


def percent(interval: Interval) -> str:
    """Write a share with its interval: ``37 % [1, 71]``."""
    mean, low, high = (round(100 * value) + 0 for value in (interval.mean, interval.low, interval.high))
    return f"{mean:.0f} % [{low:.0f}, {high:.0f}]"


def signed(interval: Interval) -> str:
    """Write a difference with its interval: ``+0.15 [+0.09, +0.22]``."""
    return f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def differ() -> float:
    """Return how many standard errors the gains in validation accuracy at 64 and 224 pixels are apart."""
    small, large = gain("cause-compare"), gain("full-compare")
    return (small.mean - large.mean) / math.hypot(*(one.std / math.sqrt(one.n) for one in (small, large)))


def printed(key: str, setting: str, condition: str = "with batch norm") -> list[Evidence]:
    """Return the evidence of a claim as it was printed for a setting, in ``experiments/results/claims.json``."""
    claims = json.loads((RESULTS / "claims.json").read_text(encoding="utf-8"))["claims"]
    (found,) = (
        verdict["evidence"]
        for claim in claims
        for verdict in claim["verdicts"]
        if (claim["key"], verdict["setting"], verdict["condition"]) == (key, setting, condition)
    )
    return [Evidence(**one) for one in found]


def needed() -> dict[str, float]:
    """Return how many seeds decide what is undecided, with power 0.8 if means and scatter stay as they are."""
    large, small = "34 layers, 224 px", "34 layers, 64 px"
    depth = "20 to 110 layers, 32 px, epochs=15, patience=0, schedule=step:6,0.1"
    return {
        "D with batch norm": seeds_that_decide("D", printed("D", large)),
        "D without batch norm": seeds_that_decide("D", printed("D", small, "without batch norm")),
        "E with batch norm": seeds_that_decide("E", printed("E", depth)),
        "F with batch norm": seeds_that_decide("F", printed("F", small)),
    }


def story() -> dict[str, str]:
    """Return the five numbers of the story, as they are printed there."""
    grows = first_step("plain34")
    every = leads()
    shares = copies()
    return {
        "growth": f"{10**grows.mean:.0f} times (10^{grows.mean:.2f} [{grows.low:.2f}, {grows.high:.2f}])",
        "order": f"in {sum(lead in (0, 1) for lead in every)} of {len(every)} runs",
        "halves": " against ".join(percent(share(model, "val_accuracy")) for model in HALVES.values()),
        "size": f"{signed(gain('cause-compare'))} at 64 pixels, {signed(gain('full-compare'))} at 224",
        "copies": f"{np.mean(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})".replace("%", " %"),
    }


def main() -> None:
    """Print the story's numbers, and others of the page."""
    for name, value in story().items():
        print(f"{name}: {value}")
    print(f"growth of resnet34: {first_step('resnet34')}; of plain34-nobn: {first_step('plain34-nobn')}")
    print(f"leads: exploratory {mean_over(leads(EXPLORATORY))}, confirmatory {mean_over(leads(CONFIRMATORY))}")
    print(f"gains at 64 and 224 px differ by {differ():.1f} standard errors; seeds needed: {needed()}")
    for column in ("val_accuracy", "val_loss"):
        for what, model in HALVES.items():
            print(f"{column}, {what}: {percent(share(model, column))}")


if __name__ == "__main__":
    main()
