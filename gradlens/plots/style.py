"""One look for all figures: colours that colour-blind readers can tell apart, and sizes that print."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.ticker import LogFormatterSciNotation

from gradlens.errors import ConfigError

# Okabe & Ito 2008, Color Universal Design: vermillion, blue, bluish green, orange, purple, sky blue, black.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
# The same hues, lighter, for a dark background; chosen so that simulated colour-blind readers can tell them apart.
DARK_PALETTE = ("#E8702A", "#2F7FD6", "#17B890", "#F6D04D", "#D58CC0", "#9AD9FF", "#FFFFFF")

ZERO, MISSING, NONFINITE = "#000000", "#C4C4C4", "#E6007E"
INK, FAINT = "#222222", "#888888"

ThemeName = Literal["light", "dark"]
Width = Literal["one", "two", "screen"]
WIDTHS_IN = {"one": 3.5, "two": 7.2}
"""Widths of one and of two columns of print, in inches: 89 and 183 mm."""
LETTERS_PER_INCH = 16.6
"""Characters of text per inch at the size of a caption, 8 points."""
CAPTION_LINES = 3
"""Most lines of a caption inside a figure; the JSON file of the figure has the whole caption."""


@dataclass(frozen=True)
class Theme:
    """The colours of a light or dark theme."""

    paper: str
    ink: str
    faint: str
    zero: str
    missing: str
    nonfinite: str
    line: str
    palette: tuple[str, ...]
    diverging: tuple[str, ...]


# ColorBrewer RdBu (Brewer 2003), safe for colour-blind readers; in the dark theme its middle is dark.
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
_caption: ContextVar[bool] = ContextVar("caption", default=True)


@dataclass(frozen=True)
class Look:
    """The theme and the width of a figure.

    Args:
        theme: "light" or "dark".
        width: "one" or "two" columns of print, or "screen": as wide as the content needs.
        caption: Whether the figure has its caption in it; it is in the metadata and in the JSON file in any case.
    """

    theme: ThemeName = "light"
    width: Width = "screen"
    caption: bool = True

    def inches(self, wanted: float) -> float:
        """Return the width of the figure in inches: that of the columns of print, or ``wanted`` for a screen."""
        return WIDTHS_IN.get(self.width, wanted)

    def details(self) -> list[str]:
        """Return the parts of a file name for this look; none for the default look."""
        return [
            *(["dark"] if self.theme == "dark" else []),
            *([] if self.width == "screen" else [f"{self.width}-column"]),
            *([] if self.caption else ["no-caption"]),
        ]


def make_look(theme: str, width: str, *, caption: bool = True) -> Look:
    """Return a look for the names of a theme and a width.

    Args:
        theme: "light" or "dark".
        width: "one", "two" or "screen".
        caption: Whether the figure has its caption in it.

    Returns:
        The look.

    Raises:
        ConfigError: A name is unknown.
    """
    if theme not in THEMES:
        raise ConfigError(f"theme {theme!r}: expected one of {', '.join(THEMES)}")
    if width not in (*WIDTHS_IN, "screen"):
        raise ConfigError(f"width {width!r}: expected one of {', '.join(WIDTHS_IN)}, screen")
    return Look(
        "dark" if theme == "dark" else "light",
        "one" if width == "one" else "two" if width == "two" else "screen",
        caption,
    )


_usual: ContextVar[Look] = ContextVar("usual")


def usual_look() -> Look:
    """Return the look of figures for which none is named: light, for a screen, with a caption, or that of a report."""
    return _usual.get(Look())


@contextmanager
def drawn_with(look: Look) -> Iterator[None]:
    """Draw the figures inside a ``with`` block with this look where none is named."""
    token = _usual.set(look)
    try:
        yield
    finally:
        _usual.reset(token)


def current() -> Theme:
    """Return the colours of the theme in use."""
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
        "text.parse_math": False,  # a name with $ is a name
        "svg.fonttype": "none",
        "pdf.fonttype": 3,
        "svg.hashsalt": "gradlens",
    }


@contextmanager
def house_style(look: Look | None = None) -> Iterator[None]:
    """Use the style of gradlens inside a ``with`` block, whatever the user's own matplotlib settings are."""
    theme = THEMES[look.theme if look else "light"]
    token, other = _theme.set(theme), _caption.set(look is None or look.caption)
    try:
        with mpl.rc_context():
            mpl.rcdefaults()
            for key, value in _settings(theme).items():
                mpl.rcParams[key] = value  # type: ignore[index]
            yield
    finally:
        _theme.reset(token)
        _caption.reset(other)


POWER = re.compile(r"10\^\{(-?\d+)\}")
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class PlainPowers(LogFormatterSciNotation):
    """Labels of a logarithmic axis as plain text, ``10⁻³``: no text of a figure is parsed as a formula."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of a tick."""
        text = str(super().__call__(x, pos)).replace("$\\mathdefault{", "").removesuffix("}$").replace(r"\times", "×")
        return POWER.sub(lambda match: "10" + match[1].translate(SUPERSCRIPTS), text)


def magnitude_colours() -> Colormap:
    """Return the colours of magnitudes: viridis without its darkest end, so that exact zeros (black) stand out."""
    colours = mpl.colormaps["viridis"]([0.12 + 0.88 * i / 255 for i in range(256)])
    shown = LinearSegmentedColormap.from_list("gradlens", [tuple(c) for c in colours], 256)
    return shown.with_extremes(bad=current().missing)


def signed_colours() -> Colormap:
    """Return the colours of signed values: blue below 0, red above."""
    shown = LinearSegmentedColormap.from_list("gradlens-signed", list(current().diverging), 256)
    return shown.with_extremes(bad=current().missing)


DASHES = ("-", "--", "-.", ":")
NAME = re.compile(r"([a-z_]+?)(\d+)((?:-[a-z]+)*)")
"""A name of the registry: family, depth and endings, as in "resnet34-gradonly-nobn"."""
CONDITIONS = {"": 0, "-nobn": 1, "-nobn-sigmoid": 2, "-sigmoid": 3}
"""Endings that change the condition of a network, to the number of its dash; others make another network."""
COLOURS = {"plain": 0, "resnet": 1, "resnet-gradonly": 2, "resnet-valueonly": 3}
"""Families of the registry, with the endings that make another network, to the number of their colour."""


def look_of(number: int) -> tuple[str, str]:
    """Return the colour and the dash style of the line with this number, counted from 0."""
    palette = current().palette
    return palette[number % len(palette)], DASHES[(number // len(palette)) % len(DASHES)]


def looks_of(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return the colour and the dash style of each model's line.

    A network of the registry has one colour in all figures, and a condition (without batch norm, with sigmoid) one
    dash. Other models have the colours that are left, in their order. Where networks differ in depth, the deeper ones
    stand out more from the background. Lines that would look the same get other dashes.
    """
    palette, parts = current().palette, [_parts(model) for model in models]
    kinds = list(dict.fromkeys(part[0] for part in parts))
    free = [i for i in range(len(palette)) if i not in {COLOURS[kind] for kind in kinds if kind in COLOURS}]
    others = [kind for kind in kinds if kind not in COLOURS]
    numbers = COLOURS | {kind: free[i % len(free)] for i, kind in enumerate(others)}
    laps = {kind: i // len(free) for i, kind in enumerate(others)}
    looks: list[tuple[str, str]] = []
    for kind, condition, depth in parts:
        colour = palette[numbers[kind]]
        depths = sorted({other[2] for other in parts if other[0] == kind})
        if len(depths) > 1:
            colour = _shade(colour, depths.index(depth) / (len(depths) - 1))
        dash = CONDITIONS.get(condition, 0) + laps.get(kind, 0)
        taken = [look[1] for look in looks if look[0] == colour]
        order = [DASHES[(dash + more) % len(DASHES)] for more in range(len(DASHES))]
        looks.append((colour, next((one for one in order if one not in taken), order[0])))
    return looks


def _parts(model: str) -> tuple[str, str, int]:
    """Return which network a model is, without its depth and condition; its condition; and its depth, 0 if unknown."""
    match = NAME.fullmatch(model)
    if match is None:
        return model, "", 0
    endings = [ending for ending in match[3].split("-") if ending]
    condition = "".join(f"-{ending}" for ending in sorted(endings) if ending in ("nobn", "sigmoid"))
    kind = "-".join([match[1], *(ending for ending in endings if ending not in ("nobn", "sigmoid"))])
    return (kind, condition, int(match[2])) if kind in COLOURS else (match[1] + match[3], "", int(match[2]))


def _shade(colour: str, share: float) -> str:
    """Return a shade of a colour: nearer to the background for the shallowest model, and to the ink for the deepest."""
    pure, paper, ink = to_rgb(colour), to_rgb(current().paper), to_rgb(current().ink)
    target, part = (paper, 0.7 * (0.5 - share)) if share < 0.5 else (ink, 0.9 * (share - 0.5))
    red, green, blue = ((1 - part) * a + part * b for a, b in zip(pure, target, strict=True))
    return to_hex((red, green, blue))


def head_inches(text: str) -> float:
    """Return the height of a caption of 8 points, in inches."""
    return 0.137 * (text.count("\n") + 1) if text else 0.0


def fill(sentences: Iterable[str], inches: float, most: int = CAPTION_LINES) -> str:
    """Return a caption that fits a figure: as many whole sentences as its lines hold.

    Each sentence begins a line if there are lines enough; otherwise the sentences follow each other.

    Args:
        sentences: The most important first.
        inches: The width of the figure.
        most: Most lines.

    Returns:
        The caption, its lines separated by line breaks; at most ``most`` lines. Only a first sentence that is longer
        than all lines is cut, which "…" marks. "" for a look without captions.
    """
    if not _caption.get():
        return ""
    width, sentences = int(inches * LETTERS_PER_INCH), list(sentences)
    lines = [line for sentence in sentences for line in textwrap.wrap(sentence, width)]
    if len(lines) <= most:
        return "\n".join(lines)
    shown = textwrap.wrap(sentences[0], width, max_lines=most, placeholder=" …")
    for count in range(2, len(sentences) + 1):
        lines = textwrap.wrap(" ".join(sentences[:count]), width)
        if len(lines) > most:
            break
        shown = lines
    return "\n".join(shown)
