"""What readers on another mount see of a run that is being written on a shared file system, or published there.

    python experiments/storage/shared.py WRITE_FOLDER READ_FOLDER LOCAL_FOLDER --seconds 30

WRITE_FOLDER and READ_FOLDER are two mounts of one folder. A process writes 200 rows a second of made-up numbers that
tell their row and layer; another one reads the run again and again from the other mount, checks every number, and
counts. Ways: ``direct`` writes the run into WRITE_FOLDER; ``publish`` writes it into LOCAL_FOLDER and publishes it in
WRITE_FOLDER. The process that writes is killed (SIGKILL) at the end in the ways ``..., killed``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gradlens.errors import GradlensError
from gradlens.run import Header, Layer, Row
from gradlens.storage import BackgroundSink, FileSink, Publisher, read_run

LAYERS = 100
ROW_S = 0.005
EPOCH_ROWS = 1000


def numbers(rows: np.ndarray) -> np.ndarray:
    """Return what stands in these rows, (R, L)."""
    return np.asarray(rows[:, None] + np.arange(LAYERS) / 128, dtype=np.float64)


def write(path: Path, seconds: float, publish: Path | None) -> None:
    """Write rows for so long."""
    layers = tuple(Layer(f"layer{i}", "Linear", "main", i + 1, 1, 1) for i in range(LAYERS))
    sink = BackgroundSink(FileSink(path, publisher=None if publish is None else Publisher(publish)))
    sink.open(Header(layers, {"param_grad_norm": 1}))
    end, row, slowest = time.monotonic() + seconds, 0, 0.0
    while time.monotonic() < end:
        begin = time.monotonic()
        sink.write_row(Row(row, row // EPOCH_ROWS, {"param_grad_norm": numbers(np.array([row]))[0]}, {"loss": row}))
        slowest = max(slowest, time.monotonic() - begin)
        row += 1
        if row % EPOCH_ROWS == 0:
            sink.write_epoch({"epoch": row // EPOCH_ROWS})
        time.sleep(ROW_S)
    begin = time.monotonic()
    sink.close("complete")
    print(json.dumps({"rows": row, "slowest_row_ms": round(slowest * 1e3, 1), "close_s": time.monotonic() - begin}))


def look(path: Path, seen: Counter[str], last: dict[str, Any]) -> None:
    """Read the whole run once, and count what was seen."""
    try:
        run = read_run(path)
        found = run.metric("param_grad_norm")
        steps, status, beat = run.steps, run.status, run.info["heartbeat"]
    except GradlensError as error:
        seen["refused: " + " ".join(error.message.split()[1:4])] += 1
        return
    if len(steps) < last["rows"]:
        seen["fewer rows than before"] += 1
    right = found.shape == (len(steps), LAYERS) and np.array_equal(steps, np.arange(len(steps)))
    right = right and np.array_equal(found, numbers(steps).astype(np.float32))
    seen["whole" if right else "wrong numbers"] += 1
    if len(steps) > last["rows"]:
        last["gaps"].append(time.monotonic() - last["grew"])
        last["grew"] = time.monotonic()
    last["ages"].append(time.time() - beat)
    last["rows"], last["status"] = len(steps), status


def try_out(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a reader saw."""
    name = f"{way.replace(', ', '-')}.h5"
    publish = options.write if way.startswith("publish") else None
    path = (options.local if publish else options.write) / name
    seconds = 600.0 if way.endswith("killed") else options.seconds
    words = [__file__, "write", str(path), str(seconds), *([str(publish)] if publish else [])]
    writer = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    seen: Counter[str] = Counter()
    last: dict[str, Any] = {"rows": 0, "status": "", "grew": time.monotonic(), "gaps": [], "ages": []}
    there = options.read / name
    end = time.monotonic() + options.seconds
    while writer.poll() is None:
        if time.monotonic() > end and way.endswith("killed"):
            os.kill(writer.pid, signal.SIGKILL)
        if (options.write / name).exists():  # looked for earlier, the name would be unknown to the other mount for long
            look(there, seen, last)
        time.sleep(0.1)
    told = writer.communicate()[0]
    during = dict(seen)
    time.sleep(options.settle)
    look(there, after := Counter(), last)
    return {
        "way": way, "reads": during, "most_seconds_without_new_rows": round(max(last["gaps"][1:], default=0), 1),
        "oldest_heartbeat_s": round(max(last["ages"][:-1], default=0), 1),
        "at_the_end": f"{last['status']}, {last['rows']} rows, {next(iter(after))}",
        "writer": json.loads(told) if told.strip() else "killed",
    }  # fmt: skip


def main() -> None:
    """Measure."""
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]) if sys.argv[4:] else None)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for folder in ("write", "read", "local"):
        parser.add_argument(folder, type=Path)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--settle", type=float, default=5, help="seconds before the last look")
    parser.add_argument("--ways", nargs="+", default=["direct", "publish", "direct, killed", "publish, killed"])
    options = parser.parse_args()
    for way in options.ways:
        print(json.dumps(try_out(way, options)), flush=True)


if __name__ == "__main__":
    main()
