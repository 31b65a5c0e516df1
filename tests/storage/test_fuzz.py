"""Damaged copies of run files: either the numbers are the ones that were written, or there is one clear error."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from gradlens import read_run
from gradlens.errors import GradlensError
from gradlens.row_chunks import LEVELS
from gradlens.storage import FileSink, read_card, reader
from gradlens.storage.lock import lock_path
from gradlens.storage.run_file import open_run_file
from tests.conftest import SAMPLE
from tests.processes import PATIENCE
from tests.storage import known

HANG_SECONDS = 10.0
"""Of processor time."""
COPIES_PER_READER = 20
ROWS, LAYERS = 700, 12


def finished(folder: Path) -> Path:
    return known.write_run(folder / "finished.h5", ROWS, count=LAYERS)


def killed(folder: Path) -> Path:
    """Write a run and end its process in the middle, without closing the file."""
    path = folder / "killed.h5"
    child = known.fork()
    if not child:
        with contextlib.suppress(BaseException):
            sink = FileSink(path)
            sink.open(known.header(count=LAYERS))
            known.write_rows(sink, 0, 0, ROWS - 30, LAYERS)
            sink.write_state(0.01, known.STATED)
            sink.flush()
            known.write_rows(sink, 0, ROWS - 30, ROWS, LAYERS)
            sink.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return path


def old(folder: Path) -> Path:
    path = folder / "old.h5"
    path.write_bytes(SAMPLE.read_bytes())
    return path


def everything(path: Path, *, once: bool = False) -> str:
    """Read all that there is to be read of a run, and return its digest.

    Args:
        path: The run.
        once: Open it once for all of its parts, and once for its card.
    """
    with contextlib.ExitStack() as stack:
        if once:
            opened = stack.enter_context(open_run_file(path))
            stack.enter_context(mock.patch.object(reader, "reading", lambda path, use, known=False: use(opened)))
        said = digest(path)
    card = read_card(path)
    card.pop("heartbeat", None)  # stands in ``info``; a finished file's card has it where its quick copy is damaged
    said.update(repr(card).encode())
    return said.hexdigest()


def digest(path: Path) -> Any:
    """Read all of a run but its card."""
    run = read_run(path)
    said = hashlib.sha256()
    for part in dataclasses.fields(run):
        if part.name in ("layers", "status", "info"):
            said.update(repr(getattr(run, part.name)).encode())
    tables = {"scalar": run.scalars, "epoch": run.epochs, "row": {"steps": run.steps, "of": run.epoch_of_step}}
    for table, columns in tables.items():
        for name in sorted(columns):
            said.update(f"{table} {name} {columns[name].dtype}".encode() + columns[name].tobytes())
    fresh = read_run(path).metrics  # reads blocks before rows
    for name in sorted(run.metrics):
        for size, start in ((1, 0), (LEVELS[0], 7), (LEVELS[1], 0)):
            blocks = fresh.read_chunks(name, start, len(run.steps), len(run.steps) // size)  # type: ignore[attr-defined]
            said.update(blocks.edges.tobytes() + np.ascontiguousarray(blocks.values).tobytes())
        said.update(name.encode() + run.metric(name).tobytes())
    return said


def outcome(path: Path, whole: str, *, once: bool = False) -> str:
    """Say what comes of reading a file: "same", "error", "WRONG", or what was raised that should not have been."""
    try:
        started = time.process_time()
        same = everything(path, once=once) == whole
        return "HANG" if time.process_time() - started > HANG_SECONDS else "same" if same else "WRONG"
    except GradlensError as error:
        return "error" if str(path) in str(error) and "\n" not in str(error) else f"unclear error: {error}"
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"


class Reader:
    """A process that reads what it is told to, so that this one survives what kills it.

    Args:
        read: What it does with a path.
    """

    def __init__(self, read: Callable[[Path], str]) -> None:
        self._ask, theirs = os.pipe(), os.pipe()
        self.answers = theirs[0]
        self.process = known.fork()
        if not self.process:
            with contextlib.suppress(BaseException):
                os.close(self._ask[1])
                with os.fdopen(self._ask[0]) as asked:
                    for line in asked:
                        os.write(theirs[1], (read(Path(line[:-1])).replace("\n", " ")[:400] + "\n").encode())
            os._exit(0)
        os.close(self._ask[0])
        os.close(theirs[1])

    def __call__(self, path: Path) -> str:
        """Return what is read, "HANG" or "CRASH"."""
        os.write(self._ask[1], f"{path}\n".encode())
        if not select.select([self.answers], [], [], PATIENCE)[0]:
            return "HANG"
        return os.read(self.answers, 4096).decode().strip() or "CRASH"

    def end(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self._ask[1])
        os.close(self.answers)


def damages(data: bytes, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Damage bytes in ever other ways, half of the time where they are not 0."""
    filled = np.flatnonzero(np.frombuffer(data, dtype=np.uint8))

    def somewhere() -> int:
        return int(rng.choice(filled) if rng.random() < 0.5 else rng.integers(len(data)))

    while True:
        changed = bytearray(data)
        for _ in range(rng.integers(1, 9)):
            changed[somewhere()] ^= 1 << int(rng.integers(8))
        yield "bits", bytes(changed)
        changed, start = bytearray(data), somewhere()
        part = rng.bytes(int(rng.integers(1, 65)))[: len(data) - start]
        changed[start : start + len(part)] = part
        yield "bytes", bytes(changed)
        yield "cut", data[: rng.integers(len(data))]
        changed, start = bytearray(data), somewhere() // 4096 * 4096
        changed[start : start + 4096] = bytes(len(changed[start : start + 4096]))
        yield "page", bytes(changed)


def fuzz(path: Path, count: int, seed: int, keep: Path | None = None) -> dict[tuple[str, str], int]:
    """Damage so many copies of a file; return how often (damage, outcome) came up."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    os.utime(path, (1, 1))  # as if nobody wrote it any more
    lock_path(path).unlink(missing_ok=True)  # of a writer that was killed; copies have none
    whole = everything(path)
    copy, reader = path.with_name("copy.h5"), None
    source = damages(path.read_bytes(), np.random.default_rng(seed))
    for number in range(count):
        damage, data = next(source)
        copy.write_bytes(data)
        os.utime(copy, (1, 1))
        reader = reader or Reader(lambda at: outcome(at, whole).replace(str(at), "copy.h5"))
        said = reader(copy)
        kind = said.split(":")[0]
        found[damage, kind] += 1
        if kind not in ("same", "error") and keep is not None:
            keep.mkdir(exist_ok=True)
            (keep / f"{path.stem}-{number}-{damage}-{kind.split()[0]}.h5").write_bytes(data)
            (keep / f"{path.stem}-{number}.txt").write_text(said)
        if kind in ("HANG", "CRASH") or number % COPIES_PER_READER == COPIES_PER_READER - 1:
            reader.end()
            reader = None
    if reader is not None:
        reader.end()
    return dict(found)


def check(found: dict[tuple[str, str], int], *, guarded: bool) -> None:
    """Fail where a copy was read wrong, or not read as it should be."""
    allowed = {"same", "error"} if guarded else {"same", "error", "WRONG"}
    assert {kind for _, kind in found} <= allowed, found


@pytest.mark.parametrize("make", [finished, killed, old])
@pytest.mark.parametrize("count", [8, pytest.param(330, marks=pytest.mark.slow)])
def test_a_damaged_file_is_read_right_or_refused(make: Callable[[Path], Path], count: int, tmp_path: Path) -> None:
    found = fuzz(make(tmp_path), count, seed=count)
    assert sum(found.values()) == count
    check(found, guarded=make is not old)
