"""``gradlens watch`` in a window: keys change what is seen, rows come, and the terminal is given back as it was."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gradlens.run import Header, Row
from gradlens.storage import FileSink
from tests.conftest import SAMPLE, make_layers
from tests.processes import PATIENCE
from tests.terminal.live.window import Window

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


class Writer:
    """A run that is being written: a row now and then, until it is told to end."""

    def __init__(self, path: Path, layers: int = 6) -> None:
        self.sink = FileSink(path, flush_rows=1)
        rhythm = {"activation_grad_norm": 1, "param_grad_norm": 1}
        self.sink.open(Header(make_layers(layers), rhythm, model="net", seed=0, config={"epochs": 3}))
        self.layers, self.step = layers, 0

    def rows(self, count: int) -> None:
        for _ in range(count):
            norms = 10.0 ** np.linspace(-3, 0, self.layers)
            metrics = {"activation_grad_norm": norms, "param_grad_norm": 2 * norms}
            self.sink.write_row(Row(self.step, self.step // 50, metrics, {"loss": 1 / (self.step + 1)}))
            self.step += 1

    def epoch(self, number: int) -> None:
        self.sink.write_epoch({"epoch": number, "train_loss": 1 / number, "train_accuracy": 0.25 * number,
                               "val_loss": 2 / number, "val_accuracy": 0.2 * number})  # fmt: skip


def heat_cells(screen: str) -> int:
    """Count the columns of the picture in its first line, labels and the profile beside it left out."""
    return screen.splitlines()[2][9:65].count("▀")


def is_restored(window: Window) -> bool:
    return window.settings() == window.before and not {"1049"} & window.modes and "25" in window.modes


def test_keys_change_what_is_seen_and_the_terminal_is_restored() -> None:
    with Window(["watch", str(SAMPLE)]) as window:
        screen = window.wait_for("healthy")
        assert {"1049"} <= window.modes
        assert "25" not in window.modes
        assert window.settings() != window.before
        for said in (
            "plain34-s0 ● complete",
            "gradient w.r.t. the layer's output",
            "all rows",
            "loss",
            "why",
            "q quit",
        ):
            assert said in screen
        assert max(map(len, screen.splitlines())) <= 80
        assert len(screen.rstrip().splitlines()) == 24
        window.press("m")
        window.wait_for("gradient w.r.t. the layer's parameters")
        window.press("M")
        window.wait_for("gradient w.r.t. the layer's output")
        window.press("r")
        window.wait_for("this epoch")
        window.press("?")
        window.wait_for("pause the view, and continue it")
        window.press("\x1b")
        window.wait_for(lambda screen: "pause the view, and continue it" not in screen)
        window.press("f")
        window.wait_for("esc back")
        window.press("m")  # a choice of what is drawn leads back to what is drawn
        window.wait_for("gradient w.r.t. the layer's parameters")
        window.press("q")
        assert window.wait_end() == 0
        assert is_restored(window)
        assert "complete, step" in window.screen


@pytest.mark.slow
def test_the_picture_grows_holds_still_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "net-s0.h5"
    with Window(["watch", "net-s0"]) as window:
        window.wait_for("waiting for the run net-s0")
        writer = Writer(path)
        writer.rows(5)
        assert heat_cells(window.wait_for("step 4")) == 5
        writer.rows(10)
        assert heat_cells(window.wait_for("step 14")) == 15
        window.press(" ")
        window.wait_for("PAUSED")
        writer.rows(10)
        time.sleep(1.5)
        assert heat_cells(window.wait_for("PAUSED")) == 15
        window.press(" ")
        screen = window.wait_for("step 24")
        assert "PAUSED" not in screen
        assert heat_cells(screen) == 25
        window.resize(120, 40)
        window.wait_for(lambda screen: len(screen.rstrip().splitlines()) == 40)
        writer.rows(40)
        writer.epoch(1)
        assert "epoch 2/3" in window.wait_for("train accuracy 0.25")
        writer.sink.close("complete")
        window.wait_for("complete")
        path.unlink()
        window.wait_for("was removed")
        window.press("q")
        assert window.wait_end() == 0
        assert is_restored(window)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (signal.SIGTERM, 143),
        ("\x03", 130),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_the_terminal_is_restored_however_it_ends(how: signal.Signals | str, code: int) -> None:
    with Window(["watch", str(SAMPLE)]) as window:
        window.wait_for("q quit")
        if isinstance(how, str):
            window.press(how)
        else:
            window.kill(how)
        assert window.wait_end() == code
        assert is_restored(window)


def test_it_stops_and_goes_on_as_other_programs_do() -> None:
    with Window(["watch", str(SAMPLE)]) as window:
        window.wait_for("q quit")
        window.kill(signal.SIGTSTP)
        window.wait_for(lambda _: is_restored(window))
        window.kill(signal.SIGCONT)
        window.wait_for("q quit")
        assert "1049" in window.modes
        window.press("q")
        assert window.wait_end() == 0
        assert is_restored(window)


def test_an_error_is_one_line_on_a_restored_terminal(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_text("no run")
    with Window(["watch", "x.h5"]) as window:
        assert window.wait_end() == 1
        assert is_restored(window)
        assert "Error: x.h5 is not an HDF5 file" in window.screen


@pytest.mark.slow
def test_no_colour_where_none_is_wanted() -> None:
    with Window(["watch", str(SAMPLE)], NO_COLOR="1") as window:
        screen = window.wait_for("healthy")
        assert "▀" not in screen
        assert "38;" not in window.sent
        assert ".:-=+*#%" in screen
        window.press("q")
        assert window.wait_end() == 0


def watch_piped(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gradlens", "watch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_elsewhere_it_is_a_line_per_epoch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gradlens", "watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        assert lines[0].startswith("waiting for a run in runs")
        writer = Writer(tmp_path / "runs" / "net-s0.h5")
        for number in (1, 2, 3):
            writer.rows(50)
            writer.epoch(number)
        while not lines[-1].startswith("epoch 3/3"):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        writer.sink.close("complete")
        lines += process.stdout.readlines()
        assert process.wait(PATIENCE) == 0
    assert "\x1b" not in "".join(lines)
    assert lines[1] == "runs/net-s0.h5: running, 6 layers\n"
    (line,) = [line for line in lines if line.startswith("epoch 3/3")]
    assert "train loss 0.3333 accuracy 0.7500  val loss 0.6667 accuracy 0.6000" in line
    assert "gradient stage0.0 / stage1.1 10^-2.4" in line
    assert any(line.startswith("diagnosis up to step ") for line in lines)
    assert lines[-1] == "runs/net-s0.h5: complete, 150 rows, 3 epochs\n"


def test_what_is_no_run_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_text("no run")
    done = watch_piped("x.h5")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: x.h5 is not an HDF5 file")
