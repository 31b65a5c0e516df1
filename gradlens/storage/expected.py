"""What each dataset of a run file must look like before anything of it is read: kind of value, rank, bytes of a value.

The same table as in ``gradlens.storage.schema``, as a reader needs it. What is not in it is never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5z

from gradlens.storage.limits import MOST_CHUNK_BYTES, NOTES_BYTES

SIGNED, INTEGERS, NUMBERS, TEXTS = "i", "iu", "fiu", "SO"
WORDS = {SIGNED: "signed integers", INTEGERS: "integers", NUMBERS: "numbers", TEXTS: "texts"}
FILTERS = frozenset({h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE, h5z.FILTER_FLETCHER32})
"""The filters that a run file may use, each once at most: two deflate filters could turn a byte into a million."""
STATE_TEXT_BYTES = 1 << 16


@dataclass(frozen=True)
class Expected:
    """What a dataset must look like.

    Args:
        kinds: numpy's codes of the kinds that its values may have.
        ranks: The ranks that it may have; the last one is named in messages.
        most_bytes: The most bytes of a value.
    """

    kinds: str
    ranks: tuple[int, ...]
    most_bytes: int = 8


COLUMN, NUMBER, COUNT = Expected(NUMBERS, (1,)), Expected(NUMBERS, (0,)), Expected(INTEGERS, (0,))
STATE_TEXT, LAYER_TEXT = Expected(TEXTS, (0,), STATE_TEXT_BYTES), Expected(TEXTS, (1,), STATE_TEXT_BYTES)
BY_NAME = {
    "step": Expected(SIGNED, (1,)),
    "epoch_of_step": Expected(SIGNED, (1,)),
    "state/n_steps": COUNT,
    "state/n_epochs": COUNT,
    "state/heartbeat": NUMBER,
    "state/overhead": NUMBER,
    "state/status": STATE_TEXT,
    "state/notes": Expected(TEXTS, (0,), NOTES_BYTES),
    "state/check_a": STATE_TEXT,
    "state/check_b": STATE_TEXT,
    "state/facts_json": Expected(TEXTS, (1, 0), STATE_TEXT_BYTES),
    "check/block": Expected(INTEGERS, (2,)),
    "metric/layer": LAYER_TEXT,
    **{f"layer/{name}": LAYER_TEXT for name in ("name", "kind", "role", "tags", "parents")},
}
BY_GROUP = {
    "scalar": COLUMN,
    "epoch": COLUMN,
    "layer": Expected(INTEGERS, (1,)),
    "metric": Expected(NUMBERS, (1, 2)),  # of rank 1: a scale
    "level": Expected(NUMBERS, (1, 4)),
}


def expected_of(name: str) -> Expected | None:
    """Return what a dataset of this name must look like; None where it is never read."""
    return BY_NAME.get(name) or BY_GROUP.get(name.partition("/")[0])


@dataclass(frozen=True, slots=True)
class StoredDataset:
    """A dataset whose values lie in the file, and that looks as it must.

    Args:
        name: Its name from the root, to be shown.
        id: HDF5's own.
        shape: Its shape.
        dtype: The type of its values; object for text of any length.
        chunks: The shape of its chunks; None where it has none.
        filters: The filters of its chunks.
    """

    name: str
    id: h5d.DatasetID
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None
    filters: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return prod(self.shape[1:]) * self.dtype.itemsize


def checked(name: str, shown: str, dataset: h5d.DatasetID, made: h5py.h5p.PropDCID) -> StoredDataset:
    """Check what a dataset says of itself; none of its values is read.

    Args:
        name: Its name from the root.
        shown: Its name as it is shown in messages.
        dataset: The dataset, whose values lie in the file.
        made: How it was made.

    Returns:
        The dataset.

    Raises:
        ValueError: It is not what a run file has under this name.
    """
    shape, wanted = dataset.shape, expected_of(name)
    if wanted is None or shape is None:
        raise ValueError(f"{shown} has no values" if wanted else f"{shown} is not part of a run")
    if len(shape) not in wanted.ranks:
        raise ValueError(f"{shown} has rank {len(shape)}, {wanted.ranks[-1]} expected")
    dtype = dataset.dtype
    # Any other object than text is a list of any length or a reference to other data.
    if dtype.kind not in wanted.kinds or (dtype.kind == "O" and h5py.check_string_dtype(dtype) is None):
        raise ValueError(f"{shown} does not hold {WORDS[wanted.kinds]}")
    if dtype.itemsize > wanted.most_bytes:
        raise ValueError(f"{shown} has values of {dtype.itemsize:,} bytes, at most {wanted.most_bytes:,} expected")
    if made.get_layout() != h5d.CHUNKED:
        return StoredDataset(shown, dataset, shape, dtype, None, ())
    chunks = made.get_chunk()
    if (size := prod(chunks) * dtype.itemsize) > MOST_CHUNK_BYTES:
        raise ValueError(f"{shown} has chunks of {size:,} bytes, at most {MOST_CHUNK_BYTES:,} expected")
    filters = tuple(made.get_filter(i)[0] for i in range(made.get_nfilters()))
    if not FILTERS.issuperset(filters) or len(set(filters)) < len(filters):
        raise ValueError(f"{shown} is compressed in a way that gradlens does not use")
    return StoredDataset(shown, dataset, shape, dtype, chunks, filters)
