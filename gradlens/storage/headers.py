"""Whether all that a run file names lies in it, seen in its bytes alone: listings need not open it as HDF5.

The links of each group and the layout of each dataset are read from the object headers as HDF5 writes them today. The
answer is yes only where all of it is plain; whatever is not, is for ``contents`` to judge.

Source of the layout: HDF5 File Format Specification, version 3.0, II.A (superblock version 2 and 3), III.A (version 2
B-trees), III.G (fractal heaps), IV.A.1.b (object headers version 2) and IV.A.2 (messages: link info, link, external
data files, layout, continuation).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from gradlens.storage.superblock import SIGNATURE

Message = tuple[int, int, int]
"""A header message: its type, where it begins, its length."""
LINK_INFO, LINK, EXTERNAL_FILES, LAYOUT, CONTINUATION, SYMBOL_TABLE = 2, 6, 7, 8, 16, 17
TELLING = frozenset((LINK_INFO, LINK, EXTERNAL_FILES, LAYOUT, CONTINUATION, SYMBOL_TABLE))
HEAD = struct.Struct("<BHB").unpack_from
"""How each message begins: type, length, flags (2: it lies elsewhere in the file)."""
PLAIN_LAYOUTS = (0, 1, 2)
"""Compact, contiguous and chunked; 3 is virtual."""
BASE, ROOT = 12, 36
"""Offsets in the superblock of the address that all others count from, and of the root group's."""
UNDEFINED = 0xFFFFFFFFFFFFFFFF
MOST_OBJECTS = 10_000
MOST_PARTS = 20
MOST_BYTES = 1 << 18
"""Parts of one object header, and bytes of a part, so that no file keeps a listing busy."""


class NotPlainError(Exception):
    """Something that is not as gradlens writes it."""


def is_contained(path: Path) -> bool:
    """Return whether a file is seen to refer to no other; False also where that cannot be seen."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check_file(data)
    except (NotPlainError, OSError, ValueError, IndexError, OverflowError, struct.error):
        return False
    return True


def _check_file(data: mmap.mmap) -> None:
    _expect(data[:8] == SIGNATURE and data[8] in (2, 3) and data[9:11] == b"\x08\x08" and not _number(data, BASE))
    waiting, seen = [_number(data, ROOT)], set[int]()
    while waiting:
        address = waiting.pop()
        if address not in seen:
            seen.add(address)
            _expect(len(seen) <= MOST_OBJECTS)
            waiting += _targets(data, address)


def _targets(data: mmap.mmap, address: int) -> list[int]:
    """Return where the links of a group lead; none of a dataset, which is checked."""
    found: list[int] = []
    for kind, start, length in _messages(data, address):
        if kind == LINK:
            found.append(_target(data, start, length))
        elif kind == LINK_INFO:
            found += _dense_targets(data, start)
        elif kind == LAYOUT:
            _expect(data[start] in (3, 4, 5) and data[start + 1] in PLAIN_LAYOUTS)
        else:
            raise NotPlainError
    return found


def _messages(data: mmap.mmap, address: int) -> Iterator[Message]:
    """List the messages of an object header that tell where something lies."""
    _expect(data[address : address + 5] == b"OHDR\2")
    flags = data[address + 5]
    place = address + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    head = 6 if flags & 4 else 4
    parts = [(place + width, int.from_bytes(data[place : place + width], "little"))]
    for begin, size in parts:  # grows meanwhile
        _expect(size <= MOST_BYTES)
        part, place = data[begin : begin + size], 0
        while place + head <= size:
            kind, length, shared = HEAD(part, place)
            place += head
            if kind in TELLING:
                _expect(not shared & 2)
                if kind == CONTINUATION:
                    there, whole = struct.unpack_from("<QQ", part, place)
                    _expect(data[there : there + 4] == b"OCHK" and len(parts) < MOST_PARTS)
                    parts.append((there + 4, whole - 8))
                else:
                    yield kind, begin + place, length
            place += length


def _target(data: mmap.mmap, start: int, length: int) -> int:
    """Return where a link message leads, which must be a hard link: its address is the last thing in it."""
    flags = data[start + 1]
    _expect(data[start] == 1 and not (flags & 8 and data[start + 2]))
    place = start + 2 + (1 if flags & 8 else 0) + (8 if flags & 4 else 0) + (1 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    place += width + int.from_bytes(data[place : place + width], "little")
    _expect(place + 8 <= start + length)
    return _number(data, place)


def _dense_targets(data: mmap.mmap, start: int) -> list[int]:
    """Return where those links of a group lead that lie in a heap, listed by a B-tree of one leaf."""
    heap, tree = struct.unpack_from("<QQ", data, start + (10 if data[start + 1] & 1 else 2))
    if heap == UNDEFINED:
        return []
    _expect(data[tree : tree + 6] == b"BTHD\0\5")
    width, depth = struct.unpack_from("<HH", data, tree + 10)
    leaf, count = struct.unpack_from("<QH", data, tree + 16)
    _expect(width == 11 and depth == 0 and (count == 0 or data[leaf : leaf + 6] == b"BTLF\0\5"))
    block = _root_block(data, heap)
    found = []
    for record in range(leaf + 6, leaf + 6 + count * width, width):
        kind, offset, length = struct.unpack_from("<BIH", data, record + 4)
        _expect(kind == 0)
        found.append(_target(data, block + offset, length))
    return found


def _root_block(data: mmap.mmap, heap: int) -> int:
    """Return where the one block of a heap lies: addresses in it count from there."""
    _expect(data[heap : heap + 9] == b"FRHP\0\7\0\0\0")  # identifiers of 7 bytes, no filters
    most_bits, _, block, rows = struct.unpack_from("<HHQH", data, heap + 128)
    _expect(most_bits == 32 and rows == 0 and data[block : block + 4] == b"FHDB")
    return int(block)


def _number(data: mmap.mmap, place: int) -> int:
    return int.from_bytes(data[place : place + 8], "little")


def _expect(holds: bool) -> None:
    if not holds:
        raise NotPlainError
