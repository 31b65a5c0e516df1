"""The pages in docs/ and CONTRIBUTING.md are true: links, floors, and the names that they give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradlens.metrics import METRICS
from tests.test_architecture import FLOORS

ROOT = Path(__file__).parent.parent
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert link.startswith("http") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:gradlens|tests|experiments|docs|\.ci)/[\w./]*)`", text):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_the_floors_are_those_of_the_test() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \| .+ \|$", ARCHITECTURE, flags=re.M)
    assert [int(number) for number, _ in rows] == list(range(1, len(FLOORS) + 1))
    floors = [set(re.findall(r"`(\w+)`", names)) for _, names in rows]
    assert floors == [{name or "__init__" for name in floor} for floor in FLOORS]


def test_the_answers_hold_what_they_name() -> None:
    answers = re.findall(r"\]\(\.\./([\w./]+)\): `(\w+)`", ARCHITECTURE)
    assert len(answers) >= 8
    for file, name in answers:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")), f"{name} in {file}"
    questions = ARCHITECTURE.partition("## Where is")[2]
    assert questions.count("\n| ") - 1 >= 10


def test_every_command_of_the_guide_is_that_of_ci() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for line in re.findall(r"^(\.venv/bin/.+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), flags=re.M):
        assert line in guide, line


def test_the_quotients_have_intervals_that_fit() -> None:
    for metric in METRICS.values():
        for part in metric.quotient or ():
            assert metric.every % METRICS[part].every == 0, metric.name
