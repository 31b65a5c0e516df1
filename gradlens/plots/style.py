"""One look for all figures: colours that colour-blind readers can tell apart, and sizes that print."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex, to_rgb

from gradlens.analysis.compare import find_families
from gradlens.errors import ConfigError

# Okabe & Ito 2008, Color Universal Design: vermillion, blue, bluish green, orange, purple, sky blue, black.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
# The same hues, lighter, for a dark ground; chosen so that simulated colour-blind readers tell them apart as well.
DARK_PALETTE = ("#E8702A", "#2F7FD6", "#17B890", "#F6D04D", "#D58CC0", "#9AD9FF", "#FFFFFF")

ZERO, MISSING, NONFINITE = "#000000", "#C4C4C4", "#E6007E"
INK, FAINT = "#222222", "#888888"

Ground = Literal["light", "dark"]
Width = Literal["one", "two", "screen"]
WIDTHS_IN = {"one": 3.5, "two": 7.2}
"""Inches of one and of two columns of print: 89 and 183 mm."""
LETTERS_PER_INCH = 16.6
"""Of running text at the size of a caption."""


@dataclass(frozen=True)
class Theme:
    """The colours of a ground."""

    paper: str
    ink: str
    faint: str
    zero: str
    missing: str
    nonfinite: str
    line: str
    palette: tuple[str, ...]
    diverging: tuple[str, ...]


# ColorBrewer RdBu (Brewer 2003), safe for colour-blind readers; on a dark ground its middle is dark.
THEMES = {
    "light": Theme(
        "#FFFFFF", INK, FAINT, ZERO, MISSING, NONFINITE, "#FFFFFF", PALETTE,
        ("#053061", "#2166AC", "#4393C3", "#92C5DE", "#D1E5F0", "#F7F7F7", "#FDDBC7", "#F4A582", "#D6604D", "#B2182B",
         "#67001F"),
    ),
    "dark": Theme(
        "#14171A", "#E8E8E8", "#9A9A9A", "#000000", "#4A4F55", "#FF4FA8", "#14171A", DARK_PALETTE,
        ("#C6E6FF", "#7CC0F2", "#3D8FD1", "#235D92", "#193B59", "#1C1C1E", "#5A2A1B", "#93422A", "#CF6440", "#F29A74",
         "#FFD9C4"),
    ),
}  # fmt: skip

_theme: ContextVar[Theme] = ContextVar("theme", default=THEMES["light"])


@dataclass(frozen=True)
class Look:
    """How a figure is to look.

    Args:
        theme: "light" or "dark" ground.
        width: "one" or "two" columns of print, or as wide as the contents want on a screen.
    """

    theme: Ground = "light"
    width: Width = "screen"

    def inches(self, wanted: float) -> float:
        """Return the figure's width; on a screen what is wanted."""
        return WIDTHS_IN.get(self.width, wanted)

    def details(self) -> list[str]:
        """Return what stands for it in a file's name: nothing for what is drawn unasked."""
        return [
            *(["dark"] if self.theme == "dark" else []),
            *([] if self.width == "screen" else [f"{self.width}-column"]),
        ]


def make_look(theme: str, width: str) -> Look:
    """Return a look by the names of its ground and width.

    Raises:
        ConfigError: A name is not known.
    """
    if theme not in THEMES:
        raise ConfigError(f"theme {theme!r}: expected one of {', '.join(THEMES)}")
    if width not in (*WIDTHS_IN, "screen"):
        raise ConfigError(f"width {width!r}: expected one of {', '.join(WIDTHS_IN)}, screen")
    return Look(
        "dark" if theme == "dark" else "light", "one" if width == "one" else "two" if width == "two" else "screen"
    )


def current() -> Theme:
    """Return the colours that are drawn with."""
    return _theme.get()


def _settings(theme: Theme) -> dict[str, Any]:
    return {
        "font.size": 8.0,
        "axes.titlesize": 9.0,
        "axes.labelsize": 8.0,
        "axes.edgecolor": theme.faint,
        "axes.facecolor": theme.paper,
        "axes.linewidth": 0.6,
        "axes.titlelocation": "left",
        "xtick.labelsize": 7.0,
        "ytick.labelsize": 7.0,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "legend.frameon": False,
        "legend.fontsize": 7.5,
        "lines.linewidth": 1.4,
        "figure.facecolor": theme.paper,
        "savefig.facecolor": "auto",
        "svg.fonttype": "none",
        "pdf.fonttype": 3,
        "svg.hashsalt": "gradlens",
    }


@contextmanager
def house_style(look: Look | None = None) -> Iterator[None]:
    """Draw in the house's style, whatever the user's own settings are."""
    theme = THEMES[look.theme if look else "light"]
    token = _theme.set(theme)
    try:
        with mpl.rc_context():
            mpl.rcdefaults()
            for key, value in _settings(theme).items():
                mpl.rcParams[key] = value  # type: ignore[index]
            yield
    finally:
        _theme.reset(token)


def magnitude_colours() -> Colormap:
    """Return the colours of magnitudes: viridis without its darkest end, so that exact zeros (black) stand out."""
    colours = mpl.colormaps["viridis"]([0.12 + 0.88 * i / 255 for i in range(256)])
    shown = LinearSegmentedColormap.from_list("gradlens", [tuple(c) for c in colours], 256)
    return shown.with_extremes(bad=current().missing)


def signed_colours() -> Colormap:
    """Return the colours of what has a sign: blue below 0, red above."""
    shown = LinearSegmentedColormap.from_list("gradlens-signed", list(current().diverging), 256)
    return shown.with_extremes(bad=current().missing)


DASHES = ("-", "--", "-.", ":")


def look_of(number: int) -> tuple[str, str]:
    """Return the colour and the dashes of a line."""
    palette = current().palette
    return palette[number % len(palette)], DASHES[(number // len(palette)) % len(DASHES)]


def looks_of(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return the colour and the dashes of each model's line.

    Where models of several families differ in depth, a family has a colour and dashes, and its deeper members are
    further from the ground.
    """
    families = find_families(models)
    if families is None:
        return [look_of(i) for i in range(len(models))]
    palette, paper, ink = current().palette, to_rgb(current().paper), to_rgb(current().ink)
    looks = []
    for family in families:
        pure = to_rgb(palette[family.rank % len(palette)])
        towards, share = (
            (paper, 0.7 * (0.5 - family.share)) if family.share < 0.5 else (ink, 0.9 * (family.share - 0.5))
        )
        red, green, blue = ((1 - share) * a + share * b for a, b in zip(pure, towards, strict=True))
        looks.append((to_hex((red, green, blue)), DASHES[family.rank % len(DASHES)]))
    return looks


def head_inches(text: str) -> float:
    """Return how high a caption of 8 points stands."""
    return 0.137 * (text.count("\n") + 1) if text else 0.0


def fill(lines: Iterable[str], inches: float) -> str:
    """Break lines of a caption so that they fit so many inches."""
    return "\n".join("\n".join(textwrap.wrap(line, int(inches * LETTERS_PER_INCH))) for line in lines)
