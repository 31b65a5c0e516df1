"""Draw the first steps of plain34 without batch norm: spread of the features, gradient ratio, update of conv1.

python experiments/collapse/draw.py experiments/results/collapse.csv.gz -o figures/collapse-steps.png
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.collapse.analyse import Steps, read_steps
from gradlens.plots.figure_files import save_figure
from gradlens.plots.style import current, house_style, look_of

GROUPS = {"recipe": "learning rate 6e-4", "tenth": "learning rate 6e-5"}
PANELS = (
    ("spread of the features over the images (log10)", lambda run: np.log10(run.spread)),
    ("gradient, first / last hidden layer (log10)", lambda run: run.ratio),
    ("conv1's update / learning rate", lambda run: run.update),
)
LOST = "from here on, the spread is\nbelow a tenth of its first value"
CAPTION = (
    "plain34 without batch norm, embedded patterns, 48 px, the first 40 steps; a line is a seed, a dot is the step "
    "from which the spread stays below a tenth of its first value."
)


def draw(runs: list[Steps]) -> Figure:
    """Return the figure: a column of panels for each measure, a colour for each group."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharex=True)
    for panel, (title, measure) in zip(panels, PANELS, strict=True):
        for number, (group, label) in enumerate(GROUPS.items()):
            colour, _ = look_of(number)
            found = [run for run in runs if run.group == group]
            for i, run in enumerate(found):
                values, lost = measure(run), run.lost["spread"]
                panel.plot(values, color=colour, linewidth=1.2, alpha=0.8, label=label if i == 0 else None)
                if lost < len(values):
                    panel.plot(lost, values[lost], "o", color=colour, markersize=4)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("optimizer step")
    lines, labels = panels[0].get_legend_handles_labels()
    dot = Line2D([], [], color=current().ink, marker="o", markersize=4, linestyle="none")
    panels[0].legend([*lines, dot], [*labels, LOST], fontsize=8, title="a line is a seed", alignment="left")
    return figure


def main() -> None:
    """Draw and write the figure, with a JSON file beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    command = shlex.join(["python", "experiments/collapse/draw.py", str(given.file), "-o", str(given.output)])
    with house_style():
        figure = draw(read_steps(given.file))
        save_figure(figure, given.output, command=command, runs=[], caption=CAPTION)


if __name__ == "__main__":
    main()
