"""The pages of docs/ are true: their commands parse, every command is shown, and their Python runs as it is printed.

docs/integrations and docs/symptoms have tests of their own.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from torch import nn

import gradlens
from gradlens.cli import cli
from tests.processes import PATIENCE
from tests.test_symptoms import without_numbers

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
OWN_TESTS = {"integrations", "symptoms"}
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.parent.name not in OWN_TESTS]
RANKS = DOCS / "guides" / "several-processes.md"


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def shell_lines(page: Path) -> list[str]:
    """Return the lines with gradlens in a page's blocks of shell commands."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = [part.strip() for block in blocks for line in block.splitlines() for part in line.split("&&")]
    return [line for line in lines if line and Path(line.split()[0]).name == "gradlens"]


def parse(line: str) -> str:
    """Parse a line as the command does, and return the command's name."""
    words = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    command = cli.commands[words[0]]
    with click.Context(command, info_name=words[0]) as context:
        assert command.make_context(words[0], list(words[1:]), parent=context).params
    return words[0]


def your_names() -> dict[str, Any]:
    """Return what the pages call by the names of a reader's own loop."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    return {
        "__name__": "page",
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
        "criterion": nn.CrossEntropyLoss(),
        "loader": [(torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1]))] * 4,
    }


def run_page(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    for number, code in enumerate(python_blocks(page)):
        exec(compile(code, f"{page.name}, block {number + 1}", "exec"), names)
    return names


@pytest.mark.parametrize(
    ("page", "line"), [(page.stem, line) for page in PAGES for line in shell_lines(page)], ids=lambda one: one[:40]
)
def test_every_command_line_parses(page: str, line: str) -> None:
    parse(line)


def test_every_command_is_shown() -> None:
    assert {parse(line) for line in shell_lines(DOCS / "commands.md")} == set(cli.commands)


def test_every_page_with_python_has_its_test_here() -> None:
    tested = {"quickstart", "own-loop", "notebook", "several-processes", "always-on-job", "ci-gate", "diagnosis"}
    assert {page.stem for page in PAGES if python_blocks(page)} == {*tested, "run-file"}
    assert not [page.name for page in PAGES if "```py\n" in page.read_text(encoding="utf-8")]


def test_the_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    run_page(DOCS / "quickstart.md", {"__name__": "page"})
    (card,) = re.findall(r"^```text\n(.*?)^```$", (DOCS / "quickstart.md").read_text("utf-8"), flags=re.M | re.S)
    assert without_numbers(capsys.readouterr().out) == without_numbers(card)
    assert set(gradlens.read_run("runs/first.h5").epochs) >= {"epoch", "train_loss"}


def test_your_own_loop() -> None:
    names = run_page(DOCS / "guides" / "own-loop.md", your_names())
    assert names["run"].metric("activation_grad_norm").shape == (4, 2)
    mine, accumulated, by_hand = (gradlens.read_run(f"runs/{n}.h5") for n in ("mine-s0", "accumulated", "by-hand"))
    assert (len(mine.steps), mine.seed, mine.model) == (12, 0, "mine")
    assert mine.scalars["lr"][0] == names["optimizer"].param_groups[0]["lr"]
    assert len(accumulated.steps) == 1
    assert {mine.status, accumulated.status, by_hand.status} == {"complete"}
    assert len(by_hand.steps) == 4


def test_the_always_on_job() -> None:
    names = run_page(DOCS / "guides" / "always-on-job.md", your_names())
    assert names["worst"] > 0


def test_the_notebook(make_run) -> None:
    for model in ("plain34", "resnet34"):
        for seed in (0, 1):
            make_run(f"{model}-s{seed}", model=model, seed=seed)
    names: dict[str, Any] = {}
    for code in python_blocks(DOCS / "guides" / "notebook.md"):
        exec(compile(code, "notebook.md", "exec"), names)
        shown = eval(code.strip().splitlines()[-1], names)
        assert shown._repr_html_() or shown._repr_png_()


def test_the_gate(tmp_path: Path) -> None:
    names = run_page(DOCS / "guides" / "ci-gate.md", {"__name__": "page"})
    names["test_the_model_learns"](tmp_path)


def test_the_diagnosis(capsys: pytest.CaptureFixture[str]) -> None:
    names = your_names()
    exec(python_blocks(DOCS / "guides" / "own-loop.md")[0], names)
    capsys.readouterr()
    run_page(DOCS / "diagnosis.md", names)
    own, arrays = capsys.readouterr().out.split("\n", 1)
    assert own.startswith("run: undecided")
    assert "1. vanishing" in arrays


def test_the_reader_of_ten_lines() -> None:
    names = your_names()
    with gradlens.record(names["model"], "run.h5", optimizer=names["optimizer"]) as recorder:
        for x, y in names["loader"]:
            loss = names["criterion"](names["model"](x), y)
            names["optimizer"].zero_grad()
            loss.backward()
            names["optimizer"].step()
            recorder.log(loss=loss)
    run = gradlens.read_run("run.h5")
    (reader,) = python_blocks(DOCS / "run-file.md")
    exec(compile(reader, "run-file.md", "exec"), names)
    assert len(reader.strip().splitlines()) <= 10
    assert (names["norms"] == run.metric("activation_grad_norm")).all()
    assert names["names"].tolist() == [layer.name for layer in run.layers]
    assert names["loss"].tolist() == run.scalars["loss"].tolist()
    assert set(names["epochs"]) == set(run.epochs)


@pytest.mark.slow
def test_several_processes(tmp_path: Path) -> None:
    (code,) = python_blocks(RANKS)
    (tmp_path / "train.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = gradlens.read_run(tmp_path / "runs" / "ranks.h5")
    assert (len(run.steps), run.status) == (20, "complete")
