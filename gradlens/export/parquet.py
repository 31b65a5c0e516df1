"""Write a table as Parquet: texts as dictionaries, missing numbers as null, row groups of limited size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlens.export.optional_libraries import optional
from gradlens.export.tables import Column, Table

CHUNK_ROWS = 1 << 18
"""Number of rows of a row group, which is held in memory."""


def write_parquet(table: Table, path: Path) -> int:
    """Write a table, and return the number of rows.

    Args:
        table: The table.
        path: The file.

    Returns:
        The number of rows written.

    Raises:
        MissingLibraryError: pyarrow is not installed.
    """
    with optional("parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    types = {
        "text": pa.dictionary(pa.int32(), pa.string()),
        "int": pa.int64(),
        "float32": pa.float32(),
        "float64": pa.float64(),
    }
    schema = pa.schema([(column.name, types[column.kind]) for column in table.columns])
    repeating = [column.name for column in table.columns if column.kind in ("text", "int")]
    texts = {column.name: pa.array(column.texts, pa.string()) for column in table.columns if column.kind == "text"}

    def array(column: Column, values: NDArray[Any]) -> Any:
        if column.kind == "text":
            return pa.DictionaryArray.from_arrays(pa.array(values, pa.int32()), texts[column.name])
        missing = np.isnan(values) if np.issubdtype(values.dtype, np.floating) else None
        if column.kind == "int":
            values = np.where(missing, 0, values).astype(np.int64) if missing is not None else values
        return pa.array(values, types[column.kind], mask=missing)

    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeating) as writer:
        for chunk in table.chunks(CHUNK_ROWS):
            arrays = [array(column, chunk[column.name]) for column in table.columns]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            count += len(arrays[0])
    return count
