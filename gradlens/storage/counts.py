"""The numbers of rows and epochs of a run file, and the slots of checksums that guard them."""

from __future__ import annotations

from dataclasses import dataclass

from gradlens.storage.checksums import Slot
from gradlens.storage.contents import Contents


@dataclass(frozen=True)
class Counts:
    """How much of a run file was completely written."""

    n_steps: int
    n_epochs: int
    slots: tuple[Slot, ...] = ()
    """Those that guard these counts; none in files that were made before there were any."""
    are_doubtful: bool = False
    """Whether the counts as they are stored fit no slot; then they are those of the newest slot, if one can be read."""


def read_counts(contents: Contents) -> Counts:
    """Read the counts of a file.

    Args:
        contents: What it holds.

    Returns:
        The counts to which everything is cut. Where the writer ended between the one count and the other, they are
        those of the newer slot: all that it guards was written before it.
    """
    stored = int(contents.value("state/n_steps")), int(contents.value("state/n_epochs"))
    names = [name for name in ("state/check_a", "state/check_b") if name in contents]
    if not names:
        return Counts(*stored)
    decoded = (Slot.decode(bytes(contents.value(name))) for name in names)
    slots = [slot for slot in decoded if slot is not None]
    fitting = tuple(slot for slot in slots if _pair(slot) == stored)
    if fitting:
        return Counts(*stored, fitting)
    if not slots:
        return Counts(*stored, are_doubtful=True)
    newest = max(slots, key=_pair)
    each_fits = all(count in pair for count, pair in zip(stored, zip(*map(_pair, slots), strict=True), strict=True))
    return Counts(*_pair(newest), (newest,), are_doubtful=len(slots) < 2 or not each_fits)


def _pair(slot: Slot) -> tuple[int, int]:
    return slot.n_steps, slot.n_epochs
