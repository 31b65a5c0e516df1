"""Answer the question of the plan (``experiments/PLAN.md``, "is it the size of the gradients, layer by layer?").

    python experiments/rescaled/analyse.py                                # the tables, from what is kept
    python experiments/rescaled/analyse.py --rates RATES --runs RUNS      # also from run files

RATES is the folder of the runs that tune the rates, in folders ARM-RATE: what is kept of them is written. RUNS is that
of the experiment ``rescaled``: it is checked that gradients had the sizes that were asked for.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.interventions.analyse import bounds, verdict
from experiments.interventions.arms import PLAIN, RESULTS, WHOLE, Learned, read_learned
from gradlens.analysis.stats import mean_interval
from gradlens.atomic import whole_file
from gradlens.run import Run
from gradlens.storage import read_run, read_runs

RATES = RESULTS / "rescaled-rates.csv"
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


def keep_rates(folder: Path) -> None:
    """Write how fast the runs that tune the rates train, from run files in folders ARM-RATE."""
    rows = []
    for run in read_runs(folder):
        arm, _, rate = run.path.parent.name.rpartition("-")
        rows.append((arm, float(rate), f"{run.epochs['train_accuracy'].mean():.4f}"))
    with whole_file(RATES) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("arm", "rate", "train_accuracy"), *sorted(rows)])


def table_of_rates(path: Path = RATES) -> str:
    """Return the table of the kept rates: arms by rates, the best of each arm in bold."""
    with path.open(encoding="utf-8", newline="") as file:
        values = {(row["arm"], float(row["rate"])): float(row["train_accuracy"]) for row in csv.DictReader(file)}
    rates = sorted({rate for _, rate in values})
    lines = [f"| rate | {' | '.join(f'{rate:g}' for rate in rates)} |", f"|---|{'---:|' * len(rates)}"]
    for (group, _), arm in ARMS.items():
        best = max(value for (one, _), value in values.items() if one == group)
        found = [values.get((group, rate)) for rate in rates]
        cells = ["" if one is None else f"**{one:.3f}**" if one == best else f"{one:.3f}" for one in found]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=Path)
    parser.add_argument("--runs", type=Path)
    given = parser.parse_args(arguments)
    if given.rates is not None:
        keep_rates(given.rates)
    print(f"{table_of_rates()}\n")
    learned = read_learned(arms=ARMS)
    print(f"Seeds {', '.join(map(str, learned.seeds)) or 'none'}\n")
    if learned.seeds:
        print(table(learned))
        print(f"\nGap in speed {bounds(learned.gap('speed'))}; on unseen images {bounds(learned.gap('unseen'))}")
        print(f"The size of the gradients: {answer(learned)}")
    for path in sorted((given.runs / "rescaled").glob("*.h5")) if given.runs is not None else ():
        example = given.runs / "residual" / path.name.replace("plain34", "resnet34")
        print(f"{path.name}: {largest_deviation(read_run(path), read_run(example)):.1e} from resnet34's profile")


if __name__ == "__main__":
    main()
