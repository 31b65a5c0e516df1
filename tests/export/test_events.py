"""TensorBoard events, read back as TensorBoard reads them."""

from __future__ import annotations

import dataclasses
import io
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from gradlens import read_run
from gradlens.export import held_metrics, write_events
from gradlens.export import tensorboard_events as events
from gradlens.export.tfrecords import PIECE, crc32c, masked_crc32c, write_record
from gradlens.run import Run
from tests.conftest import SAMPLE
from tests.export.files import LAYERS, NORMS, RATIOS, STEPS, read_scalars, write_odd_run


@pytest.fixture
def run() -> Run:
    return read_run(write_odd_run(Path("odd-s3.h5")))


def test_every_value_comes_back_under_its_tag_and_step(run: Run) -> None:
    assert write_events(run, Path("log"), held_metrics([run])) == 5
    found = read_scalars(Path("log"))
    for name, grid in {"activation_grad_norm": NORMS, "update_ratio": RATIOS}.items():
        for column, layer in enumerate(LAYERS):
            there = ~np.isnan(grid[:, column])
            events = found.pop(f"{name}/{layer.name}")
            assert [step for step, _, _ in events] == STEPS[there].tolist()
            values = np.array([value for _, _, value in events], np.float32)
            assert values.tobytes() == grid[there, column].tobytes()
    assert [event[::2] for event in found.pop("scalar/loss")] == [
        (0, np.float32(0.1)),
        (1, np.float32(1 / 3)),
        (3, np.inf),
        (7, np.float32(1e-45)),  # what float32 does not know becomes its smallest number, never 0
    ]
    assert [event[::2] for event in found.pop("scalar/step")] == list(zip(STEPS, range(5), strict=True))
    assert [event[::2] for event in found.pop("epoch/train_loss")] == [(1, np.float32(1 / 3)), (3, 0.25)]
    assert [event[::2] for event in found.pop("epoch/epoch")] == [(1, 1), (3, 2)]
    assert [event[::2] for event in found.pop("epoch/extra")] == [(1, np.inf), (3, np.inf)]
    assert found == {}


@pytest.mark.parametrize(
    ("created", "start"),
    [
        ("2024-05-01T12:00:00+0200", 1714557600.0),
        ("2024-05-01T12:00:00", 1714564800.0),
        ("some day", 0.0),
        ("", 0.0),
    ],
)
def test_the_wall_time_is_the_creation_plus_the_step(created: str, start: float, run: Run) -> None:
    run = dataclasses.replace(run, info={**run.info, "created": created})
    write_events(run, Path("log"), ["activation_grad_norm"])
    (file,) = Path("log").iterdir()
    assert file.name == f"events.out.tfevents.{int(start):010d}.gradlens"
    found = read_scalars(Path("log"))
    assert {event[:2] for events in found.values() for event in events} == {(s, start + s) for s in STEPS.tolist()}


def test_the_creation_is_read_from_the_file(run: Run) -> None:
    assert abs(events.created_seconds(run) - datetime.now().timestamp()) < 60


def test_several_epochs_between_two_rows_and_before_the_first(run: Run) -> None:
    run = dataclasses.replace(run, epoch_of_step=np.array([1, 1, 3, 3, 4]), epochs={"epoch": np.arange(5.0)})
    write_events(run, Path("log"), [])
    steps = [event[::2] for event in read_scalars(Path("log"))["epoch/epoch"]]
    assert steps == [(0, 0), (1, 1), (1, 2), (3, 3), (7, 4)]


def test_the_same_run_gives_the_same_bytes_in_blocks_of_any_size(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(make_run(steps=50))
    assert write_events(run, Path("a"), held_metrics([run])) == 50
    monkeypatch.setattr(events, "CHUNK_VALUES", 7 * (4 * len(run.layers) + len(run.scalars)))
    monkeypatch.setattr(events, "MAX_PATTERNS", 1)
    write_events(run, Path("b"), held_metrics([run]))
    (one,), (other,) = Path("a").iterdir(), Path("b").iterdir()
    assert one.read_bytes() == other.read_bytes()


def test_no_metric_is_read_but_in_pieces(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(make_run(steps=40))
    monkeypatch.setattr(events, "metric_rows", lambda run, _, start, stop: np.ones((stop - start, len(run.layers))))
    monkeypatch.setattr(type(run.metrics), "__getitem__", lambda *_: pytest.fail("read as a whole"))
    assert write_events(run, Path("log"), held_metrics([run])) == 40


def test_a_real_run() -> None:
    run = read_run(SAMPLE)
    metrics = held_metrics([run])
    write_events(run, Path("log"), metrics)
    found = read_scalars(Path("log"))
    for name in metrics:
        for column, layer in enumerate(run.layers):
            values = run.metric(name)[:, column]
            assert [value for _, _, value in found[f"{name}/{layer.name}"]] == values[~np.isnan(values)].tolist()
    assert len(found["epoch/val_accuracy"]) == len(run.epochs["epoch"])
    assert found["epoch/val_accuracy"][-1][0] == run.steps[-1]


def test_a_run_without_rows(make_run) -> None:
    run = read_run(make_run(steps=0, epochs=0))
    assert write_events(run, Path("log"), held_metrics([run])) == 0
    assert read_scalars(Path("log")) == {}


@given(st.binary(min_size=4, max_size=64))
def test_the_checksum_is_that_of_tensorboard(data: bytes) -> None:
    assert crc32c(data) == pywrap_tensorflow.crc32c(data)


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, PIECE + 3, 2 * PIECE, 3 * PIECE + 5])
def test_the_checksum_of_several_pieces(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert masked_crc32c(data) == pywrap_tensorflow.masked_crc32c(data)


def test_a_record_is_that_of_tensorboard() -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    ours, theirs = io.BytesIO(), io.BytesIO()
    write_record(ours, b"123456789")
    RecordWriter(theirs).write(b"123456789")
    assert ours.getvalue() == theirs.getvalue()
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
