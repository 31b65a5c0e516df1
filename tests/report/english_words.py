"""What is English in a text that should be Indonesian: function words, which no name consists of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

WORDS = re.compile(
    r"\b(?:the|is|are|was|were|of|and|or|with|to|from|than|that|for|by|not|no|its|it|this|these|which|while|where|"
    r"has|have|does|do|be|been|as|but|if|each|every|only|more|less|between|before|after|both|other|their|them|"
    r"they|one|two|over|under|until|step|steps|layer|layers|row|rows|run|runs|seed of|loss falls|gradient|all)\b"
)
NAMES = (
    "The Shattered Gradients Problem", "layer norm", "batch x kelas", "early stopping", "backward pass",
    "vanishing gradient", "gradient confusion",
)  # fmt: skip
"""Names that contain such words."""


CODE = re.compile(r"`[^`]*`|gradlens (?:run \w+|\w+)|\bruns/|\b[\w.]*[_(=][\w.()=,]*|\b\w+\.\w+(?:\.\w+)*|--[\w-]+")
"""Commands, names of files and of functions."""


def english_in(text: str) -> list[str]:
    """Return the English function words of a text."""
    for name in NAMES:
        text = text.replace(name, "")
    return WORDS.findall(CODE.sub(" ", text))


def sentences_in(path: Path, least: int = 3) -> Iterator[str]:
    """Yield the strings of a module that are sentences; what is put into them is the name of a layer, or a number."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))  # a docstring
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            skipped.add(id(node.format_spec))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        elif isinstance(node, ast.JoinedStr):
            text = _joined(node.values)
        else:
            continue
        text = text.strip(" ;,.")
        if len(text.split()) >= least:
            yield text


def _joined(parts: list[ast.expr]) -> str:
    """Return a formatted string with a number or the name of a layer for each value, and nothing for a part of it."""
    text = ""
    for i, part in enumerate(parts):
        if isinstance(part, ast.Constant):
            text += str(part.value)
            continue
        assert isinstance(part, ast.FormattedValue)
        after = parts[i + 1] if i + 1 < len(parts) else None
        following = str(after.value) if isinstance(after, ast.Constant) else ""
        if text[-1:].isalnum() or text.endswith(")"):
            continue  # an addition that may be empty
        counted = re.match(r" (?:rows|steps|layers|classes|examples|standard)", following)
        number = part.format_spec is not None or counted or re.search(r"(?:steps?|least|than|ln|first|[0-9]) $", text)
        text += "7" if number or re.search(r"^len\(|whole\(|int\(|LEAST", ast.unparse(part.value)) else "conv1"
    return text
