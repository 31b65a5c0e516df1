"""What a listing says of a finished run, found without opening the file as HDF5: a thousand in half a second.

The card is the attribute ``card_json``, written last when a file is packed, and so in its last bytes; a checksum in it
tells it from anything else that may be there. Nothing but these bytes is read, so that a file that refers to another
one shows no more than its own card.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlens.format import visible

if TYPE_CHECKING:
    from gradlens.storage.stored_file import StoredFile


START = b'{"gradlens card": '
END_BYTES = 65536
"""So much of a file's end is looked at."""
MOST_BYTES = 16384
CARD_EPOCHS = ("train_accuracy", "val_accuracy")


def encode_card(card: dict[str, Any]) -> bytes:
    """Return a card as it is stored: JSON with a CRC-32 of its facts in front."""
    facts = json.dumps(card).encode()
    return START + b'"%08x", "facts": %s}' % (zlib.crc32(facts), facts)


def decode_card(data: bytes) -> dict[str, Any] | None:
    """Read a card at the beginning of some bytes; None where there is none, or it is damaged."""
    match = re.match(re.escape(START) + rb'"([0-9a-f]{8})", "facts": ', data)
    if match is None:
        return None
    try:
        facts, length = json.JSONDecoder().raw_decode(data[match.end() :].decode("ascii", "replace"))
    except ValueError:
        return None
    text = data[match.end() : match.end() + length]
    return dict(facts) if zlib.crc32(text) == int(match[1], 16) and isinstance(facts, dict) else None


def find_card(path: Path) -> dict[str, Any] | None:
    """Return the card of a finished run; None where it is not in its place, as in a run that is being written."""
    try:
        if not path.is_file():
            return None
        with open(path, "rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - END_BYTES, 0))
            data = file.read(END_BYTES)
    except OSError:
        return None
    place = data.rfind(START)
    return decode_card(data[place : place + MOST_BYTES]) if place >= 0 else None


def make_card(source: StoredFile, status: str | None = None) -> dict[str, Any]:
    """Return what a listing says of a run, as plain values."""
    found = source.last_epoch(CARD_EPOCHS)
    last = {name: value if math.isfinite(value) else None for name, value in found.items()}
    attributes, data = source.attributes, source.attribute_json("config_json").get("data")
    return {
        "model": attributes.get("model", ""),
        "seed": int(attributes.get("seed", -1)),
        "data": data if isinstance(data, str) else None,
        "status": status or source.status(),
        "epochs": source.n_epochs,
        "rows": source.n_steps,
        **last,
        "created": attributes.get("created"),
    }


def read_card(path: Path) -> dict[str, Any]:
    """Return what a listing says of a run.

    Returns:
        model, seed, data, status, epochs, rows, train_accuracy, val_accuracy (None where unknown), created; and
        ``heartbeat`` where the run has no card because it is not over.

    Raises:
        RunFileError: As in ``read_run``.
    """
    card = find_card(path)
    if card is None or not is_card(card):
        from gradlens.storage.run_file import reading

        card = reading(path, lambda stored: {**make_card(stored), "heartbeat": stored.state()["heartbeat"]})
    return {key: visible(value) if isinstance(value, str) else value for key, value in card.items()}


CARD_TYPES: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "seed": (int,),
    "data": (str, type(None)),
    "status": (str,),
    "epochs": (int,),
    "rows": (int,),
    **dict.fromkeys(CARD_EPOCHS, (float, int, type(None))),
    "created": (str, type(None)),
}


def is_card(card: dict[str, Any]) -> bool:
    """Return whether a card has what a card has, and nothing else."""
    return card.keys() == CARD_TYPES.keys() and all(isinstance(card[key], kinds) for key, kinds in CARD_TYPES.items())
