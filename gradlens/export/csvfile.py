"""A table as CSV: UTF-8, a header, a missing number as an empty field, and every number as the shortest exact text."""

from __future__ import annotations

import csv
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from gradlens.export.tables import Column, Table

BLOCK_ROWS = 1 << 14


def write_csv(table: Table, stream: TextIO) -> int:
    """Write a table, and return how many rows it has."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(column.name for column in table.columns)
    count = 0
    for block in table.blocks(BLOCK_ROWS):
        texts = [_texts(column, block[column.name]) for column in table.columns]
        writer.writerows(zip(*texts, strict=True))
        count += len(texts[0])
    return count


def _texts(column: Column, values: NDArray[Any]) -> list[Any]:
    """Turn numbers into what is printed: ``str`` of a numpy number is the shortest text that reads back as it."""
    if column.kind == "text":
        return list(map(column.texts.__getitem__, values.tolist()))
    if column.kind == "int" and not np.issubdtype(values.dtype, np.floating):
        return list(values.tolist())
    texts = np.full(len(values), "", object)
    there = ~np.isnan(values)
    numbers = values[there]
    texts[there] = numbers.astype(np.int64).tolist() if column.kind == "int" else list(map(str, numbers))
    return list(texts)
