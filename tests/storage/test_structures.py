"""Files whose structure lies, as hypothesis draws them: each is read or refused in a line, within the memory bound."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.fuzz.check import BASES, check_structures
from tests.fuzz.structure import MAKERS, write_changed
from tests.storage.test_fuzz import everything, finished


@pytest.mark.parametrize("make", BASES)
@pytest.mark.parametrize("count", [15, pytest.param(60, marks=pytest.mark.slow)])
def test_a_file_whose_structure_lies_is_read_or_refused(
    make: Callable[[Path], Path], count: int, tmp_path: Path
) -> None:
    found = check_structures(make, tmp_path, count, seed=0)
    assert sum(found.values()) >= count
    assert found["error"]


def test_a_reader_that_fails_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(path: Path, *, once: bool = False) -> str:
        if path.name == "copy.h5":
            raise ZeroDivisionError
        return everything(path, once=once)

    monkeypatch.setattr("tests.storage.test_fuzz.everything", careless)
    with pytest.raises(AssertionError, match="raised ZeroDivisionError"):
        check_structures(finished, tmp_path, 20, seed=0)


def test_a_reader_that_takes_too_much_memory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a file whose writing took more."""

    def wasteful(path: Path, *, once: bool = False) -> str:
        held = np.ones(200 * 2**20, np.uint8) if path.name == "copy.h5" else ""
        return everything(path, once=once) + str(len(held))[:0]

    monkeypatch.setattr("tests.storage.test_fuzz.everything", wasteful)
    monkeypatch.setattr("tests.fuzz.check.MEMORY", 100 * 2**20)
    with pytest.raises(AssertionError, match=r"MEMORY: 2\d\d MiB"):
        check_structures(finished, tmp_path, 20, seed=0)


def test_a_reader_that_crashes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crashing(path: Path, *, once: bool = False) -> str:
        if path.name == "copy.h5":
            os.kill(os.getpid(), signal.SIGKILL)
        return everything(path, once=once)

    monkeypatch.setattr("tests.storage.test_fuzz.everything", crashing)
    with pytest.raises(AssertionError, match="CRASH; CRASH"):
        check_structures(finished, tmp_path, 20, seed=0)


def test_a_crash_while_a_file_is_written_is_none_of_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crashing(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("tests.fuzz.check.write_changed", crashing)
    assert set(check_structures(finished, tmp_path, 3, seed=0)) == {"not written"}


def test_a_file_whose_writing_fails_is_read_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path, data: bytes, made: object) -> None:
        write_changed(path, data, [("delete", "step")])
        raise OSError

    monkeypatch.setattr("tests.fuzz.check.write_changed", failing)
    assert set(check_structures(finished, tmp_path, 3, seed=0)) == {"error"}


def test_each_kind_of_change_is_made(tmp_path: Path) -> None:
    data, path = finished(tmp_path).read_bytes(), tmp_path / "copy.h5"
    made = {
        "delete": ("delete", "step"),
        "dataset": ("dataset", "metric/param_norm", "i8", (3,), "deflate"),
        "external": ("dataset", "metric/param_norm", "f4", (700, 12), "external"),
        "virtual": ("dataset", "metric/param_norm", "f4", (700, 12), "virtual"),
        "resize": ("resize", "step", 701),
        "number": ("number", "scalar/loss", 3, -1),
        "attribute": ("attribute", ("/", "header_json"), "{}"),
        "no attribute": ("no attribute", ("/", "card_json")),
        "link": ("link", "metric", "cycle", "epoch"),
        "group": ("group", "step"),
        "add": ("add", "metric", "x", [1, 2, 3]),
    }
    assert {change[0] for change in made.values()} == set(MAKERS)
    for change in made.values():
        write_changed(path, data, [])
        with h5py.File(path, "r+") as file:
            MAKERS[change[0]](file, *change[1:])  # raises where HDF5 refuses it
        assert path.read_bytes() != data, change
