"""Answer the questions of the plan (``experiments/PLAN.md``, "On a CPU") from the rows that ``measure.py`` wrote.

python experiments/collapse/analyse.py experiments/results/collapse.csv.gz
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gradlens.analysis.stats import Interval, mean_interval, seeds_for_power
from gradlens.run import FloatArray

RATES = {"third": 2e-4, "tenth": 6e-5, "thirtieth": 2e-5, "looks-linear-tenth": 6e-5}
RATE = 6e-4
"""The learning rates of the groups."""
STEP_MARGIN, DECADE_MARGIN = 1.0, 1.0
"""Margins of the order, in steps, and of what is left of the spread, in decades."""
LEAST_PAIRS = 5
"""The number of seeds that was planned; fewer give no verdict."""
EXPLORATORY, CONFIRMATORY = range(10), range(10, 20)


@dataclass(frozen=True)
class Steps:
    """The values of one run, (T,) each: those of a step are from before its update.

    Args:
        group: Its group.
        seed: Its seed.
        spread: Spread of the pooled features over the batch, relative to their size.
        ratio: log10 of the gradient ratio.
        dead: Mean share of dead channels.
        update: Root mean square of the first layer's update over the learning rate.
        loss: The loss.
    """

    group: str
    seed: int
    spread: FloatArray
    ratio: FloatArray
    dead: FloatArray
    update: FloatArray
    loss: FloatArray

    @property
    def lost(self) -> dict[str, int]:
        """The step from which each signal stays beyond its line; the number of steps where it does not."""
        return {
            "spread": lost_from(~(self.spread >= self.spread[0] / 10)),
            "ratio": lost_from(~(self.ratio >= self.ratio[0] - 1)),
            "ratio below 10^-3": lost_from(~(self.ratio >= -3)),
            "dead": lost_from(self.dead > self.dead[0] + 0.1),
            "update": lost_from(self.update < 0.5),
        }

    @property
    def kept_spread(self) -> float:
        """log10 of the spread at the last step over that at the first; cut at 10^-8, float32's resolution."""
        first, last = float(self.spread[0]), float(self.spread[-1])
        return max(math.log10(max(last, 1e-300) / first), -8.0) if math.isfinite(last) else -8.0

    @property
    def largest_ratio_before(self) -> float:
        """The largest ratio before the spread is lost, minus that at the first step, in decades."""
        return float(np.nanmax(self.ratio[: max(self.lost["spread"], 1)]) - self.ratio[0])

    @property
    def update_at_loss(self) -> float:
        """The first layer's update in the step after which the spread is lost; NaN where it is not lost."""
        lost = self.lost["spread"]
        return float(self.update[lost - 1]) if 0 < lost < len(self.update) else math.nan


def lost_from(beyond: Sequence[bool] | FloatArray) -> int:
    """Return the first index from which all values to the end are true; the length where the last is not."""
    held = np.flatnonzero(~np.asarray(beyond, dtype=bool))
    return int(held[-1]) + 1 if len(held) else 0


def read_steps(path: Path) -> list[Steps]:
    """Return the runs of a file of ``measure.py``, compressed or not."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    rows: dict[tuple[str, int], list[Mapping[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        rows.setdefault((row["group"], int(row["seed"])), []).append(row)

    def column(some: list[Mapping[str, str]], name: str) -> FloatArray:
        return np.array([float(row[name]) for row in some])

    return [
        Steps(group, seed, *(column(some, name) for name in ("spread", "ratio", "dead")),
              10 ** column(some, "update_first") / RATES.get(group, RATE), column(some, "loss"))
        for (group, seed), some in rows.items()
    ]  # fmt: skip


def judge_order(lead: Interval) -> str:
    """Return what the lead of the features over the gradient says, by the plan."""
    if lead.high < -STEP_MARGIN:
        return "the gradient vanishes first: supported"
    if lead.low > STEP_MARGIN:
        return "the gradient vanishes first: refuted; the features go first"
    if lead.low >= -STEP_MARGIN and lead.high <= STEP_MARGIN:
        return "the gradient vanishes first: refuted; both go within one step of each other"
    if lead.low > -STEP_MARGIN:
        return "the gradient vanishes first: refuted"
    return "undecided"


def judge_gain(gain: Interval) -> str:
    """Return whether a change keeps a decade more of the spread, by the plan."""
    if gain.low > DECADE_MARGIN:
        return "supported"
    return "refuted" if gain.high < DECADE_MARGIN else "undecided"


def of(runs: Sequence[Steps], group: str, seeds: range) -> dict[int, Steps]:
    """Return seed to run of a group."""
    return {run.seed: run for run in sorted(runs, key=lambda one: one.seed) if run.group == group and run.seed in seeds}


def say(interval: Interval, digits: int = 1) -> str:
    """Write a mean with its interval."""
    ends = "" if math.isnan(interval.low) else f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
    return f"{interval.mean:.{digits}f}{ends}"


def mean_over(values: Sequence[float]) -> Interval:
    """Return the mean over seeds with its interval."""
    return mean_interval(np.array(values, dtype=np.float64))


def needed_seeds(interval: Interval, margin: float) -> int:
    """Return how many seeds give the distance of a mean from a margin a power of 0.8, two-sided at 5 %.

    See ``gradlens.analysis.stats.seeds_for_power``.
    """
    needed = seeds_for_power(interval.std, abs(interval.mean - margin))
    return int(needed) if math.isfinite(needed) else sys.maxsize


def print_order(runs: Sequence[Steps]) -> None:
    """Print the first question: what goes first."""
    for name, seeds in (("seeds 0 to 4", EXPLORATORY), ("seeds 10 to 14, reported alone", CONFIRMATORY)):
        found = of(runs, "recipe", seeds)
        if not found:
            continue
        print(f"\n### Order, `recipe`, {name}\n")
        print("| seed | spread lost at | ratio lost at | below 10^-3 at | dead at | update below 1/2 at |"
              " largest ratio before, decades above step 0 | conv1's update then |")  # fmt: skip
        print("|---:|---:|---:|---:|---:|---:|---:|---:|")
        for seed, run in found.items():
            print(f"| {seed} | {' | '.join(str(step) for step in run.lost.values())} | "
                  f"{run.largest_ratio_before:.1f} | {run.update_at_loss:.2f} |")  # fmt: skip
        lead = mean_over([run.lost["ratio"] - run.lost["spread"] for run in found.values()])
        dead = mean_over([run.lost["ratio"] - run.lost["dead"] for run in found.values()])
        print(f"\nLead of the features over the gradient: {say(lead)} steps: {judge_order(lead)}.")
        print(f"Lead of dead units over the gradient: {say(dead)} steps.")
        if len(found) > 1 and judge_order(lead) == "undecided":
            print(f"Seeds for a power of 0.8 against -1 step: {needed_seeds(lead, -STEP_MARGIN)}.")


def print_gains(runs: Sequence[Steps]) -> None:
    """Print what is left of the spread in each group, and what each change keeps of it."""
    groups = list(dict.fromkeys(run.group for run in runs))
    print("\n### What is left of the spread after the last step\n")
    print("| group | seeds | lost in | log10 of what is left | ratio at the last step | loss, last ten steps |")
    print("|---|---:|---:|---:|---:|---:|")
    for group in groups:
        found = list(of(runs, group, EXPLORATORY).values())
        if not found:
            continue
        lost = sum(run.lost["spread"] < len(run.spread) for run in found)
        left, ratio = (mean_over(values) for values in zip(*((r.kept_spread, r.ratio[-1]) for r in found), strict=True))
        loss = mean_over([float(run.loss[-10:].mean()) for run in found])
        print(f"| `{group}` | {len(found)} | {lost} | {say(left)} | {say(ratio)} | {say(loss, 3)} |")
    print("\n| change | pairs | decades more that are left | keeps one decade more |")
    print("|---|---:|---:|---|")
    for group, base in (("size-free", "no-decay"), ("no-decay", "recipe"), ("third", "recipe"), ("tenth", "recipe"),
                        ("thirtieth", "recipe"), ("orthogonal", "recipe"), ("looks-linear", "recipe"),
                        ("looks-linear-tenth", "tenth")):  # fmt: skip
        one, other = (of(runs, name, EXPLORATORY) for name in (group, base))
        seeds = sorted(one.keys() & other.keys())
        if len(seeds) > 1:
            gain = mean_over([one[seed].kept_spread - other[seed].kept_spread for seed in seeds])
            verdict = judge_gain(gain) if len(seeds) >= LEAST_PAIRS else f"no verdict by {len(seeds)} pairs"
            if verdict == "undecided":
                verdict += f"; {needed_seeds(gain, DECADE_MARGIN)} seeds for a power of 0.8"
            print(f"| `{group}` for `{base}` | {len(seeds)} | {say(gain)} | {verdict} |")


def main() -> None:
    """Print all tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    runs = read_steps(parser.parse_args().file)
    print_order(runs)
    print_gains(runs)


if __name__ == "__main__":
    main()
