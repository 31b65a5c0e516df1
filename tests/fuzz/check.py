"""Hold the reader against changed files; for the long runs and for the tests."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.structure import Change, changes, limited, writes_changed
from tests.storage.test_fuzz import COPIES_PER_READER, Reader, everything, finished, old, outcome

BASES: tuple[Callable[[Path], Path], ...] = (finished, old)
ALLOWED = {"same", "error", "WRONG"}
"""A well-formed file may say other numbers; it may not make the reader fail."""


def check_structures(make: Callable[[Path], Path], folder: Path, cases: int, seed: int | None = None) -> dict[str, int]:
    """Change a file in so many ways and read it; return how often each outcome came.

    Args:
        make: Writes the file that is changed.
        folder: Where.
        cases: Number of changed files.
        seed: None draws other changes each time.

    Raises:
        AssertionError: The reader failed; the fewest changes that show it are printed.
    """
    path = make(folder)
    os.utime(path, (1, 1))
    whole, data, copy = everything(path), path.read_bytes(), folder / "copy.h5"
    found: collections.Counter[str] = collections.Counter()
    readers: list[Reader] = []

    @settings(
        max_examples=cases, database=None, deadline=None, derandomize=seed is not None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink], print_blob=False,
    )  # fmt: skip
    @given(changes(path))
    def check(made: list[Change]) -> None:
        if not writes_changed(copy, data, made):
            found["not written"] += 1
            return
        os.utime(copy, (1, 1))
        if not readers:
            readers.append(Reader(limited(lambda at: outcome(at, whole).replace(str(at), "copy.h5"))))
        said = readers[0](copy)
        kind = said.split(":")[0]
        found[kind] += 1
        if kind not in ALLOWED or found.total() % COPIES_PER_READER == 0:
            readers.pop().end()
        assert kind in ALLOWED, said

    try:
        check()
    finally:
        for reader in readers:
            reader.end()
    return dict(found)
