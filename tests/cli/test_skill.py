"""What ``gradlens --skill`` prints is true: its commands parse, its code runs, the keys and kinds it names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradlens
from gradlens import Diagnosis, diagnose_arrays
from gradlens.cli import cli, run_command
from gradlens.diagnosis.kinds import HEALTHY, KINDS, UNDECIDED
from gradlens.metrics import METRICS
from tests.diagnosis.recordings import arrays
from tests.test_guides import parse, python_blocks, shell_lines, your_names

SKILL = Path(gradlens.__file__).parent / "skill.md"
TEXT = SKILL.read_text(encoding="utf-8")


def test_it_is_printed_and_nothing_heavy_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--skill"]) == 0
    assert capsys.readouterr().out == TEXT
    code = (
        "import sys; from gradlens.cli import run_command; run_command(['--skill'])\n"
        "print([n for n in ('torch', 'numpy', 'h5py', 'matplotlib', 'rich') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("line", shell_lines(SKILL))
def test_every_command_line_parses(line: str) -> None:
    parse(line)


def test_every_command_that_it_names_exists() -> None:
    assert set(re.findall(r"`gradlens (\w+)", TEXT)) <= set(cli.commands)


def test_its_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names = your_names()
    for code in python_blocks(SKILL):
        exec(compile(code, "skill.md", "exec"), names)
    assert capsys.readouterr().out.startswith("NAME: undecided")
    assert names["run"].metric("activation_grad_norm").shape == (4, 2)


def test_the_keys_kinds_and_metrics_that_it_names_exist() -> None:
    found: Diagnosis = diagnose_arrays(arrays(-6, noise=0.0))
    facts = found.to_dict()
    named = {
        key for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", TEXT, flags=re.M) for key in re.findall(r"\w+", row)
    }
    assert named <= {*facts, *facts["findings"][0]}
    assert named >= {"kind", "learning", "findings", "notes", "cause", "remedy"}
    words = set(re.findall(r"`(\w+)`", TEXT)) - named
    frameworks = {path.stem for path in (SKILL.parent / "integrations").glob("*.py")}
    assert words <= {*KINDS, HEALTHY, UNDECIDED, *METRICS, *frameworks, "yes", "no", "unknown"}
