"""A figure that shows itself in a notebook."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from gradlens.plots.style import house_style

CSS_DPI = 96
"""Points of a page per inch, by CSS; a screen may have two of its own for each."""
SHARPNESS = 1.5


class Picture(Figure):
    """A figure that a notebook shows where it is the last thing in a cell, also where pyplot was never imported.

    matplotlib teaches notebooks to show figures when pyplot is imported, which gradlens leaves to its users.
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = (round(inches * CSS_DPI) for inches in self.get_size_inches())
        return png(self), {"width": width, "height": height}


def png(figure: Figure, sharpness: float = SHARPNESS) -> bytes:
    """Return a figure as a PNG file.

    Args:
        figure: The figure.
        sharpness: Pixels per point of a page.
    """
    out = io.BytesIO()
    with house_style():
        figure.savefig(out, format="png", dpi=CSS_DPI * sharpness)
    return out.getvalue()
