"""The checksums of blocks of a file that is being written, and what is read compared with them; see ``checksums``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlens.row_chunks import LEVELS
from gradlens.storage.checksums import Slot, crc
from gradlens.storage.contents import Contents

BLOCK = LEVELS[0]
"""Rows that share a checksum."""


class BlockChecks:
    """The table ``check/block``, read when it is first needed, and the checksums of the rows since the last block.

    Args:
        contents: What the file holds.
        slot: The slot that guards its counts; None where there is none.
        n_columns: Columns of the file, whose checksums are in the slot before those of the metrics.
        metrics: Its metrics, in their order.
    """

    def __init__(self, contents: Contents, slot: Slot | None, n_columns: int, metrics: Sequence[str]) -> None:
        self._contents, self._slot, self._n_columns, self._metrics = contents, slot, n_columns, metrics
        self._records: dict[int, NDArray[np.uint32]] | None = None

    def compare_rows(self, metric: str, begin: int, values: NDArray[np.float32]) -> None:
        """Compare rows of a metric with their checksums.

        Args:
            metric: Its name.
            begin: The first row, which begins a block.
            values: (rows, L) up to the end of a block or of the file.

        Raises:
            ValueError: They do not fit.
        """
        column = self._metrics.index(metric)
        whole = len(values) // BLOCK
        blocks = values[: whole * BLOCK].reshape(whole, BLOCK, values.shape[1])
        first = begin // BLOCK
        expected = self._expected(0, first, first + whole)[:, column]
        for i, block in enumerate(blocks):
            if crc(block) != expected[i]:
                raise ValueError(
                    f"rows {begin + i * BLOCK} to {begin + (i + 1) * BLOCK} of {metric} do not fit their checksum"
                )
        rest = values[whole * BLOCK :]
        crcs = self._slot.crcs if self._slot is not None else ()
        if len(rest) and crcs and crc(rest) != crcs[self._n_columns + column]:
            raise ValueError(f"the last {len(rest)} rows of {metric} do not fit their checksum")

    def compare_level(self, rows: int, metric: str, start: int, values: NDArray[Any]) -> None:
        """Compare blocks of a level with their checksums.

        Args:
            rows: Which level: the rows that a block stands for.
            metric: A metric's name.
            start: Number of the first block.
            values: (blocks, L, 5) as they are stored.

        Raises:
            ValueError: They do not fit.
        """
        expected = self._expected(rows, start, start + len(values))[:, self._metrics.index(metric)]
        for i, block in enumerate(values):
            if crc(block) != expected[i]:
                raise ValueError(f"block {start + i} of level {rows} of {metric} does not fit its checksum")

    def _expected(self, level: int, start: int, stop: int) -> NDArray[np.uint32]:
        """Return the checksums of blocks of a level, (stop - start, M)."""
        if self._records is None:
            count = self._slot.records if self._slot is not None else 0
            table = self._contents.read("check/block", 0, count)
            if len(table) != count:
                raise ValueError("its table of checksums is cut off")
            self._records = {int(key): table[table[:, 0] == key] for key in np.unique(table[:, 0])}
        found = self._records.get(level, np.empty((0, 2 + len(self._metrics)), dtype=np.uint32))[start:stop]
        if len(found) != stop - start or not np.array_equal(found[:, 1], np.arange(start, stop)):
            raise ValueError("its table of checksums has gaps")
        return found[:, 2:]
