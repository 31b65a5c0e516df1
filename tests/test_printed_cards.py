"""The cards in docs/reading.md are what the programs of experiments/scorecard/cards print."""

from __future__ import annotations

import io
import re
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.test_symptoms import without_numbers

ROOT = Path(__file__).parent.parent
PROGRAMS = sorted((ROOT / "experiments" / "scorecard" / "cards").glob("*.py"))
SHOWN = dict(
    re.findall(
        r"\[`(\w+)\.py`\]\(\.\./experiments/scorecard/cards/\1\.py\).*?^```text\n(.*?)^```$",
        (ROOT / "docs" / "reading.md").read_text(encoding="utf-8"),
        flags=re.M | re.S,
    )
)


def test_every_program_has_its_card() -> None:
    assert sorted(SHOWN) == [program.stem for program in PROGRAMS]
    assert len(PROGRAMS) == 5


def test_the_explained_card_is_that_of_the_symptom_page() -> None:
    pages = [ROOT / "docs" / "reading.md", ROOT / "docs" / "symptoms" / "loss-does-not-fall.md"]
    cards = [
        re.findall(r"^```text\n(run: setup .*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S) for page in pages
    ]
    assert len(cards[0]) == len(cards[1]) == 1
    assert cards[0] == cards[1]  # the program of that page is run, and its card compared, in tests/test_symptoms.py


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_the_program_prints_the_card(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program.name, str(tmp_path / f"{program.stem}.h5")])
    out = io.StringIO()
    with redirect_stdout(out):
        runpy.run_path(str(program), run_name="__main__")
    assert without_numbers(out.getvalue()) == without_numbers(SHOWN[program.stem])
