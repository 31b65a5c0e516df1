"""What a run file itself holds, and the one way to read its datasets and attributes.

An HDF5 file may refer to others: by a link, by storage that lies outside, or by a virtual dataset, which is put
together from other datasets. HDF5 follows all of these by itself. A file from a stranger could thus show the contents
of another file of its reader, or keep the reader waiting at a pipe. gradlens writes none of them, and refuses a file
that has one before the other file is touched.

It may also declare sizes that nothing in it backs, and compress gigabytes into a few kilobytes. So form and size of
everything are checked against what a run file has, what this file holds, and the limits in ``gradlens.storage.limits``,
before memory is taken for it.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5p, h5s
from numpy.typing import NDArray

from gradlens.errors import RunFileError
from gradlens.storage.chunks import check_plain, check_stored, read_packed
from gradlens.storage.expected import StoredDataset, checked
from gradlens.storage.limits import (
    MOST_COLUMNS,
    MOST_DEPTH,
    MOST_NAME,
    MOST_OBJECTS,
    MOST_TEXT_BYTES,
    believed_bytes,
)
from gradlens.storage.superblock import check_text_attribute

BROKEN = (
    KeyError,
    ValueError,
    TypeError,
    OSError,
    RuntimeError,
    AttributeError,
    UnicodeDecodeError,
    OverflowError,
    MemoryError,
    IndexError,
)
"""What h5py raises on files that are not as they should be."""
REFERENCE_BYTES = 16
"""Bytes of a reference to a text of any length, the first four of which are its length."""
SHOWN_NAME = 80
SMALL_BYTES = 1 << 20
"""Rows of so many bytes are read without a look at what backs them: at worst they are all missing."""


class Contents:
    """The datasets of an open file by their names from the root, such as ``metric/param_norm``.

    Only hard links are followed, and each dataset and group is checked when it is opened. All of them are kept open
    until the file is closed.

    Args:
        path: The file, for messages.
        file: The file, open for reading.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path, self._file = path, file
        self._bytes = max(os.path.getsize(path), 1)
        self._groups: dict[str, h5g.GroupID] = {"": file.id}
        self._opened: dict[str, tuple[h5d.DatasetID, h5p.PropDCID]] = {}
        self._checked: dict[str, StoredDataset] = {}
        self._plain: set[str] = set()
        """Datasets all of whose chunks have their size."""
        self._attributes: dict[tuple[str, str], Any] = {}
        self.believed_bytes = believed_bytes(self._bytes)
        """The most bytes of numbers that the file is believed to hold."""

    def dataset(self, name: str) -> StoredDataset:
        """Return a dataset, for its shape and type; its values are read by ``read`` and ``value``.

        Raises:
            KeyError: There is none of that name, or it cannot be opened.
            ValueError: It is not what a run file has under this name.
            RunFileError: It lies in another file.
        """
        if name not in self._checked:
            if name not in self._opened:
                self._open(name)
            self._checked[name] = checked(name, _shown(name), *self._opened[name])
        return self._checked[name]

    def rank(self, name: str) -> int:
        """Return the rank of a dataset, of which nothing else is checked yet; errors as in ``dataset``."""
        if name not in self._opened:
            self._open(name)
        rank = int(self._opened[name][0].rank)
        return rank if rank == 2 else len(self.dataset(name).shape)

    def value(self, name: str) -> Any:
        """Return the value of a scalar dataset; errors as in ``dataset``."""
        dataset = self.dataset(name)
        if dataset.dtype.kind == "O":
            return self._text_values(dataset)[()]
        values = np.empty((), dtype=dataset.dtype)
        dataset.id.read(h5s.ALL, h5s.ALL, values)
        return values[()]

    def read(self, name: str, start: int, stop: int, column: int | None = None) -> NDArray[Any]:
        """Return some rows of a dataset, fewer where it has fewer.

        Args:
            name: The dataset, of rank 1 or more.
            start: The first row.
            stop: The row after the last.
            column: Only this place of the second axis.

        Returns:
            The rows.

        Raises:
            ValueError: It claims more than the file holds, or as in ``dataset``.
            KeyError: As in ``dataset``.
            OSError: It cannot be read.
            RunFileError: As in ``dataset``.
        """
        dataset = self.dataset(name)
        stop = min(stop, dataset.shape[0])
        if stop <= start:
            return np.empty((0, *dataset.shape[1 if column is None else 2 :]), dtype=dataset.dtype)
        self._check_rows(dataset, start, stop, column)
        if dataset.filters:
            return read_packed(dataset, start, stop, column)
        self._check_plain(name, start, stop, column)
        if column is None and start == 0 and stop == dataset.shape[0]:
            values = np.empty(dataset.shape, dtype=dataset.dtype)
            dataset.id.read(h5s.ALL, h5s.ALL, values)
            return values
        rows = h5py.Dataset(dataset.id, readonly=True)
        return np.asarray(rows[start:stop] if column is None else rows[start:stop, column])

    def _check_rows(self, dataset: StoredDataset, start: int, stop: int, column: int | None = None) -> None:
        """Check that the file holds some rows."""
        size = (stop - start) * dataset.row_bytes // (1 if column is None else dataset.shape[1])
        if size > self.believed_bytes:
            raise ValueError(
                f"{dataset.name} claims {size:,} bytes; a file of this size may hold {self.believed_bytes:,}"
            )
        if dataset.chunks is None:
            if dataset.id.get_storage_size() < stop * dataset.row_bytes:
                raise ValueError(f"{dataset.name} claims {stop:,} rows that the file does not hold")
        elif size > SMALL_BYTES:
            check_stored(dataset, start, stop, column)

    def _check_plain(self, name: str, start: int, stop: int, column: int | None = None) -> None:
        """Check that chunks that are not packed have their size; each dataset's once, where all are looked at."""
        if name not in self._plain and (
            self._checked[name].chunks is None or check_plain(self._checked[name], start, stop, column)
        ):
            self._plain.add(name)

    def texts(self, name: str) -> list[str]:
        """Return a column of texts; errors as in ``read``.

        Raises:
            ValueError: They are too long, or as in ``read``.
        """
        dataset = self.dataset(name)
        rows = self._text_values(dataset)
        found: list[str] = []
        total, count = 0, dataset.shape[0]
        # Each of many texts may be the same long one: as many are read at once as cannot be too many.
        at_once = max(MOST_TEXT_BYTES // self._bytes, 1)
        for start in range(0, count, at_once):
            stop = min(start + at_once, count)
            if dataset.filters:
                found += [text.decode() for text in self.read(name, start, stop).tolist()]
            else:
                self._check_rows(dataset, start, stop)
                self._check_plain(name, start, stop)
                found += rows[start:stop].tolist()
            total += sum(map(len, found[start:]))
            if total > MOST_TEXT_BYTES:
                raise ValueError(f"{name} holds more than {MOST_TEXT_BYTES:,} characters")
        return found

    def _text_values(self, dataset: StoredDataset) -> Any:
        """Return texts to be read; HDF5 takes the memory that each is said to need, so that is looked at first."""
        if dataset.dtype.kind == "O":
            longest = int(self._references(dataset)[:, 0].max(initial=0))
            if longest > self._bytes:
                raise ValueError(f"{dataset.name} claims a text of {longest:,} bytes; the file has {self._bytes:,}")
        return h5py.Dataset(dataset.id, readonly=True).asstr()

    def _references(self, dataset: StoredDataset) -> NDArray[np.uint32]:
        """Return what a column of texts of any length holds itself: for each, its length, and where it lies, (N, 4)."""
        places = [(dataset.id.get_offset(), dataset.id.get_storage_size())]
        if dataset.chunks is not None:
            found = (dataset.id.get_chunk_info(i) for i in range(dataset.id.get_num_chunks()))
            places = [(chunk.byte_offset, chunk.size) for chunk in found]
        elif places[0][0] is None and places[0][1]:
            raise ValueError(f"{dataset.name} is stored in a way that gradlens does not use")
        if dataset.filters:
            raise ValueError(f"{dataset.name} is compressed in a way that gradlens does not use")
        if sum(size for _, size in places) > MOST_TEXT_BYTES:
            raise ValueError(f"{dataset.name} holds too many texts")
        stored = b""
        with self._path.open("rb") as file:
            for offset, size in places:
                file.seek(offset or 0)
                stored += file.read(size - size % REFERENCE_BYTES)
        return np.frombuffer(stored[: len(stored) - len(stored) % REFERENCE_BYTES], "<u4").reshape(-1, 4)

    def attribute(self, name: str, default: Any = None, *, of: str = "") -> Any:
        """Return an attribute.

        Args:
            name: The attribute.
            default: What to return where there is none.
            of: The dataset that has it; "" is the file itself.

        Returns:
            Its value.

        Raises:
            KeyError: The dataset is not there, or the attribute cannot be read.
            ValueError: The attribute is no single text or number, or is too large.
            RunFileError: The dataset lies in another file.
        """
        if (of, name) not in self._attributes:
            owner, key = self.dataset(of).id if of else self._file.id, _encode(name)
            self._attributes[of, name] = self._attribute(h5a.open(owner, key)) if h5a.exists(owner, key) else None
        found = self._attributes[of, name]
        return default if found is None else found

    def _attribute(self, found: h5a.AttrID) -> Any:
        """Return the value of an attribute of any shape that holds one."""
        name, shape, dtype = _shown(_decode(found.name)), found.shape, found.dtype
        if shape is None or prod(shape) != 1:
            raise ValueError(f"attribute {name} is no single value")
        text = h5py.check_string_dtype(dtype)
        if dtype.kind not in "iufS" and text is None:
            raise ValueError(f"attribute {name} is neither text nor number")
        if dtype.itemsize > MOST_TEXT_BYTES:
            raise ValueError(f"attribute {name} has {dtype.itemsize:,} bytes, at most {MOST_TEXT_BYTES:,} expected")
        if dtype.kind == "O":
            check_text_attribute(self._path, _decode(found.name))
        values = np.empty(shape, dtype=dtype)
        found.read(values)
        value: Any = values.reshape(())[()]
        return value.decode("utf-8", "surrogateescape") if dtype.kind == "O" and isinstance(value, bytes) else value

    def names(self, group: str) -> list[str]:
        """List what lies in a group, sorted.

        Returns:
            The names, without the group.

        Raises:
            KeyError: There is no such group, or it cannot be opened.
            RuntimeError: It cannot be listed.
            ValueError: It holds too much, or a name is too long.
            RunFileError: It lies in another file.
        """
        names = sorted(name for name, _, _ in self._links(group, MOST_COLUMNS))
        if any(len(name) > MOST_NAME for name in names):
            raise ValueError(f"{_shown(group)} holds a name of more than {MOST_NAME:,} characters")
        return names

    def __contains__(self, name: str) -> bool:
        above, _, last = name.rpartition("/")
        return (not above or above in self) and bool(self._group(above).links.exists(_encode(last)))

    def check_all(self) -> None:
        """Open everything, so that a file that refers to another is refused even if that part of it is never read.

        What cannot be opened or listed is passed over: whoever needs it will say that the file is damaged.

        Raises:
            RunFileError: The file refers to another.
            ValueError: It holds too many objects, or groups too deep inside each other.
        """
        seen: set[int] = set()
        groups, count = [""], 0
        while groups:
            name = groups.pop()
            try:
                count += self._group(name).get_num_objs()
            except BROKEN:
                continue
            if count > MOST_OBJECTS or name.count("/") >= MOST_DEPTH:
                raise ValueError(f"it holds more than {MOST_OBJECTS:,} objects, or {MOST_DEPTH} groups in each other")
            try:
                links = self._links(name, MOST_OBJECTS)
            except BROKEN:
                continue
            for last, kind, address in links:
                place = f"{name}/{last}" if name else last
                if self._is_another_group(place, kind) and address not in seen:
                    seen.add(address)
                    groups.append(place)

    def _is_another_group(self, name: str, kind: int) -> bool:
        """Open what a link leads to, and return whether it is a group."""
        if kind == h5l.TYPE_SOFT:  # where it leads out of the file, it does so by a link that is found too
            return False
        if kind != h5l.TYPE_HARD:
            raise self._refusal(name)
        try:
            self._open(name)
        except RunFileError:
            raise
        except BROKEN:
            return False
        return name in self._groups

    def _links(self, group: str, most: int) -> list[tuple[str, int, int]]:
        """List the links in a group: name, kind and, where the link is a hard one, the address it leads to."""
        held, found = self._group(group), list[tuple[str, int, int]]()
        if held.get_num_objs() > most:
            raise ValueError(f"{_shown(group) or 'its root'} holds more than {most:,} objects")
        held.links.iterate(lambda name, info: found.append((_decode(name), info.type, info.u)), info=True)
        return found

    def _group(self, name: str) -> h5g.GroupID:
        if name not in self._groups:
            self._open(name)
        return self._groups[name]

    def _open(self, name: str) -> None:
        """Open a dataset or a group, check it, and keep it."""
        above, _, last = name.rpartition("/")
        group, link = self._group(above), _encode(last)
        kind = group.links.get_info(link).type
        if kind == h5l.TYPE_SOFT:
            raise KeyError(f"{_shown(name)} is a soft link")
        if kind != h5l.TYPE_HARD:
            raise self._refusal(name)
        item = h5o.open(group, link)
        if isinstance(item, h5g.GroupID):
            self._groups[name] = item
        elif isinstance(item, h5d.DatasetID):
            made = item.get_create_plist()
            if _lies_outside(made):
                raise self._refusal(name)
            self._opened[name] = item, made

    def _refusal(self, name: str) -> RunFileError:
        return RunFileError(
            f"{self._path} refers to another file ({_shown(name)}); expected a run whose data lie in its own file",
            tip="gradlens writes no such file: ask where it comes from",
        )


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _shown(name: str) -> str:
    """Return a name that a stranger chose, without control characters."""
    text = name.encode("unicode_escape", "surrogatepass").decode()
    return text if len(text) <= SHOWN_NAME else f"{text[:SHOWN_NAME]}..."


def _lies_outside(made: h5p.PropDCID) -> bool:
    """Return whether a dataset's values lie elsewhere; not even its shape is asked for, which may open other files."""
    return bool(made.get_layout() == h5d.VIRTUAL or made.get_external_count())
