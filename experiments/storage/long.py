"""How the run file behaves when a run is long and wide: size, cost of a row, opening, summary, heatmap, memory.

Rows are those of real runs, over and over, layers side by side until there are enough, each number changed by a tenth
of a percent at random so that none is ever seen twice; written as a recorder writes them.

    python experiments/storage/long.py runs/plain34-s0.h5 runs/resnet34-s0.h5 --rows 10000,100000 --out long.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from gradlens import read_run
from gradlens.run import Header, Layer, Row
from gradlens.storage import BackgroundSink, FileSink

RHYTHM = {"activation_grad_norm": 1, "param_grad_norm": 1, "param_norm": 25, "update_ratio": 25}


def real_rows(paths: list[Path], layers: int) -> dict[str, np.ndarray]:
    """Return each metric of real runs, their layers side by side until there are so many, (T, L)."""
    runs = [read_run(path) for path in paths]
    count = min(len(run.steps) for run in runs)
    found = {}
    for name in RHYTHM:
        columns = np.concatenate([run.metric(name)[:count] for run in runs], axis=1)
        if RHYTHM[name] > 1:
            columns = columns[:: RHYTHM[name]]
        found[name] = np.tile(columns, (1, -(-layers // columns.shape[1])))[:, :layers].astype(np.float64)
    return found


def write(path: Path, real: dict[str, np.ndarray], rows: int, *, background: bool) -> dict[str, Any]:
    """Write a run and say what it cost."""
    rng = np.random.default_rng(0)
    layers = real["activation_grad_norm"].shape[1]
    names = [f"stage{i // 40}.{i % 40}" for i in range(layers)]
    table = tuple(Layer(name, "Conv2d", "main", i + 1, 1000, 100) for i, name in enumerate(names))
    sink: Any = FileSink(path)
    if background:
        sink = BackgroundSink(sink)
    sink.open(Header(table, RHYTHM, model="long", seed=0))
    noise = rng.normal(1, 1e-3, (4096, layers))
    parts, spent, every = [], 0.0, max(rows // 20, 1)
    for step in range(rows):
        metrics = {}
        for name, rhythm in RHYTHM.items():
            if step % rhythm == 0:
                source = real[name]
                metrics[name] = source[step // rhythm % len(source)] * noise[(step * 7 + len(name)) % 4096]
        row = Row(step, step // 1000, metrics, {"loss": 1 / (step + 1), "lr": 0.1})
        begin = time.perf_counter()
        sink.write_row(row)
        spent += time.perf_counter() - begin
        if step % every == every - 1:
            parts.append(round(spent / every * 1e6, 1))
            spent = 0.0
    sink.flush()
    live = path.stat().st_size
    begin = time.perf_counter()
    sink.close("complete")
    size = path.stat().st_size
    filled = sum(1 / rhythm for rhythm in RHYTHM.values())
    return {
        "rows": rows,
        "layers": layers,
        "append_us_per_row": parts,
        "close_s": round(time.perf_counter() - begin, 2),
        "live_bytes_per_number": round(live / (rows * layers * len(RHYTHM)), 3),
        "bytes_per_number": round(size / (rows * layers * len(RHYTHM)), 3),
        "bytes_per_number_not_nan": round(size / (rows * layers * filled), 3),
        "megabytes": round(size / 1e6, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


READ = """
import resource, sys, time
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import json
from gradlens import read_run
from gradlens.run_summary import summarise
begin = time.perf_counter(); run = read_run(sys.argv[1]); opened = time.perf_counter() - begin
begin = time.perf_counter(); summarise(run).to_dict(); summed = time.perf_counter() - begin
from gradlens.analysis.profile import heat_matrix, rows_within
begin = time.perf_counter(); heat_matrix(run, "activation_grad_norm", columns=1600)
matrix = time.perf_counter() - begin
half = len(run.steps) // 2
begin = time.perf_counter()
heat_matrix(run, "activation_grad_norm", columns=1600, rows=rows_within(run, half, half + len(run.steps) // 100))
zoomed = time.perf_counter() - begin
found = {"imported_mb": round(before / 1024), "open_s": round(opened, 3),
    "summary_s": round(summed, 3), "matrix_s": round(matrix, 3),
    "matrix_of_one_percent_s": round(zoomed, 3),
    "reader_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}
print(json.dumps(found))
"""


def read(path: Path) -> dict[str, Any]:
    """Open, summarise and draw, each in a new process, three times; return the medians."""
    runs = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
        facts = json.loads(done.stdout)
        for name, command in (("summary", ["summary"]), ("heatmap", ["heatmap", "-o", str(path.with_suffix(".png"))])):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-m", "gradlens", *command, str(path)], capture_output=True, check=True)
            facts[f"{name}_command_s"] = round(time.perf_counter() - begin, 2)
        runs.append(facts)
    return {key: float(np.median([run[key] for run in runs])) for key in runs[0]}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--rows", default="10000,100000")
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where the files are made; they are removed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = []
    real = real_rows(options.runs, options.layers)
    for rows in map(int, options.rows.split(",")):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "long.h5"
            child = os.fork()  # so that each has its own peak of memory
            if child == 0:
                facts = write(path, real, rows, background=False)
                path.with_suffix(".json").write_text(json.dumps(facts))
                os._exit(0)
            os.waitpid(child, 0)
            facts = json.loads(path.with_suffix(".json").read_text()) | read(path)
        print(json.dumps(facts), flush=True)
        results.append(facts)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
