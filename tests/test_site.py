"""The pages of the site: each has its place, what is generated is whole, and a link that leads nowhere is an error.

``.ci/run`` builds the site itself, with warnings as errors.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import gradlens
from gradlens.cli import cli
from gradlens.diagnosis.kinds import KINDS
from gradlens.metrics import SHOWN_METRICS
from tests.recorder.zoo import ZOO

ROOT = Path(__file__).parent.parent
SITE = ROOT / "docs" / "site"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Return docs/site/build.py, which writes into a folder of the test."""
    monkeypatch.syspath_prepend(str(SITE))
    spec = importlib.util.spec_from_file_location("site_build", SITE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BUILD", tmp_path / "build")
    monkeypatch.setattr(module, "PAGES", tmp_path / "build" / "pages")
    return module


def test_every_page_is_in_the_navigation_and_in_llms_txt(build: ModuleType) -> None:
    pages = [page for _, _, page in build.read_nav()]
    assert len(set(pages)) == len(pages)
    assert {build.source(page) for page in pages} >= set((ROOT / "docs").rglob("*.md"))
    listed = re.findall(r"^- \[.+?\]\((.+?)\.html\)", build.llms_text(), flags=re.M)
    assert listed == [page.removesuffix(".md") for page in pages]


def test_what_is_generated_is_whole(build: ModuleType) -> None:
    made = {name: make() for name, make in build.GENERATORS.items()}
    for name, command in cli.commands.items():
        part = made["commands"].partition(f"### gradlens {name}\n")[2].partition("\n### ")[0]
        shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        assert all(option in part for parameter in shown for option in parameter.opts if option[0] == "-")
    assert all(f"### gradlens.{name}\n" in made["api"] for name in gradlens.__all__ if not name.startswith("__"))
    assert "- `optimizer`: A row is closed at each of its steps." in made["api"]
    assert "```python\nwith gradlens.record(model, " in made["api"]
    assert made["api"].count("```") % 2 == 0
    assert "``" not in made["api"].replace("```", "")
    assert all(f"| `{name}` |" in made["metrics"] for name in SHOWN_METRICS)
    assert all(f"### {kind}\n" in made["kinds"] for kind in KINDS)
    assert all(f"`{name}`" in made["tested"] for name in ZOO)
    assert "/state/" in made["layout"]
    used = {name for page in (ROOT / "docs").rglob("*.md") for name in build.MARK.findall(page.read_text("utf-8"))}
    assert used == set(made)


def test_pages_are_written_with_links_between_them(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("latex2mathml", reason="writes the formulas; it is among the extras of dev")
    monkeypatch.setattr(build, "GENERATORS", dict.fromkeys(build.GENERATORS, lambda: "generated"))
    build.write_pages()
    pages = [page for page in sorted(build.PAGES.rglob("*.md")) if len(page.suffixes) == 1]  # others show a file
    assert len(pages) > 40
    for page in pages:
        text = build.CODE.sub("", page.read_text(encoding="utf-8"))
        for _, target, _, _ in build.LINK.findall(text):
            assert not target or target.startswith(("http", "mailto:")) or (page.parent / target).exists(), (
                page,
                target,
            )
    metrics = (build.PAGES / "metrics.md").read_text(encoding="utf-8")
    assert metrics.count("<math") > 15
    assert "$" not in metrics
    assert "generated" in metrics


def test_a_link_that_leads_nowhere_is_an_error(build: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"docs/nothing\.md: a page links to it"):
        build.Site().place(ROOT / "docs" / "nothing.md")
