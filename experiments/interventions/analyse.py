"""Answer the questions of the plan (``experiments/PLAN.md``, "which intervention closes the gap in training speed?").

python experiments/interventions/analyse.py
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.interventions.arms import (
    ARMS,
    EXPLANATIONS,
    PLAIN,
    WHOLE,
    Learned,
    Values,
    read_learned,
    read_start,
)
from gradlens.analysis.stats import Interval, mean_interval

MARGIN = 0.5
"""Share of the gap, as the plan fixes it."""
LEAST_SEEDS = 3
"""Fewer seeds give no verdict."""
PAIRS = (("resnet34, early noise", "resnet34, early layers frozen"), ("plain34, early layers frozen", "plain34"))


def verdict(share: Interval) -> str:
    """Return whether an arm closes more than half of the gap: by its interval, wholly on one side."""
    if share.n < LEAST_SEEDS or not (math.isfinite(share.low) and math.isfinite(share.high)):
        return "undecided"
    return "closes the gap" if share.low > MARGIN else "does not" if share.high < MARGIN else "undecided"


def correlations(learned: Learned, start: dict[str, dict[str, dict[int, float]]]) -> dict[str, Interval]:
    """Return, for each explanation, Spearman's correlation with the speed of training over the arms, seed by seed.

    Its sign is that of the expected relation: 1 means that the explanation orders the arms as they learn.

    Source: Spearman 1904, The Proof and Measurement of Association between Two Things.
    """
    found = {}
    for name, sign in EXPLANATIONS.items():
        values: Values = start[name]
        each = []
        for seed in learned.seeds:
            expected = [values[arm][seed] for arm in ARMS.values()]
            learnt = [learned.speed[arm][seed] for arm in ARMS.values()]
            each.append(sign * float(spearmanr(expected, learnt).statistic))
        found[name] = mean_interval(np.array(each))
    return found


def table(learned: Learned) -> str:
    """Return the table of arms."""
    lines = [
        "| arm | mean training accuracy | share of the gap | more than half? "
        "| last validation accuracy | share of the gap |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for arm in ARMS.values():
        speed, unseen = (
            mean_interval(np.array([values[arm][seed] for seed in learned.seeds]))
            for values in (learned.speed, learned.unseen)
        )
        share = learned.share(arm, "speed")
        ends = arm in (PLAIN, WHOLE)
        cells = ["0" if arm == PLAIN else "1", ""] if ends else [bounds(share), verdict(share)]
        other = cells[0] if ends else bounds(learned.share(arm, "unseen"))
        lines.append(f"| {arm} | {speed.mean:.3f} | {' | '.join(cells)} | {unseen.mean:.3f} | {other} |")
    return "\n".join(lines)


def bounds(value: Interval) -> str:
    """Write a number with its interval: ``0.55 [0.44, 0.62]``."""
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return "not known"
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def main() -> None:
    """Print the tables."""
    learned, start = read_learned(), read_start()
    print(f"Seeds {', '.join(map(str, learned.seeds))}\n")
    print(table(learned))
    print(f"\nGap in speed {bounds(learned.gap('speed'))}; on unseen images {bounds(learned.gap('unseen'))}\n")
    for first, second in PAIRS:
        print(f"{second} minus {first}: {bounds(learned.difference(first, second))}")
    print("\n| explanation | Spearman's correlation with the speed of training |\n|---|---:|")
    for name, value in correlations(learned, start).items():
        print(f"| {name} | {bounds(value)} |")


if __name__ == "__main__":
    main()
