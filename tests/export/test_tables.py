"""Tidy tables as CSV and Parquet: every number comes back bit for bit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlens import read_run
from gradlens.errors import ConfigError
from gradlens.export import distinct, held_metrics, make_table, tables, write_csv, write_parquet
from gradlens.export.tables import Column, Table
from gradlens.run import Run
from gradlens.specs import EXPORT_TABLES
from tests.conftest import SAMPLE
from tests.export.files import EPOCHS, LAYERS, LOSSES, NORMS, RATIOS, STEPS, read_csv, write_odd_run

METRICS = {"activation_grad_norm": NORMS, "update_ratio": RATIOS}


@pytest.fixture
def run() -> Run:
    return read_run(write_odd_run(Path("odd-s3.h5")))


def as_csv(kind: str, *runs: Run, metrics: tuple[str, ...] = tuple(METRICS)) -> list[dict[str, str]]:
    stream = io.StringIO(newline="")
    count = write_csv(make_table(kind, distinct(runs), metrics), stream)
    rows = read_csv(stream.getvalue())
    assert len(rows) == count
    return rows


def as_parquet(kind: str, *runs: Run, metrics: tuple[str, ...] = tuple(METRICS)) -> pa.Table:
    path = Path("table.parquet")
    count = write_parquet(make_table(kind, distinct(runs), metrics), path)
    table = pq.read_table(path)
    assert table.num_rows == count
    return table


def same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    missing = np.isnan(expected)
    assert np.array_equal(np.isnan(found), missing)
    assert found[~missing].tobytes() == expected[~missing].tobytes()


def test_csv_has_a_row_per_step_and_layer_and_every_number_bit_for_bit(run: Run) -> None:
    rows = as_csv("metrics", run)
    assert list(rows[0]) == ["run", "step", "epoch", "layer", "depth", "role", *METRICS]
    held = [
        (row, layer) for row in range(5) for layer in range(3) if not np.isnan([NORMS, RATIOS])[:, row, layer].all()
    ]
    assert len(rows) == len(held) == 12
    for found, (row, layer) in zip(rows, held, strict=True):
        assert found["run"] == "odd-s3"
        assert (int(found["step"]), int(found["epoch"])) == (STEPS[row], EPOCHS[row])
        assert found["layer"] == LAYERS[layer].name
        assert (int(found["depth"]), found["role"]) == (LAYERS[layer].depth, LAYERS[layer].role)
        for name, grid in METRICS.items():
            same_bits(np.array([np.float32(found[name] or "nan")]), grid[row, layer : layer + 1])
    text = [found["activation_grad_norm"] for found in rows]
    assert text[:3] == ["0.1", "1e-45", "3.4028235e+38"]
    assert text[3] == "inf"
    assert rows[3]["update_ratio"] == ""


def test_parquet_has_the_same_rows_with_nulls_and_dictionaries(run: Run) -> None:
    table = as_parquet("metrics", run)
    rows = as_csv("metrics", run)
    assert table.column_names == list(rows[0])
    assert [table.schema.field(name).type for name in ("run", "layer", "role")] == [
        pa.dictionary(pa.int32(), pa.string())
    ] * 3
    assert [str(table.schema.field(name).type) for name in ("step", "epoch", "depth")] == ["int64"] * 3
    for name in ("run", "step", "epoch", "layer", "depth", "role"):
        assert [str(value) for value in table[name].to_pylist()] == [row[name] for row in rows]
    for name in METRICS:
        assert table.schema.field(name).type == pa.float32()
        assert table[name].null_count == sum(row[name] == "" for row in rows) > 0
        expected = np.array([np.float32(row[name] or "nan") for row in rows])
        same_bits(table[name].to_numpy(), expected)
    assert np.isinf(table["activation_grad_norm"].to_numpy()).sum() == 1


def test_scalars_keep_float64_and_a_scalar_named_like_a_column_gets_another_name(run: Run) -> None:
    rows, table = as_csv("scalars", run), as_parquet("scalars", run)
    assert list(rows[0]) == table.column_names == ["run", "step", "epoch", "loss", "lr", "scalar/step"]
    assert [int(row["step"]) for row in rows] == table["step"].to_pylist() == STEPS.tolist()
    same_bits(np.array([float(row["loss"] or "nan") for row in rows]), np.array(LOSSES))
    same_bits(table["loss"].to_numpy(), np.array(LOSSES))
    assert [row["loss"] for row in rows] == ["0.1", "0.3333333333333333", "", "inf", "1e-300"]
    assert table["lr"].to_pylist() == [None] * 5
    assert table["scalar/step"].to_pylist() == [0, 1, 2, 3, 4]


def test_epochs_and_layers(run: Run) -> None:
    rows, table = as_csv("epochs", run), as_parquet("epochs", run)
    assert list(rows[0])[:3] == ["run", "epoch", "train_loss"]
    assert list(rows[0])[-1] == "extra"
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert table["epoch"].to_pylist() == [1, 2]
    assert table["train_loss"].to_pylist() == [float(row["train_loss"]) for row in rows] == [1 / 3, 1 / 4]
    assert [row["extra"] for row in rows] == ["inf", "inf"]
    assert [row["val_loss"] for row in rows] == ["", ""]
    rows, table = as_csv("layers", run), as_parquet("layers", run)
    assert list(rows[0]) == ["run", "name", "kind", "role", "depth", "out_numel", "param_numel", "calls"]
    assert [row["name"] for row in rows] == table["name"].to_pylist() == [layer.name for layer in LAYERS]
    assert [int(row["calls"]) for row in rows] == table["calls"].to_pylist() == [1, 2, 1]
    assert table["out_numel"].to_pylist() == [10, 11, 12]


@pytest.mark.parametrize(
    ("first", "epochs", "expected"),
    [
        (1.0, 2, ["1", "1", "2", "2", "3"]),
        (0.0, 3, ["0", "0", "1", "1", "2"]),
        (1.0, 0, [""] * 5),
        (0.5, 2, ["0.5", "0.5", "1.5", "1.5", "2.5"]),
    ],
)
def test_the_epoch_of_a_row_is_its_number_in_the_table_of_epochs(
    first: float, epochs: int, expected: list[str]
) -> None:
    run = read_run(write_odd_run(Path("odd.h5"), first_epoch=first, epochs=epochs))
    assert [row["epoch"] for row in as_csv("scalars", run)] == expected
    assert as_parquet("scalars", run)["epoch"].to_pylist() == [float(text) if text else None for text in expected]
    assert [row["epoch"] for row in as_csv("epochs", run)] == list(dict.fromkeys(expected))[:epochs]


def test_several_runs_share_a_table_and_what_one_does_not_hold_is_missing(run: Run) -> None:
    other = read_run(write_odd_run(Path("other/odd-s3.h5"), metrics={"param_norm": NORMS}))
    assert held_metrics([other, run]) == ["activation_grad_norm", "param_norm", "update_ratio"]
    runs = distinct([run, other, read_run("other/../odd-s3.h5")])
    assert list(runs) == [f"{Path.cwd().name}/odd-s3", "other/odd-s3"]
    for rows in (
        as_csv("metrics", run, other, metrics=("activation_grad_norm", "param_norm")),
        as_parquet("metrics", run, other, metrics=("activation_grad_norm", "param_norm")).to_pylist(),
    ):
        names = [row["run"] for row in rows]
        assert set(names) == set(runs)
        assert names == sorted(names, key=list(runs).index)
        for row in rows:
            here, there = ("activation_grad_norm", "param_norm")[:: -1 if row["run"] == "other/odd-s3" else 1]
            assert row[there] in ("", None)
            assert row[here] not in ("", None)


def test_a_metric_is_chosen_or_refused(run: Run) -> None:
    assert held_metrics([run]) == list(METRICS)
    assert held_metrics([run], ["update_ratio", "update_ratio"]) == ["update_ratio"]
    with pytest.raises(ConfigError, match=r"'param_norm'; available: activation_grad_norm, update_ratio"):
        held_metrics([run], ["param_norm"])
    rows = as_csv("metrics", run, metrics=("update_ratio",))
    assert [row["step"] for row in rows] == ["0", "0", "0", "2", "7", "7"]


@pytest.mark.parametrize("kind", EXPORT_TABLES)
def test_the_size_of_the_chunks_changes_nothing(kind: str, run: Run, make_run) -> None:
    runs = distinct([run, read_run(make_run(steps=30))])

    def rows(size: int) -> list[tuple]:
        table = make_table(kind, runs, ["activation_grad_norm", "param_norm"])
        chunks = list(table.chunks(size))
        assert all(len({len(values) for values in chunk.values()}) == 1 for chunk in chunks)
        assert all(len(chunk["run"]) for chunk in chunks)
        return [row for chunk in chunks for row in zip(*(chunk[c.name].tolist() for c in table.columns), strict=True)]

    assert str(rows(1)) == str(rows(7)) == str(rows(1 << 20))


def test_a_metric_is_read_in_pieces(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    whole = tables.metric_rows
    monkeypatch.setattr(
        tables, "metric_rows", lambda run, name, start, stop: read.append(stop - start) or whole(run, name, start, stop)
    )
    run = read_run(make_run(steps=40, layers=5))
    list(make_table("metrics", distinct([run]), ["param_norm"]).chunks(50))
    assert read == [10] * 4
    monkeypatch.setattr(tables, "metric_rows", lambda run, _, start, stop: np.ones((stop - start, len(run.layers))))
    monkeypatch.setattr(type(run.metrics), "__getitem__", lambda *_: pytest.fail("read as a whole"))
    assert len(list(make_table("metrics", distinct([run]), held_metrics([run])).chunks(50))) == 4


@pytest.mark.parametrize("kind", EXPORT_TABLES)
def test_a_run_without_rows_has_a_header(kind: str, make_run) -> None:
    run = read_run(make_run(steps=0, epochs=0))
    metrics = ("activation_grad_norm",)
    count = len(run.layers) if kind == "layers" else 0
    assert len(as_csv(kind, run, metrics=metrics)) == as_parquet(kind, run, metrics=metrics).num_rows == count
    assert as_csv("metrics", run, metrics=()) == []


def test_a_real_run() -> None:
    run = read_run(SAMPLE)
    metrics = tuple(held_metrics([run]))
    rows, table = as_csv("metrics", run, metrics=metrics), as_parquet("metrics", run, metrics=metrics)
    for name in metrics:
        grid = run.metric(name)
        values = np.array([np.float32(row[name] or "nan") for row in rows])
        same_bits(values, table[name].to_numpy())
        same_bits(values[~np.isnan(values)], grid[~np.isnan(grid)])
    wide = {name: np.full(run.metric(name).shape, np.nan, np.float32) for name in metrics}
    place = {step: row for row, step in enumerate(run.steps.tolist())}
    layers = [layer.name for layer in run.layers]
    for row in rows:
        for name in metrics:
            wide[name][place[int(row["step"])], layers.index(row["layer"])] = np.float32(row[name] or "nan")
    for name in metrics:
        same_bits(wide[name], run.metric(name))


@given(st.lists(st.floats(width=32), min_size=1), st.lists(st.floats(), min_size=1))
def test_any_number_comes_back(singles: list[float], doubles: list[float]) -> None:
    for kind, numbers in (("float32", np.array(singles, np.float32)), ("float64", np.array(doubles))):
        table = Table(
            (Column("n", kind), Column("i", "int")), lambda _, n=numbers: iter([{"n": n, "i": np.arange(len(n))}])
        )
        stream = io.StringIO(newline="")
        write_csv(table, stream)
        same_bits(np.array([row["n"] or "nan" for row in read_csv(stream.getvalue())]).astype(numbers.dtype), numbers)
