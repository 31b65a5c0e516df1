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

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from gradlens.plots.compare import draw_compare as draw_compare
    from gradlens.plots.figure import png as png
    from gradlens.plots.figure_files import figure_name as figure_name
    from gradlens.plots.figure_files import save_figure as save_figure
    from gradlens.plots.heatmap import draw_heatmap as draw_heatmap
    from gradlens.plots.profile import draw_profile as draw_profile
    from gradlens.plots.small_figures import draw_small_curves as draw_small_curves
    from gradlens.plots.small_figures import draw_small_heatmap as draw_small_heatmap


__getattr__ = loader(__name__, _HOME)
