"""What can go wrong with a file while it is written: one clear line, and nothing that was flushed is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

import gradlens
from gradlens import GradlensWarning, read_run
from gradlens.errors import NoRunError, RunFileError
from gradlens.storage import BackgroundSink, FileSink
from gradlens.storage.checksums import is_sealed, seal
from gradlens.storage.lock import lock_path
from tests.processes import PATIENCE
from tests.storage import known

NOBODY = 65534


def in_child(act: Callable[[], object], *, ends: bool = True) -> tuple[int, str]:
    """Do something in a forked process; return its id, or exit code if it was waited for, and what it returned."""
    ours, theirs = os.pipe()
    child = known.fork()
    if not child:
        os.close(ours)
        try:
            os.write(theirs, f"{act()}\n".encode())
            if not ends:
                time.sleep(PATIENCE)
            os._exit(0)
        except BaseException:
            os.write(theirs, traceback.format_exc().encode())
        os._exit(1)
    os.close(theirs)
    with os.fdopen(ours) as said:
        if ends:
            text = said.read().strip()
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
        return child, said.readline().strip()


def message(act: Callable[[], object]) -> str:
    """Return the error that something ends with; it must be one line."""
    try:
        act()
    except RunFileError as error:
        said = str(error)
    else:
        said = "no error"
    assert "\n" not in said
    return said


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs" / "run.h5"


@pytest.fixture
def sink(path: Path) -> Iterator[FileSink]:
    """A sink that has flushed 70 rows."""
    sink = FileSink(path)
    sink.open(known.header())
    known.write_rows(sink, 0, 0, 70)
    sink.flush()
    yield sink
    with contextlib.suppress(RunFileError):
        sink.close("failed")


# --- somebody else meddles ------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"something else")
    other.replace(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("background", [False, True], ids=["", "in the background"])
@pytest.mark.parametrize(
    ("meddle", "said"),
    [
        (remove, "was removed while"),
        (replace, "was replaced by another file while"),
        (cut, "was cut off at"),
        (empty, "was cut off at 0 of"),
    ],
)
def test_a_file_that_somebody_meddles_with_is_left_to_them(
    meddle: Callable[[Path], None], said: str, background: bool, path: Path
) -> None:
    file = FileSink(path)
    sink = BackgroundSink(file) if background else file
    sink.open(known.header())
    known.write_rows(sink, 0, 0, 70)  # type: ignore[arg-type]
    sink.flush()
    meddle(path)
    there = path.read_bytes() if path.exists() else None
    sink.write_row(known.row(0, 70))
    assert said in message(sink.flush)
    with contextlib.suppress(RunFileError):
        sink.write_row(known.row(0, 71))
    with contextlib.suppress(RunFileError):
        sink.close("failed")
    assert (path.read_bytes() if path.exists() else None) == there
    assert known.hidden(path) == []
    assert not known.is_locked(path)


@pytest.mark.parametrize("background", [False, True], ids=["", "in the background"])
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_a_file_that_is_moved_away_has_every_row_where_it_is(folder: bool, background: bool, path: Path) -> None:
    file = FileSink(path)
    sink = BackgroundSink(file) if background else file
    sink.open(known.header())
    known.write_rows(sink, 0, 0, 70)  # type: ignore[arg-type]
    sink.flush()
    moved = path.parent.with_name("moved") if folder else path.with_name("moved.h5")
    (path.parent if folder else path).rename(moved)
    known.write_rows(sink, 0, 70, 75)  # type: ignore[arg-type]
    assert "was removed while" in message(sink.flush)
    with contextlib.suppress(RunFileError):
        sink.close("failed")
    assert not path.exists()
    run = read_run(moved / path.name if folder else moved)
    assert (len(run.steps), run.status) == (75, "failed")
    assert known.mismatch(run) == ""


def test_a_folder_that_is_removed_says_so(sink: FileSink, path: Path) -> None:
    for left in path.parent.iterdir():
        left.unlink()
    path.parent.rmdir()
    assert "was removed" in message(sink.flush)
    sink.close("failed")
    assert not path.parent.exists()


# --- what may not be written or read --------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="root alone can become nobody")
def test_without_permission_there_is_one_line(tmp_path: Path, make_run) -> None:
    run = make_run()
    closed, readable = tmp_path / "closed", tmp_path / "readable"
    for folder, mode in ((closed, 0o700), (readable, 0o755)):
        folder.mkdir(mode=mode)
        (folder / "run.h5").write_bytes(run.read_bytes())
    (readable / "secret.h5").write_bytes(run.read_bytes())
    (readable / "secret.h5").chmod(0o600)

    def act() -> list[str]:
        os.chdir(tmp_path)  # nobody may not look into the folders above
        os.setuid(NOBODY)
        return [
            message(lambda: FileSink(readable.relative_to(tmp_path) / "new.h5")),
            message(lambda: FileSink(Path("closed/new.h5"))),
            message(lambda: read_run("closed/run.h5")),
            message(lambda: read_run("readable/secret.h5")),
            message(lambda: read_run("readable/run.h5")),
        ]

    tmp_path.chmod(0o755)
    code, said = in_child(act)
    assert code == 0, said
    new, hidden, unseen, secret, fine = eval(said)
    assert "readable/new.h5 cannot be written: " in new
    assert "closed/new.h5 cannot be written: Permission denied" in hidden
    assert "closed/run.h5 cannot be read: you may not look into its folder" in unseen
    assert "readable/secret.h5 cannot be read: you may not" in secret
    assert fine == "no error"


def test_a_folder_that_became_read_only_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = FileSink(path)

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gradlens.storage.lock.os.open", refuse)
    assert "run.h5 cannot be written: Permission denied" in message(lambda: sink.open(known.header()))


# --- no room --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_training_goes_on_when_the_disk_is_full(path: Path, one_thread: None) -> None:
    import torch

    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    done = 0
    with no_file_beyond(180_000), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with gradlens.record(model, path, optimizer=optimizer) as recorder:
            for epoch in range(5):
                for _ in range(100):
                    optimizer.zero_grad()
                    model(torch.ones(2, 4)).sum().backward()
                    optimizer.step()
                    done += 1
                recorder.log_epoch(epoch=epoch + 1)
    assert done == 500
    ours = [str(warning.message) for warning in said if issubclass(warning.category, GradlensWarning)]
    assert len(ours) == 1
    assert "training goes on" in ours[0]
    assert "file too large" in ours[0].lower()
    run = read_run(path)
    assert run.status == "failed"
    assert 100 <= len(run.steps) < 500
    assert np.isfinite(run.metric("param_grad_norm")).all()
    assert known.hidden(path) == []


def test_a_run_that_cannot_be_packed_stays_as_it_is(sink: FileSink, path: Path) -> None:
    known.write_rows(sink, 0, 70, 300)
    sink.flush()
    with no_file_beyond(20_000):
        sink.close("complete")
    assert known.check_file(path) == (0, 300, 4)
    assert read_run(path).status == "complete"
    assert known.hidden(path) == []


# --- two writers ----------------------------------------------------------------------------------------


def test_a_second_writer_in_the_process_is_refused_by_whatever_way(sink: FileSink, path: Path) -> None:
    link = path.parent.with_name("link")
    link.symlink_to(path.parent)
    for name in (path, link / path.name, Path(os.path.relpath(path)), path.parent / ".." / "runs" / path.name):
        said = message(lambda name=name: FileSink(name, overwrite=True))
        assert f"is being written in this process ({os.getpid()})" in said
    other = in_child(lambda: message(lambda: FileSink(path, overwrite=True)))[1]
    assert f"run.h5 is being written by process {os.getpid()} on " in other  # to look did not let the lock go


def test_two_sinks_made_before_either_began(path: Path) -> None:
    first, second = FileSink(path), FileSink(path)
    first.open(known.header())
    assert "is being written in this process" in message(lambda: second.open(known.header()))
    second.close("failed")
    assert known.is_locked(path)
    first.close("complete")
    assert not known.is_locked(path)


@pytest.mark.parametrize("ended", ["by closing", "by an error", "forgotten"])
def test_the_lock_is_free_when_the_writer_is_through(ended: str, path: Path) -> None:
    sink = FileSink(path)
    sink.open(known.header())
    sink.write_row(known.row(0, 0))
    if ended == "by an error":
        path.unlink()
        message(sink.flush)
    if ended == "forgotten":
        assert sink._file is not None
        sink._file.abandon("failed")
    else:
        sink.close("complete")
    del sink
    again = FileSink(path, overwrite=True)
    again.open(known.header())
    known.write_rows(again, 0, 0, 5)
    again.close("complete")
    assert known.check_file(path) == (0, 5, 0)
    assert known.hidden(path) == []


def test_a_lock_file_that_was_left_is_no_obstacle(path: Path) -> None:
    lock_path(path).write_text(f"process {os.getpid()} on elsewhere")
    leftover = path.with_name(f".{path.name}.123.tmp")
    others = [path.with_name(name) for name in (".run.h5.h5.123.tmp", ".other.h5.123.tmp", ".run.h5.abc.tmp")]
    for file in (leftover, *others):
        file.write_text("")
    sink = FileSink(path)
    sink.open(known.header())
    known.write_rows(sink, 0, 0, 5)
    sink.close("complete")
    assert not leftover.exists()
    assert all(other.exists() for other in others)
    assert not lock_path(path).exists()


def test_names_with_brackets_are_names(tmp_path: Path) -> None:
    path = tmp_path / "run[1]*.h5"
    path.with_name(f".{path.name}.123.tmp").write_text("")
    known.write_run(path, 5)
    assert known.check_file(path) == (0, 5, 0)
    assert known.hidden(path) == []


def test_a_killed_writer_whose_child_lives_holds_nothing(path: Path) -> None:
    kept = []

    def write() -> int:
        sink = FileSink(path)
        kept.append(sink)
        sink.open(known.header())
        known.write_rows(sink, 0, 0, 40)
        sink.flush()
        return in_child(lambda: "alive", ends=False)[0]

    writer, child = in_child(write, ends=False)
    try:
        assert known.is_locked(path)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        assert not known.is_locked(path)
        sink = FileSink(path, resume_at=(40, 0))
        sink.open(known.header())
        known.write_rows(sink, 0, 40, 100)
        sink.close("complete")
    finally:
        os.kill(int(child), signal.SIGKILL)
    assert known.check_file(path) == (0, 100, 1)
    assert known.hidden(path) == []


def test_a_forked_process_that_ends_leaves_the_file_alone(sink: FileSink, path: Path) -> None:
    def end() -> tuple[str, str]:
        said = message(lambda: sink.write_epoch({"epoch": 1})), message(lambda: sink.close("complete"))
        held, sink._file = sink._file, None
        assert held is not None
        held._datasets["state/n_steps"][()] = 12345
        held._file.close()
        return said

    code, said = in_child(end)
    assert code == 0, said
    assert "was forked from the one that writes the run" in said
    assert known.is_locked(path)
    known.write_rows(sink, 0, 70, 200)
    sink.close("complete")
    assert known.check_file(path) == (0, 200, 2)


# --- files of others ------------------------------------------------------------------------------------


def test_what_is_no_run_is_not_resumed_either(path: Path) -> None:
    path.write_text("hello")
    sink = FileSink(path, resume_at=(1, 0))
    assert "is not an HDF5 file" in message(lambda: sink.open(known.header()))
    sink.close("failed")
    with h5py.File(path, "w") as file:
        file["x"] = 1
    sink = FileSink(path, resume_at=(1, 0))
    assert "is an HDF5 file of another program" in message(lambda: sink.open(known.header()))
    sink.close("failed")
    assert path.stat().st_size > 0
    with pytest.raises(NoRunError):
        FileSink(path.with_name("none.h5"), resume_at=(1, 0))
    assert known.hidden(path) == []


def test_more_rows_than_there_are_cannot_be_kept(path: Path) -> None:
    known.write_run(path, 20)
    sink = FileSink(path, resume_at=(21, 0))
    sink.open(known.header())
    assert "holds 20 rows and 0 epochs, fewer than the 21 and 0" in message(lambda: sink.write_row(known.row(0, 21)))
    message(lambda: sink.close("failed"))
    assert known.check_file(path) == (0, 20, 0)


def test_a_time_that_was_sealed_shows_when_it_was_changed() -> None:
    began = time.time()
    now = seal(began)
    assert abs(now - began) < 1
    assert is_sealed(now)
    bits = np.float64(now).view(np.uint64)
    changed = [float((bits ^ np.uint64(1 << bit)).view(np.float64)) for bit in range(64)]
    assert not any(map(is_sealed, changed))
