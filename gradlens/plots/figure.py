"""A matplotlib figure that a notebook displays."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from gradlens.plots.style import house_style

CSS_DPI = 96
"""CSS pixels per inch; a high-density screen has two device pixels or more for each."""
SHARPNESS = 1.5
"""Pixels of the PNG per CSS pixel: sharp on high-density screens, and the notebook file stays small."""


class GradlensFigure(Figure):
    """A figure that a notebook displays when it is the last expression in a cell, even if pyplot was never imported.

    matplotlib registers the display of figures when pyplot is imported; gradlens does not import pyplot.
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = (round(inches * CSS_DPI) for inches in self.get_size_inches())
        return png(self), {"width": width, "height": height}


def png(figure: Figure, sharpness: float = SHARPNESS) -> bytes:
    """Return a figure as the bytes of a PNG file.

    Args:
        figure: The figure.
        sharpness: Pixels per CSS pixel (1/96 inch).

    Returns:
        The content of the file.
    """
    out = io.BytesIO()
    with house_style():
        figure.savefig(out, format="png", dpi=CSS_DPI * sharpness)
    return out.getvalue()
