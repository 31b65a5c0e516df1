"""What the checksums of a run file cost: flushes and reads with and without them, in turn, in one process.

::

    python experiments/storage/checksums.py [--layers 200] [--rounds 60]

Prints medians in milliseconds, and the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gradlens.errors import DamagedError
from gradlens.metrics import DEFAULT_METRICS
from gradlens.run import Header, Layer, Row
from gradlens.storage import FileSink, live_file, row_levels
from gradlens.storage.run_file import open_run_file

ROWS = 64


@contextlib.contextmanager
def checksums(wanted: bool) -> Iterator[None]:
    """Let a writer compute checksums, or not."""
    kept = live_file.crc, row_levels.crc
    if not wanted:
        live_file.crc = row_levels.crc = lambda *_: 0
    try:
        yield
    finally:
        live_file.crc, row_levels.crc = kept


def seconds(act: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def compare(name: str, rounds: int, act: Callable[[bool], float]) -> None:
    """Do something with checksums and without, in turn, and print what each takes."""
    pairs = []
    chance = random.Random(0)  # every fourth flush does more than the others
    for i in range(rounds + 3):
        order = chance.sample((True, False), 2)
        times = {wanted: act(wanted) for wanted in order}
        if i >= 3:
            pairs.append((times[True], times[False]))
    on, off = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{name:34} {on:9.2f} ms with, {off:9.2f} ms without, ratio {ratio:.3f}")


def read(path: Path, verify: bool) -> None:
    """Read all columns and metrics."""
    with open_run_file(path) as stored:
        stored.verify = verify
        for name in stored.columns:
            stored.column(name)
        for name in stored.metrics:
            stored.rows(name, 0, stored.n_steps)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=60)
    asked = parser.parse_args()
    layers = tuple(Layer(f"l{i}", "Conv2d", "main", i + 1, 1, 1) for i in range(asked.layers))
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(size=(ROWS, len(DEFAULT_METRICS), asked.layers))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        sink = FileSink(path, flush_rows=10**9, flush_seconds=1e9)
        sink.open(Header(layers, dict.fromkeys(DEFAULT_METRICS, 1)))
        step = 0

        def flush(wanted: bool) -> float:
            nonlocal step
            for i in range(ROWS):
                sink.write_row(Row(step, 0, dict(zip(DEFAULT_METRICS, values[i], strict=True)), {"loss": 1.0}))
                step += 1
            with checksums(wanted):
                return seconds(sink.flush)

        print(f"{asked.layers} layers, {len(DEFAULT_METRICS)} metrics")
        compare(f"flush of {ROWS} rows", asked.rounds, flush)
        with contextlib.suppress(DamagedError):  # half of it has no checksums
            sink.close("complete")
        path.unlink()
        sink = FileSink(path)
        sink.open(Header(layers, dict.fromkeys(DEFAULT_METRICS, 1)))
        for i in range(step):
            row = dict(zip(DEFAULT_METRICS, values[i % ROWS] * (1 + i), strict=True))
            sink.write_row(Row(i, 0, row, {"loss": 1.0}))
        sink.flush()
        rounds = max(asked.rounds // 4, 5)
        compare(f"read of {step} rows, being written", rounds, lambda w: seconds(lambda: read(path, w)))
        sink.close("complete")
        compare(f"read of {step} rows, finished", rounds, lambda w: seconds(lambda: read(path, w)))


if __name__ == "__main__":
    main()
