"""The pages of docs/symptoms are true: their programs print what the pages show, also after the mending."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
import torch

from gradlens.diagnosis.kinds import HEALTHY, KINDS

FOLDER = Path(__file__).parent.parent / "docs" / "symptoms"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.stem != "README")
SLOW = {
    "gradients-are-none",
    "loss-does-not-fall",
    "loss-spikes",
    "loss-stands-at-ln-c",
    "validation-bad-training-good",
}
EVERY = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
QUICK = pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else []) for page in PAGES],
)


@cache
def blocks(page: Path, language: str) -> tuple[str, ...]:
    return tuple(re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S))


def mended(page: Path) -> str:
    """Return the page's program with the lines of its diff replaced."""
    (program,), (diff,) = blocks(page, "python"), blocks(page, "diff")
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    assert program.count(old) == 1, f"not in the program, or not once:\n{old}"
    return program.replace(old, "".join(line[1:] for line in lines if line[0] in " +"))


def run(program: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile(program, "program", "exec"), {"__name__": "program"})
    return out.getvalue()


def without_numbers(card: str) -> str:
    """Replace numbers, which differ between machines, by #, and line breaks, which depend on them, by spaces."""
    text = re.sub(r"[+-]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+|\binf\b)(?:[eE][+-]?\d+)?", "#", card)
    return " ".join(re.sub(r"#(?:/#|\^[+-]?#)+", "#", text).split())


def verdicts(card: str) -> tuple[list[str], list[str]]:
    """Return the kinds and the verdict on learning; at least one of each."""
    kinds = re.findall(r"^(?:run: |\d+\. )(\w+)\b", card, flags=re.M)
    return kinds, re.findall(r"^  does it learn\? (yes|no|unknown):", card, flags=re.M)


def compare(program: str, card: str) -> None:
    printed = run(program)
    assert verdicts(printed) == verdicts(card), printed
    assert without_numbers(printed) == without_numbers(card)


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_index_lists_every_page() -> None:
    table = re.findall(r"^\| .+ \| \[([\w-]+\.md)\]\(\1\) \|$", (FOLDER / "README.md").read_text("utf-8"), flags=re.M)
    assert sorted(table) == [page.name for page in PAGES]
    assert len(PAGES) >= 6


@EVERY
def test_a_page_has_a_short_program_and_two_cards(page: Path) -> None:
    (program,), cards = blocks(page, "python"), blocks(page, "text")
    assert 20 <= len(program.splitlines()) <= 40
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 90
    assert "torch.manual_seed(0)" in program
    assert 'with gradlens.record(model, "run.h5", optimizer=optimizer) as recorder:' in program
    assert program.splitlines()[-1].startswith("print(gradlens.diagnose(")
    assert len(cards) == 2
    for card in cards:
        kinds, learning = verdicts(card)
        assert kinds
        assert {*kinds} <= {*KINDS, HEALTHY}
        assert len(learning) == 1
    assert verdicts(cards[1])[0] == [HEALTHY]


@EVERY
def test_every_kind_that_a_page_names_exists(page: Path) -> None:
    other = page.read_text(encoding="utf-8").partition("## Other causes")[2]
    said = re.findall(r"^\| .+? \| (.+) \|$", other, flags=re.M)[1:]
    assert len(said) >= 4
    assert all(re.search(rf"`(?:{'|'.join((*KINDS, HEALTHY))})`", answer) for answer in said)


@QUICK
def test_the_program_prints_the_card(page: Path) -> None:
    compare(*blocks(page, "python"), blocks(page, "text")[0])


@pytest.mark.slow
@EVERY
def test_the_mended_program_prints_the_second_card(page: Path) -> None:
    compare(mended(page), blocks(page, "text")[1])


def test_only_numbers_are_replaced() -> None:
    card = "1. dead, exact cause\n   at 1/1,300 (10^-3.1) of layer '0' by 6.0e-08,\n   the loss is -inf, x10"
    assert without_numbers(card) == "#. dead, exact cause at # (#) of layer '#' by #, the loss is #, x#"
    assert verdicts("run: dead (9 rows)\n1. dead, exact cause: a\n  does it learn? no: b") == (["dead", "dead"], ["no"])
