"""Mistakes that are found without an import, and the line that says what is being done."""

from __future__ import annotations

import io
import sys
import time

import pytest
from torchvision import models

from gradlens.cli.early_checks import check_data, check_model, torchvision_models
from gradlens.errors import DataError, ModelError
from gradlens.terminal.spinner import CLEAR, working


def test_the_names_of_torchvision_are_read_from_its_files() -> None:
    assert torchvision_models() == set(models.list_models())


def test_what_is_there_passes(tmp_path) -> None:
    (tmp_path / "nets.py").touch()
    for name in ("plain34", "torchvision:resnet18", f"{tmp_path}/nets.py:build", "package.that.is.not.there:build"):
        check_model(name)
    for spec in ("patterns", "cifar10", f"folder:{tmp_path}", f"csv:{tmp_path}/nets.py"):
        check_data(spec)
    for name in ("torchvision:resnet17", f"{tmp_path}/other.py:build"):
        with pytest.raises(ModelError):
            check_model(name)
    for spec in (f"folder:{tmp_path}/other", f"csv:{tmp_path}/other.csv"):
        with pytest.raises(DataError, match="there is no such"):
            check_data(spec)


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_what_is_being_done_and_a_pipe_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, pipe = Terminal(), io.StringIO()
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    with working("loading \x1b[31m", at_once=True) as line:
        time.sleep(0.02)
        line.say("drawing")
        time.sleep(0.25)
    shown = terminal.getvalue()
    assert "\\x1b[31m" in shown.split(CLEAR)[1]  # a name cannot colour the terminal
    assert shown.split(CLEAR)[-2].endswith("drawing")
    assert shown.endswith(CLEAR)  # nothing stays
    with working("short"):
        pass
    assert terminal.getvalue() == shown  # what is soon done shows nothing
    monkeypatch.setattr(sys, "stderr", pipe)
    with working("loading", at_once=True):
        time.sleep(0.02)
    assert pipe.getvalue() == ""
