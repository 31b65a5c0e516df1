"""Files whose structure lies, as hypothesis draws them: each is read or refused in a line, within the memory bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
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
    def careless(path: Path) -> str:
        if path.name == "copy.h5":
            raise ZeroDivisionError
        return everything(path)

    monkeypatch.setattr("tests.storage.test_fuzz.everything", careless)
    with pytest.raises(AssertionError, match="raised ZeroDivisionError"):
        check_structures(finished, tmp_path, 20, seed=0)


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
