"""The pieces of the live view: cells and what is sent, curves, scales, bars, and the picture in windows of any size."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradlens.diagnosis.findings import Diagnosis, Finding
from gradlens.run import Header, Row
from gradlens.storage import FileSink
from gradlens.terminal.braille import braille, stretched
from gradlens.terminal.live.canvas import BOLD, CYAN, DEFAULT, Canvas, Painter, sgr
from gradlens.terminal.live.cells import AT_MISSING, AT_NONFINITE, AT_ZERO, PALETTE, STEPS, Scale, draw_bars, fit_layers
from gradlens.terminal.live.layout import SPANS, Choice, draw_watch
from gradlens.terminal.live.screen import console_keys, split_keys
from gradlens.terminal.live.watch import epoch_line, known_metrics, ratio_line, waiting_lines
from gradlens.terminal.live.watched_run import Judge, Watched
from tests.conftest import SAMPLE, make_layers


@functools.lru_cache
def judged(path: Path) -> tuple[Watched, Judge]:
    watched, judge = Watched(path), Judge(path)
    judge.consider(watched.rows, watched.status)
    judge.wait()
    return watched, judge


# --- cells ------------------------------------------------------------------------------------------------


def test_only_cells_that_differ_are_sent() -> None:
    painter = Painter("truecolor")
    canvas = Canvas(40, 3)
    canvas.text(0, 0, "hello", CYAN, BOLD)
    first = painter.paint(canvas)
    assert "hello" in first
    assert painter.paint(canvas) == ""
    canvas.text(20, 2, "x")
    assert painter.paint(canvas) == "\x1b[?2026h\x1b[3;21H\x1b[0mx\x1b[0m\x1b[?2026l"
    painter.forget()
    assert "hello" in painter.paint(canvas)
    assert painter.paint(Canvas(10, 2)).count("\x1b[2J") == 1


def test_colours_are_those_that_the_terminal_has() -> None:
    green = 0x00FF00
    assert sgr(green, DEFAULT, 0, "truecolor") == "\x1b[0;38;2;0;255;0m"
    assert sgr(green, DEFAULT, 0, "256") == "\x1b[0;38;5;46m"
    assert sgr(CYAN, green, BOLD, "standard") == "\x1b[0;1;36;42m"
    assert sgr(CYAN, green, BOLD, None) == "\x1b[0;1m"


def test_text_that_does_not_fit_is_cut_and_each_character_takes_one_cell() -> None:
    canvas = Canvas(8, 2)
    assert canvas.text(0, 0, "層.conv\x1b[2J long") == 8
    assert canvas.text(0, 5, "below") == 0
    canvas.block(6, 1, np.full((5, 5), ord("#")), DEFAULT)
    assert canvas.lines() == ["?.conv?…", "      ##"]


def test_keys() -> None:
    assert split_keys("q m\x1b[A\x1b[6~\x1bOB\x1b") == ["q", "space", "m", "up", "pagedown", "down", "escape"]
    assert split_keys("\x1b[<0;1;1M") == ["\x1b[<0;1;1M"]


class Console:
    """What msvcrt offers of a console of Windows, with keys that were pressed."""

    def __init__(self, pressed: str) -> None:
        self.pressed = list(pressed)

    def kbhit(self) -> bool:
        return bool(self.pressed)

    def getwch(self) -> str:
        return self.pressed.pop(0)


def test_keys_of_a_windows_console() -> None:
    assert console_keys(Console("q m\xe0H\x00Q\xe0G\x1b\r")) == ["q", "space", "m", "up", "pagedown", "escape", "enter"]
    assert console_keys(Console("")) == []
    with pytest.raises(KeyboardInterrupt):
        console_keys(Console("\x03"))


# --- curves, scales, bars ---------------------------------------------------------------------------------


def test_curves_in_braille() -> None:
    characters, owner = braille([np.array([0.0, 1.0]), np.array([np.nan, np.nan, 0.5, 9.0])], 0, 1, 3, 1)
    assert "".join(map(chr, characters[0])) == "⡸⠜ "
    assert owner[0].tolist() == [0, 1, 0]
    flat, _ = braille([np.zeros(4)], 0, 0, 2, 2)
    assert ["".join(map(chr, line)) for line in flat] == ["  ", "⣀⣀"]


def test_curves_are_stretched_evenly() -> None:
    assert stretched(np.array([1, 2]), 4).tolist() == [1, 1, 2, 2]
    assert stretched(np.arange(6), 3).tolist() == [0, 2, 4]
    assert stretched(np.empty(0), 3).tolist() == []


def test_a_scale_is_a_little_wider_than_what_it_shows() -> None:
    values = np.array([[3e-3, 0.0, np.nan, np.inf, 20.0]])
    scale = Scale.of(values, linear=False)
    assert (scale.low, scale.high) == (-3.0, 1.5)
    codes = scale.codes(values)[0].tolist()
    assert codes[1:4] == [AT_ZERO, AT_MISSING, AT_NONFINITE]
    assert 0 < codes[0] < codes[4] < STEPS
    shares = Scale.of(np.array([0.0, 0.42]), linear=True)
    assert (shares.low, shares.high) == (0.0, pytest.approx(0.45))
    assert shares.codes(np.array([0.0])).tolist() == [0]
    cosines = Scale.of(np.array([-0.1, 0.42]), linear=True)
    assert cosines.low == pytest.approx(-0.1)
    assert Scale.of(np.array([np.nan]), linear=False) == Scale(0.0, 1.0, False)
    assert Scale.of(np.array([0.0]), linear=True).high > 0


def test_layers_fill_the_lines_or_are_merged() -> None:
    values = np.array([[1.0], [100.0], [1.0]])
    fitted, first = fit_layers(values, 7, linear=False)
    assert first.tolist() == [0, 0, 1, 1, 2, 2]
    assert fitted[:, 0].tolist() == [1, 1, 100, 100, 1, 1]
    fitted, first = fit_layers(values[:2], 1, linear=False)
    assert fitted.tolist() == [[pytest.approx(10.0)]]
    fitted, first = fit_layers(values[:2], 1, linear=True)
    assert fitted.tolist() == [[50.5]]


def test_bars_are_as_long_as_their_values_are_large() -> None:
    canvas = Canvas(10, 2)
    values = np.array([1.0, 0.001, 1.0])
    draw_bars(canvas, 0, 0, values, Scale(-3, 0, False), 10, colour=True)
    assert canvas.lines() == ["▀▀▀▀▀▀▀▀▀▀", "▀▀▀▀▀▀▀▀▀▀"]
    assert canvas.cells[2, 0].tolist() == [PALETTE[0]] + [DEFAULT] * 9
    plain = Canvas(10, 3)
    draw_bars(plain, 0, 0, np.array([1.0, 0.0, np.nan]), Scale(-3, 0, False), 10, colour=False)
    assert plain.lines() == ["█" * 10, "", ""]


# --- the picture ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [True, False])
def test_the_picture_fits_any_window(colour: bool, make_run) -> None:
    for path in (SAMPLE, make_run("many-s0", layers=200, steps=12), make_run("empty-s0", steps=0, epochs=0)):
        watched, judge = judged(path) if path is SAMPLE else (Watched(path), Judge(path))
        for size in ((1, 1), (20, 5), (30, 8), (45, 12), (80, 24), (100, 11), (160, 48), (400, 120)):
            for page in ("main", "findings", "help"):
                choice = Choice("activation_grad_norm", SPANS[size[0] % 4], page=page, scroll=999)
                lines = draw_watch(*size, watched, judge, choice, colour=colour).lines()
                assert len(lines) == size[1]
                assert max(map(len, lines)) <= size[0]


def test_what_a_person_sees_in_a_window_of_80_columns() -> None:
    watched, judge = judged(SAMPLE)
    lines = draw_watch(80, 24, watched, judge, Choice("activation_grad_norm"), colour=True).lines()
    assert lines[0] == "plain34-s0 ● complete · epoch 4/4 · step 111"
    assert lines[1].startswith("L2 norm of the gradient w.r.t. the layer's output  10^")
    assert "step 0" in "\n".join(lines)
    text = "\n".join(lines)
    for said in ("all rows", "loss", "train accuracy", "healthy", "why", "q quit"):
        assert said in text
    labels = [line[:14].strip() for line in lines if "▀" in line]
    assert [label for label in labels if label] == ["conv1/layer1", "layer2", "layer3", "layer4", "fc"]


def test_the_picture_grows_until_it_is_full_and_then_each_two_columns_become_one(make_run) -> None:
    cells = []
    for steps in (10, 50, 51, 60, 110):
        path = make_run(f"net{steps}-s0", steps=steps, status="running")
        watched, judge = Watched(path), Judge(path)
        canvas = draw_watch(80, 24, watched, judge, Choice("activation_grad_norm"), colour=True)
        cells.append(canvas.lines()[2][9:65].count("▀"))
    assert cells == [10, 50, 51, 30, 55]


def test_every_metric_and_odd_value_is_drawn(make_run) -> None:
    def change(grid: np.ndarray) -> np.ndarray:
        grid[:, 1], grid[:, 2], grid[:, 3] = 0, np.nan, np.inf
        return grid

    watched, judge = judged(make_run(change=change))
    for metric in known_metrics(watched):
        lines = draw_watch(120, 30, watched, judge, Choice(metric), colour=True).lines()
        assert "▀" in lines[2]
    text = "\n".join(draw_watch(120, 30, watched, judge, Choice("activation_grad_norm"), colour=True).lines())
    for said in ("exactly 0", "not recorded", "not finite", "nonfinite"):
        assert said in text
    assert known_metrics(watched)[0] == "activation_grad_norm"


def test_why_and_what_next_are_both_seen_in_a_small_window() -> None:
    evidence = "the gradient is gone at the first layer, and " * 10 + "there it ends"
    finding = Finding("vanishing", ("conv1",), (0, 9), evidence, "a line", "a source", "Add shortcuts. " * 10, 0.9)
    watched, judge = judged(SAMPLE)[0], Judge(SAMPLE)
    judge.diagnosis = Diagnosis("plain34-s0", (finding, replace(finding, kind="frozen")), 112, "")
    lines = draw_watch(60, 20, watched, judge, Choice("activation_grad_norm"), colour=False).lines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("vanishing, also frozen")]
    assert [line[:5].strip() for line in lines[at + 1 : -1]] == ["why", "", "next", ""]
    assert lines[at + 2].endswith("…")
    full = "\n".join(
        draw_watch(60, 20, watched, judge, Choice("activation_grad_norm", page="findings"), colour=False).lines()
    )
    assert "a line (a source)" in full
    assert "there it ends" in full


# --- the run ----------------------------------------------------------------------------------------------


def test_a_long_run_is_begun_with_blocks(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_run(steps=700, epochs=2, layers=3)
    by_rows = Watched(path)
    monkeypatch.setattr("gradlens.terminal.live.watched_run.LONG", 100)
    by_blocks = Watched(path)
    assert by_blocks.rows == by_rows.rows == 700
    assert by_blocks.step == by_rows.step
    assert by_blocks.epoch_index == by_rows.epoch_index == 1
    for name in by_rows.run.metrics:
        np.testing.assert_array_equal(by_blocks.recent[name].rows, by_rows.recent[name].rows)
    for span in ("all", "epoch"):
        columns = by_blocks.columns("activation_grad_norm", span)
        assert columns.counts.sum() == by_rows.columns("activation_grad_norm", span).counts.sum()
    assert by_blocks.look() is False


@pytest.mark.parametrize(("rows", "begun"), [(700, 0), (4900, 100)])
def test_a_model_with_very_many_layers_shows_the_same(
    rows: int, begun: int, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradlens.terminal.live.watched_run.LONG", begun or 10_000)
    path = make_run(steps=rows, epochs=3, layers=3)
    narrow = Watched(path)
    monkeypatch.setattr("gradlens.terminal.live.watched_run.COLUMN_BYTES", 0)
    monkeypatch.setattr("gradlens.terminal.live.watched_run.PIECE", 600)
    wide = Watched(path)
    assert wide.wide
    assert not narrow.wide
    for metric in ("param_grad_norm", "param_norm"):
        for span in ("all", "epoch", "300"):
            (starts, values), (begins, expected) = (seen.columns(metric, span).fitted(60) for seen in (wide, narrow))
            if metric != "param_norm" or not begun:  # rows without a value: read in chunks they are there
                assert starts.tolist() == begins.tolist()
                np.testing.assert_allclose(values, expected, rtol=1e-6)
            assert sum(name != "scalars" for name, _ in wide._columns) == 1


def test_a_run_begun_anew_is_followed_anew(make_run) -> None:
    path = make_run(steps=40)
    watched = Watched(path)
    path.unlink()
    make_run(steps=10, layers=4)
    assert watched.look()
    assert watched.rows == 10
    assert len(watched.run.layers) == 4


def test_lines_where_there_is_no_terminal(make_run) -> None:
    watched = Watched(make_run(steps=20, epochs=2))
    assert epoch_line(watched, 0) == "epoch 1  train loss 1.0000 accuracy 0.2500  val loss 2.0000 accuracy 0.2000"
    assert epoch_line(watched, 1).endswith("gradient stage0.0 / stage1.1 10^-2.4")
    assert ratio_line(watched) == "gradient stage0.0 / stage1.1 10^-2.4"
    assert waiting_lines("net-s9")[0] == "waiting for the run net-s9"
    assert "runs in runs: net-s0" in waiting_lines("net-s9")


def test_a_diagnosis_that_fails_is_said_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlens.terminal.live.watched_run.diagnose", lambda run: 1 / 0)
    watched, judge = Watched(SAMPLE), Judge(SAMPLE)
    judge.consider(watched.rows, watched.status)
    judge.wait()
    text = "\n".join(draw_watch(80, 24, watched, judge, Choice("activation_grad_norm"), colour=True).lines())
    assert "the diagnosis failed: division by zero" in text


def test_a_diagnosis_is_made_seldom_and_at_the_end_at_once() -> None:
    watched, judge = Watched(SAMPLE), Judge(SAMPLE)
    judge.consider(100, "running")
    judge.wait()
    assert judge.rows == watched.rows
    judge.rows = -1
    judge.consider(200, "running")
    judge.wait()
    assert judge.rows == -1
    judge.hurry()
    judge.consider(200, "running")
    judge.wait()
    assert judge.rows == watched.rows
    judge.rows = -1
    judge.consider(200, "complete")
    judge.wait()
    assert judge.rows == watched.rows
    assert judge.took > 0


@pytest.mark.parametrize("metric", ["activation_grad_norm", "param_grad_norm"])
def test_a_layer_that_was_never_called_has_no_empty_line(metric: str, tmp_path: Path) -> None:
    layers = list(make_layers(3))
    layers[1] = replace(layers[1], name="inside", calls=0, out_numel=0)
    path, sink = tmp_path / "run.h5", FileSink(tmp_path / "run.h5")
    sink.open(Header(tuple(layers), {"activation_grad_norm": 1, "param_grad_norm": 1}))
    for step in range(12):
        norms = {"activation_grad_norm": np.array([0.1, np.nan, 0.3]), "param_grad_norm": np.array([0.1, 0.2, 0.3])}
        sink.write_row(Row(step, 0, norms))
    sink.close("complete")
    text = "\n".join(draw_watch(80, 24, Watched(path), Judge(path), Choice(metric), colour=False).lines())
    assert ("inside" in text) == (metric == "param_grad_norm")
