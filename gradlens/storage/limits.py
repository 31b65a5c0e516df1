"""What a run file may hold at most, so that a file that claims more is refused before memory is taken for it.

A file from a stranger may declare sizes that nothing in it backs. Each limit is far above what a training writes; a
file beyond one is said to be damaged, with the number and the limit.
"""

from __future__ import annotations

MOST_LAYERS = 50_000
MOST_EDGES = 1_000_000
"""Pairs of layers, one of which feeds the other."""
MOST_NAME = 1_000
"""Characters of the name of a layer, a scalar, a metric or a column."""
MOST_COLUMNS = 4_096
"""Datasets in one group."""
MOST_METRICS = 256
MOST_OBJECTS = 20_000
"""Datasets and groups in a file."""
MOST_DEPTH = 16
"""Groups inside each other."""
MOST_TEXT_BYTES = 1 << 25
"""Bytes of an attribute, or of all texts of a column."""
NOTES_BYTES = 4096
"""Room for notes: text of any length cannot be changed while a file is written and read at once."""
MOST_CHUNK_BYTES = 1 << 26
"""Bytes of a chunk: HDF5 takes all of them to read one number."""

SMALL_FILE = 5_000_000
MOST_BYTES_SMALL = 192 << 20
MOST_BYTES_PER_BYTE = 512


def believed_bytes(file_bytes: int) -> int:
    """Return how many bytes of numbers a file of this size is believed to hold.

    The rows of a network without any gradient are all zeros, and compress a hundred times and more. A long run of them
    is believed; its losses and steps alone take several bytes a row.
    """
    return MOST_BYTES_SMALL + MOST_BYTES_PER_BYTE * max(file_bytes - SMALL_FILE, 0)
