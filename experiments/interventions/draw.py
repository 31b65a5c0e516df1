"""Draw how much of the residual network's advantage in training speed each intervention gives.

python experiments/interventions/draw.py -o figures/interventions-share.png
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.interventions.analyse import MARGIN
from experiments.interventions.arms import ARMS, PLAIN, WHOLE, Learned, read_learned
from experiments.story.draw import mark_ends
from gradlens.plots.figure_files import save_figure
from gradlens.plots.style import current, house_style, looks_of

CAPTION = (
    "Share of the gap between plain34 and resnet34 in mean training accuracy over ten epochs, with batch norm, under "
    "Adam; photographs, 32 px, {n} seeds of each arm, lines: 95 % intervals (Fieller), dotted line: one half."
)


TITLE = (
    "In training speed, the forward value, a branch scaled down and looks-linear initialisation close the gap;\n"
    "a residual network does not need the gradient of its early layers"
)


def draw(learned: Learned) -> Figure:
    """Return the figure: a row for each arm, fastest at the top."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    panel = figure.subplots()
    looks = looks_of([PLAIN, WHOLE])
    shares = {arm: learned.share(arm, "speed") for arm in ARMS.values() if arm not in (PLAIN, WHOLE)}
    for row, (arm, share) in enumerate(sorted(shares.items(), key=lambda one: -one[1].mean)):
        colour = looks[0 if arm.startswith("plain34") else 1][0]
        if math.isfinite(share.low) and math.isfinite(share.high):
            panel.plot(
                [100 * share.low, 100 * share.high], [row, row], color=colour, linewidth=2, solid_capstyle="butt"
            )
        panel.plot(100 * share.mean, row, "o", color=colour, markersize=6)
    panel.set_yticks(range(len(shares)), sorted(shares, key=lambda arm: -shares[arm].mean), fontsize=8.5)
    panel.set_ylim(len(shares) - 0.5, -0.5)
    mark_ends(panel, {0: "as plain34", 100: "as resnet34"})
    panel.axvline(100 * MARGIN, color=current().faint, linewidth=0.8, linestyle=":", zorder=0)
    panel.set_xlabel("share of the gap in training speed that is closed (%)")
    figure.suptitle(TITLE, x=0.01, ha="left", fontsize=9.5)
    return figure


def main() -> None:
    """Draw and write the figure, with a JSON file beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    command = shlex.join(["python", "experiments/interventions/draw.py", "-o", str(given.output)])
    learned = read_learned()
    with house_style():
        caption = CAPTION.format(n=len(learned.seeds))
        save_figure(draw(learned), given.output, command=command, runs=[], caption=caption)


if __name__ == "__main__":
    main()
