"""A run file whose data lie in another file is refused by every reader, before the other file is opened."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from gradlens import follow_run, read_run, read_runs
from gradlens.cli import cli, run_command
from gradlens.errors import DamagedError, RunFileError
from gradlens.storage import FileSink, read_card, recover_run
from gradlens.storage.contents import Contents
from gradlens.storage.superblock import ClosedView
from tests.conftest import SAMPLE
from tests.processes import some_slow
from tests.storage import known

SECRET = 777_777
ROWS = 150
SAID = "refers to another file"
PACKED = SAMPLE.with_name("packed-s0.h5")


def external_link(file: h5py.File, name: str, other: str) -> None:
    del file[name]
    file[name] = h5py.ExternalLink(other, name)


def soft_link(file: h5py.File, name: str, other: str) -> None:
    del file[name]
    aside = f"aside {name.replace('/', ' ')}"
    file[aside] = h5py.ExternalLink(other, name)
    file[name] = h5py.SoftLink(f"/{aside}")


def external_storage(file: h5py.File, name: str, other: str) -> None:
    shape, kind = file[name].shape, file[name].id.get_type()
    del file[name]
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_external(f"{other}.raw".encode(), 0, h5py.h5f.UNLIMITED)
    h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape or (1,)), made)


def virtual(file: h5py.File, name: str, other: str) -> None:
    before = file[name]
    shape, dtype = before.shape, before.dtype
    del file[name]
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource(other, name, shape, dtype)
    file.create_virtual_dataset(name, layout)


def virtual_without_end(file: h5py.File, name: str, other: str) -> None:
    """A virtual dataset whose length is that of the other file's: HDF5 opens that to tell the shape."""
    dtype = file[name].dtype
    del file[name]
    layout = h5py.VirtualLayout((1,), dtype, maxshape=(None,))
    source = h5py.VirtualSource(other, name, (1,), dtype, maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file.create_virtual_dataset(name, layout)


WAYS = [external_link, soft_link, external_storage, virtual, virtual_without_end]
SHAPED = [external_link, soft_link, external_storage, virtual]
"""Those that keep a dataset's shape."""
PLACES = [
    "step", "epoch_of_step", "scalar/loss", "metric/param_norm", "metric/layer", "epoch/train_loss", "state/n_steps",
    "state/status", "state/notes", "state/check_a", "layer/depth", "level/64", "level/first_64",
]  # fmt: skip
GROUPS = ["scalar", "metric", "epoch", "state", "layer", "level"]
Way = Callable[[h5py.File, str, str], None]


def changed(path: Path, way: Way, name: str, other: str = "other.h5") -> Path:
    """Let one thing of a run lie elsewhere, and write the other file, full of a number that is to be kept secret."""
    there = path.parent / other
    if not there.exists():
        shutil.copy(path, there)
        with h5py.File(there, "r+") as file:
            file.visititems(lambda _, item: fill(item) if isinstance(item, h5py.Dataset) else None)
        there.with_name(f"{other}.raw").write_bytes(np.full(20_000, SECRET, dtype=np.float64).tobytes())
    with h5py.File(path, "r+") as file:
        way(file, name, other)
    return path


def fill(dataset: h5py.Dataset) -> None:
    if dataset.dtype.kind in "fiu" and dataset.name.split("/")[1] != "state":
        dataset[...] = SECRET


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return known.write_run(tmp_path_factory.mktemp("made") / "run.h5", ROWS)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return Path(shutil.copy(made, tmp_path / "runs" / "run.h5"))


def running(path: Path) -> Path:
    """Make a copy of a run as it is while it is written, in a file that can be changed."""
    sink = FileSink(path.with_name("live.h5"))
    sink.open(known.header())
    known.write_rows(sink, 0, 0, ROWS)
    sink.flush()
    with h5py.File(ClosedView(sink.path), "r") as live, h5py.File(path, "w", libver="latest") as copy:
        copy.attrs.update(live.attrs)
        for name in live:
            live.copy(name, copy)
    sink.close("complete")
    sink.path.unlink()
    return path


def check_refused(read: Callable[[], object], path: Path) -> None:
    with pytest.raises(RunFileError, match=SAID) as caught:
        read()
    assert not isinstance(caught.value, DamagedError)
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)


# --- all ways, all places -----------------------------------------------------------------------------------


LINKS = (external_link, soft_link)


def check_card(path: Path) -> None:
    """A card is the file's own bytes: a listing shows it, or refuses the file, and nothing of the other file."""
    try:
        found = str(read_card(path))
    except RunFileError as error:
        found = str(error)
    assert str(SECRET) not in found
    assert "rows" in found or SAID in found


@pytest.mark.parametrize(
    ("way", "place"),
    [(way, place) for way in SHAPED for place in (*PLACES, *(GROUPS if way in LINKS else ()))],
)
def test_whatever_lies_elsewhere_the_file_is_refused(way: Way, place: str, run: Path) -> None:
    assert read_run(run).name == "run"
    changed(run, way, place)
    check_refused(lambda: read_run(run), run)
    check_card(run)
    check_refused(lambda: next(follow_run(run)), run)
    check_refused(lambda: recover_run(run), run)


@pytest.mark.parametrize("way", SHAPED)
def test_so_is_a_run_that_is_being_written(way: Way, run: Path) -> None:
    run.unlink()
    assert len(read_run(running(run)).steps) == ROWS
    assert read_card(run)["status"] != "complete"
    changed(run, way, "check/block")
    check_refused(lambda: read_run(run), run)
    check_card(run)


@pytest.mark.parametrize("sample", [SAMPLE, PACKED])
@pytest.mark.parametrize("way", WAYS)
def test_so_are_runs_of_earlier_versions(way: Way, sample: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(sample, tmp_path / "run.h5"))
    changed(path, way, "scalar/lr")
    check_refused(lambda: read_run(path), path)
    check_card(path)


def test_so_is_what_no_reader_asks_for(run: Path) -> None:
    with h5py.File(run, "r+") as file:
        file.create_group("more/and/more")["deep"] = h5py.ExternalLink("nowhere.h5", "/")
    check_refused(lambda: read_run(run), run)
    check_card(run)


def test_a_group_that_is_its_own_member_is_walked_once(run: Path) -> None:
    with h5py.File(run, "r+") as file:
        file["scalar/again"] = file["scalar"]
        file["zz"] = file["/"]
    with h5py.File(run, "r") as file:
        Contents(run, file).check_all()


def test_the_name_of_what_lies_elsewhere_is_shown_without_control_characters(run: Path) -> None:
    with h5py.File(run, "r+") as file:
        file["scalar/\x1b[2Jred\n" + "long" * 100] = h5py.ExternalLink("other.h5", "/")
    with pytest.raises(RunFileError, match=r"\(scalar/\\x1b\[2Jred\\n(long)+l?o?n?\.\.\.\)") as caught:
        read_run(run)
    assert "\x1b" not in str(caught.value)


# --- every command ------------------------------------------------------------------------------------------

COMMANDS = {
    "summary": [["summary", "runs/run.h5"], ["summary"], ["summary", "--format", "json"]],
    "heatmap": [["heatmap", "--terminal"], ["heatmap", "-o", "x.svg"]],
    "profile": [["profile", "--terminal"]],
    "compare": [["compare", "runs", "--terminal"]],
    "diagnose": [["diagnose"], ["diagnose", "--format", "json"]],
    "claims": [["claims"]],
    "report": [["report", "-o", "x.html"], ["report", "-o", "x.md"]],
    "export": [["export", "-o", "-"], ["export", "--table", "scalars"], ["export", "--to", "tensorboard"]],
    "watch": [["watch", "runs/run.h5"]],
    "recover": [["recover", "runs/run.h5"], ["recover"], ["recover", "--repack"]],
    "run": [["run", "plain8", "--out", "runs", "--resume"]],
}
NO_READERS = {"ls", "probe", "verify"}
"""A listing goes on with the others; the other two read no run."""


def test_every_command_is_tested() -> None:
    assert set(COMMANDS) | NO_READERS == set(cli.commands)


@pytest.mark.parametrize("way", some_slow(SHAPED, 2))
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_in_one_line(
    command: str, way: Way, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run.rename(run.with_name("plain8-s0.h5")) if command == "run" else run
    changed(run, way, "scalar/loss")
    Path("runs/other.h5").rename("other.h5")  # is no run of the folder
    Path("runs/other.h5").symlink_to("../other.h5")
    Path("runs/other.h5").rename("runs/.other.h5")
    with h5py.File(run, "r+") as file:
        way(file, "metric/param_norm", ".other.h5")
    before = run.read_bytes()
    for arguments in COMMANDS[command]:
        assert run_command(arguments) == 1, arguments
        out, err = capsys.readouterr()
        assert SAID in err
        assert err.count("\n") <= 3
        assert "Traceback" not in err
        assert not re.search(r"7[.,]?7+", (out + err).replace(str(run.parent), ""))
    assert run.read_bytes() == before
    assert {path.name for path in Path("runs").iterdir()} <= {run.name, "other.h5.raw", ".other.h5"}
    assert not [path for path in Path().rglob("x.*") if path.stat().st_size]


@pytest.mark.parametrize("form", ["table", "json", "csv"])
@pytest.mark.parametrize("way", SHAPED)
def test_a_listing_shows_nothing_of_the_other_file_and_lists_the_others(
    way: Way, form: str, run: Path, made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    changed(run, way, "scalar/loss")
    Path("runs/other.h5").rename("runs/.other.h5")
    shutil.copy(made, "runs/good.h5")
    assert run_command(["ls", "--format", form]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "good" in line or "complete" in line]
    assert lines
    assert not any(SAID in line for line in lines if "good" in line)
    assert str(SECRET) not in out


def test_every_python_reader_refuses(run: Path) -> None:
    held = read_run(run)
    card = read_card(run)
    assert card["rows"] == ROWS
    changed(run, external_link, "metric/param_norm")
    check_refused(lambda: held.metric("param_norm"), run)  # changed since it was opened
    check_refused(lambda: held.metric_rows("param_norm", 0, 5), run)
    check_refused(lambda: read_runs(run.parent), run)
    check_refused(lambda: read_runs(run), run)

    def resume() -> None:
        sink = FileSink(run, resume_at=(ROWS, 1))
        try:
            sink.open(known.header())
        finally:
            sink.close("failed")

    check_refused(resume, run)


# --- nothing is opened --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_pipe_keeps_no_reader_waiting(way: Way, run: Path) -> None:
    changed(run, way, "scalar/loss")
    for name in ("other.h5", "other.h5.raw"):
        (run.parent / name).unlink()
        os.mkfifo(run.parent / name)
    child = known.fork()
    if not child:
        try:
            check_card(run)
            for read in (read_run, recover_run, lambda path: next(follow_run(path))):
                check_refused(lambda read=read: read(run), run)  # type: ignore[misc]
        except BaseException:
            os._exit(1)
        os._exit(0)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("it waits for the pipe")
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("way", SHAPED)
def test_a_file_that_is_not_there_is_not_looked_for(way: Way, run: Path) -> None:
    changed(run, way, "scalar/loss")
    for name in ("other.h5", "other.h5.raw"):
        (run.parent / name).unlink()
    check_refused(lambda: read_run(run), run)


def test_a_soft_link_that_leads_nowhere_is_damage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(run, "r+") as file:
        del file["scalar/loss"]
        file["scalar/loss"] = h5py.SoftLink("/nowhere")
    with pytest.raises(DamagedError, match=r"is damaged: scalar/loss is a soft link"):
        read_run(run)
    assert run_command(["summary"]) == 1
    err = capsys.readouterr().err
    assert "is damaged" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("sample", [SAMPLE, PACKED])
def test_readers_open_datasets_in_the_checked_way_only(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """h5py's own ways to a dataset are taken away; each of them follows links unasked."""

    root = h5py.Group.__getitem__

    def refuse(group: h5py.Group, name: object = None, *_: object, **__: object) -> object:
        if name == "/":  # where h5py finds the file's own attributes
            return root(group, name)
        raise AssertionError("opened past the check")

    for name in ("__getitem__", "get", "visititems", "items", "values"):
        monkeypatch.setattr(h5py.Group, name, refuse)
    run = read_run(sample)
    for name in run.metrics:
        assert len(run.metric(name)) == len(run.steps)
        run.row_chunks(name, least=2)
    assert read_card(sample)["rows"] == len(run.steps)
    assert sum(len(new.steps) for new in follow_run(sample)) == len(run.steps)
