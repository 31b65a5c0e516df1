"""Hold the reader against changed files; for the long runs and for the tests."""

from __future__ import annotations

import collections
import contextlib
import gc
import os
import pickle
import select
import signal
import struct
from collections.abc import Callable
from pathlib import Path

from h5py import h5f
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.structure import MEMORY, Change, changes, forget_peak, memory, write_changed
from tests.processes import PATIENCE
from tests.storage import known
from tests.storage.test_fuzz import everything, finished, old, outcome

BASES: tuple[Callable[[Path], Path], ...] = (finished, old)
ALLOWED = {"same", "error", "WRONG"}
"""A well-formed file may say other numbers; it may not make the reader fail."""
NOT_WRITTEN, ENDED = "not written", "ended"
OPEN = h5f.OBJ_FILE | h5f.OBJ_GROUP | h5f.OBJ_DATASET | h5f.OBJ_ATTR
FILES_PER_WORKER = 500
OPENED_AGAIN = 10
"""One file of so many is opened anew for each of its parts, as a user's program does; the others once."""


class Worker:
    """A process that changes a file and reads it, so that this one survives what kills it.

    It answers twice: when the file is written, since some changes crash HDF5 while it writes, and when it is read.

    Args:
        data: The file that is changed.
        whole: The digest of what it holds.
        copy: Where the changed file is written.
    """

    def __init__(self, data: bytes, whole: str, copy: Path) -> None:
        self._data, self._whole, self._copy = data, whole, copy
        self._ask, theirs = os.pipe(), os.pipe()
        self._answers = theirs[0]
        self.files = 0
        self._process = known.fork()
        if not self._process:
            with contextlib.suppress(BaseException):
                gc.collect()
                gc.freeze()  # What the tests left behind is freed now, not while a reader's memory is counted.
                os.close(self._ask[1])
                self._answer(theirs[1])
            os._exit(0)
        os.close(self._ask[0])
        os.close(theirs[1])

    def _answer(self, answers: int) -> None:
        """In the worker: do what is asked until the pipe ends."""
        with os.fdopen(self._ask[0], "rb") as asked:
            while length := asked.read(4):
                made, once = pickle.loads(asked.read(struct.unpack("<I", length)[0]))
                if made is not None:
                    clean = writes(self._copy, self._data, made)
                    os.write(answers, b"written\n" if clean else b"ended\n")
                    if not clean:
                        return
                said = limited(self._copy, self._whole, once=once).replace(str(self._copy), "copy.h5")
                os.write(answers, (said.replace("\n", " ")[:400] + "\n").encode())

    def __call__(self, made: list[Change] | None, *, once: bool) -> str:
        """Return what comes of reading a changed file; "HANG", "CRASH", ``NOT_WRITTEN`` or ``ENDED`` where the worker
        failed.

        Args:
            made: The changes; None reads the file that was written last.
            once: Whether it is opened once.
        """
        self.files += 1
        asked = pickle.dumps((made, once))
        os.write(self._ask[1], struct.pack("<I", len(asked)) + asked)
        if made is not None and (written := self._line()) != "written":
            return ENDED if written == ENDED else NOT_WRITTEN
        return self._line() or "CRASH"

    def _line(self) -> str:
        """Return the next line of the worker: "" where it ended, "HANG" where none comes."""
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._answers], [], [], PATIENCE)[0]:
                return "HANG"
            if not (part := os.read(self._answers, 1)):
                return ""
            line += part
        return line.decode().strip()

    def end(self) -> None:
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._ask[1])
        os.close(self._answers)


def limited(path: Path, whole: str, *, once: bool) -> str:
    """Return ``outcome``, or "MEMORY" where it took more than ``MEMORY``."""
    forget_peak()
    before = memory("VmRSS")
    said = outcome(path, whole, once=once)
    grown = memory("VmHWM") - before
    return f"MEMORY: {grown / 2**20:.0f} MiB" if grown > MEMORY else said


def writes(path: Path, data: bytes, made: list[Change]) -> bool:
    """Write a changed file, and return whether this process may go on: HDF5 may keep open what it could not write."""
    try:
        write_changed(path, data, made)
    except Exception:
        return False
    finally:
        os.utime(path, (1, 1))
    return not h5f.get_obj_count(h5f.OBJ_ALL, OPEN)


def check_structures(make: Callable[[Path], Path], folder: Path, cases: int, seed: int | None = None) -> dict[str, int]:
    """Change a file in so many ways and read it; return how often each outcome came.

    A failure counts where a process that has done nothing else fails on the same file; else it is "not repeated": what
    HDF5 does while it writes can spoil the memory of its process.

    Args:
        make: Writes the file that is changed.
        folder: Where.
        cases: Number of changed files.
        seed: None draws other changes each time.

    Raises:
        AssertionError: The reader failed; the fewest changes that show it are printed.
    """
    path = make(folder)
    os.utime(path, (1, 1))
    data, copy, whole = path.read_bytes(), folder / "copy.h5", everything(path)
    assert everything(path, once=True) == whole
    found: collections.Counter[str] = collections.Counter()
    workers: list[Worker] = []

    def ask(made: list[Change] | None, *, once: bool) -> str:
        if not workers:
            workers.append(Worker(data, whole, copy))
        said = workers[0](made, once=once)
        if said == ENDED:
            workers.pop().end()
            return ask(None, once=once)
        if workers[0].files >= FILES_PER_WORKER or said.split(":")[0] not in ALLOWED:
            workers.pop().end()
        return said

    @settings(
        max_examples=cases, database=None, deadline=None, derandomize=seed is not None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink], print_blob=False,
    )  # fmt: skip
    @given(changes(path))
    def check(made: list[Change]) -> None:
        once = found.total() % OPENED_AGAIN > 0
        kind = (said := ask(made, once=once)).split(":")[0]
        if kind in ALLOWED or kind == NOT_WRITTEN:
            found[kind] += 1
            return
        again = ask(None, once=once)
        if again.split(":")[0] in ALLOWED:
            found[f"not repeated ({kind})"] += 1
            return
        found[kind] += 1
        raise AssertionError(f"{said}; {again}")

    try:
        check()
    finally:
        for worker in workers:
            worker.end()
    return dict(found)
