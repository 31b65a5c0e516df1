"""The depth profile as a figure and in a terminal: every kind of run, every odd value."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from gradlens import read_run
from gradlens.charts.curves import layer_rows, make_curves, say_theory
from gradlens.cli import run_command
from gradlens.plots import draw_heatmap, draw_profile
from gradlens.plots.profile import caption
from gradlens.plots.style import Look
from gradlens.run import Layer, Run
from gradlens.terminal.profile import print_profile
from tests.charts.test_heatmap import halves
from tests.conftest import SAMPLE

METRICS_OF_THE_SAMPLE = tuple(read_run(SAMPLE).metrics)

METRIC = "activation_grad_norm"


def texts(figure) -> str:
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    return "\n".join([*titles, *(t.get_text() for axis in figure.axes for t in axis.get_legend().get_texts())])


@pytest.mark.parametrize("metric", METRICS_OF_THE_SAMPLE)
def test_every_magnitude_of_a_real_run_is_drawn(metric: str) -> None:
    figure = draw_profile(make_curves([read_run(SAMPLE)], metric), metric)
    assert len(figure.axes) == (2 if metric == METRIC else 1)


def test_theory_stands_beside_the_first_step() -> None:
    curves = make_curves([read_run(SAMPLE)], METRIC)
    figure = draw_profile(curves, METRIC)
    line, band = figure.axes[1].lines[0], figure.axes[1].collections[0]
    theory = curves[0].theory
    assert theory is not None
    np.testing.assert_array_equal(line.get_ydata(), theory.decades)
    assert band.get_paths()
    assert "theory of initialisation" in texts(figure)
    assert f"\n{say_theory(curves[0])}." in caption(curves, METRIC)
    row = layer_rows(curves)[10]
    assert row["deviation"] == pytest.approx(
        (row["first_step_decades"] - row["predicted_decades"]) / math.hypot(row["predicted_spread"], 0.03)
    )
    elements = make_curves([read_run(SAMPLE)], METRIC, per_element=True)[0].theory
    assert elements is not None
    np.testing.assert_allclose(elements.deviations(), theory.deviations(), atol=1e-9)


def test_there_is_no_theory_where_the_span_begins_later() -> None:
    assert make_curves([read_run(SAMPLE)], METRIC, steps=(5, None))[0].theory is None
    assert len(draw_profile(make_curves([read_run(SAMPLE)], METRIC, steps=(5, 9)), METRIC, steps=(5, 9)).axes) == 1


def test_seeds_share_a_line_with_a_band(make_run) -> None:
    for seed in range(3):
        make_run(f"net-s{seed}", seed=seed, decades=-3 - seed)
    make_run("deep-s0", model="deep", layers=40)
    runs = [read_run(f"runs/{name}.h5") for name in ("net-s0", "net-s1", "net-s2", "deep-s0")]
    curves = make_curves(runs, METRIC)
    figure = draw_profile(curves, METRIC)
    assert len(figure.axes[0].lines) == 2
    assert len(figure.axes[0].collections) == 2
    assert "net (3 seeds)" in texts(figure)
    assert "95 % interval of the mean over several seeds" in caption(curves, METRIC)


def odd(grid: np.ndarray) -> np.ndarray:
    grid[:, 0], grid[:, 2], grid[:, 3] = 0, np.nan, np.inf
    return grid


def test_odd_values_are_marked_and_do_not_break_the_scale(make_run, tmp_path: Path) -> None:
    curves = make_curves([read_run(make_run(change=odd))], METRIC)
    figure = draw_profile(curves, METRIC)
    figure.savefig(tmp_path / "a.png", dpi=60)
    assert "exactly 0" in texts(figure)
    assert "exactly 0 at the first layer" in caption(curves, METRIC)
    draw_profile(make_curves([read_run(make_run("zero", change=lambda grid: grid * 0))], METRIC), METRIC)
    draw_profile(make_curves([read_run(make_run("one", layers=1, steps=1))], METRIC), METRIC)


def test_a_long_entry_of_the_legend_does_not_make_a_narrow_panel() -> None:
    figure = draw_profile(make_curves([read_run(SAMPLE)], METRIC), METRIC, look=Look(width="one", caption=False))
    figure.draw_without_rendering()
    assert len(figure.axes) == 2
    assert min(axis.get_position().width for axis in figure.axes) > 0.6


def collapsed(share: float):
    def change(grid: np.ndarray) -> np.ndarray:
        grid[int(len(grid) * (1 - share)) :] = 0
        return grid

    return change


def test_a_collapse_is_seen_at_the_floor_and_the_legend_says_so(make_run) -> None:
    runs = [read_run(make_run(f"c{i}", change=collapsed(share), steps=40)) for i, share in enumerate((0.0, 0.3, 0.8))]
    labels = ("", "exactly 0 in a tenth of the rows or more", "exactly 0 in most rows")
    for run, label in zip(runs, labels, strict=True):
        curves = make_curves([run], METRIC)
        figure = draw_profile(curves, METRIC)
        marks = [line for line in figure.axes[0].lines if line.get_marker() == "v"]
        assert [label] * bool(label) == [text for text in texts(figure).split("\n") if "exactly" in text]
        assert bool(marks) == bool(label)
        if marks:
            heights = np.asarray(marks[0].get_ydata())
            known = np.concatenate([curves[0].centre, curves[0].high])
            assert len(heights) == len(run.layers)
            assert heights.max() < known[np.isfinite(known)].min()
    title = " ".join(draw_heatmap(runs[1:2]).axes[0].get_title("left").split())
    assert "all gradients are exactly 0 in 12 of 40 rows" in title


@pytest.mark.parametrize(("width", "colour"), [(60, True), (100, False)])
def test_the_terminal_view_fits_the_window(width: int, colour: bool, make_run) -> None:
    out = Console(
        file=io.StringIO(), width=width, height=40, force_terminal=colour, highlight=False, legacy_windows=False,
        color_system="truecolor" if colour else None,
    )  # fmt: skip
    paths = [SAMPLE, make_run("a-rather-long-name-of-a-run-s0", layers=300), make_run("odd", seed=1, change=odd)]
    print_profile(out, make_curves([read_run(path) for path in paths], METRIC), METRIC)
    lines = [Text.from_ansi(line).plain for line in out.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    assert "300 layers, evenly spaced" in "\n".join(lines)
    assert "0 exactly 0" in " ".join(" ".join(lines).split())


def test_marks_stand_where_the_values_are(make_run) -> None:
    out = Console(file=io.StringIO(), width=41, highlight=False)
    runs = [read_run(make_run("a-s0", model="a", decades=-5)), read_run(make_run("b-s0", model="b", decades=0.0))]
    print_profile(out, make_curves(runs, METRIC), METRIC)
    rows = [line for line in out.file.getvalue().splitlines() if line.strip().startswith("stage")]
    places = [row.index("o") for row in rows[:6]]
    assert places == sorted(places)


def test_the_command_shows_and_writes(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        make_run(f"net-s{seed}", seed=seed)
    assert run_command(["profile", "runs"]) == 0
    out, err = capsys.readouterr()
    assert "net (2 seeds)" in out
    assert "wrote figures/profile-net-s0-net-s1.png" in err
    assert json.loads(Path("figures/profile-net-s0-net-s1.json").read_text())["caption"].startswith("net (2 seeds): ")
    assert run_command(["profile", "net-s0", "--per-element", "--steps", "3:9", "-o", "a.svg"]) == 0
    assert Path("a.svg").exists()
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert run_command(["profile", "runs", "--terminal", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["section"] for row in rows] == ["all", "stage0"] * 3
    assert rows[0]["slope"] == pytest.approx(-0.6, abs=1e-5)
    assert run_command(["profile", "runs", "--terminal", "--format", "csv", "--rows", "layers"]) == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 6
    assert run_command(["profile", "net-s0", "--terminal", "--metric", "nonfinite_count"]) == 2
    assert run_command(["profile", "net-s0", "--steps", "900:"]) == 2
    assert run_command(["profile", "--terminal", "-o", "b.png"]) == 2
    assert sorted(Path().rglob("*")) == before


def test_linear_and_signed_metrics_have_scales_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for metric, scale in (("grad_coherence", "linear"), ("coherent_grad_norm", "symlog")):
        curves = make_curves([halves(seed) for seed in range(3)], metric)
        axis = draw_profile(curves, metric, look=Look("dark", "two")).axes[0]
        assert axis.get_yscale() == scale
        assert "Both halves are from one batch" in caption(curves, metric)
    assert draw_profile(make_curves([halves()], "grad_coherence"), "grad_coherence").axes[0].get_ylim() == (-1, 1)
    out = Console(file=io.StringIO(), width=80, highlight=False)
    print_profile(out, curves, "coherent_grad_norm")
    said = " ".join(out.file.getvalue().split())
    assert "log10" not in said
    assert "the band lies above 0 at" in said


def test_many_profiles_are_told_in_one_sentence(make_run) -> None:
    runs = [read_run(make_run(f"plain{n}-s0", model=f"plain{n}", layers=6)) for n in (110, 20, 32, 44, 56)]
    curves = make_curves(runs, METRIC)
    said = caption(curves, METRIC)
    assert said.startswith("First layer / last hidden layer: plain20, seed 0 10^-2.4, plain32")
    figure = draw_profile(curves, METRIC, look=Look(width="one"))
    figure.draw_without_rendering()
    assert all(axis.get_tightbbox().x1 <= figure.bbox.x1 + 1 for axis in figure.axes)


def test_the_layers_of_one_kind_lie_where_they_are_over_depth() -> None:
    """Query and key run between the same two layers of the main path, and none of them at the left edge."""
    names = ["emb", *(f"{i}.{part}" for i in range(3) for part in ("q", "k", "out")), "head"]
    tags = {"q": ("query",), "k": ("key",), "out": ("residual",)}
    parents = [(), *(each for i in range(0, 9, 3) for each in ((i,), (i,), (i + 1, i + 2))), (9,)]
    layers = tuple(
        Layer(name, "Linear", "main", i + 1, 8, 8, tags=tags.get(name.rpartition(".")[2], ()), parents=parents[i])
        for i, name in enumerate(names)
    )
    grid = np.outer(np.ones(6), np.geomspace(1, 2, len(layers))).astype(np.float32)
    steps, epochs = np.arange(6), np.zeros(6, dtype=np.int32)
    run = Run("t", Path("t.h5"), layers, steps, epochs, {}, {METRIC: grid}, {}, "complete", {})
    curves = {curve.label: curve for curve in make_curves([run], METRIC)}
    assert [layer.name for layer in curves["t"].layers] == [
        "emb",
        "0.q",
        "0.out",
        "1.q",
        "1.out",
        "2.q",
        "2.out",
        "head",
    ]
    assert curves["t"].places.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert curves["t, query"].places.tolist() == [2, 4, 6]
    assert curves["t, key"].places.tolist() == [2.5, 4.5, 6.5]
    assert curves["t, residual"].places.tolist() == [3, 5, 7]
    lines = draw_profile(list(curves.values()), METRIC).axes[0].get_lines()
    assert [line.get_xdata().tolist() for line in lines[:4]] == [curve.places.tolist() for curve in curves.values()]
