"""The facts of a run in its file: what is written is read, while it grows and after; damage is refused."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from gradlens.errors import DamagedError
from gradlens.run import Header, Row
from gradlens.storage import FileSink, read_run
from gradlens.storage.recover import recover_run
from gradlens.storage.stored_facts import FACTS_BYTES, decode_facts, encode_facts
from tests.conftest import make_layers

HEADER = Header(make_layers(4), {"param_norm": 1})
FACTS = {"version": 1, "parameters": [{"layers": ["a", "b"], "since": 3, "lr": 1e-3}], "graph": {}}


def write(path: Path, facts: dict | None, *, close: bool = True) -> FileSink:
    sink = FileSink(path)
    sink.open(HEADER)
    sink.write_row(Row(0, 0, {"param_norm": np.ones(4)}, {"loss": 1.0}))
    if facts is not None:
        sink.write_facts(facts)
    sink.write_state(0.5, ["a note"])
    sink.flush()
    if close:
        sink.close("complete")
    return sink


def test_facts_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    sink = write(path, {"version": 1}, close=False)
    assert read_run(path).facts == {"version": 1}
    sink.write_facts(FACTS)
    sink.flush()
    assert read_run(path).facts == FACTS
    sink.write_row(Row(1, 0, {}, {"new": 1.0}))  # the file is laid out anew
    sink.flush()
    assert read_run(path).facts == FACTS
    sink.close("complete")
    run = read_run(path)
    assert (run.facts, run.info["overhead"], run.info["notes"]) == (FACTS, 0.5, ["a note"])
    recover_run(path)
    assert read_run(path).facts == FACTS


def test_a_run_without_facts_has_none(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", None)
    assert read_run(tmp_path / "a.h5").facts == {}


def test_a_resumed_run_keeps_its_facts_until_there_are_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write(path, FACTS)
    sink = FileSink(path, resume_at=(1, 0))
    sink.open(HEADER)
    sink.write_row(Row(1, 0, {}, {}))
    sink.flush()
    assert read_run(path).facts == FACTS
    sink.write_facts({"version": 1})
    sink.close("complete")
    assert read_run(path).facts == {"version": 1}


def test_names_are_cut_until_the_facts_fit() -> None:
    names = [f"layers.{i}.attention.projection" for i in range(5000)]
    stored = encode_facts({"parameters": [{"layers": names, "count": 5000}] * 3})
    assert len(stored) <= FACTS_BYTES
    found = decode_facts(stored)["parameters"]
    assert [one["layers"] == names[:256] for one in found] == [True] * 3
    assert found[0]["count"] == 5000
    assert encode_facts({"text": "x" * FACTS_BYTES}) == b""


def sealed(text: str) -> bytes:
    return b"%s\n%08x" % (text.encode(), zlib.crc32(text.encode()))


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(b'{"version": 2}\n' + encode_facts({"version": 1})[-8:], id="another checksum"),
        pytest.param(encode_facts(FACTS)[:-20], id="cut off"),
        pytest.param(sealed("[" * 20000), id="deep"),
        pytest.param(sealed("[1]"), id="a list"),
        pytest.param(sealed("{"), id="no JSON"),
        pytest.param(b"x" * (FACTS_BYTES + 1), id="too large"),
    ],
)
def test_facts_that_do_not_fit_are_damage(stored: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write(path, FACTS)
    with h5py.File(path, "r+") as file:
        del file["state/facts_json"]
        file.create_dataset("state/facts_json", data=[stored], dtype=f"S{len(stored)}")
    with pytest.raises(DamagedError, match="facts"):
        read_run(path)


def test_control_characters_are_not_shown() -> None:
    assert decode_facts(sealed(json.dumps({"a": ["\x1b[31mred\n"]}))) == {"a": ["?[31mred?"]}
