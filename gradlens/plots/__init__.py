"""Figures, made with matplotlib's Figure API from a run file alone."""

from gradlens.plots.compare import draw_compare
from gradlens.plots.files import figure_name, save_figure
from gradlens.plots.heatmap import draw_heatmap

__all__ = ["draw_compare", "draw_heatmap", "figure_name", "save_figure"]
