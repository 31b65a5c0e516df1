"""Every file is written whole or not at all: a full disk leaves what was there, and nothing beside it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from gradlens import read_run
from gradlens.atomic import reason, stale_names, temporary_name, whole_file, whole_folder, write_errors, write_text
from gradlens.cli import run_command
from gradlens.errors import RunExistsError, RunFileError
from gradlens.plots import save_figure
from gradlens.report import markdown, pdf
from gradlens.storage import FileSink, recover_run
from gradlens.train.checkpoint import save_checkpoint
from tests.processes import some_slow
from tests.storage import known
from tests.storage.test_levels import values_of
from tests.storage.test_levels import write as write_rows

Content = dict[str, bytes]
Writer = Callable[[Path], object]


def by(*arguments: str) -> Writer:
    """Return a writer that runs a command, with the name of what it writes at the end."""

    def write(path: Path) -> None:
        if code := run_command([*arguments, "-o", str(path)]):
            raise RunFileError(f"exit code {code}")

    return write


def draw(path: Path) -> None:
    figure = Figure()
    figure.subplots().plot(range(50))
    save_figure(figure, path, command="gradlens", runs=[read_run("runs/net-s0.h5")])


def write_facts(path: Path) -> None:
    """Write a figure with facts that are longer than itself."""
    save_figure(Figure(), path.with_suffix(".png"), command="gradlens", runs=[read_run("runs/told-s0.h5")])


WRITERS: dict[str, Writer] = {
    **{f"figure.{ending}": draw for ending in ("png", "svg", "pdf")},
    "facts.json": write_facts,
    **{f"report.{ending}": by("report", "net-s0") for ending in ("html", "pdf", "md")},
    **{f"table.{ending}": by("export", "net-s0", "--overwrite") for ending in ("csv", "parquet")},
    "events": by("export", "net-s0", "--overwrite", "--to", "tensorboard"),
    "a.ckpt": lambda path: save_checkpoint(path, {"config": {}, "progress": {}, "rows": 1, "steps": 2}),
    "run.h5": lambda path: recover_run(path, repack=True),
}
"""Name of what is written, to what writes it."""


def contents(folder: Path) -> Content:
    """Return everything below a folder, hidden files too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written_once(name: str, make_run: Callable[..., Path], folder: Path) -> Content:
    """Let a writer write, and put a mark into its files, so that one that is written again is another."""
    make_run()
    make_run("told-s0", config={"told": "x" * 300_000})
    folder.mkdir()
    if name == "run.h5":
        sink = write_rows(folder.with_name("writer.h5"), values_of(300), close=False)
        shutil.copy(sink.path, folder / name)
        sink.close("complete")
        return contents(folder)
    WRITERS[name](folder / name)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "figure.json":
            path.write_bytes(path.read_bytes() + b" ")
    return contents(folder)


@pytest.fixture(autouse=True)
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reports hold one figure: several would be drawn for minutes."""
    real = markdown.report_figures
    for module in (markdown, pdf):
        monkeypatch.setattr(module, "report_figures", lambda *given: itertools.islice(real(*given), 1))


def full(*_: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size."""
    resource = pytest.importorskip("resource", reason="needs a system with limits")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", some_slow(WRITERS, 2))
def test_a_write_that_ends_half_way_leaves_what_was_there(
    name: str, make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    before = written_once(name, make_run, folder)
    part = "figure.json" if name == "facts.json" else name
    size = max(len(data) for path, data in before.items() if path.split("/")[0] == part or name == "facts.json")
    capsys.readouterr()
    limit = 4096 if name == "run.h5" else size // 2  # the file that it becomes is much smaller
    with largest_file(limit), pytest.raises(RunFileError) as error:
        WRITERS[name](folder / name)
    said = str(error.value) + capsys.readouterr().err
    assert "File too large" in said, said
    after = contents(folder)
    if name == "facts.json":
        assert after.pop("facts.png") != before.pop("facts.png")  # the figure itself was written before
    assert after == before


@pytest.mark.parametrize("name", some_slow(WRITERS))
def test_a_full_disk_at_the_end_leaves_what_was_there(
    name: str, make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    before = written_once(name, make_run, folder)
    for fails in ("fsync", "replace"):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(os, fails, full)
            with pytest.raises(RunFileError) as error:
                WRITERS[name](folder / name)
        assert "No space left on device" in str(error.value) + capsys.readouterr().err
        assert contents(folder) == before
    WRITERS[name](folder / name)
    after = contents(folder)
    assert after != before
    assert after.keys() == before.keys()


@pytest.mark.parametrize("name", ["figure.png", "report.html", "report.md", "table.csv", "events", "a.ckpt"])
def test_a_pipe_or_a_device_is_not_replaced(
    name: str, make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run()
    path = tmp_path / "out" / name
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(RunFileError) as error:
        WRITERS[name](path)
    assert "plain file" in str(error.value) + capsys.readouterr().err
    assert path.is_fifo()
    assert name == "report.md" or list(path.parent.iterdir()) == [path]  # the figures of that are written before it


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to("target.txt")
    write_text(tmp_path / "link.txt", "a")
    write_text(tmp_path / "link.txt", "b")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "target.txt").read_text() == "b"


def test_the_facts_of_a_figure_fail_alone(make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    before = written_once("facts.json", make_run, folder)
    real, names = os.replace, []

    def second(source: Path, target: Path) -> None:
        names.append(target.name)
        return full() if len(names) == 2 else real(source, target)

    monkeypatch.setattr(os, "replace", second)
    with pytest.raises(RunFileError, match="No space left"):
        write_facts(folder / "facts.json")
    after = contents(folder)
    assert names == ["facts.png", "facts.json"]
    assert after["facts.json"] == before["facts.json"]
    assert after.keys() == before.keys()


# --- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "bad disk"), ValueError("a mistake")])
def test_any_error_in_between_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old\n")
    with pytest.raises(type(error)), whole_file(path) as temporary:  # noqa: PT012
        assert temporary == temporary_name(path) == path.with_name(f".a.txt.{os.getpid()}.tmp")
        temporary.write_text("half")
        raise error
    assert contents(tmp_path) == {"new/a.txt": b"old\n"}
    with whole_file(path) as temporary:
        temporary.write_text("new")
    assert contents(tmp_path) == {"new/a.txt": b"new"}


def test_a_file_that_was_to_be_kept_gets_its_name_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, kept = tmp_path / "a.txt", tmp_path / "a.txt.damaged"
    path.write_text("old")
    fail_the_second_replace(monkeypatch)
    with pytest.raises(OSError, match="No space"), whole_file(path, keep=kept) as temporary:
        temporary.write_text("new")
    assert contents(tmp_path) == {"a.txt": b"old"}
    with whole_file(path, keep=kept) as temporary:
        temporary.write_text("new")
    assert contents(tmp_path) == {"a.txt": b"new", "a.txt.damaged": b"old"}


def fail_the_second_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = os.replace, 0

    def replace(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        return full() if count == 2 else real(source, target)

    monkeypatch.setattr(os, "replace", replace)


def test_a_folder_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "logs"
    for text in ("old", "new"):
        with whole_folder(path) as temporary:
            (temporary / "in").mkdir()
            (temporary / "in" / text).write_text(text)
    assert contents(tmp_path) == {"logs/in/new": b"new"}
    fail_the_second_replace(monkeypatch)
    with pytest.raises(OSError, match="No space"), whole_folder(path) as temporary:
        (temporary / "a").write_text("a")
    assert contents(tmp_path) == {"logs/in/new": b"new"}
    assert [found.name for found in tmp_path.iterdir()] == ["logs"]


def test_a_folder_behind_a_link_is_replaced_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with whole_folder(tmp_path / "link") as temporary:
        (temporary / "a").write_text("a")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "there") == {"a": b"a"}


def test_stale_names_are_those_of_this_file_only(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours = [f".a.h5.{dead.pid}.tmp", f".a.h5.{os.getppid()}.tmp", f".a.h5.{os.getpid()}.tmp", f".a.h5.{10**30}.tmp"]
    for name in [*ours, ".a.h5.x.tmp", ".b.h5.1.tmp", ".a.h5.h5.1.tmp", "a.h5"]:
        (tmp_path / name).touch()
    assert sorted(path.name for path in stale_names(tmp_path / "a.h5")) == sorted(ours)
    alive = {f".a.h5.{os.getppid()}.tmp"}
    left = {path.name for path in stale_names(tmp_path / "a.h5", of_the_dead=True)}
    assert left == set(ours) - alive
    assert stale_names(tmp_path / "nowhere" / "a.h5") == []


def test_what_the_system_says_is_found_wherever_it_is() -> None:
    hdf5 = "Can't write data (file write failed: errno = 28, error message = 'No space left on device', buf = 0x1)"
    assert reason(OSError(hdf5)) == reason(RuntimeError(hdf5)) == "No space left on device"
    outer = RuntimeError("unexpected pos 64")
    outer.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert reason(outer) == "No space left on device"
    assert reason(ValueError("two\nlines")) == "two"
    assert reason(ValueError()) == "ValueError"


def test_errors_that_name_the_file_already_stay_as_they_are() -> None:
    with pytest.raises(RunExistsError, match=r"^it is there$"), write_errors("a cannot be written"):
        raise RunExistsError("it is there")
    with pytest.raises(RunFileError, match=r"^a cannot be written: full \(tip: make room\)$"):  # noqa: SIM117
        with write_errors("a cannot be written", tip="make room"):
            raise OSError(errno.ENOSPC, "full")
    with pytest.raises(RuntimeError, match="a mistake"), write_errors("a cannot be written"):
        raise RuntimeError("a mistake")


# --- places where something is ------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "md"])
def test_a_run_is_never_replaced_by_something_else(ending: str, make_run, capsys: pytest.CaptureFixture[str]) -> None:
    run, place = make_run(), Path(f"x.{ending}")
    before = run.read_bytes()
    place.symlink_to(run)
    word = {"png": "heatmap", "md": "report"}[ending]
    assert run_command([word, "-o", str(place)]) in (1, 2)
    assert "run" in capsys.readouterr().err
    assert run.read_bytes() == before
    assert not [path.name for path in Path().iterdir() if path.name.startswith(".")]


def test_a_link_that_leads_to_itself_is_left(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    for name in ("x.md", "x.csv", "x.h5"):
        os.symlink(name, name)
    assert run_command(["report", "-o", "x.md"]) == 1
    assert run_command(["export", "-o", "x.csv"]) == 1
    with pytest.raises(RunFileError, match="leads to itself"):
        FileSink("x.h5")
    assert capsys.readouterr().err.count("leads to itself") == 2
    assert sorted(path.name for path in Path().iterdir()) == ["runs", "x.csv", "x.h5", "x.md"]


def test_a_run_is_recorded_where_a_link_leads(tmp_path: Path) -> None:
    link, target = tmp_path / "newest.h5", tmp_path / "store" / "run.h5"
    link.symlink_to(target)
    for generation in (0, 1):
        sink = FileSink(link, overwrite=bool(generation))
        sink.open(known.header(generation))
        with pytest.raises(RunFileError, match="is being written"):
            FileSink(target, overwrite=True)
        known.write_rows(sink, generation, 0, 10)
        sink.close("complete")
        assert link.is_symlink()
        assert known.check_file(target)[:2] == (generation, 10)
