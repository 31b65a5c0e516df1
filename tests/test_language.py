"""Words and turns of phrase that may not come back: plain English, one word per thing (CONTRIBUTING.md, Rules).

Docstrings, comments and strings of the package are read, and the pages; names in code are read for a few words, too.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = sorted((ROOT / "gradlens").rglob("*.py"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "gradlens" / "skill.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(page for page in sorted((ROOT / "experiments").rglob("*.md")) if "results" not in page.parts),
]

FORBIDDEN: dict[str, str] = {
    r"\bways? back\b": "backward pass, toward the input",
    r"\bon (?:its|the) way\b": "in the backward pass",
    r"\b[Ss]ays? whether\b": "Return whether",
    r"\bputs? out\b": "output",
    r"\b(?:stands?|stood) in\b": "lies in, is in",
    r"\b(?:stands?|stood|standing) beside\b|\bBeside it stands\b": "lists, is next to",
    r"\b(?:hears?|heard) of\b": "is called with, receives",
    r"\b(?:is|are|was|were|be|been) told\b(?! apart)": "is called with, is recognised",
    r"\b[Rr]hythms?\b": "interval",
    r"\bspreads away\b|\bpredicted spreads?\b": "0.3 standard deviations below theory",
    r"\w\(e?s\)": "gradlens.format.plural: 1 run, 2 runs",
    r"\b1 (?:runs|epochs|rows|steps|layers|seeds|files)\b": "gradlens.format.plural: 1 run",
    r"\btalks? (?:to|on) stderr\b": "messages go to stderr",
    r"\bunbroken run\b|\bto the bits of\b": "bit-identical to an uninterrupted run",
    r"\bcosts? less than 1 %": "as often as possible within 1 % overhead",
    r"\bfound, said,? and kept\b": "detected, reported and kept on one side of the split",
    r"\b(?:last|shown) in a cell\b|\bshows? (?:itself|themselves)\b|\bshow themselves\b": "is displayed",
    r"\bnor not to\b": "inconclusive",
    r"10\^\+": "about 126 times (10^2.1)",
    r"\bOf [A-Za-z]": "a sentence with its subject first",
    r"\b(?:Judged|Needed|Shown|Counted|Compared|Listed|Named|Measured|Left out) (?:is|are)\b": "subject first",
    r"\b[Rr]eport's claims\b": "the original study's claims",
    r"\b(?:stands?|stood|standing) still\b|\bstill layers?\b": "frozen",
    r"\b(?:picture's|light|dark|the figure's) ground\b(?! truth)": "background, theme",
    r"\b[Pp]ictures?\b": "image (data), figure (what is drawn)",
    r"(?<![\w./:-])[Nn]ets?(?![\w/:-]|\.\w)": "model, network",
    r"\b[Dd]raws? of (?:its |the |a few )?(?:weights|them)\b": "sample of weights, initialisation",
    r"\b[Bb]locks? of (?:so many )?rows\b|\b(?:in|by) blocks\b": "chunk",
    r"\bwhat comes back through\b": "the gradient through",
    r"\bhangs? on\b(?! to)": "depends on",
    r"\bloss(?: that)? stands\b": "the loss stays, does not fall",
    r"\bfell no\b": "failed no",
}
"""Pattern to what is written instead."""
FORBIDDEN_NAMES = r"(?:^|_)(?:rhythms?|wayback|pictures?)(?:$|_)|^Picture$|^_?still(?:_layers)?$"
"""Parts of names in code."""
RIDDLES = {
    "wayback", "still", "pace", "streams", "arms", "deeper", "keeper", "quotients", "facts", "packed", "places",
}  # fmt: skip
"""File names that need the file's first line to be understood."""
ALLOWED: dict[tuple[str, str], str] = {
    ("gradlens/theory/laws.py", "Hanin 2018, Which Neural Net Architectures"): "the title of a paper",
    ("gradlens/report/translations.py", '"data: different pictures"'): "the name of a column in run files of format 1",
    ("experiments/accuracy/README.md", "| puts out a parameter |"): "a table as printed by an earlier version",
    ("CONTRIBUTING.md", "| model, network | net (except"): "the table of words lists it as the word not to write",
    ("CONTRIBUTING.md", "| image (data); figure"): "likewise",
    ("CONTRIBUTING.md", "| about 126 times"): "likewise",
}
"""File and a part of the line to the reason for an exception."""


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield what is prose in a file: line number and text; of code docstrings, strings and comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    prose = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in prose:
            yield from enumerate(token.string.splitlines(), token.start[0])


def names_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the names in a file of code, with their lines."""
    if path.suffix == ".py":
        with path.open(encoding="utf-8") as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type == tokenize.NAME:
                    yield token.start[0], token.string


def hits_in(path: Path) -> list[str]:
    """Return a line for each forbidden phrase: where it is, the phrase, and what to write."""
    name = path.relative_to(ROOT).as_posix()
    found = []
    for number, line in texts_of(path):
        if any(file == name and part in line for file, part in ALLOWED):
            continue
        for pattern, instead in FORBIDDEN.items():
            found += [f"{name}:{number}: {hit.group()!r}: write {instead}" for hit in re.finditer(pattern, line)]
    found += [
        f"{name}:{number}: the name {word}" for number, word in names_of(path) if re.search(FORBIDDEN_NAMES, word)
    ]
    return found


@pytest.mark.parametrize("path", [*CODE, *PAGES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_phrase_comes_back(path: Path) -> None:
    hits = hits_in(path)
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize(
    "phrase",
    [
        "the gradient on its way back", "Say whether a metric is", "what it puts out", "it stands in the file",
        "the theory stands beside", "as soon as it hears of it", "a function is told of it", "its default rhythm",
        "0.3 predicted spreads away", "3 run(s)", "1 epochs", "talk to stderr", "to the bits of an unbroken run",
        "Of a long run, the chunks", "Judged are ratios", "Needed are runs", "Beside it stands the law",
        "10^+2.1 times", "the report's claims", "layers that stand still", "the picture's ground", "a picture",
        "of several nets", "draws of weights", "in blocks of rows", "as often as costs less than 1 %",
        "what is last in a cell",
        "not shown to vanish, nor not to", "found, said, and kept on one side",
        "the verdict hangs on the measure", "a loss that stands since then", "notes fell no gate",
    ],
)  # fmt: skip
def test_the_patterns_find_what_they_are_for(phrase: str) -> None:
    assert any(re.search(pattern, phrase) for pattern in FORBIDDEN)


@pytest.mark.parametrize(
    "phrase",
    [
        "the network puts more weight", "ground truth", "one of the layers", "net.py:build", "plain18-net", "resnet34",
        "planet", "two curves can be told apart", "instead", "it understands itself",
        "11 epochs", "10^2.1", "internet", "an output of f(x)",
    ],
)  # fmt: skip
def test_the_patterns_leave_plain_english_alone(phrase: str) -> None:
    found = [pattern for pattern in FORBIDDEN if re.search(pattern, phrase)]
    assert not found


def test_no_file_name_is_a_riddle() -> None:
    assert not [path for path in CODE if path.stem in RIDDLES]


def test_no_exception_is_left_over() -> None:
    for file, part in ALLOWED:
        assert part in (ROOT / file).read_text(encoding="utf-8"), f"{file}: {part}"
