"""Names of run files for trainings that were given none."""

from __future__ import annotations

import re
from itertools import count, takewhile
from pathlib import Path

RUNS = Path("runs")


def choose_path(name: str, seed: int | None, *, resumed: bool, folder: Path = RUNS) -> Path:
    """Return ``runs/NAME-sSEED.h5``, with ``-2``, ``-3``, ... behind it where that exists: nothing is overwritten.

    Args:
        name: The model's name.
        seed: The seed; None leaves it out.
        resumed: Return the newest that exists, if there is one.
        folder: Where runs are.
    """
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") + ("" if seed is None else f"-s{seed}")
    paths = (folder / (f"{stem}.h5" if number == 1 else f"{stem}-{number}.h5") for number in count(1))
    there = list(takewhile(Path.exists, paths))
    if resumed and there:
        return there[-1]
    return folder / (f"{stem}-{len(there) + 1}.h5" if there else f"{stem}.h5")
