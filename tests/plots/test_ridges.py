"""Ridges and films: what they are made of, what they show, and the files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradlens import read_run
from gradlens.charts.ridges import common_grid, kernel_density, make_film, make_ridges
from gradlens.cli import run_command
from gradlens.errors import ConfigError, MissingLibraryError, RunExistsError
from gradlens.plots import draw_ridges, save_film
from gradlens.plots.film import caption
from gradlens.plots.ridges import caption as ridge_caption
from gradlens.plots.style import Look
from tests.charts.test_heatmap import halves, run_of
from tests.conftest import SAMPLE

METRIC = "activation_grad_norm"


def test_a_kernel_density_is_that_of_a_normal_sample_and_integrates_to_one() -> None:
    values = np.random.default_rng(0).normal(2.0, 0.5, 4000)
    grid = np.linspace(-1, 5, 400)
    density = kernel_density(values, grid)
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-3)
    expected = np.exp(-0.5 * ((grid - 2) / 0.5) ** 2) / (0.5 * np.sqrt(2 * np.pi))
    assert np.abs(density - expected).max() < 0.06
    same = kernel_density(np.full(9, 2.0), grid)
    assert same.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-2)
    assert not kernel_density(np.empty(0), grid).any()


def test_ridges_are_decades_of_the_main_layers_and_tell_how_often_a_layer_is_zero() -> None:
    values = np.tile([1.0, 10.0, 100.0], (10, 1))
    values[:4, 0], values[5, 1] = 0, np.nan
    (ridges,) = make_ridges([run_of({"param_grad_norm": values})], "param_grad_norm")
    assert ridges.zeros.tolist() == [0.4, 0, 0]
    assert np.nanmedian(ridges.values, axis=0).tolist() == [0, 1, 2]
    grid = common_grid([ridges])
    assert grid[0] < 0 < 2 < grid[-1]
    (signed,) = make_ridges([halves()], "grad_coherence")
    assert signed.values.tolist() == [[0.5, -0.25, 0.0]] * 4
    with pytest.raises(ConfigError, match="at least one run"):
        make_ridges([], METRIC)
    with pytest.raises(ConfigError, match="has been recorded yet in net-s0"):
        make_ridges([run_of({METRIC: np.full((3, 3), np.nan)})], METRIC)


def test_ridges_stand_layer_above_layer_in_every_panel(tmp_path: Path) -> None:
    zero = np.tile([0.0, 1.0, 10.0], (9, 1)) * np.linspace(0.5, 2, 9)[:, None]
    ridges = make_ridges([read_run(SAMPLE), run_of({METRIC: zero})], METRIC)
    figure = draw_ridges(ridges, METRIC)
    assert [len(axis.collections) for axis in figure.axes] == [34, 3]
    assert [text.get_text() for text in figure.axes[1].texts] == ["exactly 0 in 100%"]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert "8 in 10 steps lie within" in ridge_caption(ridges, METRIC)
    figure.savefig(tmp_path / "a.png", dpi=40)
    draw_ridges(make_ridges([halves()], "grad_coherence"), "grad_coherence", look=Look("dark", "one"))


def test_a_film_has_the_median_of_each_stretch_and_ended_runs_keep_their_last() -> None:
    rising = 10.0 ** np.tile(np.repeat([0.0, 1.0, 2.0, 3.0], 5)[:, None], 3)
    short = replace(run_of({METRIC: rising[:10]}, "short"), name="short")
    film = make_film([run_of({METRIC: rising}), short], METRIC, frames=4)
    assert film.frames.tolist() == [[0, 4], [5, 9], [10, 14], [15, 19]]
    assert film.values[0][:, 0].tolist() == [0, 1, 2, 3]
    assert film.values[1][:, 0].tolist() == [0, 1, 1, 1]
    assert film.over == (3, 1)
    rms = make_film([run_of({METRIC: rising})], METRIC, frames=1, per_element=True)
    assert rms.values[0][0].tolist() == pytest.approx((1 - 0.5 * np.log10([100, 200, 300])).tolist())
    assert len(make_film([halves()], "grad_coherence", frames=60).frames) == 4
    with pytest.raises(ConfigError, match="at least one run"):
        make_film([], METRIC, frames=3)
    with pytest.raises(ConfigError, match="has been recorded yet in net-s0"):
        make_film([run_of({METRIC: np.full((3, 3), np.nan)})], METRIC, frames=3)


@pytest.fixture
def short_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not hold the last frame: each costs time."""
    monkeypatch.setattr("gradlens.plots.film.LAST_SECONDS", 0)


@pytest.mark.usefixtures("short_end")
def test_a_film_is_a_gif_that_says_what_made_it(tmp_path: Path) -> None:
    film = make_film([read_run(SAMPLE)], METRIC, frames=3)
    path = tmp_path / "new" / "a.gif"
    save_film(film, path, METRIC, command="gradlens profile --as film")
    with Image.open(path) as picture:
        frames = []
        for k in range(picture.n_frames):
            picture.seek(k)
            frames.append(np.asarray(picture.convert("RGB")))
            shown_ms = picture.info["duration"]
    assert len(frames) == 3
    assert shown_ms >= 100
    assert (frames[0] != frames[1]).any()
    assert b"gradlens profile --as film" in path.read_bytes()
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["caption"].startswith("plain34, seed 0: first over last hidden layer 10^")
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.gif", "a.json"]
    assert "median layer +0" in caption(make_film([halves()], "grad_coherence", frames=2), "grad_coherence")


def test_films_that_cannot_be_written_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = make_film([halves()], "grad_coherence", frames=2)
    with pytest.raises(ConfigError, match=r"expected a file ending in \.gif, \.mp4, got \.png"):
        save_film(film, tmp_path / "a.png", "grad_coherence", command="")
    monkeypatch.setattr("gradlens.plots.film.FFMpegWriter.isAvailable", lambda: False)
    with pytest.raises(MissingLibraryError, match="needs ffmpeg"):
        save_film(film, tmp_path / "a.mp4", "grad_coherence", command="")
    (tmp_path / "b.gif").write_text("mine")
    with pytest.raises(RunExistsError, match="was not drawn by gradlens"):
        save_film(film, tmp_path / "b.gif", "grad_coherence", command="", asked=False)


@pytest.mark.usefixtures("short_end")
def test_the_command_draws_ridges_and_films(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    assert run_command(["profile", "--as", "ridges"]) == 0
    assert run_command(["profile", "--as", "film", "--frames", "2"]) == 0
    err = capsys.readouterr().err
    assert "wrote figures/ridges-net-s0.png" in err
    assert "wrote figures/film-net-s0.gif" in err
    assert run_command(["profile", "--as", "film", "-o", "a.png"]) == 2
    assert run_command(["profile", "--as", "lines", "-o", "a.gif"]) == 2
