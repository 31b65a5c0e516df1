"""Long and wide runs: the cost of a row from the first to the last, the file, and time and memory of every command.

    python experiments/storage/wide.py --shapes 10000x10000 100x1000000 --json wide.json

A shape is layers x rows. The rows are made up (lognormal, falling over depth, a different one for each row, each number
different), and written as a recorder writes them, by the project's own writer. ``limit`` is the number of bytes of
float32 that must be written, which no file without loss can be much below: the lower two bytes of a norm are noise.
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

from gradlens.run import Header, Layer, Row
from gradlens.storage import FileSink

METRICS = {"activation_grad_norm": 1, "param_grad_norm": 1}
EPOCH_ROWS = 1000
LONGEST_S = 900.0
COMMANDS = {
    "read": ("-c", "import gradlens, sys; gradlens.read_run(sys.argv[1]).info"),
    "ls": ("-m", "gradlens", "ls", "FOLDER"),
    "summary": ("-m", "gradlens", "summary", "FILE"),
    "diagnose": ("-m", "gradlens", "diagnose", "FILE"),
    "heatmap": ("-m", "gradlens", "heatmap", "FILE", "-o", "FOLDER/heatmap.png"),
    "profile": ("-m", "gradlens", "profile", "FILE", "-o", "FOLDER/profile.png"),
    "watch": ("-m", "gradlens", "watch", "FILE"),
    "report": ("-m", "gradlens", "report", "FILE", "-o", "FOLDER/report.html"),
    "recover": ("-m", "gradlens", "recover", "FILE"),
    "export, csv": ("-m", "gradlens", "export", "FILE", "-o", "FOLDER/run.csv"),
    "export, parquet": ("-m", "gradlens", "export", "FILE", "-o", "FOLDER/run.parquet"),
}


def write(path: Path, layers: int, rows: int) -> dict[str, Any]:
    """Write a run and return what it cost; the times are processor times, as other work disturbs the others."""
    rng = np.random.default_rng(0)
    table = tuple(Layer(f"stage{i // 40}.{i % 40}", "Linear", "main", i + 1, 1000, 100) for i in range(layers))
    base = np.exp(rng.normal(0, 0.3, (64, layers))) * 10 ** np.linspace(-3, 0, layers)
    sink = FileSink(path)
    sink.open(Header(table, METRICS, model="wide", seed=0, config={}))
    thousand = min(1000, rows // 4)
    spent = np.zeros(rows)
    for step in range(rows):
        values = base[step % 64] * (1 + step * 1e-7)
        row = Row(step, step // EPOCH_ROWS, {"activation_grad_norm": values, "param_grad_norm": values * 0.5},
                  {"loss": 1 / (step + 1), "lr": 0.1})  # fmt: skip
        begin = time.thread_time()
        sink.write_row(row)
        if step % EPOCH_ROWS == EPOCH_ROWS - 1:
            sink.write_epoch({"epoch": step // EPOCH_ROWS + 1, "train_loss": 1.0})
        spent[step] = time.thread_time() - begin
    sink.flush()
    live, begin = path.stat().st_size, time.perf_counter()
    sink.close("complete")
    numbers = layers * rows * len(METRICS)
    return {
        "layers": layers,
        "rows": rows,
        "limit_mb": round(numbers * 4 / 1e6, 1),
        "written_mb": round(live / 1e6, 1),
        "finished_mb": round(path.stat().st_size / 1e6, 1),
        "row_us_first": round(float(spent[:thousand].mean()) * 1e6, 1),
        "row_us_last": round(float(spent[-thousand:].mean()) * 1e6, 1),
        "close_s": round(time.perf_counter() - begin, 1),
        "writer_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def call(words: tuple[str, ...], path: Path, folder: Path) -> dict[str, Any]:
    """Return how long a command took, and the most memory that it had."""
    named = [word.replace("FOLDER", str(folder)).replace("FILE", str(path)) for word in words]
    if words[0] == "-c":
        named.append(str(path))
    begin = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *named], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        told = child.communicate(timeout=LONGEST_S)[1]
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return {"s": f"over {LONGEST_S:g}", "mb": "-"}
    seconds = round(time.perf_counter() - begin, 1)
    return {"s": seconds, "mb": peak(told)} if child.returncode == 0 else {"s": told.strip()[-200:], "mb": "-"}


def peak(told: str) -> int:
    """Return the most memory of the last child, in MB, as ``sitecustomize`` printed it."""
    return int(told.rpartition("peak ")[2].split()[0])


PEAK = """
import atexit, resource, sys
atexit.register(lambda: sys.__stderr__.write(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}\\n"))
"""


def measure(shape: str, commands: list[str], folder: Path) -> dict[str, Any]:
    """Return the facts of a shape."""
    layers, rows = map(int, shape.split("x"))
    path = folder / "wide.h5"
    child = os.fork()  # so that each has its own peak of memory
    if child == 0:
        (folder / "facts.json").write_text(json.dumps(write(path, layers, rows)))
        os._exit(0)
    os.waitpid(child, 0)
    facts = json.loads((folder / "facts.json").read_text())
    print(json.dumps(facts), file=sys.stderr, flush=True)
    for name in commands:
        facts[name] = call(COMMANDS[name], path, folder)
        print(name, facts[name], file=sys.stderr, flush=True)
    return facts


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["10000x10000", "100x1000000"])
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--folder", type=Path, help="where the files are made; they are removed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    for shape in options.shapes:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            (Path(name) / "site").mkdir()
            (Path(name) / "site" / "sitecustomize.py").write_text(PEAK)
            paths = [str(Path(name) / "site"), *filter(None, [os.environ.get("PYTHONPATH", "")])]
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)
            (Path(name) / "runs").mkdir()
            found.append(measure(shape, options.commands, Path(name) / "runs"))
    print_table(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def print_table(found: list[dict[str, Any]]) -> None:
    """Print a column per shape."""
    print("| | " + " | ".join(f"{facts['layers']:,} x {facts['rows']:,}" for facts in found) + " |")
    print("|---|" + "---|" * len(found))
    for key in found[0]:
        if key not in ("layers", "rows"):
            cells = [facts[key] for facts in found]
            shown = [f"{cell['s']} s, {cell['mb']} MB" if isinstance(cell, dict) else f"{cell:,}" for cell in cells]
            print(f"| {key} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
