"""Checksums by which a reader knows that it reads what was written.

A finished file is compressed, and each chunk carries the checksum of its zlib stream, which HDF5 compares. Metadata
have HDF5's own. What neither guards has a CRC-32 here:

* the header: attributes and layers, in the attribute ``header_crc32``;
* overhead and notes (of a finished file also status and heartbeat), in a slot (see below); the heartbeat of a file that
  is being written has its checksum in its own last bits (``seal``);
* of a file that is being written: each whole block of 64 rows of each metric and each block of a level, in
  ``/check/block``; each column, from its beginning, and the rows since the last whole block, in a **slot**;
* the counts, in a slot too.

There are two slots, ``/state/check_a`` and ``check_b``, written in turn after the rows and *before* the counts and what
else it is of. A writer that is killed in between leaves the counts of before, and their slot; or one count of each, and
then both slots.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHECK_BYTES = 4096
"""Room for a slot: the counts, and 9 bytes for each column and metric."""
MOST_CRCS = (CHECK_BYTES - 80) // 9


def crc(data: NDArray[Any], before: int = 0) -> int:
    """Return the CRC-32 of an array's bytes, going on from what was before."""
    return zlib.crc32(np.ascontiguousarray(data).data.cast("B"), before) if data.size else before


def header_crc(attributes: Mapping[str, Any], layers: Mapping[str, Sequence[Any]]) -> int:
    """Return the CRC-32 of the root attributes and the columns of ``/layer``."""
    kept = {key: attributes[key] for key in sorted(attributes)}
    table = {key: list(map(str, layers[key])) for key in sorted(layers)}
    return zlib.crc32(json.dumps([kept, table], default=str).encode())


@dataclass(frozen=True)
class Slot:
    """The counts of a file at one moment, and the checksums of what they count."""

    n_steps: int
    n_epochs: int
    records: int = 0
    """Records in ``/check/block``."""
    states: tuple[int, ...] = ()
    """What ``state_crc`` may be: of a finished file one value, else also those from before the slot was written."""
    crcs: tuple[int, ...] = field(default=())
    """Checksums of the columns, then of each metric's rows since the last whole chunk; empty in a finished file."""

    def encode(self) -> bytes:
        """Return the slot as text, with a checksum of its own."""
        crcs = self.crcs if len(self.crcs) <= MOST_CRCS else ()
        numbers = (self.n_steps, self.n_epochs, self.records)
        states = ",".join(f"{value:08x}" for value in self.states)
        text = " ".join([*map(str, numbers), states, *(f"{value:08x}" for value in crcs)])
        return f"{text} {zlib.crc32(text.encode()):08x}".encode()

    @classmethod
    def decode(cls, data: bytes) -> Slot | None:
        """Read a slot; None where there is none, or it is damaged."""
        text, _, check = data.decode("ascii", "replace").strip("\0").rpartition(" ")
        try:
            if int(check, 16) != zlib.crc32(text.encode()):
                return None
            words = text.split(" ")
            n_steps, n_epochs, records = map(int, words[:3])
            states = tuple(int(word, 16) for word in words[3].split(",") if word)
            return cls(n_steps, n_epochs, records, states, tuple(int(word, 16) for word in words[4:]))
        except (ValueError, TypeError, IndexError):
            return None


def state_crc(overhead: float, notes: bytes, status: bytes = b"", heartbeat: float = 0.0) -> int:
    """Return the CRC-32 of what ``/state`` holds in addition to the counts; status and heartbeat of a finished file."""
    numbers = np.array([overhead, heartbeat], dtype=np.float64)
    return zlib.crc32(b"\n".join([numbers.tobytes(), status.rstrip(b"\0"), notes.rstrip(b"\0")]))


SEAL_BITS = np.uint64(12)


def seal(seconds: float) -> float:
    """Return a time since 1970, exact to a millisecond, whose last bits are a checksum of those before."""
    bits = np.float64(seconds).view(np.uint64) >> SEAL_BITS
    check = np.uint64(zlib.crc32(bits.tobytes())) & np.uint64(0xFFF)
    return float((bits << SEAL_BITS | check).view(np.float64))


def is_sealed(seconds: float) -> bool:
    """Return whether a time is as ``seal`` returned it."""
    return seal(seconds) == seconds
