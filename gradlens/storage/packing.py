"""Pack a run file: the same numbers, compressed, in large chunks, under a checksum each."""

from __future__ import annotations

import math
import os
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gradlens.errors import DamagedError
from gradlens.row_chunks import LEVELS
from gradlens.run import Header, Status
from gradlens.storage.checksums import Slot, state_crc
from gradlens.storage.listing_card import encode_card, make_card
from gradlens.storage.live_file import KeptFile
from gradlens.storage.row_levels import Growth, RowChunk
from gradlens.storage.schema import (
    LIBVER,
    create_column,
    create_epochs,
    create_level,
    create_level_scales,
    create_rows,
    create_state,
    describe_metric,
    describe_run,
    notes_bytes,
    pack_chunk_rows,
)
from gradlens.storage.stored_file import StoredFile

THREADS = 2
AHEAD = 4
"""Chunks that wait for each thread, so that memory stays bounded."""
MOST_WAITING = 1 << 26
"""Bytes of the chunks that wait, but for the last one: a chunk of a very wide run has 40 MB."""
COLUMN_CHUNK = 16384
FILTERS: dict[str, Any] = {"shuffle": True, "compression": "gzip", "compression_opts": 1}


class ChunkWriter:
    """Writes the chunks of datasets, compressed by several threads (as HDF5's shuffle and deflate filters would).

    Run-length matching (zlib's ``Z_RLE``) packs gradient norms as well as a search does, three times as fast: their
    lower bytes are noise, and what can be matched is a run of equal exponents, or of rows without a value.
    """

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._waiting: deque[tuple[h5py.Dataset, tuple[int, ...], Future[bytes], int]] = deque()
        self._bytes = 0

    def write(self, dataset: h5py.Dataset, place: tuple[int, ...], values: NDArray[Any]) -> None:
        """Write a chunk; where the values end before it does, the rest is filled."""
        if values.shape != dataset.chunks:
            whole = np.full(dataset.chunks, dataset.fillvalue, dtype=dataset.dtype)
            whole[tuple(map(slice, values.shape))] = values
            values = whole
        while self._waiting and self._bytes + values.nbytes > MOST_WAITING:
            self._write_next()
        self._waiting.append((dataset, place, self._pool.submit(deflate, values), values.nbytes))
        self._bytes += values.nbytes
        if len(self._waiting) >= THREADS * AHEAD:
            self._write_next()

    def finish(self) -> None:
        """Write what waits."""
        while self._waiting:
            self._write_next()

    def _write_next(self) -> None:
        dataset, place, packed, size = self._waiting.popleft()
        dataset.id.write_direct_chunk(place, packed.result())
        self._bytes -= size


def deflate(values: NDArray[Any]) -> bytes:
    """Return a chunk as HDF5's filters shuffle and deflate store it."""
    width = values.dtype.itemsize
    shuffled = np.ascontiguousarray(np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, width).T)
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    return packer.compress(shuffled.tobytes()) + packer.flush()


def header_of(source: StoredFile) -> Header:
    """Return a file's header."""
    attributes = source.attributes
    return Header(
        layers=source.layers(),
        metrics=source.every(),
        model=str(attributes.get("model", "")),
        seed=int(attributes.get("seed", -1)),
        config=source.attribute_json("config_json"),
        environment=source.attribute_json("environment_json"),
    )


def pack(
    source: StoredFile,
    target: Path,
    *,
    status: Status | None = None,
    notes: list[str] | None = None,
    salvaged: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write a packed copy of a run file.

    Args:
        source: The file, open.
        target: The copy; replaced if it is there.
        status: Another status than the file's.
        notes: More notes than the file has.
        salvaged: Keep what is whole of a damaged file, with NaN in place of the rest; called for each part
            (metric, first row, row after the last) that is lost.

    Raises:
        DamagedError: The file is damaged, and nothing was to be salvaged.
        OSError: The copy cannot be written.
    """
    with KeptFile(target, "w", libver=LIBVER, locking=False) as file:
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                _copy(source, file, ChunkWriter(pool), salvaged)
            _finish(source, file, status, notes or [])
            file.flush()
            os.fsync(file.handle)
        except BaseException:
            file.abandon()
            raise


def _copy(
    source: StoredFile, file: h5py.File, chunks: ChunkWriter, salvaged: Callable[[str, int, int], None] | None
) -> None:
    header = header_of(source)
    describe_run(file, source.attributes, header)
    for name in source.columns:
        values = source.column(name)
        chunk = min(COLUMN_CHUNK, max(64, 2 ** math.ceil(math.log2(max(len(values), 1)))))
        if not name.startswith("epoch/"):
            _fill_column(create_column(file, name, values.dtype, chunk, **FILTERS), values, chunks)
    file["step"].make_scale("step")
    for name in ("epoch_of_step", *(f"scalar/{name}" for name in file["scalar"])):
        file[name].dims[0].attach_scale(file["step"])
    create_epochs(
        file, [name.removeprefix("epoch/") for name in source.columns if name.startswith("epoch/")], **FILTERS
    )
    for name in file["epoch"]:
        _fill_column(file[f"epoch/{name}"], source.column(f"epoch/{name}"), chunks)
    _copy_metrics(source, file, chunks, header, salvaged)
    chunks.finish()


def _fill_column(dataset: h5py.Dataset, values: NDArray[Any], chunks: ChunkWriter) -> None:
    dataset.resize(len(values), axis=0)
    step = dataset.chunks[0]
    for start in range(0, len(values), step):
        chunks.write(dataset, (start,), values[start : start + step])


def _copy_metrics(
    source: StoredFile,
    file: h5py.File,
    chunks: ChunkWriter,
    header: Header,
    salvaged: Callable[[str, int, int], None] | None,
) -> None:
    """Copy the rows block by block, and make the levels anew from them: each number passes once."""
    n_layers, metrics = len(header.layers), source.metrics
    if not metrics:
        return
    rows = pack_chunk_rows(n_layers)
    kept = {name: create_rows(file, name, n_layers, rows, **FILTERS) for name in metrics}
    create_level_scales(file, list(metrics), header)
    for name, dataset in kept.items():
        describe_metric(file, dataset, name, header.metrics[name])
        dataset.resize(source.n_steps, axis=0)
    growth, levels = Growth(metrics), PackedLevels(file, chunks, len(metrics), n_layers)
    steps, epochs = source.column("step"), source.column("epoch_of_step")
    for start in range(0, source.n_steps, rows):
        stop = min(start + rows, source.n_steps)
        block = {name: _read(source, name, start, stop, salvaged) for name in metrics}
        for name, values in block.items():
            chunks.write(kept[name], (start, 0), values)
        for part in growth.add(RowChunk(steps[start:stop], epochs[start:stop], {}, block))[0]:
            levels.add(part.level, part.first, part.values)
    levels.finish()


def _read(
    source: StoredFile, metric: str, start: int, stop: int, salvaged: Callable[[str, int, int], None] | None
) -> NDArray[np.float32]:
    """Read rows; where they are damaged, each block of 64 rows is read by itself."""
    try:
        return source.rows(metric, start, stop)
    except DamagedError:
        if salvaged is None:
            raise
    parts = []
    for begin in range(start, stop, LEVELS[0]):
        end = min(begin + LEVELS[0], stop)
        try:
            parts.append(source.rows(metric, begin, end))
        except DamagedError:
            salvaged(metric, begin, end)
            parts.append(np.full((end - begin, source.width(metric)), np.nan, dtype=np.float32))
    return np.concatenate(parts)


class PackedLevels:
    """Gathers the blocks of each level into chunks; a level that the run did not reach is not made."""

    def __init__(self, file: h5py.File, chunks: ChunkWriter, n_metrics: int, n_layers: int) -> None:
        self._file = file
        self._chunks = chunks
        self._shape = n_metrics, n_layers
        self._rows = pack_chunk_rows(5 * n_layers)
        self._first: dict[int, list[NDArray[np.int64]]] = {}
        self._waiting: dict[int, list[NDArray[np.float32]]] = {}
        self._written: dict[int, int] = {}

    def add(self, level: int, first: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Take in chunks of a level."""
        if level not in self._waiting:
            create_level(self._file, level, *self._shape, self._rows, **FILTERS)
            self._waiting[level], self._first[level], self._written[level] = [], [], 0
        self._first[level].append(first)
        self._waiting[level].append(values)
        if sum(map(len, self._waiting[level])) >= self._rows:
            self._write(level, last=False)

    def _write(self, level: int, *, last: bool) -> None:
        values = np.concatenate(self._waiting[level])
        dataset = self._file[f"level/{level}"]
        whole = len(values) if last else len(values) // self._rows * self._rows
        begin = self._written[level]
        dataset.resize(begin + whole, axis=0)
        for start in range(0, whole, self._rows):
            part = values[start : min(start + self._rows, whole)]
            for metric in range(self._shape[0]):
                self._chunks.write(dataset, (begin + start, metric, 0, 0), part[:, metric : metric + 1])
        self._written[level] = begin + whole
        self._waiting[level] = [values[whole:]]

    def finish(self) -> None:
        """Write what waits."""
        for level, first in self._first.items():
            self._write(level, last=True)
            _fill_column(self._file[f"level/first_{level}"], np.concatenate(first), self._chunks)


def _finish(source: StoredFile, file: h5py.File, status: Status | None, notes: list[str]) -> None:
    state = source.state()
    state |= {"status": status or state["status"], "n_steps": source.n_steps, "n_epochs": source.n_epochs}
    state["notes"] = "\n".join(filter(None, [state["notes"], *notes]))
    notes_there, status_there = bytes(notes_bytes(state["notes"])), state["status"].encode()
    check = state_crc(state["overhead"], notes_there, status_there, state["heartbeat"])
    slot = Slot(source.n_steps, source.n_epochs, states=(check,))
    create_state(file, state, slot.encode())
    file.attrs["card_json"] = np.bytes_(encode_card(make_card(source, str(state["status"]))))
