"""Figures, drawn from run files alone with matplotlib's Figure API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradlens.lazy import loader

_HOME = {
    "draw_compare": "gradlens.plots.compare",
    "draw_heatmap": "gradlens.plots.heatmap",
    "draw_profile": "gradlens.plots.profile",
    "draw_small_curves": "gradlens.plots.small_figures",
    "draw_small_heatmap": "gradlens.plots.small_figures",
    "figure_name": "gradlens.plots.figure_files",
    "png": "gradlens.plots.figure",
    "save_figure": "gradlens.plots.figure_files",
}

__all__ = [
    "draw_compare",
    "draw_heatmap",
    "draw_profile",
    "figure_name",
    "save_figure",
    "draw_small_curves",
    "draw_small_heatmap",
    "png",
]

if TYPE_CHECKING:
    from gradlens.plots.compare import draw_compare
    from gradlens.plots.figure import png
    from gradlens.plots.figure_files import figure_name, save_figure
    from gradlens.plots.heatmap import draw_heatmap
    from gradlens.plots.profile import draw_profile
    from gradlens.plots.small_figures import draw_small_curves, draw_small_heatmap


__getattr__ = loader(__name__, _HOME)
