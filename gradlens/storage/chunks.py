"""Chunks of a dataset, looked at before they are read, and inflated here if they are packed.

HDF5 inflates a chunk to the end of its stream, whatever size it should have: three megabytes can become three
gigabytes. And where a chunk is too short, it returns what lies behind it in the memory of this process (seen with HDF5
2.0). So a packed chunk is inflated here, and must have exactly the size that it should have; so must any other.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from math import prod
from typing import Any

import h5py
import numpy as np
from h5py import h5z
from numpy.typing import NDArray

from gradlens.storage.expected import StoredDataset

MOST_SINGLE = 4096
"""The sizes of more chunks than this are found by listing all chunks of the dataset."""
LISTED_AS_FAST = 5
"""So many chunks are listed in the time in which one is looked up."""
CHECKSUM_BYTES = 4
SLACK_BYTES = 1024
"""Deflated noise is a little longer than the noise."""

Place = tuple[int, ...]


def check_stored(dataset: StoredDataset, start: int, stop: int, column: int | None) -> None:
    """Check that the chunks of some rows are stored, and no larger than they should be.

    Args:
        dataset: A dataset in chunks.
        start: The first row.
        stop: The row after the last, at most those that the dataset has.
        column: Only this place of the second axis.

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
    if dataset.filters:
        _check_size(dataset, max(sizes))


def check_plain(dataset: StoredDataset, start: int, stop: int, column: int | None) -> bool:
    """Check that the chunks of some rows of a dataset that is not packed have their size; arguments as above.

    An older index of chunks (a version 1 B-tree) says how long each chunk is. HDF5 reads so many bytes of the file, and
    returns what lay in the memory of this process for the rest (seen with HDF5 2.0).

    Returns:
        Whether all chunks of the dataset were looked at, and not those rows' alone.

    Raises:
        ValueError: A chunk is not as long as it should be.
    """
    ranges = _ranges(dataset, start, stop, column)
    size = prod(dataset.chunks or ()) * dataset.dtype.itemsize
    places = prod(map(len, ranges))
    in_all = prod(-(-side // chunk) for side, chunk in zip(dataset.shape, dataset.chunks or (), strict=True))
    listed = in_all <= LISTED_AS_FAST * places or places > MOST_SINGLE
    sizes = set[int]()
    if listed:
        dataset.id.chunk_iter(lambda chunk: sizes.add(chunk.size))
    else:
        found = map(dataset.id.get_chunk_info_by_coord, itertools.product(*ranges))
        sizes = {chunk.size for chunk in found if chunk.byte_offset is not None}
    if sizes - {size}:
        raise ValueError(f"{dataset.name} has a chunk that is not {size:,} bytes long")
    return listed


def _check_size(dataset: StoredDataset, size: int) -> None:
    whole = prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if size > whole + whole // 100 + SLACK_BYTES:
        raise ValueError(f"{dataset.name} has a chunk of {size:,} bytes, at most {whole:,} expected")


def _ranges(dataset: StoredDataset, start: int, stop: int, column: int | None) -> list[range]:
    """Return along each axis where the chunks begin that hold some rows."""
    ends = [(start, stop), *((0, side) for side in dataset.shape[1:])]
    if column is not None:
        ends[1] = column, column + 1
    chunks = zip(ends, dataset.chunks or (), strict=True)
    return [range(begin // side * side, end, side) for (begin, end), side in chunks]


def read_packed(dataset: StoredDataset, start: int, stop: int, column: int | None) -> NDArray[Any]:
    """Return some rows of a packed dataset; arguments as in ``check_stored``.

    Raises:
        ValueError: A chunk is not what it should be.
    """
    if h5z.FILTER_FLETCHER32 in dataset.filters[:-1]:
        raise ValueError(f"{dataset.name} is compressed in a way that gradlens does not use")
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
        try:
            mask, stored = dataset.id.read_direct_chunk(place)
        except (OSError, RuntimeError, ValueError):
            if dataset.id.get_chunk_info_by_coord(place).byte_offset is not None:
                raise
            yield place, np.full(dataset.chunks or (), h5py.Dataset(dataset.id).fillvalue, dataset.dtype)
        else:
            _check_size(dataset, len(stored))
            yield place, _plain(dataset, mask, stored)


def _plain(dataset: StoredDataset, mask: int, stored: bytes | memoryview) -> NDArray[Any]:
    """Return a chunk without its filters, but for those in the mask, which HDF5 left out."""
    chunk, width = dataset.chunks or (), dataset.dtype.itemsize
    size = prod(chunk) * width
    for i in reversed(range(len(dataset.filters))):
        if mask >> i & 1:
            continue
        kind = dataset.filters[i]
        if kind == h5z.FILTER_FLETCHER32:
            stored = stored[:-CHECKSUM_BYTES]
        elif kind == h5z.FILTER_DEFLATE:
            stored = _inflate(dataset, stored, size)
        elif width > 1 and len(stored) == size:
            stored = _in_order(np.frombuffer(stored, np.uint8).reshape(width, -1))
    if len(stored) != size:
        raise ValueError(f"{dataset.name} has a chunk that is not {size:,} bytes long")
    return np.frombuffer(stored, dataset.dtype).reshape(chunk)


def _in_order(parts: NDArray[np.uint8]) -> bytes | memoryview:
    """Return values whose first bytes come first, then their second bytes, and so on, in one piece each, (width, N)."""
    width = len(parts)
    if width not in (2, 4, 8):
        return parts.T.tobytes()
    values = parts[-1].astype(f"<u{width}")  # several times as fast as by bytes
    for part in parts[-2::-1]:
        values <<= 8
        values |= part
    return memoryview(values).cast("B")


def _inflate(dataset: StoredDataset, stored: bytes | memoryview, size: int) -> bytes:
    """Inflate a chunk, and no more of it than it should have."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(stored, size)
        if len(plain) == size and not stream.eof:
            plain += stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise ValueError(f"{dataset.name} has a chunk that cannot be inflated: {error}") from error
    if len(plain) != size or not stream.eof:
        raise ValueError(f"{dataset.name} has a chunk that is not {size:,} bytes long")
    return plain
