"""What a run file itself holds, and the one way to open its datasets for reading.

An HDF5 file may refer to others: by a link, by storage that lies outside, or by a virtual dataset, which is put
together from other datasets. HDF5 follows all of these by itself. A file from a stranger could thus show the contents
of another file of its reader, or keep the reader waiting at a pipe. gradlens writes none of them, and refuses a file
that has one before the other file is touched.
"""

from __future__ import annotations

from pathlib import Path

import h5py
from h5py import h5d, h5g, h5l, h5o

from gradlens.errors import RunFileError

BROKEN = (KeyError, ValueError, TypeError, OSError, RuntimeError, AttributeError, UnicodeDecodeError, OverflowError)
"""What h5py raises on files that are not as they should be."""
MOST_NAME = 80


class Contents:
    """The datasets of an open file by their names from the root, such as ``metric/param_norm``.

    Only hard links are followed, and each dataset and group is checked when it is opened. All of them are kept open
    until the file is closed.

    Args:
        path: The file, for messages.
        file: The file, open for reading.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path = path
        self._groups: dict[str, h5g.GroupID] = {"": file.id}
        self._datasets: dict[str, h5py.Dataset] = {}

    def dataset(self, name: str) -> h5py.Dataset:
        """Return a dataset.

        Raises:
            KeyError: There is none of that name, or it cannot be opened.
            RunFileError: It lies in another file.
        """
        if name not in self._datasets:
            self._open(name)
        return self._datasets[name]

    def names(self, group: str) -> list[str]:
        """List what lies in a group, sorted.

        Returns:
            The names, without the group.

        Raises:
            KeyError: There is no such group, or it cannot be opened.
            RuntimeError: It cannot be listed.
            RunFileError: It lies in another file.
        """
        return sorted(name for name, _, _ in self._links(group))

    def __contains__(self, name: str) -> bool:
        above, _, last = name.rpartition("/")
        return (not above or above in self) and bool(self._group(above).links.exists(_encode(last)))

    def check_all(self) -> None:
        """Open everything, so that a file that refers to another is refused even if that part of it is never read.

        What cannot be opened or listed is passed over: whoever needs it will say that the file is damaged.

        Raises:
            RunFileError: The file refers to another.
        """
        self._check(name="", seen=set())

    def _check(self, name: str, seen: set[int]) -> None:
        try:
            links = self._links(name)
        except BROKEN:
            return
        for last, kind, address in links:
            place = f"{name}/{last}" if name else last
            if kind == h5l.TYPE_SOFT:  # where it leads out of the file, it does so by a link that is found too
                continue
            if kind != h5l.TYPE_HARD:
                raise self._refusal(place)
            try:
                self._open(place)
            except RunFileError:
                raise
            except BROKEN:
                continue
            if place in self._groups and address not in seen:
                seen.add(address)
                self._check(place, seen)

    def _links(self, group: str) -> list[tuple[str, int, int]]:
        """List the links in a group: name, kind and, where the link is a hard one, the address it leads to."""
        found: list[tuple[str, int, int]] = []
        self._group(group).links.iterate(
            lambda name, info: found.append((name.decode("utf-8", "surrogateescape"), info.type, info.u)), info=True
        )
        return found

    def _group(self, name: str) -> h5g.GroupID:
        if name not in self._groups:
            self._open(name)
        return self._groups[name]

    def _open(self, name: str) -> None:
        """Open a dataset or a group, and keep it."""
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
            if _lies_outside(item):
                raise self._refusal(name)
            self._datasets[name] = h5py.Dataset(item, readonly=True)

    def _refusal(self, name: str) -> RunFileError:
        return RunFileError(
            f"{self._path} refers to another file ({_shown(name)}); expected a run whose data lie in its own file",
            tip="gradlens writes no such file: ask where it comes from",
        )


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _shown(name: str) -> str:
    """Return a name that a stranger chose, without control characters."""
    text = name.encode("unicode_escape").decode()
    return text if len(text) <= MOST_NAME else f"{text[:MOST_NAME]}..."


def _lies_outside(dataset: h5d.DatasetID) -> bool:
    """Return whether a dataset's values lie elsewhere; not even its shape is asked for, which may open other files."""
    made = dataset.get_create_plist()
    return bool(made.get_layout() == h5d.VIRTUAL or made.get_external_count())
