"""Answer the question of the plan (``experiments/PLAN.md``, "is it the size of the gradients, layer by layer?").

    python experiments/rescaled/analyse.py                        # the table, from the kept runs
    python experiments/rescaled/analyse.py --rates RATES --runs RUNS    # also the tuned rates and the check

RATES is the folder of the runs that tune the rates, in folders ARM-RATE; RUNS is that of the experiment ``rescaled``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.interventions.analyse import bounds, verdict
from experiments.interventions.arms import PLAIN, WHOLE, Learned, read_learned
from gradlens.analysis.stats import mean_interval
from gradlens.run import Run
from gradlens.storage import read_run, read_runs

RESCALED = "plain34, rescaled"
ARMS = {("plain", "plain34"): PLAIN, ("rescaled", "plain34"): RESCALED, ("residual", "resnet34"): WHOLE}
"""Group and model of the experiment, to the arm's name."""


def table(learned: Learned) -> str:
    """Return the table of arms; a share is given only where the gap between the networks is shown."""
    lines = [
        "| arm | mean training accuracy | share of the gap | last validation accuracy | share of the gap |",
        "|---|---:|---:|---:|---:|",
    ]
    ends = {PLAIN: "0", WHOLE: "1"}
    for arm in ARMS.values():
        cells = []
        for outcome in ("speed", "unseen"):
            values = getattr(learned, outcome)[arm]
            cells.append(f"{mean_interval(np.array([values[seed] for seed in learned.seeds])).mean:.3f}")
            share = bounds(learned.share(arm, outcome)) if shown(learned, outcome) else "no gap is shown"
            cells.append(ends.get(arm) or share)
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(learned: Learned, outcome: str) -> bool:
    """Return whether resnet34 is shown to be better than plain34."""
    return learned.gap(outcome).low > 0


def answer(learned: Learned) -> str:
    """Return the verdict about "the size of the gradients is what keeps plain34 behind", in training speed."""
    if not shown(learned, "speed"):
        return "no verdict: no gap is shown"
    words = {"closes the gap": "supported", "does not": "refuted"}
    return words.get(verdict(learned.share(RESCALED, "speed")), "undecided")


def largest_deviation(rescaled: Run, residual: Run) -> float:
    """Return the largest relative difference of a layer's gradient, over the last layer's, from the other run's."""
    profiles = []
    for run in (rescaled, residual):
        norms = run.metric("param_grad_norm").astype(np.float64)
        profiles.append({layer.name: norms[:, i] / norms[:, -1] for i, layer in enumerate(run.layers)})
    found, wanted = profiles
    return max(float(np.abs(found[name] / wanted[name] - 1).max()) for name in wanted)


def print_runs(rates: Path | None, runs: Path | None) -> None:
    """Print what only the run files tell: the tuned rates, and whether the gradients had the sizes that were asked."""
    if rates is not None:
        print("\n| runs that tune the rates | mean training accuracy |\n|---|---:|")
        for run in read_runs(rates):
            print(f"| {run.path.parent.name} | {run.epochs['train_accuracy'].mean():.3f} |")
    if runs is not None:
        for path in sorted((runs / "rescaled").glob("*.h5")):
            example = runs / "residual" / path.name.replace("plain34", "resnet34")
            print(f"{path.name}: {largest_deviation(read_run(path), read_run(example)):.1e} from resnet34's profile")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=Path)
    parser.add_argument("--runs", type=Path)
    given = parser.parse_args()
    learned = read_learned(arms=ARMS)
    print(f"Seeds {', '.join(map(str, learned.seeds)) or 'none'}\n")
    if learned.seeds:
        print(table(learned))
        print(f"\nGap in speed {bounds(learned.gap('speed'))}; on unseen images {bounds(learned.gap('unseen'))}")
        print(f"The size of the gradients: {answer(learned)}")
    print_runs(given.rates, given.runs)


if __name__ == "__main__":
    main()
