"""Kill a writer at any moment: the file that is left holds every flushed row, exactly, and can be gone on with."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np
import pytest

from gradlens import read_run
from gradlens.cli import run_command
from gradlens.errors import DamagedError
from gradlens.run import Header, Layer, Row
from gradlens.storage import BackgroundSink, FileSink, writer
from gradlens.storage.packing import pack
from gradlens.storage.stored_file import StoredFile
from gradlens.storage.superblock import ClosedView
from tests.processes import PATIENCE, in_new_process
from tests.storage import known

MESSAGE = struct.Struct("3q")
SAFE, CLOSING = 0, 1
WHENS = ("at first", "later", "while it closes")
Say = Callable[[int, int, int], object]


def write_on(path: Path, seed: int, say: Say, *, background: bool) -> NoReturn:
    """Write one run after the other to the same file, resumed or over it; say what is safe by now."""
    rng = np.random.default_rng(seed)
    generation, rows, resume = 0, 0, None
    while True:
        file = FileSink(path, overwrite=generation > 0 and resume is None, resume_at=resume)
        sink = BackgroundSink(file) if background else file
        sink.open(known.header(generation))
        end = rows + int(rng.choice([40, 150, 400, 1500]))
        while rows < end:
            more = int(rng.integers(1, 120))
            known.write_rows(sink, generation, rows, rows + more)  # type: ignore[arg-type]
            rows += more
            if rng.random() < 0.3:
                sink.write_state(rows / 1e6, (f"after {rows} rows",))
            if rng.random() < 0.6:
                sink.flush()
                say(SAFE, generation, rows)
        say(CLOSING, generation, rows)
        sink.close("complete")
        say(SAFE, generation, rows)
        if rng.random() < 0.6:
            rows = int(rng.integers(rows // 2, rows + 1))
            resume = rows, rows // known.EPOCH_ROWS
            say(SAFE, generation, rows)  # no more than these, from now on
        else:
            generation, rows, resume = generation + 1, 0, None


def start(path: Path, seed: int, *, background: bool) -> tuple[int, int]:
    """Start a process that writes; return its id, and where it says what it has done."""
    ours, theirs = os.pipe()
    process = known.fork()
    if process:
        os.close(theirs)
        return process, ours
    try:
        write_on(path, seed, lambda *words: os.write(theirs, MESSAGE.pack(*words)), background=background)
    except BaseException:
        path.parent.with_suffix(".txt").write_text(traceback.format_exc())
    os._exit(1)


def await_message(place: int, kind: int | None) -> bytes:
    """Return what was said up to a message of some kind."""
    said = b""
    while True:
        assert select.select([place], [], [], PATIENCE)[0], "the writer says nothing"
        message = os.read(place, MESSAGE.size)
        assert message, "the writer ended"
        said += message
        if kind is None or MESSAGE.unpack(message)[0] == kind:
            return said


def kill(path: Path, seed: int, when: str, *, background: bool) -> tuple[int, int] | None:
    """Kill a writer; return the generation and the rows that were safe by then, None if none were."""
    rng = np.random.default_rng(1000 + seed)
    process, place = start(path, seed, background=background)
    said = b""
    try:
        if when == "at first":
            time.sleep(rng.uniform(0, 0.3))
        else:
            said = await_message(place, SAFE if when == "later" else CLOSING)
            time.sleep(rng.uniform(0, 0.25 if when == "later" else 0.1))
        os.kill(process, signal.SIGKILL)
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        while more := os.read(place, 4096):
            said += more
        os.close(place)
    failed = path.parent.with_suffix(".txt")
    assert code == -signal.SIGKILL, failed.read_text() if failed.exists() else code
    safe = [words[1:] for words in MESSAGE.iter_unpack(said) if words[0] == SAFE]
    return safe[-1] if safe else None


def check_left(path: Path, safe: tuple[int, int] | None) -> tuple[int, int, int] | None:
    """Check what a killed writer left; return generation, rows and epochs."""
    known.hidden(path)
    assert not known.is_locked(path)
    if not path.exists():
        assert safe is None
        return None
    if path.stat().st_mtime > 1:
        os.utime(path, (1, 1))  # so that no reader takes it for one that is being written, and waits
    generation, rows, epochs = known.check_file(path)
    if safe is not None and generation == safe[0]:
        assert (rows, epochs) >= (safe[1], safe[1] // known.EPOCH_ROWS)
    elif safe is not None:
        assert generation == safe[0] + 1, "a file of another run"
    return generation, rows, epochs


def go_on(path: Path, left: tuple[int, int, int] | None) -> None:
    """Resume what is left, and complete it."""
    generation, rows, epochs = left or (0, 0, 0)
    sink = FileSink(path, resume_at=None if left is None else (rows, epochs))
    sink.open(known.header(generation))
    for index in range(epochs, rows // known.EPOCH_ROWS):
        sink.write_epoch(known.epoch(generation, index))
    known.write_rows(sink, generation, rows, rows + 100)
    sink.close("complete")
    assert known.check_file(path) == (generation, rows + 100, (rows + 100) // known.EPOCH_ROWS)
    assert known.hidden(path) == []


def kill_many(within: str, kills: int) -> collections.Counter[str]:
    """Kill so many writers; return how often there was what."""
    folder = Path(within)
    found: collections.Counter[str] = collections.Counter()
    for seed in range(kills):
        when, background = WHENS[seed % 3], seed // 3 % 2 == 1
        path = folder / str(seed) / "run.h5"
        path.parent.mkdir()
        safe = kill(path, seed, when, background=background)
        left = check_left(path, safe)
        if seed % 15 < 3 or kills < 10:
            go_on(path, left)
        found["no file yet" if left is None else "readable"] += 1
        found["rows beyond the last flush that was acknowledged"] += (
            0 if left is None else left[1] - (safe or (0, 0))[1]
        )
    return found


def test_kills_lose_nothing_that_was_flushed(tmp_path: Path) -> None:
    assert in_new_process(kill_many, str(tmp_path), 6)["readable"] >= 4


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing_that_was_flushed(tmp_path: Path) -> None:
    found = in_new_process(kill_many, str(tmp_path), 201)
    assert found["readable"] >= 150


@pytest.mark.parametrize("counts", [(True, False), (False, True), (True, True)], ids=str)
def test_a_kill_between_the_counts_leaves_the_newer_ones(counts: tuple[bool, bool], tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    sink = FileSink(path)
    sink.open(known.header())
    known.write_rows(sink, 0, 0, 69)
    sink.flush()
    before = read_run(path)
    known.write_rows(sink, 0, 69, 70)
    data = bytearray(path.read_bytes())
    places = {}
    with h5py.File(ClosedView(path), "r") as file:
        for name in ("n_steps", "n_epochs"):
            places[name] = file[f"state/{name}"].id.get_offset()
    sink.close("complete")
    for name, old, value in zip(places, counts, (len(before.steps), len(before.epochs["epoch"])), strict=True):
        if old:
            data[places[name] : places[name] + 8] = value.to_bytes(8, "little")
    path.write_bytes(data)
    assert known.check_file(path)[1:] == ((69, 0) if all(counts) else (70, 1))
    data[places["n_epochs"]] = 2
    path.write_bytes(data)
    os.utime(path, (1, 1))
    with pytest.raises(DamagedError, match="do not fit their checksum"):
        read_run(path)


@pytest.mark.parametrize("recovered", [True, False], ids=["recovered", "written over"])
def test_a_kill_before_the_file_is_packed_is_said_and_cleared(
    recovered: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs" / "run.h5"
    path.parent.mkdir()
    child = known.fork()
    if not child:

        def killed(source: StoredFile, target: Path) -> None:
            pack(source, target)
            os.kill(os.getpid(), signal.SIGKILL)

        with contextlib.suppress(BaseException):
            writer.pack = killed  # type: ignore[attr-defined]
            known.write_run(path, 150)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert known.hidden(path) == [f".run.h5.{child}.tmp", ".run.h5.lock"]
    assert known.check_file(path) == (0, 150, 2)
    unpacked = path.stat().st_size
    assert run_command(["ls", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["status"] == "complete"
    assert "killed before it was packed" in row["note"]
    if recovered:
        assert run_command(["recover"]) == 0
        said = capsys.readouterr().out
        assert "not packed when it ended; packed now: 150 rows and 2 epochs" in said
        assert f"removed .run.h5.{child}.tmp" in said
        assert path.stat().st_size < unpacked
    else:
        sink = FileSink(path, resume_at=(150, 2))
        sink.open(known.header())
        sink.close("complete")
    assert known.hidden(path) == []
    assert known.check_file(path) == (0, 150, 2)
    assert run_command(["recover"]) == 0
    assert "intact (complete), not changed" in capsys.readouterr().out


def test_notes_survive_when_a_file_is_laid_out_anew_or_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    sink = FileSink(path)
    sink.open(known.header())
    known.write_rows(sink, 0, 0, 10)
    sink.write_state(0.5, known.STATED)
    sink.write_epoch({"epoch": 1.0, "new": 1.0})
    assert read_run(path).info["notes"] == list(known.STATED)
    sink.close("interrupted")
    sink = FileSink(path, resume_at=(10, 0))
    sink.open(known.header())
    sink.flush()
    info = read_run(path).info
    assert (info["notes"], info["overhead"]) == (list(known.STATED), 0.5)
    with contextlib.suppress(BaseException):
        sink.close("complete")


def test_a_description_of_any_length_is_read_while_it_is_written_and_after(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    layers = tuple(Layer(f"{'block.' * 20}{i}é", "Conv2d", "main", i + 1, 1, 1) for i in range(900))
    config = {"text": "x" * 200_000, "many": {str(i): "ü" for i in range(1000)}}
    sink = FileSink(path)
    sink.open(Header(layers, {"param_norm": 1}, model="large", seed=3, config=config))
    sink.write_row(Row(0, 0, {"param_norm": np.arange(900.0)}))
    for end in (False, True):
        if end:
            sink.close("complete")
        run = read_run(path)
        assert (run.layers, run.config, run.model, run.seed) == (layers, config, "large", 3)
        assert run.metric("param_norm").tolist() == [list(range(900))]
