"""Figures: every format, every odd value, any number of layers; the JSON file of each says how it was made."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from gradlens import read_run
from gradlens.analysis.compare import compare_runs, find_lead
from gradlens.analysis.derived_metrics import with_derived
from gradlens.charts.curves import make_curves
from gradlens.charts.layer_names import shorten_names
from gradlens.cli import run_command
from gradlens.errors import ConfigError, RunExistsError
from gradlens.plots import draw_compare, draw_heatmap, draw_profile, figure_name, save_figure
from gradlens.plots.heatmap import caption
from gradlens.plots.panels import MOST_LABELS, choose_labels, key_columns
from gradlens.plots.style import (
    MISSING,
    NONFINITE,
    THEMES,
    ZERO,
    Look,
    fill,
    house_style,
    look_of,
    looks_of,
    make_look,
    signed_colours,
)  # fmt: skip
from gradlens.studies import references
from tests.charts.test_heatmap import run_of
from tests.conftest import SAMPLE
from tests.processes import some_slow

METRICS_OF_THE_SAMPLE = tuple(read_run(SAMPLE).metrics)


def render(figure: Figure, path: Path) -> np.ndarray:
    figure.savefig(path, dpi=80)
    return np.asarray(Image.open(path).convert("RGB"))


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


@pytest.mark.parametrize("metric", some_slow(METRICS_OF_THE_SAMPLE, 2))
@pytest.mark.parametrize("per_element", some_slow([False, True]))
def test_every_metric_of_a_real_run_is_drawn(metric: str, per_element: bool, tmp_path: Path) -> None:
    if per_element and metric == "update_ratio":
        with pytest.raises(ConfigError, match="is not a norm"):
            draw_heatmap([read_run(SAMPLE)], metric, per_element=True)
        return
    image = render(draw_heatmap([read_run(SAMPLE)], metric, per_element=per_element), tmp_path / "a.png")
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_figures_are_written_with_the_facts_beside(ending: str, make_run, tmp_path: Path) -> None:
    runs = [read_run(make_run(config={"lr": 0.1}))]
    path = tmp_path / "new" / f"heat.{ending}"
    save_figure(draw_heatmap(runs), path, command="gradlens heatmap net-s0", runs=runs, caption="It shows.")
    head = path.read_bytes()[:400]
    assert {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending] in head
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["command"] == "gradlens heatmap net-s0"
    assert facts["caption"] == "It shows."
    assert facts["runs"][0]["file"] == "net-s0.h5"
    assert facts["runs"][0]["config"] == {"lr": 0.1}
    assert facts["runs"][0]["last_epoch"]["train_accuracy"] == 0.5
    assert {"gradlens", "python", "numpy", "matplotlib"} <= set(facts["versions"])
    assert "commit" in facts
    assert str(tmp_path) not in path.with_suffix(".json").read_text()
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([f"heat.{ending}", "heat.json"])


def test_a_strangers_picture_is_not_overwritten_unasked(make_run, tmp_path: Path) -> None:
    runs = [read_run(make_run())]
    path = tmp_path / "a.png"
    path.write_text("mine")
    with pytest.raises(RunExistsError, match="was not drawn by gradlens"):
        save_figure(draw_heatmap(runs), path, command="", runs=runs, asked=False)
    assert path.read_text() == "mine"
    save_figure(draw_heatmap(runs), path, command="", runs=runs)
    save_figure(draw_heatmap(runs), path, command="", runs=runs, asked=False)  # it is gradlens's own now


def test_a_strangers_json_beside_a_picture_is_not_overwritten(make_run, tmp_path: Path) -> None:
    runs = [read_run(make_run())]
    beside = tmp_path / "a.json"
    for theirs in ('{"mine": 1}', "[1]", "no JSON", "\x80"):
        beside.write_bytes(theirs.encode("latin-1"))
        with pytest.raises(RunExistsError, match=r"a\.json is there and was not written by gradlens"):
            save_figure(draw_heatmap(runs), tmp_path / "a.png", command="", runs=runs)
        assert beside.read_bytes() == theirs.encode("latin-1")
        assert not (tmp_path / "a.png").exists()
    beside.unlink()
    save_figure(draw_heatmap(runs), tmp_path / "a.png", command="", runs=runs)
    save_figure(draw_heatmap(runs), tmp_path / "a.svg", command="", runs=runs)  # its own is replaced


def test_zero_missing_and_nonfinite_have_colours_of_their_own(make_run, tmp_path: Path) -> None:
    def change(grid: np.ndarray) -> np.ndarray:
        grid[:, 1], grid[:, 2], grid[:, 3] = 0, np.nan, np.inf
        return grid

    image = render(draw_heatmap([read_run(make_run(change=change))]), tmp_path / "a.png")
    plain = render(draw_heatmap([read_run(make_run("plain"))]), tmp_path / "b.png")
    for colour in (ZERO, MISSING, NONFINITE):
        there, before = ((picture == rgb(colour)).all(axis=2).sum() for picture in (image, plain))
        assert there > before + 1000, colour


def test_one_scale_for_all_panels(make_run) -> None:
    runs = [read_run(make_run("a", decades=-3)), read_run(make_run("b", decades=2))]
    figure = draw_heatmap(runs)
    meshes = [axis.images[0] for axis in figure.axes if axis.images and axis.get_title(loc="left")]
    assert len(meshes) == 2
    assert meshes[0].get_clim() == meshes[1].get_clim()
    values = np.concatenate([run.metric("activation_grad_norm").ravel() for run in runs])
    assert meshes[0].get_clim() == pytest.approx((np.log10(values.min()), np.log10(values.max())))


@pytest.mark.parametrize("count", [3, 34, 60, 300])
def test_labels_never_overlap(count: int, make_run) -> None:
    run = read_run(make_run(f"n{count}", layers=count, steps=3))
    figure = draw_heatmap([run])
    figure.draw_without_rendering()
    axis = figure.axes[0]
    boxes = sorted((t.get_window_extent() for t in axis.get_yticklabels() if t.get_text()), key=lambda box: box.y0)
    assert 3 <= len(boxes) <= MOST_LABELS
    assert all(a.y1 <= b.y0 + 1.5 for a, b in itertools.pairwise(boxes))
    chosen = choose_labels(run.layers)
    assert chosen[0] == 0


@pytest.mark.parametrize("count", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 4, 7))])
def test_any_number_of_runs(count: int, make_run, tmp_path: Path) -> None:
    runs = [read_run(make_run(f"r{i}", seed=i, steps=2)) for i in range(count)]
    render(draw_heatmap(runs), tmp_path / "h.png")
    render(draw_compare(runs), tmp_path / "c.png")
    assert caption(runs).count("vanish") <= 4 + count


def test_runs_without_rows_or_epochs_say_so(make_run) -> None:
    empty = read_run(make_run("empty", steps=0, epochs=0))
    with pytest.raises(ConfigError, match="no row of activation_grad_norm has been recorded yet in empty"):
        draw_heatmap([empty])
    with pytest.raises(ConfigError, match="no run has finished an epoch"):
        draw_compare([empty])
    with pytest.raises(ConfigError, match="at least one run"):
        draw_heatmap([])
    draw_heatmap([empty, read_run(make_run("one", steps=1, epochs=0))])


def test_the_table_holds_the_reports_four_rows(make_run) -> None:
    runs = [read_run(make_run(f"{m}-s{s}", model=m, seed=s)) for m in ("plain34", "resnet34") for s in (0, 1, 2)]
    figure = draw_compare(runs, references=references())
    texts = [cell.get_text().get_text() for axis in figure.axes for t in axis.tables for cell in t.get_celld().values()]
    for expected in (
        "training accuracy",
        "validation loss",
        "0.6712",
        "0.52",
        "original study, plain34",
        "0.500 ± 0.000",
    ):
        assert expected in texts
    titles = {axis.get_title(loc="left") for axis in figure.axes}
    assert {"training accuracy", "validation accuracy", "training loss", "validation loss"} <= titles


def test_default_names(make_run) -> None:
    runs = [read_run(make_run(f"plain34-s{i}", model="plain34", seed=i)) for i in range(4)]
    assert figure_name("heatmap", runs[:1]) == Path("figures/heatmap-plain34-s0.png")
    assert figure_name("heatmap", runs[:2], "update_ratio").name == "heatmap-update_ratio-plain34-s0-plain34-s1.png"
    assert figure_name("heatmap", runs[:1], "a", "b").name == "heatmap-a-b-plain34-s0.png"
    assert figure_name("compare", runs).name == "compare-plain34-4-runs.png"


TO_XYZ = np.array([[0.41246, 0.35758, 0.18044], [0.21267, 0.71515, 0.07217], [0.01933, 0.11919, 0.95030]])


def simulated(colour: str, matrix: np.ndarray) -> np.ndarray:
    """Return CIE L*a*b* (D65) of a colour as a colour-blind reader sees it; the matrix acts on linear sRGB."""
    srgb = np.array(rgb(colour)) / 255
    linear = np.clip(matrix @ np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = TO_XYZ @ linear / np.array([0.95047, 1, 1.08883])
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado, Oliveira & Fernandes 2009, A Physiologically-based Model of Color Vision Deficiency, table of severity 1
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
DISTINCT = 15.0
"""A difference of 2.3 is just noticed (Mahy et al. 1994); thin lines need several times as much."""


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize("theme", THEMES)
def test_lines_are_told_apart_by_colour_blind_readers(theme: str, kind: str) -> None:
    seen = [simulated(colour, np.array(BLINDNESS[kind])) for colour in THEMES[theme].palette]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > DISTINCT
    ground = simulated(THEMES[theme].paper, np.array(BLINDNESS[kind]))
    assert min(np.linalg.norm(a - ground) for a in seen) > 2 * DISTINCT


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize("theme", THEMES)
def test_signed_colours_keep_both_sides_apart(theme: str, kind: str) -> None:
    with house_style(Look(theme=theme)):
        below, above = (signed_colours()(place)[:3] for place in (0.2, 0.8))
    hexes = ["#" + "".join(f"{round(255 * c):02x}" for c in colour) for colour in (below, above)]
    low, high = (simulated(colour, np.array(BLINDNESS[kind])) for colour in hexes)
    assert np.linalg.norm(low - high) > 2 * DISTINCT
    lightness = [simulated(colour, np.eye(3))[0] for colour in THEMES[theme].diverging]
    half = lightness[: len(lightness) // 2 + 1]
    assert half == sorted(half, reverse=theme == "dark")  # away from 0 only ever further from the ground


@pytest.mark.parametrize("theme", some_slow(THEMES, 2))
@pytest.mark.parametrize("width", some_slow(["one", "two", "screen"]))
def test_every_ground_and_width_is_drawn(theme: str, width: str, make_run, tmp_path: Path) -> None:
    look = make_look(theme, width)
    runs = [read_run(make_run(f"{m}-s0", model=m)) for m in ("a", "b")]
    figure = draw_heatmap(
        runs, ["param_grad_norm", "update_ratio"] if theme == "dark" else "param_grad_norm", look=look
    )
    if width != "screen":
        assert figure.get_figwidth() == {"one": 3.5, "two": 7.2}[width]
    image = render(figure, tmp_path / "a.png")
    assert tuple(image[-1, -1]) == rgb(THEMES[theme].paper)
    with pytest.raises(ConfigError, match="theme 'sepia': expected one of light, dark"):
        make_look("sepia", "one")
    with pytest.raises(ConfigError, match="width 'three': expected one of one, two, screen"):
        make_look("light", "three")


def test_several_metrics_are_columns_with_a_scale_each() -> None:
    figure = draw_heatmap([with_derived(read_run(SAMPLE))] * 2, ["param_grad_norm", "update_ratio"])
    panels = [axis for axis in figure.axes if axis.images]
    assert len(panels) == 4
    limits = [axis.images[0].get_clim() for axis in panels]
    assert limits[0] == limits[2] != limits[1] == limits[3]
    assert [axis.get_title(loc="left") for axis in panels[:2]] == ["param_grad_norm", "update_ratio"]


@pytest.mark.parametrize(("count", "width"), [(3, "one"), (110, "two"), (300, "one")])
def test_nothing_is_cut_off_at_the_edges(count: int, width: str, make_run) -> None:
    figure = draw_heatmap([read_run(make_run(layers=count, steps=3))], look=make_look("light", width))
    figure.draw_without_rendering()
    for axis in figure.axes:
        box = axis.get_tightbbox()
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
    head = figure._suptitle.get_window_extent()
    assert head.x1 <= figure.bbox.x1
    assert head.y1 <= figure.bbox.y1 + 1


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_drops_broken_steps_and_findings_are_marked_and_explained() -> None:
    values = np.tile(10.0 ** np.arange(6), (20, 1))
    values[:, 5] = np.inf
    run = replace(run_of({"activation_grad_norm": values}), scalars={"lr": np.repeat([0.1, 0.01], 10)})
    assert labels(draw_heatmap([run])) == [
        "not finite", "learning rate drops", "step not finite", "layers of a finding"
    ]  # fmt: skip
    assert labels(draw_heatmap([run], marks=False)) == ["not finite"]
    assert "resumed" in labels(draw_heatmap([replace(run, info={"notes": ["resumed at step 7"]})]))
    assert "nonfinite" in [text.get_text() for text in draw_heatmap([run]).axes[0].texts]


def test_the_range_of_16_bit_formats_is_hatched_where_elements_are_shown() -> None:
    run = run_of({"activation_grad_norm": np.tile([1.0, 1e-6, 1e-40], (4, 1))})
    told = labels(draw_heatmap([run], per_element=True, marks=False))
    assert [text.split("'")[0] for text in told] == ["outside fp16", "outside bf16"]
    assert labels(draw_heatmap([run], marks=False)) == []


def test_an_axis_of_epochs() -> None:
    run = run_of({"activation_grad_norm": np.ones((20, 3)) * np.arange(1, 4)})
    with pytest.raises(ConfigError, match="fewer than two epochs"):
        draw_heatmap([run], by="epoch")
    axis = draw_heatmap([replace(run, epoch_of_step=np.repeat(np.arange(4, dtype=np.int32), 5))], by="epoch").axes[0]
    assert (axis.get_xlim(), axis.get_xlabel()) == ((0, 4), "epochs done")


def test_a_picture_says_itself_what_made_it(make_run, tmp_path: Path) -> None:
    runs = [read_run(make_run())]
    path = tmp_path / "a.png"
    save_figure(draw_heatmap(runs), path, command="gradlens heatmap net-s0", runs=runs, caption="It shows.")
    said = Image.open(path).text
    assert (said["Title"], said["Description"], said["Source"]) == ("It shows.", "gradlens heatmap net-s0", "net-s0.h5")


def test_a_depth_sweep_has_a_colour_per_family_and_is_sorted_by_depth(make_run) -> None:
    names = ["plain110", "plain20", "plain32", "resnet110", "resnet20", "resnet56"]
    runs = [read_run(make_run(f"{name}-s0", model=name)) for name in names]
    figure = draw_compare(runs)
    table = next(axis.tables[0] for axis in figure.axes if axis.tables)
    column = [cell.get_text().get_text() for (_, at), cell in sorted(table.get_celld().items()) if at == -1]
    assert column == ["plain20", "plain32", "plain110", "resnet20", "resnet56", "resnet110"]
    dashes = [line.get_linestyle() for line in figure.axes[0].lines]
    assert dashes == ["-"] * 6  # one condition
    shades = [to_rgb(line.get_color()) for line in figure.axes[0].lines]
    assert [sum(shade) for shade in shades[:3]] == sorted((sum(shade) for shade in shades[:3]), reverse=True)


def test_a_network_has_one_colour_and_a_condition_one_dash_in_every_figure() -> None:
    plain, residual = look_of(0)[0], look_of(1)[0]
    assert looks_of(["resnet34"]) == [(residual, "-")]
    assert looks_of(["resnet34-nobn", "plain34-nobn"]) == [(residual, "--"), (plain, "--")]
    study = ["plain34", "resnet34", "resnet34-gradonly", "resnet34-valueonly", "plain34-nobn", "mine", "plain34"]
    looks = looks_of(study)
    assert looks[0] == (plain, "-")
    assert looks[4] == (plain, "--")
    assert len({colour for colour, _ in looks}) == 5
    assert len(set(looks)) == len(study)  # the same model with other settings has another dash
    assert len(set(looks_of([f"model{letter}" for letter in "abcdefghijk"]))) == 11


def test_a_mean_goes_on_dotted_where_a_seed_has_ended_and_the_legend_says_so(make_run) -> None:
    runs = [read_run(make_run(f"a-s{s}", model="a", seed=s, steps=20, epochs=3 + 2 * s)) for s in (0, 1)]
    figure = draw_compare(runs)
    assert "after | a seed has ended: mean of the others" in [
        t for a in figure.axes if a.get_legend() for t in legend_texts(a)
    ]
    lines = figure.axes[0].lines
    means = [np.isfinite(np.asarray(line.get_ydata(), float)).sum() for line in lines[:2]]
    assert means == [3, 3]  # three epochs of both, then from the third to the fifth
    assert "dotted where a seed has ended" in figure.get_suptitle().replace("\n", " ")
    assert "dotted" not in draw_compare(runs[:1]).get_suptitle()


def test_many_single_seeds_become_bands(make_run) -> None:
    run = read_run(make_run())
    runs = [replace(run, name=f"a-s{s}", info=dict(run.info) | {"model": "a", "seed": s}) for s in range(20)]
    few, many = draw_compare(runs[:5]).axes[0], draw_compare(runs).axes[0]
    assert (len(few.lines), len(many.lines)) == (6, 1)
    assert len(many.collections) == 1


def test_a_figure_for_a_paper_has_its_caption_in_the_metadata(make_run, tmp_path: Path, capsys) -> None:
    make_run("plain34-s0", model="plain34", decades=-2.0)
    assert run_command(["heatmap", "--no-caption", "-o", "a.png", "-o", "a.svg"]) == 0
    said = json.loads(Path("a.json").read_text())["caption"]
    assert said.startswith("plain34, seed 0: the gradient shrinks")
    assert Image.open("a.png").text["Title"] == said
    assert said[:60] in " ".join(Path("a.svg").read_text().split())
    assert (
        draw_heatmap(
            [read_run(Path("runs/plain34-s0.h5"))], look=make_look("light", "one", caption=False)
        ).get_suptitle()
        == ""
    )


def test_the_title_has_the_message(make_run) -> None:
    runs = [read_run(make_run(f"{m}-s0", model=m, decades=-2.0)) for m in ("a", "b")]
    title = " ".join(draw_heatmap(runs[:1]).axes[0].get_title(loc="left").split())
    assert title == "a, seed 0: the gradient at the first layer is 1/40 of the last one's"
    assert draw_heatmap(runs).axes[0].get_title(loc="left") == "a, seed 0\nfirst layer 1/40 of the last"
    assert draw_heatmap(runs[:1], "param_norm").axes[0].get_title(loc="left") == "a, seed 0"


def test_twenty_runs_in_two_groups_are_two_lines_and_two_rows(make_run) -> None:
    run = read_run(make_run())
    runs = [
        replace(run, name=f"{model}-s{seed}", info=dict(run.info) | {"model": model, "seed": seed})
        for model in ("plain34", "resnet34")
        for seed in range(10)
    ]
    figure = draw_compare(runs, look=make_look("dark", "one"))
    assert [text for axis in figure.axes if axis.get_legend() for text in legend_texts(axis)] == [
        "plain34 (10 seeds)", "resnet34 (10 seeds)"
    ]  # fmt: skip
    thick = [line for line in figure.axes[0].lines if line.get_linewidth() > 1]
    assert len(thick) == 2


def legend_texts(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_a_loss_far_beyond_the_others_does_not_press_them_flat(make_run) -> None:
    run = read_run(make_run(steps=40, epochs=40))
    epochs = dict(run.epochs) | {"val_loss": np.array([40.0] + [1.0] * 39)}
    panel = draw_compare([replace(run, epochs=epochs)]).axes[3]
    assert panel.get_ylim()[1] == pytest.approx(1.2)
    assert [text.get_text() for text in panel.texts] == ["axis cut; highest value 40"]


def test_many_seeds_are_told_as_groups_and_differences_by_their_runs(make_run) -> None:
    runs = [
        read_run(make_run(f"{m}-s{s}", model=m, seed=s, decades=-2.0 - s)) for m in ("a", "b") for s in range(3)
    ]  # fmt: skip
    said = caption(runs).split("\n")
    assert said[0].startswith("a (3 seeds): the gradient shrinks toward the input (first over last hidden layer 10^-")
    assert len(said) == 3
    one, several = caption(runs[:1], minus=runs[1]), caption(runs[:2], minus=runs[3])
    assert "Red: a-s0 has more than a-s1" in one
    assert "Red: the panel's run has more than b-s0" in several
    bar = draw_heatmap(runs[:2], minus=runs[3]).axes[-1]
    assert "log10 of the run over b-s0" in " ".join(bar.get_ylabel().split())


# --- room -------------------------------------------------------------------------------------------------


def test_a_key_has_as_many_columns_as_fit() -> None:
    short, long = ["exactly 0"] * 3, ["outside fp16's normal range (6.1e-05 to 6.6e+04)"] * 2
    assert key_columns(short, 7.2) == 3
    assert key_columns([*short, *long], 6.2) == 2
    assert key_columns([*short, *long], 3.5) == 1
    assert key_columns(short[:1], 3.5) == 1


def test_long_names_of_layers_leave_room_for_the_heatmap() -> None:
    names = [f"encoder.blocks.{i}.attention.projection" for i in range(12)]
    assert shorten_names(names, 60) == names
    assert shorten_names(names, 30)[:2] == ["…0.attention.projection", "…1.attention.projection"]
    cut = shorten_names(names, 12)
    assert (cut[0], max(map(len, cut))) == ("…0.a…jection", 12)
    assert shorten_names(["a" * 50, "b"], 10) == ["aaa…aaaaaa", "b"]


@pytest.mark.parametrize("width", ["one", "two"])
def test_a_net_of_long_names_is_drawn_as_wide_as_others(width: str, make_run) -> None:
    run = read_run(make_run(layers=60))
    layers = tuple(replace(one, name=f"encoder.transformer.blocks.{one.name}.attention.self") for one in run.layers)
    figure = draw_heatmap([replace(run, layers=layers)], look=make_look("light", width))
    figure.draw_without_rendering()
    assert figure.axes[0].get_position().width > 0.3


def test_what_is_said_of_a_span_of_steps_says_so(make_run) -> None:
    run = read_run(make_run())
    assert "median of all rows)" in caption([run])
    assert "median of all rows shown)" in caption([run], steps=(0, 10))


# --- captions ---------------------------------------------------------------------------------------------


def test_a_caption_takes_whole_sentences_while_three_lines_hold_them() -> None:
    assert fill(["One.", "Two.", "Three."], 6) == "One.\nTwo.\nThree."
    assert fill(["One.", "Two.", "Three.", "Four."], 6) == "One. Two. Three. Four."
    long = "a sentence of words " * 15 + "end."
    assert fill(["One.", long, "Three."], 6) == "One."
    cut = fill([long * 2, "Two."], 6).split("\n")
    assert len(cut) == 3
    assert cut[-1].endswith("…")


@pytest.mark.parametrize("count", some_slow([2, 1, 5]))
def test_captions_have_three_lines_at_most(count: int, make_run) -> None:
    runs = [read_run(make_run(f"plain{n}-s0", model=f"plain{n}", steps=12)) for n in range(20, 20 + count)]
    curves = make_curves(runs, "activation_grad_norm")
    figures = [
        draw_heatmap(runs),
        draw_heatmap(runs, ["activation_grad_norm", "param_grad_norm"]),
        draw_profile(curves, "activation_grad_norm"),
        draw_compare(runs),
    ]
    for figure in figures:
        head = figure.get_suptitle()
        assert head
        assert len(head.split("\n")) <= 3


def test_the_caption_of_a_comparison_leaves_the_numbers_to_the_table(make_run) -> None:
    runs = [read_run(make_run(f"{m}-s{s}", model=m, seed=s)) for m in ("plain", "resnet") for s in (0, 1, 2)]
    head = draw_compare(runs).get_suptitle()
    assert "validation accuracy" in head
    assert not re.search(r"0\.\d", head)


def test_a_long_name_leaves_room_for_the_table_and_a_single_point_shows_its_dash(make_run) -> None:
    long = "a-very-long-name-that-a-student-gave"
    runs = [read_run(make_run(f"{m}-s0", model=m, epochs=1)) for m in ("plain34", "plain34-nobn", long)]
    figure = draw_compare(runs, look=make_look("light", "one"))
    names = [cell.get_text().get_text() for axis in figure.axes for table in axis.tables
             for (_, column), cell in table.get_celld().items() if column < 0]  # fmt: skip
    assert max(len(line) for name in names for line in name.split("\n")) <= 15
    panel = figure.axes[0]
    faces = [line.get_markerfacecolor() != line.get_color() for line in panel.get_lines()[:2]]
    assert sorted(faces) == [False, True]  # without batch norm the line would be dashed: its point is hollow


def logged(run, **columns: list[float]):
    """Return a run of which these columns of the table of epochs were logged, besides the epoch."""
    nothing = {name: np.full(2, np.nan) for name in run.epochs if name != "epoch"}
    return replace(run, epochs=run.epochs | nothing | {name: np.array(values) for name, values in columns.items()})


def test_what_no_run_logged_has_no_panel_and_no_column(make_run) -> None:
    runs = [
        logged(read_run(make_run(name, seed=-1)), train_loss=[0.7, loss], train_accuracy=[0.5, accuracy])
        for name, loss, accuracy in (("a", 0.68, 0.55), ("b", 0.66, 0.95))
    ]
    figure = draw_compare(runs)
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert not any("validation" in text or text == "no value" for text in texts)
    assert [axis.get_title(loc="left") for axis in figure.axes if axis.lines] == ["training accuracy", "training loss"]
    assert figure.get_suptitle() == "b is ahead of a in training accuracy after the last epoch, by one run each."


def test_all_panels_of_a_comparison_have_the_same_epochs(make_run) -> None:
    long, short = (read_run(make_run(name, seed=-1, epochs=epochs)) for name, epochs in (("a", 6), ("b", 2)))
    nothing = {name: np.full(6, np.nan) for name in ("val_loss", "val_accuracy")}
    figure = draw_compare([replace(long, epochs=long.epochs | nothing), short])
    limits = [axis.get_xlim() for axis in figure.axes if axis.lines]
    assert len(limits) == 4
    assert set(limits) == {limits[0]}
    assert limits[0][0] < 1 < 6 < limits[0][1]


def test_columns_of_ones_own_are_compared(make_run) -> None:
    runs = [
        logged(read_run(make_run(name, seed=-1)), val_f1=[0.1, f1], top5_acc=[0.2, f1 / 2])
        for name, f1 in (("a", 0.4), ("b", 0.8))
    ]
    compared = compare_runs(runs)
    assert dict(compared.columns) == {"top5_acc": "top5 acc", "val_f1": "val f1"}
    assert find_lead(list(compared.groups)).best.label == "b"
    assert draw_compare(runs).get_suptitle().startswith("b is ahead of a in top5 acc")


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("width", ["screen", "one", "two"])
def test_the_label_of_the_layers_is_no_longer_than_their_panel(count: int, width: str, make_run) -> None:
    runs = [read_run(make_run(f"net{i}-s0", model=f"net{i}", layers=5)) for i in range(count)]
    figure = draw_heatmap(runs, look=Look(width=width))
    figure.draw_without_rendering()
    labels = [axis for axis in figure.axes if axis.get_ylabel().startswith("layer")]
    assert labels
    for axis in labels:
        assert axis.yaxis.label.get_window_extent().height <= 1.05 * axis.get_window_extent().height
