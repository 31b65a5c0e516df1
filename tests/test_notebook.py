"""The notebook: tidy as it is kept, and running from top to bottom."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import gradlens
from gradlens.cli import cli
from gradlens.terminal import console

ROOT = Path(__file__).parent.parent
PATH = ROOT / "experiments" / "report.ipynb"
NOTEBOOK: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
CODE = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"}
SHOWN = {  # cell to kinds of what it shows
    "run": {"text/html"},
    "heatmap": {"image/png"},
    "heatmap-sigmoid": {"image/png"},
    "profile": {"image/png"},
    "diagnosis-plain": {"text/html"},
    "diagnosis-sigmoid": {"text/html"},
    "comparison": {"text/html"},
    "claims": {"text/html"},
    "own": {"text/html"},
}


def commands() -> Iterator[list[str]]:
    names: dict[str, object] = {}
    for line in "\n".join(CODE.values()).splitlines():
        if re.match(r"[A-Z_, ]+ = ", line):
            exec(line, names)
        if line.startswith("!"):
            yield shlex.split(line[1:].format(**{key: value for key, value in names.items() if key.isupper()}))


def attributes(tree: ast.AST) -> set[str]:
    """List what is asked of the package: ``gradlens.heatmap``."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gradlens"
    }


def test_it_is_kept_without_outputs_and_says_no_more_than_it_must() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert set(NOTEBOOK["metadata"]) == {"kernelspec", "language_info"}
    assert NOTEBOOK["metadata"]["language_info"] == {"name": "python"}
    for cell in NOTEBOOK["cells"]:
        assert cell["metadata"] == {}
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
    assert not re.search(r"https?://|[\"' ]/[a-z]+/", PATH.read_text(encoding="utf-8"))


def test_every_cell_of_code_is_told_of_in_words() -> None:
    kinds = [cell["cell_type"] for cell in NOTEBOOK["cells"]]
    assert kinds[0] == "markdown"
    assert kinds.count("markdown") >= kinds.count("code") - 1
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    assert set(SHOWN) <= set(CODE)


def test_its_code_parses_and_its_names_are_there() -> None:
    plain = {name: re.sub(r"^(\s*)[!%].*$", r"\1pass", text, flags=re.MULTILINE) for name, text in CODE.items()}
    asked = set().union(*(attributes(ast.parse(text)) for text in plain.values()))
    assert asked <= set(gradlens.__all__)
    assert {"read_run", "read_runs", "heatmap", "profile", "diagnose", "compare", "claims", "record"} <= asked


def test_its_commands_parse() -> None:
    found = list(commands())
    assert [words[:3] for words in found[:2]] == [["gradlens", "run", "plain34"], ["gradlens", "run", "resnet34"]]
    for _, name, *arguments in found:
        command = cli.commands[name]
        with click.Context(command, info_name=name) as context:
            assert command.make_context(name, arguments, parent=context).params


def test_no_bar_is_drawn_below_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert console.is_live(console.messages())
    monkeypatch.setenv("JPY_PARENT_PID", "7")
    assert not console.is_live(console.messages())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the libraries that run notebooks
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    notebook = nbformat.read(PATH, as_version=4)
    (train,) = (cell for cell in notebook.cells if cell.id == "train")
    assert "EPOCHS, IMAGE_SIZE = 3, 32\n" in train.source
    train.source = train.source.replace("EPOCHS, IMAGE_SIZE = 3, 32", "EPOCHS, IMAGE_SIZE = 1, 16")  # briefly
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    for name, kinds in SHOWN.items():
        assert kinds <= set(outputs[name][-1].data), name
    shown = {name: outputs[name][-1].data.get("text/html", "") for name in SHOWN}
    assert sorted(path.name for path in (tmp_path / "runs").glob("*.h5")) == [
        "plain34-nobn-sigmoid-s0.h5", "plain34-s0.h5", "plain34-s1.h5", "plain8-s0.h5", "resnet34-s0.h5",
        "resnet34-s1.h5",
    ]  # fmt: skip
    for name in ("run", "comparison", "own"):
        assert "data:image/png;base64," in shown[name]
        assert "cannot be shown" not in shown[name]
    assert "vanishing" in shown["diagnosis-sigmoid"]
    assert "FAILED" not in shown["claims"]
    assert shown["claims"].count("passed") == 2
    assert "\x1b[2K" not in "".join(one.get("text", "") for one in outputs["train"])  # a bar that redraws itself
