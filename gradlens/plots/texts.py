"""Rewrite the texts of a figure in another language, before it is laid out."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, Formatter

Rewrite = Callable[[str], str]
NUMBER = re.compile(r"[<>−+-]?[\d.,]+(?:e[−+-]?\d+)?\s?%?")
"""A label of a tick that is a number, and no name."""
LONGER = 1.15
"""A translation that is longer than the text by more is wrapped to about the length of the text."""


class Localised(Formatter):
    """Labels of ticks with the decimal mark of a language.

    Args:
        plain: The formatter of the axis.
        localise: Rewrites a number.
    """

    def __init__(self, plain: Formatter, localise: Rewrite) -> None:
        self._plain, self._localise = plain, localise

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of a tick."""
        return self._say(str(self._plain(x, pos)))

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Return the labels of all ticks."""
        return [self._say(text) for text in self._plain.format_ticks(list(values))]

    def _say(self, text: str) -> str:
        return self._localise(text) if NUMBER.fullmatch(text) else text  # names of layers have dots, too

    def set_locs(self, locs: Sequence[float]) -> None:
        """Set the places of the ticks."""
        self._plain.set_locs(list(locs))


def rewrite(figure: Figure, say: Rewrite, localise: Rewrite, kinds: Mapping[str, str]) -> None:
    """Rewrite all texts of a figure.

    Args:
        figure: The figure.
        say: Rewrites a text; the lines of a wrapped text are joined before, and wrapped again after.
        localise: Rewrites a number.
        kinds: The kinds of findings, which are written along the side of a heatmap, and their names.
    """
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        _localise_ticks(axis, localise)
    ticks = {id(label) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
             for label in axis.get_ticklabels(which="both")}  # fmt: skip
    cells = [cell.get_text() for axes in figure.axes for table in axes.tables for cell in table.get_celld().values()]
    for text in [*figure.findobj(Text), *cells]:
        if isinstance(text, Text) and text.get_text() and id(text) not in ticks:
            named = kinds.get(text.get_text()) if text.get_rotation() == 90 else None
            text.set_text(named or _wrapped(text.get_text(), say))


def _localise_ticks(axis: Axis, localise: Rewrite) -> None:
    for plain, change in (
        (axis.get_major_formatter(), axis.set_major_formatter),
        (axis.get_minor_formatter(), axis.set_minor_formatter),
    ):
        if not isinstance(plain, FixedFormatter):  # names of layers
            formatter = Localised(plain, localise)
            formatter.set_axis(axis)
            change(formatter)


def _wrapped(text: str, say: Rewrite) -> str:
    """Rewrite a text that may be wrapped; lines that are texts of their own are rewritten one by one."""
    lines = text.split("\n")
    said = [say(line) for line in lines]
    if len(lines) == 1 or all(one != line for one, line in zip(said, lines, strict=True)):
        return "\n".join(_fitted(said, max(map(len, lines))))
    most = max(map(len, lines)) + 2
    for first in range(len(lines)):  # a title's first lines may be the name of a run, which stays as it is
        whole = " ".join(lines[first:])
        new = say(whole)
        if new != whole:
            return "\n".join([*_fitted(said[:first], most - 2), *textwrap.wrap(new, most)])
    return "\n".join(_fitted(said, most - 2))


def _fitted(lines: Sequence[str], width: int) -> list[str]:
    """Return lines, wrapped where one is much longer than the longest line of the text that was translated."""
    most = max(width + 2, 16)
    return [part for line in lines for part in (textwrap.wrap(line, most) if len(line) > most * LONGER else [line])]
