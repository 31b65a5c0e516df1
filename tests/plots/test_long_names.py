"""Titles of heatmaps whose layers have long names: they begin behind the names and end within the figure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.text import Text

from gradlens import read_run
from gradlens.plots import draw_heatmap
from gradlens.plots.style import Look, Width


@pytest.mark.parametrize("letters", [8, 30, 34, 44])
@pytest.mark.parametrize("width", ["screen", "two"])
def test_the_title_ends_within_the_figure(make_run, letters: int, width: Width) -> None:
    run = read_run(make_run("network", decades=0.66))
    layers = tuple(replace(layer, name=f"{layer.name}.{'wide_part_of_it.' * 4}"[:letters]) for layer in run.layers)
    figure = draw_heatmap([replace(run, layers=layers)], look=Look(width=width))
    figure.draw_without_rendering()
    titles = [text for text in figure.findobj(Text) if "at the first layer" in text.get_text() and text.axes]
    assert titles
    assert all(title.get_window_extent().x1 <= figure.bbox.x1 for title in titles)
