"""Draw how fast the three arms train, from the kept runs.

python experiments/rescaled/draw.py -o figures/rescaled-epochs.png
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.interventions.arms import PLAIN, RESULTS, WHOLE, arm_of, read_learned
from experiments.rescaled.analyse import ARMS, RESCALED
from gradlens.plots.figure_files import save_figure
from gradlens.plots.style import house_style, looks_of
from gradlens.study.kept_numbers import read_kept
from gradlens.study.study_run import StudyRun

CAPTION = (
    "Training and validation accuracy over epochs under SGD with momentum, with batch norm; photographs, 32 px, "
    "{n} seeds (thin lines) and their mean. In the rescaled network each layer's gradient has the size, relative to "
    "the last layer's, that it has in resnet34."
)
TITLE = "With gradients of resnet34's sizes, layer by layer, plain34 still does not train as fast as resnet34"
PANELS = {"train_accuracy": "training accuracy", "val_accuracy": "validation accuracy"}


def draw(runs: Sequence[StudyRun]) -> Figure:
    """Return the figure: a panel for each accuracy, a colour for each network, dashes for the rescaled one."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    looks = dict(zip((PLAIN, WHOLE), looks_of([PLAIN, WHOLE]), strict=True))
    for panel, (column, title) in zip(figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True):
        for arm in ARMS.values():
            curves = np.array([run.epochs[column] for run in runs if arm_of(run, ARMS) == arm])
            epochs, colour = np.arange(1, curves.shape[1] + 1), looks[WHOLE if arm == WHOLE else PLAIN][0]
            dashes = "--" if arm == RESCALED else "-"
            panel.plot(epochs, curves.T, dashes, color=colour, linewidth=0.7, alpha=0.5)
            panel.plot(epochs, curves.mean(axis=0), dashes, color=colour, linewidth=2, label=arm)
        panel.set_title(title, fontsize=9.5, loc="left")
        panel.set_xlabel("epoch")
        panel.set_ylim(0, 1.02)
        panel.set_xticks(range(2, len(epochs) + 1, 2))
    panel.legend(fontsize=8.5)
    figure.suptitle(TITLE, x=0.01, ha="left", fontsize=9.5)
    return figure


def main() -> None:
    """Draw and write the figure, with a JSON file beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    seeds = read_learned(arms=ARMS).seeds
    runs = [run for run in read_kept(RESULTS) if arm_of(run, ARMS) is not None and run.seed in seeds]
    command = shlex.join(["python", "experiments/rescaled/draw.py", "-o", str(given.output)])
    with house_style():
        save_figure(draw(runs), given.output, command=command, runs=[], caption=CAPTION.format(n=len(seeds)))


if __name__ == "__main__":
    main()
