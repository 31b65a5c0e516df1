"""The facts of a run (docs/facts.md) as the rules read them.

A file from a stranger may hold anything: a value of another type than expected counts as missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LONGEST_TEXT = 120
"""Characters of a name that are shown."""


def _float(value: float) -> float:
    """Return a number of a file, which may be an integer of any length: NaN where no float is as large."""
    try:
        return float(value)
    except OverflowError:
        return math.nan


class Entry:
    """One object of the facts.

    Args:
        values: The object; anything but a mapping counts as empty.
    """

    def __init__(self, values: Any) -> None:
        self._values: Mapping[str, Any] = values if isinstance(values, Mapping) else {}

    def __bool__(self) -> bool:
        return bool(self._values)

    @property
    def keys(self) -> frozenset[str]:
        """The names of what it holds."""
        return frozenset(self._values)

    def text(self, key: str) -> str:
        """Return a text without control characters, or ""."""
        value = self._values.get(key)
        return _clean(value) if isinstance(value, str) else ""

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts."""
        values = self._values.get(key)
        return tuple(_clean(item) for item in values if isinstance(item, str)) if isinstance(values, list) else ()

    def number(self, key: str) -> float:
        """Return a number, or NaN."""
        value = self._values.get(key)
        return _float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return a list of finite numbers."""
        values = self._values.get(key)
        found = [_float(item) for item in values if isinstance(item, int | float)] if isinstance(values, list) else []
        return tuple(filter(math.isfinite, found))

    def lists(self, key: str) -> list[tuple[float, ...]]:
        """Return lists of finite numbers in a list."""
        values = self._values.get(key)
        return [Entry({"": item}).numbers("") for item in values] if isinstance(values, list) else []

    def whole(self, key: str, missing: int = 0) -> int:
        """Return a whole number, or what stands for a missing one."""
        value = self.number(key)
        return int(value) if math.isfinite(value) else missing

    def flag(self, key: str) -> bool | None:
        """Return a truth value; None where it is missing."""
        value = self._values.get(key)
        return value if isinstance(value, bool) else None

    def entry(self, key: str) -> Entry:
        """Return an object inside this one."""
        return Entry(self._values.get(key))

    def entries(self, key: str) -> tuple[Entry, ...]:
        """Return a list of objects inside this one."""
        values = self._values.get(key)
        return tuple(Entry(item) for item in values if isinstance(item, Mapping)) if isinstance(values, list) else ()


class Setup(Entry):
    """All facts of a run."""

    @property
    def known(self) -> bool:
        """Whether the file holds facts."""
        return bool(self.entries("parameters"))

    @property
    def graph(self) -> Entry:
        """What was read from the graph of the loss."""
        return self.entry("graph")

    def states(self, **expected: Any) -> list[Entry]:
        """Return the parameters whose facts have the expected values.

        Args:
            expected: Fact to value; ``in_optimizer`` is whether they are in one.
        """
        return [item for item in self.entries("parameters") if all(_has(item, k, v) for k, v in expected.items())]

    def layers_of(self, **expected: Any) -> tuple[str, ...]:
        """Return the layers of the parameters whose facts have the expected values, each once."""
        return tuple(dict.fromkeys(name for item in self.states(**expected) for name in item.texts("layers")))


def _has(item: Entry, key: str, value: Any) -> bool:
    if key == "in_optimizer":
        return math.isnan(item.number("optimizer")) is not value
    return bool((item.flag(key) if isinstance(value, bool) else item.text(key)) == value)


def _clean(text: str) -> str:
    shown = "".join(char if char.isprintable() else "?" for char in text[:LONGEST_TEXT])
    return shown + ("..." if len(text) > LONGEST_TEXT else "")
