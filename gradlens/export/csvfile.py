"""Write a table as CSV: UTF-8, with a header, missing numbers as empty fields, other numbers as shortest exact text."""

from __future__ import annotations

import csv
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from gradlens.export.tables import Column, Table
from gradlens.format import safe_cell

CHUNK_ROWS = 1 << 14


def write_csv(table: Table, stream: TextIO, *, safe: bool = True) -> int:
    """Write a table to a text stream, and return the number of rows.

    Args:
        table: The table.
        stream: A text stream.
        safe: Put an apostrophe before texts that a spreadsheet would take for a formula.

    Returns:
        The number of rows.
    """
    cell = safe_cell if safe else str
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(cell(column.name) for column in table.columns)
    named = {column.name: list(map(cell, column.texts)) for column in table.columns if column.kind == "text"}
    count = 0
    for chunk in table.chunks(CHUNK_ROWS):
        texts = [_texts(column, chunk[column.name], named) for column in table.columns]
        writer.writerows(zip(*texts, strict=True))
        count += len(texts[0])
    return count


def _texts(column: Column, values: NDArray[Any], named: dict[str, list[str]]) -> list[Any]:
    """Convert values to the printed texts; ``str`` of a numpy number is its shortest exact text."""
    if column.kind == "text":
        return list(map(named[column.name].__getitem__, values.tolist()))
    if column.kind == "int" and not np.issubdtype(values.dtype, np.floating):
        return list(values.tolist())
    texts = np.full(len(values), "", object)
    there = ~np.isnan(values)
    numbers = values[there]
    texts[there] = numbers.astype(np.int64).tolist() if column.kind == "int" else list(map(str, numbers))
    return list(texts)
