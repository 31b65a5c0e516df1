"""The terminal views: they fit the window, and say the same without colour."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gradlens import read_run
from gradlens.analysis.compare import compare_runs
from gradlens.charts.curves import make_curves
from gradlens.config import make_config
from gradlens.events import Ended, EpochDone, NonFinite, Note, Started, StepDone
from gradlens.run_summary import summarise
from gradlens.terminal.colours import VIRIDIS, magnitude_colour, magnitude_mark
from gradlens.terminal.compare import print_compare, spark
from gradlens.terminal.heatmap import print_heatmap
from gradlens.terminal.listing import print_listing, run_rows
from gradlens.terminal.profile import print_profile
from gradlens.terminal.progress import TrainingView
from gradlens.terminal.summary import print_summary
from tests.conftest import SAMPLE
from tests.processes import some_slow


def console(width: int = 80, height: int = 40, *, colour: bool) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=colour, highlight=False, legacy_windows=False,
        color_system="truecolor" if colour else None,
    )  # fmt: skip


def plain_lines(view: Console) -> list[str]:
    from rich.text import Text

    return [Text.from_ansi(line).plain for line in view.file.getvalue().splitlines()]


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("width", some_slow([60, 80, 160]))
@pytest.mark.parametrize("view", ["heatmap", "summary", "compare", "ls"])
def test_every_view_fits_the_window(view: str, width: int, colour: bool, make_run) -> None:
    out = console(width, colour=colour)
    runs = [read_run(SAMPLE), read_run(make_run("a-rather-long-name-of-a-run-s0", layers=300))]
    match view:
        case "heatmap":
            print_heatmap(out, runs, "activation_grad_norm")
        case "summary":
            for run in runs:
                print_summary(out, run)
        case "compare":
            print_compare(out, compare_runs(runs))
        case "ls":
            print_listing(out, SAMPLE.parent, run_rows([run.path for run in runs]))
    lines = plain_lines(out)
    assert lines
    assert max(map(len, lines)) <= width
    if not colour:
        assert "\x1b" not in out.file.getvalue()


def test_half_blocks_show_two_layers_a_line_and_fit_the_height() -> None:
    out = console(100, 30, colour=True)
    print_heatmap(out, [read_run(SAMPLE)], "activation_grad_norm")
    blocks = [line for line in plain_lines(out) if "▀" in line]
    assert len(blocks) == 17
    assert [line.split()[0] for line in blocks if not line.startswith(" " * 14)] == [
        "conv1/layer1", "layer2", "layer3", "layer4", "fc",
    ]  # fmt: skip
    tall = console(100, 14, colour=True)
    print_heatmap(tall, [read_run(SAMPLE)], "activation_grad_norm")
    assert len(plain_lines(tall)) <= 14


def test_marks_of_odd_values(make_run) -> None:
    def change(grid: np.ndarray) -> np.ndarray:
        grid[:, 1], grid[:, 2], grid[:, 3] = 0, np.nan, np.inf
        return grid

    out = console(100, colour=False)
    print_heatmap(out, [read_run(make_run(change=change))], "activation_grad_norm")
    lines = plain_lines(out)
    for name, mark in (("stage0.1", "0"), ("stage0.2", "?"), ("stage1.0", "!")):
        (line,) = [line for line in lines if line.strip().startswith(name)]
        assert set(line.split()[1]) == {mark}
    for said in ("0 exactly 0", "? not recorded", "! not finite"):
        assert said in lines[-1]


def test_colours_run_from_the_smallest_to_the_largest() -> None:
    assert magnitude_colour(1e-5, 1e-5, 1) == VIRIDIS[0]
    assert magnitude_colour(1, 1e-5, 1) == VIRIDIS[-1]
    assert magnitude_colour(1, 1, 1) == VIRIDIS[-1]
    assert [magnitude_mark(v, 1e-4, 1) for v in (1e-4, 1, 0, np.nan, np.inf)] == [".", "@", "0", "?", "!"]


def test_the_summary_says_what_is_notable(make_run) -> None:
    out = console(100, colour=False)
    print_summary(out, read_run(SAMPLE))
    text = "\n".join(plain_lines(out))
    for said in ("plain34, seed 0", "complete", "does not vanish", "val accuracy", "layer4.2.conv2", "update ratio"):
        assert said in text
    facts = summarise(read_run(SAMPLE)).to_dict()
    assert len(facts["layers"]) == 34
    assert facts["layers"][0]["activation_grad_norm"] > 0


def test_the_summary_says_what_recording_cost_and_what_is_missing(make_run) -> None:
    run = read_run(make_run(overhead=0.0123, notes=("no gradient came to the output of [a]", "another")))
    out = console(100, colour=False)
    print_summary(out, run)
    text = "\n".join(plain_lines(out))
    assert "recording took 1.2 % of the time" in text
    assert "note  no gradient came to the output of [a]" in text
    facts = summarise(run).to_dict()
    assert facts["overhead"] == 0.0123
    assert facts["notes"] == ["no gradient came to the output of [a]", "another"]
    assert summarise(read_run(make_run("old"))).to_dict()["overhead"] is None


def test_a_run_with_nothing_in_it_is_shown(make_run) -> None:
    run = read_run(make_run(steps=0, epochs=0))
    out = console(colour=False)
    print_summary(out, run)
    print_heatmap(out, [run], "activation_grad_norm")
    assert "no row has been recorded yet" in out.file.getvalue()


def test_names_from_a_file_are_never_markup(make_run) -> None:
    run = read_run(make_run("[red]x", model="[bold]m[/bold]"))
    out = console(100, colour=False)
    print_summary(out, run)
    print_heatmap(out, [run], "activation_grad_norm")
    print_compare(out, compare_runs([run]))
    print_listing(out, SAMPLE.parent, run_rows([run.path]))
    text = out.file.getvalue()
    assert text.count("[red]x") >= 2
    assert text.count("[bold]m[/bold]") >= 2


def test_what_cannot_be_read_is_listed_with_its_reason(tmp_path) -> None:
    (tmp_path / "x.h5").write_text("hello")
    (row,) = run_rows([tmp_path / "x.h5"])
    assert row["status"] == "unreadable"
    assert "not an HDF5 file" in row["note"]


def test_curves_in_blocks() -> None:
    assert spark(np.array([0.0, 0.5, 1.0]), 0, 1, 3) == "▁▅█"
    assert spark(np.array([0.0, np.nan, 1.0]), 0, 1, 3) == "▁ █"
    assert spark(np.array([0.0, 1.0]), 0, 1, 6) == "▁▁▁███"
    assert len(spark(np.linspace(0, 1, 500), 0, 1, 40)) == 40


@pytest.mark.parametrize("colour", [True, False])
def test_a_training_is_shown_as_it_goes(colour: bool) -> None:
    out = console(100, colour=colour)
    config = make_config("plain34", epochs=2)
    values = {"train_loss": 1.5, "train_accuracy": 0.25, "val_loss": 1.6, "val_accuracy": 0.5, "lr": 0.1, "seconds": 2}
    with TrainingView(out) as view:
        for event in (
            Note("copies [were] found"),
            Note("beware", warning=True),
            Started(config, "runs/plain34-s0.h5", "cpu", 80, 20, ("a", "b"), 3, 1),
            StepDone(1, 1, 1.5, 0.25, np.array([1e-3, 1e-2, 1.0])),
            StepDone(1, 2, 1.4, 0.3, None),
        ):
            view(event)
        shown = console(100, colour=colour)
        shown.print(view._render())
        assert "loss 1.400 acc 0.300" in shown.file.getvalue()
        assert "ep 1" in shown.file.getvalue()
        assert "2/3" in shown.file.getvalue()
        assert "output" in shown.file.getvalue()
        for event in (
            NonFinite(1, 2, float("nan"), True),
            NonFinite(1, 3, float("nan"), True),
            EpochDone(1, values),
            Ended("complete", "runs/plain34-s0.h5", 1, 61, "no luck"),
        ):
            view(event)
    text = "\n".join(plain_lines(out))
    assert text.count("the loss is nan") == 1
    for said in (
        "copies [were] found", "warning: beware", "plain34 seed 0: 80 training and 20 validation images of 2 classes",
        "the loss is nan at step 2, epoch 1: training stops here", "val loss 1.6000 acc 0.5000",
        "complete after 1 epoch, 61 s: runs/plain34-s0.h5 (no luck)",
    ):  # fmt: skip
        assert said in text.replace("\n", " ").replace("  ", " ") or said in text


def test_many_runs_are_listed_a_line_each() -> None:
    names = [f"run-{i:03}" for i in range(300)]
    rows = [
        {"run": name, "status": "complete", "epochs": 2, "rows": 20, "train_accuracy": 0.5, "val_accuracy": None,
         "data": "patterns " * 20, "note": ""}
        for name in names
    ]  # fmt: skip
    rows[7] = {"run": "broken", "status": "unreadable", "note": "is damaged"}
    stream = io.StringIO()
    print_listing(Console(file=stream, width=70), Path("runs"), rows)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 302
    assert max(map(len, lines)) <= 70
    assert lines[2].split()[:6] == ["run-000", "complete", "2", "20", "0.500", "-"]
    assert lines[9].startswith("broken   unreadable")
    assert "is damaged" in lines[9]


def test_long_names_are_cut_where_they_are_alike(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    run = read_run(make_run(layers=12))
    layers = tuple(replace(one, name=f"encoder.transformer.blocks.{i}.fc") for i, one in enumerate(run.layers))
    runs = [replace(run, layers=layers)]
    print_heatmap(Console(width=60), runs, "activation_grad_norm")
    print_profile(Console(width=60), make_curves(runs, "activation_grad_norm"), "activation_grad_norm")
    lines = capsys.readouterr().out.splitlines()
    for i in range(12):
        assert sum(line.lstrip().startswith(f"…{i}.fc ") for line in lines) == 2
