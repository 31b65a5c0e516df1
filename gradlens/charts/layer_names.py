"""Names of layers, cut so that they leave room and still tell layers apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def shorten_names(names: Sequence[str], most: float) -> list[str]:
    """Cut names of layers to so many letters: first what all of them begin with, then the middle of each."""
    if max(map(len, names), default=0) <= most:
        return list(names)
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    common = list(itertools.takewhile(lambda parts: len(set(parts)) == 1, columns))
    start = sum(len(parts[0]) + 1 for parts in common)
    left = [f"…{name[start:]}" if start else name for name in names]
    room = max(int(most), 8)
    tail = room * 3 // 5
    return [name if len(name) <= room else f"{name[: room - tail - 1]}…{name[-tail:]}" for name in left]
