"""One look for all figures: colours that colour-blind readers can tell apart, and sizes that print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.colors import Colormap, LinearSegmentedColormap

# Okabe & Ito 2008, Color Universal Design: vermillion, blue, bluish green, orange, purple, sky blue, black.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")

ZERO, MISSING, NONFINITE = "#000000", "#E4E4E4", "#E6007E"
INK, FAINT = "#222222", "#888888"

STYLE = {
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 8.0,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.titlelocation": "left",
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.4,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "gradlens",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house's style, whatever the user's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        for key, value in STYLE.items():
            mpl.rcParams[key] = value  # type: ignore[index]
        yield


def magnitude_colours() -> Colormap:
    """Return the colours of magnitudes: viridis without its darkest end, so that exact zeros (black) stand out."""
    colours = mpl.colormaps["viridis"]([0.12 + 0.88 * i / 255 for i in range(256)])
    return LinearSegmentedColormap.from_list("gradlens", [tuple(c) for c in colours], 256).with_extremes(bad=MISSING)
