"""The registry of kinds: it agrees with the rules, the command line and the reports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from click.testing import CliRunner

import gradlens
from gradlens.cli import cli
from gradlens.diagnosis.kinds import KINDS, REGISTRY, Kind
from gradlens.report.translations import words_of

PACKAGE = Path(gradlens.__file__).parent


MAKERS = ("Finding", "exact_finding")


def kinds_found_in(*files: Path) -> set[str]:
    """Return the kinds that are written as the first argument of ``Finding(...)`` and ``exact_finding(...)``."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS:
                first = node.args[0]
                found |= {first.value} if isinstance(first, ast.Constant) else set()
    return found


def test_the_rules_find_the_kinds_of_the_registry() -> None:
    assert kinds_found_in(*(PACKAGE / "diagnosis").rglob("*.py")) == set(KINDS)
    assert len(set(KINDS)) == len(KINDS)


def test_the_probe_finds_those_that_show_before_training() -> None:
    assert kinds_found_in(PACKAGE / "probe" / "faults.py") == {kind.name for kind in REGISTRY if kind.before_training}


@pytest.mark.parametrize("kind", REGISTRY, ids=KINDS)
def test_every_kind_has_its_words(kind: Kind) -> None:
    assert kind.name in kind.indonesian
    assert words_of("id")[f"kind {kind.name}"] == kind.indonesian
    said = CliRunner().invoke(cli, ["diagnose", "--help"], env={"COLUMNS": "120"}).output
    assert f"  {kind.name} " in said
    assert kind.meaning in said
