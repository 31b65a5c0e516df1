"""Write a table as CSV: UTF-8, with a header, missing numbers as empty fields, other numbers as shortest exact text."""

from __future__ import annotations

import csv
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from gradlens.export.tables import Column, Table

CHUNK_ROWS = 1 << 14


def write_csv(table: Table, stream: TextIO) -> int:
    """Write a table to a text stream, and return the number of rows."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(column.name for column in table.columns)
    count = 0
    for chunk in table.chunks(CHUNK_ROWS):
        texts = [_texts(column, chunk[column.name]) for column in table.columns]
        writer.writerows(zip(*texts, strict=True))
        count += len(texts[0])
    return count


def _texts(column: Column, values: NDArray[Any]) -> list[Any]:
    """Convert values to the printed texts; ``str`` of a numpy number is its shortest exact text."""
    if column.kind == "text":
        return list(map(column.texts.__getitem__, values.tolist()))
    if column.kind == "int" and not np.issubdtype(values.dtype, np.floating):
        return list(values.tolist())
    texts = np.full(len(values), "", object)
    there = ~np.isnan(values)
    numbers = values[there]
    texts[there] = numbers.astype(np.int64).tolist() if column.kind == "int" else list(map(str, numbers))
    return list(texts)
