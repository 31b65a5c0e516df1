"""Recovering: a killed run's file is made whole, a whole one is left alone, of a damaged one the rest is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from gradlens import read_run
from gradlens.cli import run_command
from gradlens.errors import DamagedError, RunFileError
from gradlens.run import Row
from gradlens.storage import FileSink, recover_run
from tests.conftest import SAMPLE
from tests.storage.test_levels import RHYTHM, make_layers, values_of
from tests.storage.test_levels import write as write_rows

ROWS = 300


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Return the file of a run whose writer was killed: what lay on the disk before it was closed."""
    sink = write_rows(tmp_path / "writer.h5", values_of(ROWS), close=False)
    path = tmp_path / "a.h5"
    shutil.copy(tmp_path / "writer.h5", path)
    sink.close("complete")
    (tmp_path / ".a.h5.123.tmp").write_bytes(b"half")
    return path


def test_the_file_of_a_killed_run_can_be_appended_to_again(killed: Path) -> None:
    with pytest.raises(OSError, match=r"already open for write"):
        h5py.File(killed, "r+")
    found = recover_run(killed)
    assert (found.found, found.rows, found.epochs, found.last_step) == ("unfinished", ROWS, 0, 2 * (ROWS - 1))
    assert (found.status, found.lost, found.backup, found.leftovers) == ("interrupted", [], None, [".a.h5.123.tmp"])
    assert not list(killed.parent.glob(".*"))
    run, whole = read_run(killed), read_run(killed.with_name("writer.h5"))
    assert run.status == "interrupted"
    for name in RHYTHM:
        np.testing.assert_array_equal(run.metric(name), whole.metric(name))
    np.testing.assert_array_equal(run.scalars["loss"], whole.scalars["loss"])
    with h5py.File(killed, "r+") as file:
        file["step"].resize(ROWS + 1, axis=0)
    sink = FileSink(killed, resume_at=(ROWS - 10, 0))
    sink.open(sink_header())
    sink.write_row(Row(9999, 0, {"activation_grad_norm": np.ones(3)}, {}))
    sink.close("complete")
    assert read_run(killed).steps.tolist() == [*whole.steps[: ROWS - 10].tolist(), 9999]


def sink_header():
    from gradlens.run import Header

    return Header(make_layers(3), RHYTHM)


def test_a_whole_file_is_left_untouched(make_run) -> None:
    path = make_run(status="failed")
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    found = recover_run(path)
    assert (found.found, found.status, found.rows) == ("whole", "failed", 20)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, stamp)
    assert list(path.parent.iterdir()) == [path]


def test_what_an_earlier_gradlens_wrote_is_packed_anew_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    shutil.copy(SAMPLE, path)
    before, size = read_run(path), path.stat().st_size
    grids = {name: before.metric(name) for name in before.metrics}
    assert recover_run(path).found == "whole"
    assert recover_run(path, repack=True).found == "whole"
    assert path.stat().st_size < size
    after = read_run(path)
    assert after.layers == before.layers
    assert after.config == before.config
    assert after.info["created"] == before.info["created"]
    for name, grid in grids.items():
        np.testing.assert_array_equal(after.metric(name), grid)
    with h5py.File(path) as file:
        assert "level/64" in file


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    sink = write_rows(tmp_path / "a.h5", values_of(10), close=False)
    with pytest.raises(RunFileError, match="is being written in this process"):
        recover_run(tmp_path / "a.h5")
    sink.close("complete")


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 16]))


def chunk_place(path: Path, dataset: str, **mode: object) -> int:
    with h5py.File(path, "r", **mode) as file:
        info = file[dataset].id.get_chunk_info(0)
        return int(info.byte_offset + info.size // 2)


@pytest.mark.parametrize("packed", [False, True], ids=["live", "packed"])
def test_of_a_damaged_file_the_rest_is_kept(packed: bool, killed: Path) -> None:
    path = killed.with_name("writer.h5") if packed else killed
    whole = read_run(killed.with_name("writer.h5"))
    expected = {name: whole.metric(name).copy() for name in RHYTHM}
    mode = {} if packed else {"swmr": True}
    flip(path, chunk_place(path, "metric/activation_grad_norm", **mode))
    damaged = path.read_bytes()
    with pytest.raises(DamagedError, match="gradlens recover keeps what is whole"):
        read_run(path).metric("activation_grad_norm")
    found = recover_run(path)
    assert found.found == "damaged"
    lost = ROWS if packed else 64  # a chunk
    assert found.lost == [f"{lost} rows of activation_grad_norm, the first from row 0 on"]
    assert found.backup is not None
    assert found.backup.read_bytes() == damaged
    run = read_run(path)
    assert np.isnan(run.metric("activation_grad_norm")[:lost]).all()
    np.testing.assert_array_equal(run.metric("activation_grad_norm")[lost:], expected["activation_grad_norm"][lost:])
    np.testing.assert_array_equal(run.metric("update_ratio"), expected["update_ratio"])
    assert "recovered from a damaged file: what is missing is NaN" in run.info["notes"]
    assert recover_run(path).found == "whole"


def test_a_column_that_does_not_fit_is_said(killed: Path) -> None:
    flip(killed, chunk_place(killed, "scalar/loss", swmr=True) - 2000)
    with pytest.raises(DamagedError, match="a value of scalar/loss: it does not fit its checksum"):
        read_run(killed)
    assert recover_run(killed).lost == ["a value of scalar/loss: it does not fit its checksum"]
    assert len(read_run(killed).scalars["loss"]) == ROWS


def test_counts_that_were_changed_are_taken_from_their_checksum(killed: Path) -> None:
    with h5py.File(killed, "r", swmr=True) as file:
        place = file["state/n_steps"].id.get_offset()
    flip(killed, place)
    with pytest.raises(DamagedError, match="numbers of its rows and epochs"):
        read_run(killed)
    assert recover_run(killed).rows == ROWS


@pytest.mark.parametrize("share", [0.97, 0.7, 0.5])
def test_a_live_file_that_was_cut_off_gives_what_is_left(share: float, killed: Path) -> None:
    whole = read_run(killed.with_name("writer.h5"))
    os.truncate(killed, int(killed.stat().st_size * share))
    with pytest.raises(DamagedError):
        read_run(killed).metric("activation_grad_norm")
    found = recover_run(killed)
    assert found.found == "damaged"
    run = read_run(killed)
    for name in RHYTHM:
        kept = run.metric(name)
        there = ~np.isnan(kept)
        np.testing.assert_array_equal(kept[there], whole.metric(name)[: len(kept)][there])


def test_the_command_says_what_it_found(killed: Path, capsys: pytest.CaptureFixture[str], make_run: Callable) -> None:
    make_run()
    assert run_command(["recover", str(killed)]) == 0
    out = capsys.readouterr().out
    assert f"its writer did not close it; all of it was saved: {ROWS} rows and 0 epochs, up to step 598; it is" in out
    assert "removed .a.h5.123.tmp" in out
    assert run_command(["recover"]) == 0
    assert "net-s0.h5: intact (complete), not changed: 20 rows and 2 epochs" in capsys.readouterr().out
    (killed.parent / "x.h5").write_text("no")
    assert run_command(["recover", str(killed.parent / "x.h5")]) == 1
    assert "is not an HDF5 file" in capsys.readouterr().err
