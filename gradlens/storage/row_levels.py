"""What a run file keeps of its rows in addition to them: levels of blocks, and checksums, as both grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradlens.metrics import METRICS
from gradlens.row_chunks import LEVELS, combine, summarise
from gradlens.run import FloatArray
from gradlens.storage.checksums import crc
from gradlens.storage.schema import as_float32

NUMBERS_AT_ONCE = 2_000_000
"""Numbers of a chunk of rows that are summarised at once; each takes about 50 bytes meanwhile."""
BLOCK = LEVELS[0]


@dataclass(frozen=True)
class RowChunk:
    """Neighbouring rows, by column.

    Args:
        steps: (R,) int64.
        epochs: (R,) int32.
        scalars: Name to (R,) float64.
        metrics: Name to (R, L) float32, sorted by name.
    """

    steps: NDArray[np.int64]
    epochs: NDArray[np.int32]
    scalars: Mapping[str, FloatArray]
    metrics: Mapping[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, rows: slice) -> RowChunk:
        scalars = {name: values[rows] for name, values in self.scalars.items()}
        metrics = {name: values[rows] for name, values in self.metrics.items()}
        return RowChunk(self.steps[rows], self.epochs[rows], scalars, metrics)


@dataclass(frozen=True)
class LevelRows:
    """Chunks of one level that have just become whole.

    Args:
        level: Rows per block.
        first: (B,) each block's first step.
        values: (B, M, L, 5) float32.
    """

    level: int
    first: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass
class Level:
    """One level: how many blocks it has, and those that wait until they make up one of the next level."""

    count: int = 0
    first: list[int] = field(default_factory=list)
    waiting: list[NDArray[np.float32]] = field(default_factory=list)


class Growth:
    """Follows the rows of one run in memory of fixed size: at most 63 rows, and 3 blocks of each level.

    Args:
        metrics: Their names, sorted.
    """

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = tuple(metrics)
        self.n_rows = 0
        self.levels = {level: Level() for level in LEVELS}
        self._linear = np.array([[METRICS[name].scale == "linear"] for name in metrics], dtype=bool)
        self._rest: list[RowChunk] = []
        self._n_rest = 0

    def copy(self) -> Growth:
        """Return a copy that can be grown, and thrown away where a write fails."""
        new = Growth(self.metrics)
        new.n_rows, new._rest, new._n_rest = self.n_rows, list(self._rest), self._n_rest
        new.levels = {k: Level(v.count, list(v.first), list(v.waiting)) for k, v in self.levels.items()}
        return new

    def add(self, block: RowChunk) -> tuple[list[LevelRows], NDArray[np.uint32]]:
        """Take in the next rows.

        Returns:
            The blocks of all levels that have become whole, finest first; and (N, 2 + M) the records for
            ``/check/block``.
        """
        self.n_rows += len(block)
        if not self.metrics:
            return [], np.empty((0, 2), dtype=np.uint32)
        self._rest.append(block)
        self._n_rest += len(block)
        whole = self._n_rest // BLOCK
        if not whole:
            return [], np.empty((0, 2 + len(self.metrics)), dtype=np.uint32)
        rows = self._take(whole * BLOCK)
        values = np.stack([rows.metrics[name] for name in self.metrics], axis=1)  # (R, M, L)
        number = (self.n_rows - self._n_rest) // BLOCK - whole
        records = [
            [0, number + i, *(crc(rows.metrics[name][i * BLOCK : (i + 1) * BLOCK]) for name in self.metrics)]
            for i in range(whole)
        ]
        starts = np.arange(whole) * BLOCK
        if values.size <= NUMBERS_AT_ONCE:
            summary = as_float32(summarise(values, starts, linear=self._linear))
        else:
            parts = zip(self.metrics, self._linear, strict=True)
            each = (summarise(rows.metrics[name], starts, linear=bool(linear)) for name, linear in parts)
            summary = np.stack([as_float32(part) for part in each], axis=1)
        grown = self._grow(rows.steps[::BLOCK], summary)
        for part in grown:
            begin = self.levels[part.level].count - len(part.values)
            for i, one in enumerate(part.values):
                records.append([part.level, begin + i, *map(crc, one)])
        return grown, np.array(records, dtype=np.uint32)

    def _take(self, count: int) -> RowChunk:
        """Join what waits, and split so many rows off."""
        joined = join(self._rest)
        self._rest, self._n_rest = [joined[count:]], self._n_rest - count
        return joined[:count]

    def _grow(self, first: NDArray[np.int64], values: NDArray[np.float32]) -> list[LevelRows]:
        """Add blocks to the finest level, and what becomes whole by them to those above."""
        grown = []
        for finer, coarser in zip(LEVELS, (*LEVELS[1:], None), strict=True):
            level = self.levels[finer]
            level.count += len(values)
            grown.append(LevelRows(finer, first, values))
            if coarser is None:
                break
            factor = coarser // finer
            level.first += first.tolist()
            level.waiting += list(values)
            whole = len(level.waiting) // factor
            if not whole:
                break
            first = np.array(level.first[: whole * factor : factor], dtype=np.int64)
            blocks = np.stack(level.waiting[: whole * factor])
            values = as_float32(combine(blocks, np.arange(whole) * factor, linear=self._linear))
            del level.first[: whole * factor], level.waiting[: whole * factor]
        return grown

    def rest_crcs(self) -> list[int]:
        """Return for each metric the CRC-32 of its rows since the last whole block."""
        rest = join(self._rest) if self._rest else None
        return [crc(rest.metrics[name]) if rest is not None else 0 for name in self.metrics]


def join(blocks: Sequence[RowChunk]) -> RowChunk:
    """Concatenate chunks of rows."""
    if len(blocks) == 1:
        return blocks[0]
    return RowChunk(
        np.concatenate([block.steps for block in blocks]),
        np.concatenate([block.epochs for block in blocks]),
        {name: np.concatenate([block.scalars[name] for block in blocks]) for name in blocks[0].scalars},
        {name: np.concatenate([block.metrics[name] for block in blocks]) for name in blocks[0].metrics},
    )
