"""Layer names, shortened so that they remain distinguishable."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def shorten_names(names: Sequence[str], most: float) -> list[str]:
    """Shorten layer names: first remove the common beginning, then the middle of each name.

    Args:
        names: The layers' names.
        most: Maximum number of characters; at least 8 are kept.

    Returns:
        The names in the same order, unchanged where they are short enough.
    """
    if max(map(len, names), default=0) <= most:
        return list(names)
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    common = list(itertools.takewhile(lambda parts: len(set(parts)) == 1, columns))
    start = sum(len(parts[0]) + 1 for parts in common)
    left = [f"…{name[start:]}" if start else name for name in names]
    room = max(int(most), 8)
    tail = room * 3 // 5
    return [name if len(name) <= room else f"{name[: room - tail - 1]}…{name[-tail:]}" for name in left]
