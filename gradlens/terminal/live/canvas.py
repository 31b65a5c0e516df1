"""A screen of character cells, and the terminal sequences that update a screen: only changed cells are sent."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.color import Color, ColorSystem

DEFAULT = -1
ANSI = 1 << 24
"""Values from here on are the sixteen colours of the terminal; smaller ones are packed red, green and blue."""
RED, GREEN, YELLOW, CYAN = (ANSI + number for number in (1, 2, 3, 6))
BOLD, DIM, REVERSE = 1, 2, 4
SYSTEMS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
    "windows": ColorSystem.WINDOWS,
}
GAP = 6
"""Up to this many unchanged cells between changed ones are sent again: moving the cursor takes as many bytes."""

Ints = NDArray[np.int64]


class Canvas:
    """Character cells, each with a foreground colour, a background colour and attributes.

    ``cells`` is (4, height, width): code point, foreground, background, attributes.

    Args:
        width: Cells per line.
        height: Lines.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.cells = np.zeros((4, height, width), dtype=np.int64)
        self.cells[0] = ord(" ")
        self.cells[1:3] = DEFAULT

    def text(self, x: int, y: int, text: str, colour: int = DEFAULT, attributes: int = 0, *, most: int = 10**6) -> int:
        """Write text, cut at the end of the line or after ``most`` cells.

        Args:
            x: First cell, from the left.
            y: Line, from the top.
            text: The text.
            colour: The foreground colour.
            attributes: The attributes, such as ``BOLD | DIM``.
            most: Most cells.

        Returns:
            The cell after the text.
        """
        most = min(most, self.width - x)
        if not 0 <= y < self.height or most <= 0:
            return x
        text = _narrow(text)
        if len(text) > most:
            text = text[: most - 1] + "…"
        end = x + len(text)
        self.cells[0, y, x:end] = [ord(char) for char in text]
        self.cells[1, y, x:end] = colour
        self.cells[3, y, x:end] = attributes
        return end

    def block(self, x: int, y: int, characters: Ints | int, colours: Ints | int, backs: Ints | int = DEFAULT) -> None:
        """Write a rectangle of cells; cells outside the canvas are cut off.

        Args:
            x: First cell, from the left.
            y: First line, from the top.
            characters: (height, width) code points; the three arrays are broadcast.
            colours: (height, width) foreground colours.
            backs: (height, width) background colours.
        """
        shape = np.broadcast_shapes(*(np.shape(part) for part in (characters, colours, backs)))
        height, width = min(shape[0], self.height - y), min(shape[1], self.width - x)
        if height <= 0 or width <= 0:
            return
        for i, part in enumerate((characters, colours, backs)):
            self.cells[i, y : y + height, x : x + width] = np.broadcast_to(part, shape)[:height, :width]

    def lines(self) -> list[str]:
        """Return the characters as lines of text."""
        return ["".join(map(chr, line)).rstrip() for line in self.cells[0]]


def _narrow(text: str) -> str:
    """Return the text with ? for each character that does not take exactly one cell."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char.isprintable() and cell_len(char) == 1 else "?" for char in text)


class Painter:
    """Turns canvases into terminal sequences.

    Args:
        system: The colours of the terminal: a name of ``rich.console.Console.color_system``, or None for none.
    """

    def __init__(self, system: str | None) -> None:
        self.system = system
        self._last: NDArray[np.int64] | None = None

    def forget(self) -> None:
        """Send all cells of the next canvas."""
        self._last = None

    def paint(self, canvas: Canvas) -> str:
        """Return the sequences that change the terminal from the previous canvas to this one; "" if they are equal."""
        cells = canvas.cells
        last = self._last
        whole = last is None or last.shape != cells.shape
        changed = np.ones(cells.shape[1:], dtype=bool) if whole else (cells != last).any(axis=0)
        self._last = cells.copy()
        out: list[str] = ["\x1b[0m\x1b[2J"] if whole else []
        for y in np.flatnonzero(changed.any(axis=1)):
            for begin, end in _spans(np.flatnonzero(changed[y])):
                out.append(f"\x1b[{y + 1};{begin + 1}H")
                out.append(self._run(cells[:, y, begin:end]))
        # Terminals with synchronised output show this in one step; others ignore the marks.
        return f"\x1b[?2026h{''.join(out)}\x1b[0m\x1b[?2026l" if out else ""

    def _run(self, cells: NDArray[np.int64]) -> str:
        """Return neighbouring cells of one line, with a colour sent only where it changes."""
        styles = cells[1:]
        new = np.flatnonzero((styles[:, 1:] != styles[:, :-1]).any(axis=0)) + 1
        edges = [0, *new.tolist(), cells.shape[1]]
        text = "".join(map(chr, cells[0].tolist()))
        return "".join(
            sgr(*styles[:, begin].tolist(), self.system) + text[begin:end] for begin, end in itertools.pairwise(edges)
        )


def _spans(places: NDArray[Any]) -> list[tuple[int, int]]:
    """Return neighbouring places as spans (first, end)."""
    cuts = np.flatnonzero(np.diff(places) > GAP) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(places, cuts)]


@functools.lru_cache(maxsize=16384)
def sgr(colour: int, back: int, attributes: int, system: str | None) -> str:
    """Return the sequence that sets colours and attributes, whatever was set before."""
    codes = ["0"]
    codes += [code for bit, code in ((BOLD, "1"), (DIM, "2"), (REVERSE, "7")) if attributes & bit]
    for value, foreground in ((colour, True), (back, False)):
        if value != DEFAULT and system is not None:
            codes += _colour(value).downgrade(SYSTEMS[system]).get_ansi_codes(foreground)
    return f"\x1b[{';'.join(codes)}m"


def _colour(value: int) -> Color:
    if value >= ANSI:
        return Color.from_ansi(value - ANSI)
    return Color.from_rgb(value >> 16, value >> 8 & 255, value & 255)
