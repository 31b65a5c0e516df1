"""The facts of a run as they are stored: a line of JSON, and a line with its CRC-32.

The text has a fixed room, because text of any length cannot be changed while a file is written and read at once. Where
the facts need more, their lists of names are cut.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from gradlens.format import plain
from gradlens.storage.contents import BROKEN

FACTS_BYTES = 1 << 15
"""Room for the facts."""
MOST_LISTED = (256, 64, 16, 4, 1)
"""Lengths to which lists are cut, until the facts fit."""


def encode_facts(facts: Mapping[str, Any]) -> bytes:
    """Return facts as they are stored, with shorter lists where they are too long; b"" for none."""
    for limit in MOST_LISTED:
        text = json.dumps(_cut(plain(facts), limit), sort_keys=True, default=str).encode()
        if facts and len(text) + 9 <= FACTS_BYTES:
            return b"%s\n%08x" % (text, zlib.crc32(text))
    return b""


def _cut(value: Any, limit: int) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _cut(part, limit) for name, part in value.items()}
    return [_cut(part, limit) for part in value[:limit]] if isinstance(value, list) else value


def decode_facts(stored: bytes) -> dict[str, Any]:
    """Return facts from what is stored; control characters in texts become "?".

    Raises:
        ValueError: They are not as they were written.
    """
    text, _, check = stored.rstrip(b"\0").partition(b"\n")
    if not text and not check:
        return {}
    try:
        if int(check, 16) == zlib.crc32(text):
            return dict(_printable(json.loads(text)))
    except BROKEN:  # json raises a RecursionError, which is a RuntimeError, if lists are too deep
        pass
    raise ValueError("its facts do not fit their checksum")


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(char if char.isprintable() else "?" for char in value)
    if isinstance(value, dict):
        return {_printable(name): _printable(part) for name, part in value.items()}
    return [_printable(part) for part in value] if isinstance(value, list) else value
