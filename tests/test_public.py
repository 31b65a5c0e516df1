"""The public face: one table of names, a page that lists them, docstrings that are complete, examples that run."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradlens
from gradlens import errors
from gradlens.cli import cli
from gradlens.probe import verify as laws

PAGE = Path(__file__).parent.parent / "docs" / "public.md"
TABLES = {"gradlens": "PUBLIC", "gradlens.plots": "_HOME", "gradlens.storage": "_HOME", "gradlens.report": "_HOME"}
FUNCTIONS = {
    name: value
    for name, home in gradlens.PUBLIC.items()
    if inspect.isfunction(value := getattr(import_module(home), name))
}
ONLY_COMMANDS = {"run", "ls", "watch"}
"""Commands without a function; the page names them."""


def rows() -> dict[str, tuple[str, str]]:
    """Return the page's tables: name to its line and its module."""
    found = re.findall(r"^\| `(\w+)` \| (.+?) \| `([\w.]+)` \|$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    assert len({name for name, _, _ in found}) == len(found), "a name is listed twice"
    return {name: (line, module) for name, line, module in found}


# --- the table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", TABLES)
def test_type_checkers_see_the_table(package: str) -> None:
    module = import_module(package)
    blocks = [
        node
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {}
    for line in blocks[0].body:
        assert isinstance(line, ast.ImportFrom)
        for alias in line.names:
            assert alias.asname == alias.name, "only `import NAME as NAME` exports a name"
            seen[alias.name] = line.module
    assert len(blocks) == 1
    assert seen == getattr(module, TABLES[package])
    assert module.__all__ == sorted(seen)


@pytest.mark.parametrize("package", TABLES)
def test_every_name_can_be_had(package: str) -> None:
    module = import_module(package)
    for name, home in getattr(module, TABLES[package]).items():
        assert getattr(module, name) is getattr(import_module(home), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


def test_nothing_is_public_by_accident() -> None:
    assert dir(gradlens) == gradlens.__all__ == sorted(rows())
    starred: dict[str, Any] = {}
    exec("from gradlens import *", starred)
    assert set(starred) - {"__builtins__"} == set(gradlens.__all__)


@pytest.mark.slow
def test_functions_win_over_packages_of_their_name() -> None:
    """Whichever is imported first: each in a process forked from one that has imported torch."""
    firsts = (
        "import gradlens.report.files, gradlens.export.tables, gradlens.probe.measure",
        "import gradlens; gradlens.report, gradlens.export, gradlens.probe",
    )
    then = (
        "import gradlens; from gradlens.report.content import collect; from gradlens.export import tables;"
        "from gradlens.probe.measure import probe; assert probe is not gradlens.probe;"
        "faces = gradlens.report, gradlens.export, gradlens.probe;"
        "assert {face.__module__ for face in faces} == {'gradlens.api'};"
        "assert gradlens.storage.__name__ == 'gradlens.storage'"
    )
    code = (
        "import os, sys, torch\n"
        "for first in sys.argv[1:]:\n"
        "    if not os.fork(): exec(first); os._exit(0)\n"
        "    if os.wait()[1]: sys.exit(first)\n"
    )
    programs = [f"{first}; {then}" for first in firsts]
    done = subprocess.run([sys.executable, "-c", code, *programs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_has_its_function() -> None:
    assert {name for name in cli.commands if name not in FUNCTIONS} == ONLY_COMMANDS
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text or f"`gradlens {name}`" in text for name in ONLY_COMMANDS)


# --- the page -----------------------------------------------------------------------------------------------


def test_the_page_lists_what_is_public_and_nothing_else() -> None:
    assert {name: module for name, (_, module) in rows().items()} == gradlens.PUBLIC
    for name, (line, _) in rows().items():
        assert line.endswith("."), name


def test_members_that_the_page_names_are_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(r"`([A-Z]\w+)\.(\w+)`", text)
    assert ("Run", "layers") in named
    for owner, member in named:
        kind = getattr(gradlens, owner)
        assert hasattr(kind, member) or member in kind.__annotations__, f"{owner}.{member}"


# --- docstrings ---------------------------------------------------------------------------------------------


def sections(function: Callable[..., Any]) -> dict[str, str]:
    """Return the parts of a docstring that have a heading, by the heading."""
    text = inspect.getdoc(function) or ""
    parts = re.split(r"^(Args|Returns|Yields|Raises|Example):+$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def names_in(section: str) -> set[str]:
    """Return the names that a section of a docstring explains."""
    return set(re.findall(r"^ {4}(\w+): \S", section, flags=re.M))


def raised_by(function: Callable[..., Any]) -> set[str]:
    """Return the errors that a function raises in its own lines."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_returns_and_raises(name: str) -> None:
    function, said = FUNCTIONS[name], sections(FUNCTIONS[name])
    taken = set(inspect.signature(function).parameters)
    assert re.match(r"[A-Z].*\.$", (inspect.getdoc(function) or "").splitlines()[0])
    if name not in ("all_leaves", "with_norms"):  # what they take is in the docstring of record: (name, module)
        assert names_in(said.get("Args", "")) == taken
        assert ("Yields" if inspect.isgeneratorfunction(function) else "Returns") in said
    known = {**vars(errors), **vars(builtins)}
    assert names_in(said.get("Raises", "")) >= raised_by(function)
    for error in names_in(said.get("Raises", "")):
        assert issubclass(known[error], Exception)


@pytest.mark.parametrize("name", sorted(gradlens.PUBLIC.keys() - FUNCTIONS.keys() - {"__version__"}))
def test_a_class_says_what_it_is(name: str) -> None:
    kind = getattr(gradlens, name)
    assert kind.__doc__
    assert not kind.__doc__.startswith(name + "("), "dataclass wrote this itself"
    for member, value in vars(kind).items():
        if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            assert value.__doc__, f"{name}.{member}"


# --- examples -----------------------------------------------------------------------------------------------

EXAMPLES = {name: said["Example"] for name in FUNCTIONS if "Example" in (said := sections(FUNCTIONS[name]))}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(
    name: str, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(laws, "SETTINGS", laws.SETTINGS[-1:])  # tests/probe/test_verify.py measures all laws
    for seed in (0, 1):
        make_run(f"plain34-s{seed}", model="plain34", seed=seed)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    exec(
        textwrap.dedent(EXAMPLES[name]),
        {
            "gradlens": gradlens,
            "model": model,
            "inputs": torch.randn(5, 3),
            "optimizer": torch.optim.SGD(model.parameters()),
            "criterion": nn.CrossEntropyLoss(),
            "loader": [(torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1]))] * 2,
        },
    )
    assert capsys.readouterr().err == ""


def test_the_newer_functions_have_an_example() -> None:
    assert {"record", "read_run", "follow_run", "summary", "report", "probe", "recover", "export"} <= EXAMPLES.keys()
