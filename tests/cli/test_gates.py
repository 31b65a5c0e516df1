"""Gates never fall open: an empty variable of a script, a run without rows and a wrong option never exit with 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradlens.cli import cli, run_command
from gradlens.cli.options import GivenPath
from tests.processes import some_slow

WITH_RUN = ("summary", "heatmap", "profile", "compare", "diagnose", "claims", "report", "watch", "recover", "export")


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Return the exit code of a command and the lines of its stderr; nothing may be on stdout after a mistake."""
    code = run_command(arguments)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert code == 0 or out == ""
    return code, err.splitlines()


def test_every_command_that_reads_runs_is_tried() -> None:
    with_path = {
        name
        for name, command in cli.commands.items()
        if any(
            parameter.name in ("run", "runs") for parameter in command.params if not parameter.opts[0].startswith("-")
        )
    }
    assert with_path == set(WITH_RUN)
    for name in (*WITH_RUN, "ls"):
        assert any(isinstance(parameter.type, GivenPath) for parameter in cli.commands[name].params)


@pytest.mark.parametrize("name", ["", " "])
@pytest.mark.parametrize("command", [*WITH_RUN, "ls"])
def test_an_empty_run_is_wrong_usage(command: str, name: str, make_run, capsys: pytest.CaptureFixture[str]) -> None:
    """The working folder would stand for it, and its runs for those that were meant."""
    make_run("here", folder=".")
    code, lines = said([command, name], capsys)
    assert code == 2
    assert lines == [f"Error: the name of a run or folder is empty ({name!r}, as where a script's variable is not set)"]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["heatmap", "net-s0", "--minus", ""], "--minus"),
        (["heatmap", "net-s0", "-o", ""], "--output"),
        (["report", "net-s0", "-o", ""], "--output"),
        (["export", "net-s0", "-o", ""], "--output"),
        (["run", "plain8", "--out", ""], "--out"),
    ],
)
def test_an_empty_option_is_wrong_usage(
    arguments: list[str], option: str, make_run, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run()
    code, lines = said(arguments, capsys)
    assert code == 2
    assert lines == [f"Error: {option} is empty ('', as where a script's variable is not set)"]


@pytest.mark.parametrize("command", sorted({*WITH_RUN} - {"watch"}))  # watch waits for a run
def test_a_folder_without_runs_is_an_error(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    code, lines = said([command, "empty"], capsys)
    assert code == 1
    assert lines[0] == "Error: there is no run in empty"


@pytest.mark.parametrize(("place", "why"), [("empty", "there is no run in empty"), ("gone", "gone: there is no")])
def test_a_gate_without_a_run_is_wrong_usage(place: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    code, lines = said(["diagnose", place, "--fail-on", "any"], capsys)
    assert code == 2
    assert lines[0].startswith(f"Error: --fail-on has nothing to judge: {why}")


@pytest.mark.parametrize("gate", ["any", "vanishing", "learning", "undecided"])
def test_a_run_without_rows_passes_no_gate(gate: str, make_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("fine", decades=0.0)
    make_run("none", steps=0, epochs=0)
    code, lines = said(["diagnose", "fine", "none", "--fail-on", gate], capsys)
    assert code == 2
    assert lines[0] == "Error: none: there is no row, so --fail-on has nothing to judge"
    assert run_command(["diagnose", "none"]) == 0  # without a gate it is shown as undecided


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-on", "vanishing,sad"], "unknown kind 'sad'"),
        (["--fail-on", "vanishing,vanishing"], "vanishing is given twice"),
        (["--explain", "dead", "--fail-on", "any"], "leave out RUNS and --fail-on"),
        (["net-s0", "--explain", "dead"], "leave out RUNS and --fail-on"),
    ],
)
def test_a_gate_that_says_nothing_is_wrong_usage(
    arguments: list[str], message: str, make_run, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(decades=0.0)
    code, lines = said(["diagnose", *arguments], capsys)
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ("", "a kind is missing"),
        ("incoherent", "incoherent is not looked for here"),
        ("sad, incoherent", "unknown kind 'sad'"),
        ("vanishing,vanishing", "vanishing is given twice"),
    ],
)
def test_gates_of_probe(kinds: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = said(["probe", "plain18", "--fail-on", kinds], capsys)
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]


@pytest.mark.parametrize("command", ["heatmap", "profile", "compare", "report", "export"])
def test_a_file_to_write_does_not_end_in_a_slash(command: str, make_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    ending = {"report": "html", "export": "csv"}.get(command, "png")
    code, lines = said([command, "net-s0", "-o", f"x.{ending}/"], capsys)
    assert code == 2
    assert lines == [f"Error: -o x.{ending}/: expected the name of a file, got that of a folder (it ends in a slash)"]
    assert not list(Path().glob("x.*"))


@pytest.mark.parametrize("command", ["heatmap", "profile"])
def test_a_span_of_one_step_is_said(command: str, make_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    assert run_command([command, "net-s0", "--steps", "0:0", "--terminal"]) == 0
    assert capsys.readouterr().err == "--steps 0:0 is one step (both ends are included)\n"
    assert run_command([command, "net-s0", "--steps", "0:1", "--terminal"]) == 0
    assert capsys.readouterr().err == ""


FACTORIES = """
import sys
from torch import nn
from tests.processes import some_slow

def exits(): sys.exit(0)
def exits_with_text(): raise SystemExit("no\\nand more")

class Ends(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        sys.exit(0)

def ends(): return Ends()
"""


@pytest.mark.parametrize("command", some_slow(["run", "probe"]))
def test_a_factory_that_exits_is_an_error(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("nets.py").write_text(FACTORIES)
    Path("top.py").write_text("import sys\nsys.exit(0)\n")
    assert said([command, "nets.py:exits"], capsys) == (1, ["Error: nets.py:exits failed: SystemExit: 0"])
    assert said([command, "nets.py:exits_with_text"], capsys) == (
        1,
        ["Error: nets.py:exits_with_text failed: SystemExit: no"],
    )
    assert said([command, "top.py:build"], capsys) == (
        1,
        [
            "Error: top.py cannot be loaded: SystemExit: 0",
            'Tip: a file is run when it is loaded: what trains belongs under if __name__ == "__main__":',
        ],
    )


def test_a_model_that_exits_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    Path("nets.py").write_text(FACTORIES)
    code, lines = said(["probe", "nets.py:ends", "--input", "3"], capsys)
    assert code == 1
    assert lines[-1] == "Error: code of the model or of the data ended the program (SystemExit: 0)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--seed", str(2**63)], f"seed must be below 2^63, got {2**63}"),
        (["--seeds", "-1"], "seeds '-1': expected whole numbers"),
        (["--seeds", "0,0"], "each seed once"),
        (["--lr", "nan"], "lr must be at least 0, got nan"),
    ],
)
def test_meaningless_settings_are_wrong_usage(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = said(["run", "plain8", *options], capsys)
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert not Path("runs").exists()


def test_a_learning_rate_of_0_and_a_resume_of_nothing_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gradlens.data.patterns.TRAIN_IMAGES", 20)
    monkeypatch.setattr("gradlens.data.patterns.VAL_IMAGES", 10)
    tiny = ["--image-size", "16", "--batch-size", "10", "--epochs", "1"]
    assert run_command(["run", "plain8", *tiny, "--lr", "0", "--resume"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "runs/plain8-s0.h5 is not there, so --resume begins a new run",
        "the learning rate is 0, so no weight will change",
    ]
