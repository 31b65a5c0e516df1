"""``gradlens run --live``: the training in a full screen, and lines once that is left."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from gradlens import read_run
from gradlens.config import make_config
from gradlens.events import Ended, EpochDone, Note, Started, StepDone
from gradlens.terminal.live import training as live
from gradlens.terminal.live.training import LiveTraining
from tests.processes import PATIENCE
from tests.terminal.live.window import Window

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
VALUES = {"train_loss": 1.5, "train_accuracy": 0.25, "val_loss": 1.6, "val_accuracy": 0.5, "lr": 0.1, "seconds": 2}
STARTED = Started(make_config("plain34", epochs=2), "runs/plain34-s0.h5", "cpu", 80, 20, ("a", "b"), 3, 1)


def watcher(seconds: float) -> list[str]:
    return [sys.executable, "-c", f"import time; time.sleep({seconds})"]


def test_what_is_said_in_full_screen_is_printed_when_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "can_show", lambda: True)
    monkeypatch.setattr(live, "watch_command", lambda path: watcher(PATIENCE))
    out = io.StringIO()
    with LiveTraining(Console(file=out, width=120)) as view:
        view(Note("found"))
        view(STARTED)
        assert "found\nplain34 seed 0" in out.getvalue()
        before = out.getvalue()
        view(StepDone(1, 1, 1.5, 0.25, None))
        view(EpochDone(1, VALUES))
        view(Note("beware", warning=True))
        assert out.getvalue() == before
        view._watcher.terminate()  # the user presses q
        view._watcher.wait()
        view(EpochDone(2, VALUES))
        said = out.getvalue().removeprefix(before)
        assert said.index("epoch   1") < said.index("beware") < said.index("epoch   2")
        view(Ended("complete", "runs/plain34-s0.h5", 2, 61))
        view(STARTED)
        assert view._watcher is None  # who left is not taken back
    assert "complete after 2 epochs" in out.getvalue()


def test_the_full_screen_is_left_with_the_end_and_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "can_show", lambda: True)
    monkeypatch.setattr(live, "GRACE_S", 0.2)
    monkeypatch.setattr(live, "watch_command", lambda path: watcher(PATIENCE))
    out = io.StringIO()
    with LiveTraining(Console(file=out, width=120)) as view:
        view(STARTED)
        first = view._watcher
        view(Ended("complete", "runs/plain34-s0.h5", 2, 61))
        assert first.poll() is not None
        assert "complete after 2 epochs" in out.getvalue()
        view(STARTED)
        second = view._watcher
        assert second is not first
    assert second.poll() is not None


def test_without_a_terminal_there_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "can_show", lambda: False)
    monkeypatch.setattr(subprocess, "Popen", None)
    out = io.StringIO()
    with LiveTraining(Console(file=out, width=120)) as view:
        view(STARTED)
        view(EpochDone(1, VALUES))
    assert "--live needs a terminal" in out.getvalue()
    assert "epoch   1" in out.getvalue()


@pytest.mark.slow
def test_a_training_in_a_window(photos: Path) -> None:
    options = ["--data", f"folder:{photos}", "--image-size", "16", "--batch-size", "2", "--device", "cpu"]
    with Window(["run", "plain8", *options, "--epochs", "4000", "--live"], 100, 30) as window:
        window.wait_for("● running")
        window.wait_for("space pause")
        window.press("q")
        window.wait_for(lambda screen: "1049" not in window.modes and "epoch " in screen)  # that stood in the view, too
        window.wait_for(lambda screen: window.settings() == window.before)
        window.press("\x03")
        assert window.wait_end() == 130
        assert window.settings() == window.before
    assert read_run("runs/plain8-s0.h5").status == "interrupted"


@pytest.mark.slow
def test_the_view_leaves_when_the_training_ends(photos: Path) -> None:
    options = ["--data", f"folder:{photos}", "--image-size", "16", "--batch-size", "2", "--device", "cpu"]
    for more in ([], ["--overwrite"]):
        with Window(["run", "plain8", *options, "--epochs", "20", "--live", *more], 100, 150) as window:
            window.wait_for("step")
            assert window.wait_end() == 0
            assert window.settings() == window.before
            assert "1049" not in window.modes
            assert "complete after 20 epochs" in window.screen
            assert "Depth profile" in window.screen
