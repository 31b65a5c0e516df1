"""Figures, made with matplotlib's Figure API from a run file alone."""

from gradlens.plots.compare import draw_compare
from gradlens.plots.files import figure_name, save_figure
from gradlens.plots.heatmap import draw_heatmap
from gradlens.plots.profile import draw_profile

__all__ = ["draw_compare", "draw_heatmap", "draw_profile", "figure_name", "save_figure"]
