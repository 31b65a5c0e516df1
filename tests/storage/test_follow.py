"""Following: every flushed row once and in order, in another process, until the run ends or its writer is dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from gradlens import follow_run
from gradlens.errors import NoRunError, RunFileError
from gradlens.run import Header, Row
from gradlens.storage import FileSink
from tests.conftest import make_layers
from tests.processes import PATIENCE

WRITER = textwrap.dedent(
    """
    import sys, time, numpy as np
    from gradlens.run import Header, Layer, Row
    from gradlens.storage import BackgroundSink, FileSink
    path, rows, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    sink = BackgroundSink(FileSink(path))
    layers = tuple(Layer(f"l{i}", "Linear", "main", i + 1, 1, 1) for i in range(8))
    sink.open(Header(layers, {"activation_grad_norm": 1, "param_norm": 25}))
    begin = time.perf_counter()
    for step in range(rows):
        metrics = {"activation_grad_norm": np.full(8, step + 1.0)}
        if step % 25 == 0:
            metrics["param_norm"] = np.full(8, step + 2.0)
        scalars = {"loss": step} if step < rows // 2 else {"loss": step, "late": step}
        sink.write_row(Row(step, step // 500, metrics, scalars))
        if step % 500 == 499:
            sink.write_epoch({"epoch": step // 500 + 1})
        time.sleep(max(begin + step / rate - time.perf_counter(), 0))
    if sys.argv[4] == "close":
        sink.close("complete")
    else:
        sink.flush()
        print("flushed", flush=True)
        time.sleep(60)
    """
)


def start(path: Path, rows: int, rate: float, end: str) -> subprocess.Popen:
    arguments = [sys.executable, "-c", WRITER, str(path), str(rows), str(rate), end]
    writer = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    while not path.exists():
        assert writer.poll() is None
        time.sleep(0.01)
    return writer


@pytest.mark.slow
def test_a_run_of_a_thousand_rows_a_second_is_followed_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = start(path, 3000, 1000, "close")
    try:
        parts = list(follow_run(path, poll=0.1))
    finally:
        writer.kill()
        writer.communicate(timeout=PATIENCE)
    assert [part.start for part in parts] == np.cumsum([0, *(len(part.steps) for part in parts[:-1])]).tolist()
    steps = np.concatenate([part.steps for part in parts])
    assert steps.tolist() == list(range(3000))
    np.testing.assert_array_equal(np.concatenate([part.scalars["loss"] for part in parts]), steps)
    metric = np.concatenate([part.metrics["activation_grad_norm"] for part in parts])
    np.testing.assert_array_equal(metric, np.repeat(steps[:, None] + 1.0, 8, axis=1))
    coarse = np.concatenate([part.metrics["param_norm"] for part in parts])
    np.testing.assert_array_equal(coarse[::25, 0], steps[::25] + 2)
    assert np.concatenate([part.epochs["epoch"] for part in parts]).tolist() == [1, 2, 3, 4, 5, 6]
    assert len(parts) > 5
    assert parts[-1].status == "complete"


def test_it_ends_when_the_writer_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = start(path, 200, 1e6, "wait")
    assert writer.stdout is not None
    assert writer.stdout.readline() == "flushed\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate(timeout=PATIENCE)
    begin = time.monotonic()
    steps = np.concatenate([part.steps for part in follow_run(path, poll=0.05, patience=0.5)])
    assert steps.tolist() == list(range(200))
    assert time.monotonic() - begin < 10


def test_a_finished_run_is_given_at_once_from_where_one_wants(make_run) -> None:
    parts = list(follow_run(make_run(steps=30), start=12))
    assert [part.steps.tolist() for part in parts] == [list(range(12, 30))]
    assert parts[0].start == 12
    assert parts[0].epochs["epoch"].tolist() == [1, 2]


def test_what_cannot_be_followed_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoRunError, match="no such file"):
        next(follow_run(tmp_path / "none.h5"))
    path = tmp_path / "a.h5"
    sinks = []
    for resume in (None, (2, 0)):
        sink = FileSink(path, resume_at=resume)
        sink.open(Header(make_layers(2), {"param_norm": 1}))
        sink.write_row(Row(0, 0, {"param_norm": np.ones(2)}, {}))
        if resume is None:
            for step in range(1, 6):
                sink.write_row(Row(step, 0, {"param_norm": np.ones(2)}, {}))
            sink.flush()
            rows = follow_run(path, poll=0.01)
            assert len(next(rows).steps) == 6
            sink.close("interrupted")
        sinks.append(sink)
    with pytest.raises(RunFileError, match="holds 3 rows now and held 6"):
        next(rows)
    sinks[-1].close("complete")
