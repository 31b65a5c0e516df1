"""Figures, made with matplotlib's Figure API from a run file alone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "draw_compare": "compare",
    "draw_heatmap": "heatmap",
    "draw_profile": "profile",
    "figure_name": "files",
    "save_figure": "files",
}

__all__ = ["draw_compare", "draw_heatmap", "draw_profile", "figure_name", "save_figure"]

if TYPE_CHECKING:
    from gradlens.plots.compare import draw_compare
    from gradlens.plots.files import figure_name, save_figure
    from gradlens.plots.heatmap import draw_heatmap
    from gradlens.plots.profile import draw_profile


def __getattr__(name: str) -> Any:
    """Load a figure's module on first use: each command draws but one."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
