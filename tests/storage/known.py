"""Runs whose every number follows from its place, so that what is read can be checked to the last bit."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import h5py
import numpy as np

from gradlens import read_run
from gradlens.errors import RunFileError
from gradlens.metrics import is_linear
from gradlens.row_chunks import summarise
from gradlens.run import Header, Layer, Row, Run
from gradlens.storage import FileSink, read_card
from gradlens.storage.lock import check_unlocked

METRICS = {"activation_grad_norm": 1, "nonfinite_count": 1, "param_grad_norm": 1, "param_norm": 25}
BLOCKS_OF = ("nonfinite_count", "param_norm")
EPOCH_ROWS = 70
"""Epoch e is written after row 70 (e + 1), and no later."""
STATED = ("a note", "another — with more than ASCII")


def fork() -> int:
    """Fork, and do not mind threads: they are not used in the child."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def layers(count: int) -> tuple[Layer, ...]:
    return tuple(Layer(f"stage{i // 3}.{i}", "Conv2d", "main", i + 1, 10 + i, 9) for i in range(count))


def header(generation: int = 0, count: int = 5) -> Header:
    return Header(layers(count), METRICS, model="net", seed=generation, config={"data": "x", "generation": generation})


def late_row(generation: int) -> int:
    """Return the first row that has the scalar ``extra``."""
    return 90 + 41 * (generation % 4)


def grid(metric: str, generation: int, start: int, stop: int, count: int) -> np.ndarray:
    """Return rows of a metric, float32, with zeros, infinities, subnormal numbers and gaps among them."""
    number = sorted(METRICS).index(metric)
    rows, columns = np.arange(start, stop)[:, None], np.arange(count)[None]
    mixed = rows * 31 + columns * 7 + number * 13 + generation * 101
    values = ((mixed % 9973 + 1) * 1e-4).astype(np.float32)
    values[mixed % 97 == 0] = 0
    values[mixed % 101 == 0] = np.inf
    values[mixed % 103 == 0] = 1e-41
    values[(np.arange(start, stop) % METRICS[metric]) != 0] = np.nan
    return values


def scalars(generation: int, start: int, stop: int) -> dict[str, np.ndarray]:
    rows = np.arange(start, stop)
    extra = np.where(rows >= late_row(generation), rows / 7 + generation, np.nan)
    return {"loss": 1 / (rows + 1.0 + generation), "lr": np.full(len(rows), 0.1), "extra": extra}


def row(generation: int, index: int, count: int = 5) -> Row:
    here = {name: grid(name, generation, index, index + 1, count)[0] for name, every in METRICS.items()}
    values = {name: float(column[0]) for name, column in scalars(generation, index, index + 1).items()}
    if index < late_row(generation):
        del values["extra"]
    metrics = {name: here[name] for name, every in METRICS.items() if index % every == 0}
    return Row(3 * index + generation, index // EPOCH_ROWS, metrics, values)


def epoch(generation: int, index: int) -> dict[str, float]:
    values = {"epoch": index + 1.0, "train_loss": generation + 1 / (index + 1), "val_accuracy": index / 1000}
    return values | ({"top5": index / 3} if index >= 2 else {})


def write_rows(sink: FileSink, generation: int, start: int, stop: int, count: int = 5) -> None:
    """Write rows, and the epochs that end among them."""
    for index in range(start, stop):
        sink.write_row(row(generation, index, count))
        if (index + 1) % EPOCH_ROWS == 0:
            sink.write_epoch(epoch(generation, index // EPOCH_ROWS))


def write_run(path: Path, rows: int, *, generation: int = 0, count: int = 5, status: str = "complete") -> Path:
    sink = FileSink(path)
    sink.open(header(generation, count))
    write_rows(sink, generation, 0, rows, count)
    sink.write_state(0.01, STATED)
    sink.close(status)  # type: ignore[arg-type]
    return path


def same(there: np.ndarray, expected: np.ndarray) -> bool:
    return there.dtype == expected.dtype and bool(np.array_equal(there, expected, equal_nan=True))


def mismatch(run: Run) -> str:
    """Say how a run differs from a prefix of what was written; "" where it does not."""
    generation, rows, count = run.seed, len(run.steps), len(run.layers)
    if run.layers != layers(count) or run.config != {"data": "x", "generation": generation}:
        return "header"
    if not same(run.steps, 3 * np.arange(rows) + generation):
        return "steps"
    if not same(run.epoch_of_step, (np.arange(rows) // EPOCH_ROWS).astype(np.int32)):
        return "epoch_of_step"
    expected = scalars(generation, 0, rows)
    if rows > late_row(generation) and "extra" not in run.scalars:
        return "extra is missing"
    for name, column in run.scalars.items():
        if not same(column, expected[name]):
            return f"scalar {name}"
    for name in METRICS:
        values = grid(name, generation, 0, rows, count)
        if not same(np.asarray(run.metric(name)), values):
            return f"metric {name}"
        if rows and name in BLOCKS_OF and (found := blocks_differ(run, name, values)):
            return f"blocks of {name}: {found}"
    return epochs_differ(run, generation)


def epochs_differ(run: Run, generation: int) -> str:
    """Compare the table of epochs; those of the rows that are there must be there, but for one."""
    count = len(run.epochs["epoch"])
    table = [epoch(generation, i) for i in range(count)]
    for name, column in run.epochs.items():
        if not same(column, np.array([values.get(name, np.nan) for values in table], dtype=np.float64)):
            return f"epochs' {name}"
    return "" if count <= len(run.steps) // EPOCH_ROWS else f"{count} epochs in {len(run.steps)} rows"


def blocks_differ(run: Run, name: str, values: np.ndarray) -> str:
    """Compare blocks of 64 rows, read past the rows, with what the rows give."""
    fresh = read_run(run.path).metrics
    blocks = fresh.read_chunks(name, 0, len(values), max(len(values) // 64, 1))  # type: ignore[attr-defined]
    expected = summarise(values, blocks.edges[:-1], linear=is_linear(name))
    if blocks.edges[0] != 0 or blocks.edges[-1] != len(values):
        return f"edges {blocks.edges}"
    tolerance = {"rtol": 2e-6, "atol": 2e-45}
    close = np.allclose(blocks.values, expected, equal_nan=True, **tolerance)
    return "" if close else "values"


def check_file(path: Path) -> tuple[int, int, int]:
    """Check all that is in a file against what was written; return its generation, rows and epochs."""
    run = read_run(path)
    rows, epochs = len(run.steps), len(run.epochs["epoch"])
    assert not (found := mismatch(run)), f"{path.name}, {rows} rows, {epochs} epochs: {found}"
    card = read_card(path)
    assert (card["model"], card["seed"], card["rows"], card["epochs"]) == ("net", run.seed, rows, epochs)
    plain_reader_agrees(path, run)
    return run.seed, rows, epochs


def plain_reader_agrees(path: Path, run: Run) -> None:
    """Read a file as the ten lines of plain h5py in the README do."""
    with h5py.File(path, "r", swmr=True) as file:
        count = int(file["state/n_steps"][()])
        for name in METRICS:
            values = file[f"metric/{name}"][:count]
            assert len(values) == count
            assert same(values, grid(name, run.seed, 0, count, len(run.layers)))
        assert len(file["step"][:count]) == count


def is_locked(path: Path) -> bool:
    """Return whether somebody is writing a run file at the moment."""
    try:
        check_unlocked(path)
    except RunFileError:
        return True
    return False


def hidden(path: Path) -> list[str]:
    """List what lies beside a run file; fails where any of it is not hidden."""
    names = sorted(name for name in os.listdir(path.parent) if name != path.name)
    assert all(name.startswith(f".{path.name}.") for name in names), names
    return names
