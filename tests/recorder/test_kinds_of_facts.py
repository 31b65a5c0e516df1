"""The table of facts, what a run has, and docs/facts.md: the same names in all three."""

from __future__ import annotations

import re
from pathlib import Path

from gradlens.recorder.facts.loss.kinds import KINDS
from tests.recorder.fact_programs import cross_entropy, follow, mlp

PAGE = (Path(__file__).parents[2] / "docs" / "facts.md").read_text(encoding="utf-8")
OF_SEVERAL = {"ranks"}
"""What only several processes write."""


def keys_in(section: str) -> set[str]:
    """Return the keys in the first column of the table of a section."""
    text = PAGE.partition(f"\n## {section}")[2].partition("\n##")[0]
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_the_page_lists_what_a_run_has() -> None:
    model = mlp()
    facts = follow(model, lambda step: cross_entropy(model, step))
    assert keys_in("Top level") == facts.keys() | OF_SEVERAL
    assert keys_in("`graph`") == facts["graph"].keys()


def test_every_kind_of_the_table_is_in_the_file_in_its_order() -> None:
    model = mlp()
    graph = follow(model, lambda step: cross_entropy(model, step))["graph"]
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names)
    assert [name for name in graph if name in names] == names
