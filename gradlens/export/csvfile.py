"""Write a table as CSV: UTF-8, with a header, missing numbers as empty fields, other numbers as shortest exact text."""

from __future__ import annotations

import csv
import io
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
    csv.writer(stream, lineterminator="\n").writerow(cell(column.name) for column in table.columns)
    named = {
        column.name: np.array([_quoted(cell(text)) for text in column.texts], object)
        for column in table.columns
        if column.kind == "text"
    }
    count, single = 0, len(table.columns) == 1
    for chunk in table.chunks(CHUNK_ROWS):
        texts = [_texts(column, chunk[column.name], named) for column in table.columns]
        lines = [text or '""' for text in texts[0]] if single else map(",".join, zip(*texts, strict=True))
        stream.write("\n".join(lines) + "\n")  # the csv module would look for what to quote in every number again
        count += len(texts[0])
    return count


def _quoted(text: str) -> str:
    """Return a field as the csv module writes it among others."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow([text, "0"])
    return stream.getvalue().removesuffix(",0")


def _texts(column: Column, values: NDArray[Any], named: dict[str, NDArray[Any]]) -> list[str]:
    """Return values as printed; ``str`` of a numpy number is its shortest exact text, and steps and zeros recur."""
    if column.kind == "text":
        return list(named[column.name][values])
    bits, places = np.unique(np.ascontiguousarray(values).view(f"u{values.itemsize}"), return_inverse=True)
    if len(bits) > len(values) // 2:
        return [_text(value, column.kind) for value in values]
    return list(np.array([_text(value, column.kind) for value in bits.view(values.dtype)], object)[places])


def _text(value: Any, kind: str) -> str:
    return "" if value != value else str(int(value)) if kind == "int" else str(value)
