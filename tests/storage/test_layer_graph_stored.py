"""The layer graph in the file: written, read, missing in older files, and refused where it is not that of a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from gradlens.errors import DamagedError
from gradlens.run import Header, Layer, Row
from gradlens.storage import FileSink, read_run
from gradlens.storage.description import checked_graph
from tests.conftest import make_layers


def write(layers: tuple[Layer, ...], status: str = "complete") -> Path:
    path = Path("run.h5")
    sink = FileSink(path)
    sink.open(Header(layers, {"activation_grad_norm": 1}))
    sink.write_row(Row(0, 0, {"activation_grad_norm": np.ones(len(layers))}))
    sink.close(status)  # type: ignore[arg-type]
    return path


def fed(*parents: tuple[int, ...]) -> tuple[Layer, ...]:
    layers = make_layers(len(parents))
    return tuple(replace(layer, parents=feeding) for layer, feeding in zip(layers, parents, strict=True))


@pytest.mark.parametrize("status", ["complete", "interrupted"])
def test_it_is_read_as_it_was_written(status: str) -> None:
    layers = fed((), (0, 3), (1,), (), (1, 2))
    layers = (replace(layers[0], tags=("query", "packed")), *layers[1:])
    path = write(layers, status)
    run = read_run(path)
    assert run.layers == layers
    assert run.edges.tolist() == [[0, 1], [3, 1], [1, 2], [1, 4], [2, 4]]
    with h5py.File(path) as file:
        assert file["layer/parents"].asstr()[:].tolist() == ["", "0 3", "1", "", "1 2"]
        assert file["layer/tags"].asstr()[:].tolist() == ["query packed", "", "", "", ""]


def test_a_file_without_the_copy_of_its_header_is_read_too() -> None:
    path = write(fed((), (0,)))
    with h5py.File(path, "r+") as file:
        del file.attrs["header_json"]
    assert read_run(path).edges.tolist() == [[0, 1]]


def test_older_files_have_no_graph() -> None:
    path = write(make_layers(3))
    with h5py.File(path, "r+") as file:
        for name in ("header_json", "header_crc32"):
            del file.attrs[name]
        for name in ("tags", "parents"):
            del file[f"layer/{name}"]
    run = read_run(path)
    assert run.edges.shape == (0, 2)
    assert run.layers == make_layers(3)


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        (["", "2"], "fed by layers that it does not have"),
        (["", "-1"], "fed by layers that it does not have"),
        (["", str(10**30)], "fed by layers that it does not have"),
        (["0", ""], "in a circle"),
        (["1", "0"], "in a circle"),
        (["", "one"], "invalid literal"),
        (["", "0,0"], "invalid literal"),
    ],
)
def test_a_graph_that_is_not_that_of_a_model_is_refused(parents: list[str], message: str) -> None:
    path = write(make_layers(2))
    with h5py.File(path, "r+") as file:
        for name in ("header_json", "header_crc32"):
            del file.attrs[name]
        file["layer/parents"][:] = parents
    with pytest.raises(DamagedError, match=message):
        read_run(path)


@pytest.mark.slow
def test_a_long_chain_is_checked_quickly() -> None:
    chain = [[], *([i] for i in range(200_000))]
    assert checked_graph(chain)[-1] == (199_999,)
