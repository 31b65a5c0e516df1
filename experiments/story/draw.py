"""Draw the figure of the story: how much of the residual network's advantage each half of its shortcut gives.

    python experiments/story/draw.py -o figures/story.png

Accuracy and loss of the last epoch are computed from the runs that ``figures/cause-compare.json`` lists; of the speed
of training only the share and its interval were kept, in ``experiments/results/claims.json``.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.story.values import HALVES, printed, share
from gradlens.analysis.stats import Interval
from gradlens.plots.figure_files import save_figure
from gradlens.plots.style import current, house_style, looks_of

OUTCOMES = {
    "how fast it trains": "",
    "accuracy on unseen images": "val_accuracy",
    "loss on unseen images": "val_loss",
}
"""Outcome to the column of the last epoch; the speed of training is no column."""
TITLE = (
    "A shortcut that passes only the forward value speeds up training, one that passes only the gradient does not;\n"
    "on unseen images no difference between the two halves is shown"
)
ENDS = {0: "as the\nplain network", 100: "as the\nresidual network"}
CAPTION = (
    "Share of the gap between plain34 and resnet34, with batch norm, that a shortcut closes if it passes only the "
    "gradient or only the forward value; photographs, 64 px, ten seeds, lines: 95 % intervals (Fieller). How fast it "
    "trains: mean training accuracy over 11 epochs, as printed once; the other two are computed from the last epochs "
    "of the runs."
)


def mark_ends(panel: Axes, ends: Mapping[float, str]) -> None:
    """Draw an axis of shares: a dashed line with a label at each end, and no frame.

    Args:
        panel: The panel; the axis of shares is horizontal.
        ends: Share in percent to label.
    """
    for end, label in ends.items():
        panel.axvline(end, color=current().faint, linewidth=0.8, linestyle="--", zorder=0)
        panel.annotate(label, (end, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                       ha="center", va="bottom", fontsize=7.5, color=current().ink)  # fmt: skip
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)


def draw() -> Figure:
    """Return the figure: a row for each outcome, a dot with its interval for each half of the shortcut."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    panel = figure.subplots()
    speed = [Interval(one.value, math.nan, one.low, one.high, one.n) for one in printed("F", "34 layers, 64 px")[:2]]
    looks = looks_of(["plain34", "resnet34", *HALVES.values()])[2:]
    for row, column in enumerate(OUTCOMES.values()):
        for number, (what, model) in enumerate(HALVES.items()):
            found = share(model, column) if column else speed[number]
            y, colour = row + (-0.15, 0.15)[number], looks[number][0]
            panel.plot([100 * found.low, 100 * found.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            panel.plot(100 * found.mean, y, "os"[number], color=colour, markersize=7,
                       label=what.removesuffix(" alone") if row == 0 else None)  # fmt: skip
            panel.annotate(f"{100 * found.mean:.0f} %", (100 * found.mean, y), (0, 6 if number == 0 else -14),
                           textcoords="offset points", ha="center", fontsize=7, color=colour)  # fmt: skip
    mark_ends(panel, ENDS)
    panel.set_yticks(range(len(OUTCOMES)), list(OUTCOMES), fontsize=8.5)
    panel.set_ylim(len(OUTCOMES) - 0.5, -0.5)
    panel.set_xlim(-75, 115)
    panel.set_xlabel("share of the gap between the two networks that is closed (%)")
    panel.legend(title="the shortcut passes only", loc="lower left", fontsize=8)
    figure.suptitle(TITLE, x=0.01, ha="left", fontsize=9.5)
    return figure


def main() -> None:
    """Draw and write the figure, with a JSON file beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    command = shlex.join(["python", "experiments/story/draw.py", "-o", str(given.output)])
    with house_style():
        save_figure(draw(), given.output, command=command, runs=[], caption=CAPTION)


if __name__ == "__main__":
    main()
