"""Chunks of a dataset, looked at before HDF5 inflates them.

HDF5 inflates a chunk to the end of its stream, whatever size it should have: three megabytes can become three
gigabytes. So the stored size of each chunk that is to be read is compared with the size of a chunk. Those that could
still become large are inflated here, up to the size that they should have.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from h5py import h5z
from numpy.typing import NDArray

from gradlens.storage.expected import StoredDataset
from gradlens.storage.limits import MOST_INFLATION, UNSEEN_BYTES

MOST_SINGLE = 4096
"""The sizes of more chunks than this are found by listing all chunks of the dataset."""
SLACK_BYTES = 1024
"""Deflated noise is a little longer than the noise."""

Place = tuple[int, ...]


def check_stored(dataset: StoredDataset, start: int, stop: int, column: int | None) -> bool:
    """Check that the chunks of some rows are stored, and no larger than they should be.

    Args:
        dataset: A dataset in chunks.
        start: The first row.
        stop: The row after the last, at most those that the dataset has.
        column: Only this place of the second axis.

    Returns:
        Whether one of them could become so large that it must not be left to HDF5.

    Raises:
        ValueError: A chunk is missing or too large.
    """
    ranges = _ranges(dataset, start, stop, column)
    places = prod(map(len, ranges))
    if places <= MOST_SINGLE:
        look = dataset.id.get_chunk_info_by_coord
        found = [look(place) for place in itertools.product(*ranges)]
        sizes = [chunk.size for chunk in found if chunk.byte_offset is not None]
    else:
        sizes = []
        if dataset.id.get_num_chunks() >= places:
            dataset.id.chunk_iter(lambda chunk: sizes.append(chunk.size))
    if len(sizes) < places:
        raise ValueError(f"{dataset.name} claims {stop:,} rows that the file does not hold")
    if not dataset.filters:
        return False
    whole, largest = prod(dataset.chunks or ()) * dataset.dtype.itemsize, max(sizes)
    if largest > whole + whole // 100 + SLACK_BYTES:
        raise ValueError(f"{dataset.name} has a chunk of {largest:,} bytes, at most {whole:,} expected")
    return bool(largest * MOST_INFLATION > UNSEEN_BYTES)


def _ranges(dataset: StoredDataset, start: int, stop: int, column: int | None) -> list[range]:
    """Return along each axis where the chunks begin that hold some rows."""
    ends = [(start, stop), *((0, side) for side in dataset.shape[1:])]
    if column is not None:
        ends[1] = column, column + 1
    chunks = zip(ends, dataset.chunks or (), strict=True)
    return [range(begin // side * side, end, side) for (begin, end), side in chunks]


def read_large_chunks(dataset: StoredDataset, start: int, stop: int, column: int | None) -> NDArray[Any]:
    """Return some rows of a packed dataset, inflated here; arguments as in ``check_stored``.

    Raises:
        ValueError: A chunk is not what it should be.
    """
    if h5z.FILTER_DEFLATE not in dataset.filters or h5z.FILTER_FLETCHER32 in dataset.filters:
        raise ValueError(f"{dataset.name} has chunks that are too large")
    rows = np.empty((stop - start, *dataset.shape[1:]), dtype=dataset.dtype)
    for place, values in _inflated(dataset, _ranges(dataset, start, stop, column)):
        here = [
            slice(at, min(at + side, most)) for at, side, most in zip(place, values.shape, dataset.shape, strict=True)
        ]
        first, last = max(here[0].start, start), min(here[0].stop, stop)
        inside = (slice(first - place[0], last - place[0]), *(slice(0, part.stop - part.start) for part in here[1:]))
        rows[(slice(first - start, last - start), *here[1:])] = values[inside]
    return rows if column is None else rows[:, column]


def _inflated(dataset: StoredDataset, ranges: list[range]) -> Iterator[tuple[Place, NDArray[Any]]]:
    for place in itertools.product(*ranges):
        mask, stored = dataset.id.read_direct_chunk(place)
        if mask:
            raise ValueError(f"{dataset.name} has a chunk that is not compressed")
        yield place, _inflate(dataset, stored)


def _inflate(dataset: StoredDataset, stored: bytes) -> NDArray[Any]:
    chunk, width = dataset.chunks or (), dataset.dtype.itemsize
    size = prod(chunk) * width
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(stored, size)
        if len(plain) == size and not stream.eof:
            plain += stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise ValueError(f"{dataset.name} has a chunk that cannot be inflated: {error}") from error
    if len(plain) != size or not stream.eof:
        raise ValueError(f"{dataset.name} has a chunk that is not {size:,} bytes long")
    if h5z.FILTER_SHUFFLE in dataset.filters and width > 1:
        flat = np.empty(size // width, dtype=dataset.dtype)
        parts = np.frombuffer(plain, np.uint8).reshape(width, -1)
        for i, view in enumerate(flat.view(np.uint8).reshape(-1, width).T):
            view[:] = parts[i]
        return flat.reshape(chunk)
    return np.frombuffer(plain, dataset.dtype).reshape(chunk)
