"""A run is read in the process that writes it, in another thread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PATIENCE


@pytest.mark.slow
def test_a_run_is_read_in_the_process_that_writes_it(tmp_path: Path) -> None:
    """Without a lock, memory was corrupted within seconds; a process of its own, because that ends it."""
    program = """
import threading, time
import numpy as np
from gradlens.errors import RunFileError
from gradlens.run import Header, Layer, Row
from gradlens.storage import FileSink, read_run
sink = FileSink("run.h5", flush_seconds=0)
layers = tuple(Layer(f"layer{i}", "Linear", "main", i + 1, 1, 1) for i in range(3))
sink.open(Header(layers, {"param_grad_norm": 1, "activation_grad_norm": 1}, model="net", seed=0))
done = False
def write():
    index = 0
    while not done:
        metrics = {"param_grad_norm": np.ones(3), "activation_grad_norm": np.ones(3)}
        sink.write_row(Row(index, 0, metrics, {"loss": 1.0, "lr": 0.1}))
        index += 1
    sink.close("complete")
    print(index, len(read_run("run.h5").steps))
thread = threading.Thread(target=write)
thread.start()
times = 0
while times < 150:
    try:
        read_run("run.h5").metric("param_grad_norm")
        times += 1
    except RunFileError:
        time.sleep(0.01)
done = True
thread.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    written, read = map(int, done.stdout.split())
    assert written == read > 150
