"""Open an HDF5 file whose writer has not closed it, without waiting for a writer that may be dead.

HDF5 offers SWMR mode for this, and there it reads what is missing or broken again and again, for minutes. Here the file
is shown to HDF5 as it will look when it is closed: the superblock's flags cleared, and its end where the file ends.
Broken metadata then fail at once, and a reader of a file that is being written tries again.

``check_heaps`` keeps HDF5 2.0 from reading for ever in a file whose global heap was overwritten with zeros, and
``check_text_attribute`` from taking the memory that a text says that it needs.

Source of the layout: HDF5 File Format Specification, version 3.0, II.A (superblock version 2 and 3), III.E (global
heap), III.G (fractal heap) and IV.A.2.m (attribute message).
"""

from __future__ import annotations

import io
import mmap
import os
import struct
from pathlib import Path
from types import TracebackType

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SIZE = 48
FLAGS, END, CHECKSUM = 11, 28, 44
"""Offsets of the consistency flags, the address of the file's end, and the checksum."""
HEAP = b"GCOL\1\0\0\0"
"""How a collection of the global heap begins; its size follows, in 8 bytes, and then its objects."""
LEAST_OBJECT = 16
"""Bytes of the smallest object of a collection."""
FRACTAL_HEAP, FILTERS_LENGTH = b"FRHP\0", 7
"""How a heap for many attributes begins, and the offset of the length of its filters."""
ATTRIBUTE_START = {1: 8, 2: 8, 3: 9}
"""Bytes of an attribute before its name, by its version, which is the first of them."""
MASK = 0xFFFFFFFF


def lookup3(data: bytes) -> int:
    """Return Bob Jenkins' lookup3 hash (2006, ``hashlittle``), which HDF5 uses as the checksum of metadata."""

    def turn(value: int, by: int) -> int:
        return ((value << by) | (value >> (32 - by))) & MASK

    a = b = c = (0xDEADBEEF + len(data)) & MASK
    while len(data) > 12:
        x, y, z = struct.unpack("<III", data[:12])
        a, b, c = (a + x) & MASK, (b + y) & MASK, (c + z) & MASK
        for by in (4, 6, 8, 16, 19, 4):
            a, c = ((a - c) & MASK) ^ turn(c, by), (c + b) & MASK
            a, b, c = b, c, a
        data = data[12:]
    if data:
        x, y, z = struct.unpack("<III", data.ljust(12, b"\0"))
        a, b, c = (a + x) & MASK, (b + y) & MASK, (c + z) & MASK
        for by in (14, 11, 25, 16, 4, 14, 24):
            c = ((c ^ b) - turn(b, by)) & MASK
            a, b, c = b, c, a
        c = b  # the last turn's result
    return c


def closed_superblock(data: bytes, size: int) -> bytes | None:
    """Return a superblock as it would be in a closed file of that size; None where it is none that can be changed."""
    if len(data) < SIZE or not data.startswith(SIGNATURE) or data[8] != 3 or data[9:11] != b"\x08\x08":
        return None
    changed = bytearray(data[:SIZE])
    if lookup3(data[:CHECKSUM]) != struct.unpack_from("<I", data, CHECKSUM)[0]:
        return None
    changed[FLAGS] = 0
    struct.pack_into("<Q", changed, END, size)
    struct.pack_into("<I", changed, CHECKSUM, lookup3(bytes(changed[:CHECKSUM])))
    return bytes(changed)


def check_heaps(path: Path) -> None:
    """See whether HDF5 comes to the end of each collection of the global heap, where text of any length is kept.

    Raises:
        ValueError: It does not.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < SIZE:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place, left = data.find(HEAP), size // LEAST_OBJECT
            while place >= 0:
                left -= _check_heap(data, place, left)
                place = data.find(HEAP, place + len(HEAP))


def _check_heap(data: mmap.mmap, place: int, most: int) -> int:
    """Go through the objects of a collection, at most so many; return how many there are."""
    size = int.from_bytes(data[place + 8 : place + 16], "little")
    end, count = min(place + size, len(data)), 0
    place += 16
    while place + LEAST_OBJECT <= end:
        number, _, length = struct.unpack_from("<HHxxxxQ", data, place)
        step = LEAST_OBJECT + -(-length // 8) * 8 if number else length
        if not step or count >= most:  # collections do not overlap, so that their objects fit the file
            raise ValueError("its texts were overwritten")
        place, count = place + step, count + 1
    return count


def check_text_attribute(path: Path, name: str) -> None:
    """See whether an attribute that is a text of any length says that it is longer than the file.

    HDF5 gives no way to ask for that length, so the attribute is looked for in the bytes of the file: its name, after
    what an attribute begins with. Wherever HDF5 finds the attribute, it lies there in one piece, but for a heap whose
    objects are compressed, which HDF5 itself never writes for attributes.

    Args:
        path: The file.
        name: The attribute.

    Raises:
        ValueError: It does, or the attribute is not found.
    """
    wanted, found = name.encode() + b"\0", False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(FRACTAL_HEAP)
        while place >= 0:
            if data[place + FILTERS_LENGTH : place + FILTERS_LENGTH + 2] not in (b"", b"\0\0"):
                raise ValueError("its attributes are compressed in a way that gradlens does not use")
            place = data.find(FRACTAL_HEAP, place + 1)
        place = data.find(wanted)
        while place >= 0:
            for start in (place - 8, place - 9):
                at = _value_place(data[max(start, 0) : place], len(wanted))
                if at is None:
                    continue
                found = True
                length = int.from_bytes(data[place + at : place + at + 4], "little")
                if length > len(data):
                    raise ValueError(f"attribute {name} claims a text of {length:,} bytes; the file has {len(data):,}")
            place = data.find(wanted, place + 1)
    if not found:
        raise ValueError(f"attribute {name} is stored in a way that gradlens does not use")


def _value_place(before: bytes, name_bytes: int) -> int | None:
    """Return how far after its name an attribute's value lies; None where these bytes begin no such attribute.

    Args:
        before: What lies before the name.
        name_bytes: Bytes of the name, with the zero at its end.
    """
    if len(before) != ATTRIBUTE_START.get(before[0] if before else 0):
        return None
    sizes: tuple[int, ...] = struct.unpack_from("<HHH", before, 2)
    if sizes[0] != name_bytes:
        return None
    return sum(-(-size // 8) * 8 for size in sizes) if before[0] == 1 else sum(sizes)


class ClosedView(io.RawIOBase):
    """An HDF5 file as if its writer had closed it, for h5py to read.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be opened.
        ValueError: It does not begin as a file that a writer keeps open does.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = io.FileIO(path)
        self._place = 0
        self._size = os.fstat(self._file.fileno()).st_size
        start = closed_superblock(self._file.read(SIZE) or b"", self._size)
        if start is None:
            self._file.close()
            raise ValueError("no superblock of a file that is being written")
        self._start = start

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place."""
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into a buffer."""
        view = memoryview(buffer).cast("B")
        self._file.seek(self._place)
        count = self._file.readinto(view) or 0
        if self._place < SIZE:
            end = min(self._place + count, SIZE)
            view[: end - self._place] = self._start[self._place : end]
        self._place += count
        return count

    def close(self) -> None:
        """Close the file."""
        if hasattr(self, "_file"):
            self._file.close()
        super().close()

    def __enter__(self) -> ClosedView:
        """Return the view."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()
