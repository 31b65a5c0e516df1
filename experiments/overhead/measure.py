"""What it costs to watch gradients: step time with and without, in turn, for gradlens and for what people use today.

    python experiments/overhead/measure.py --subject mlp --way gradlens forum --seconds 20 --json mlp.json
    python experiments/overhead/measure.py --tables mlp.json resnet34.json --markdown tables.md

``README.md`` in this folder says how it is measured and how to read the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from machine import processor_name
from peers import WAYS
from subjects import SUBJECTS
from tables import write_tables

from gradlens.provenance import commit, versions

WORKER = Path(__file__).with_name("worker.py")
SLOWEST_START = 600
"""Seconds that one measurement may take beyond its budget: imports, warm-up, the last round, closing files."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""How numpy's BLAS learns the number of threads: TensorBoard computes with it."""


class Bench:
    """Starts the measurements, each in a process of its own.

    Args:
        options: The parsed command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._bare_memory: dict[tuple[str, bool], dict[str, Any]] = {}
        self._bytes: dict[tuple[str, str], dict[str, Any]] = {}

    def compare(self, subject: str, way: str) -> dict[str, Any]:
        """Measure one way on one subject."""
        found = {
            "subject": subject,
            "subject_title": SUBJECTS[subject].titles[self._options.device],
            "way": way,
            "way_title": WAYS[way].title,
            **self._run(kind="pair", subject=subject, way=way),
        }
        if "ratio" in found:
            found |= self._count_bytes(found) | self._compare_memory(found)
        return found

    def _count_bytes(self, pair: dict[str, Any]) -> dict[str, Any]:
        """Return the bytes that a step adds, and those that are there once."""
        if pair["bytes"] == 0:
            return {"bytes_per_step": 0.0}
        key = (pair["subject"], WAYS[pair["way"]].at_every_step().title)
        if key not in self._bytes:  # with one thread: there is little to compute
            self._bytes[key] = self._run(kind="bytes", subject=pair["subject"], way=pair["way"], threads=1)
        found = self._bytes[key]
        if "error" in found:
            return {"bytes_error": found["error"]}
        return {"bytes_per_step": found["per_step"] * pair["row_share"], "bytes_once": found["once"]}

    def _compare_memory(self, pair: dict[str, Any]) -> dict[str, Any]:
        """Return by how much the memory is more than that of a bare model."""
        subject, way, out_of_place = pair["subject"], pair["way"], pair["out_of_place"]
        if way == "bare" or self._options.memory_runs == 0:
            return {}
        key = (subject, out_of_place)
        if key not in self._bare_memory:
            self._bare_memory[key] = self._run_solo(subject, "bare", out_of_place=out_of_place)
        bare = self._bare_memory[key]
        solo = self._run_solo(subject, way, out_of_place=out_of_place)
        for run in (bare, solo):
            if "error" in run:
                return {"memory_error": run["error"]}
        memory = {"growth": solo["peak_memory"] - bare["peak_memory"], "processes": solo["processes_memory"]}
        if "cuda_memory" in solo:
            memory["cuda"] = solo["cuda_memory"] - bare["cuda_memory"]
        return {"memory": memory}

    def _run_solo(self, subject: str, way: str, *, out_of_place: bool) -> dict[str, Any]:
        """Return the median of some runs, number by number."""
        job = {"kind": "solo", "subject": subject, "way": way, "out_of_place": out_of_place}
        runs = [self._run(**job) for _ in range(self._options.memory_runs)]
        failed = [run for run in runs if "error" in run]
        return failed[0] if failed else {name: statistics.median(run[name] for run in runs) for name in runs[0]}

    def _run(self, **job: Any) -> dict[str, Any]:
        """Do one job in a process of its own."""
        options = self._options
        names = ("steps", "seconds", "warmup", "threads", "device")
        job = {name: getattr(options, name) for name in names} | {"block": options.block} | job
        with tempfile.TemporaryDirectory() as folder:
            out, log = Path(folder) / "result.json", Path(folder) / "log.txt"
            command = [sys.executable, str(WORKER), json.dumps(job), str(out)]
            with log.open("w") as stream:
                try:
                    subprocess.run(
                        command,
                        stdout=stream,
                        stderr=stream,
                        stdin=subprocess.DEVNULL,
                        env=os.environ | dict.fromkeys(THREADS, str(job["threads"])),
                        timeout=options.seconds + SLOWEST_START,
                        check=False,
                    )
                except subprocess.TimeoutExpired:
                    return {"error": f"took more than {options.seconds + SLOWEST_START:.0f} seconds"}
            if out.exists():
                result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
            else:
                result = {"error": (log.read_text(errors="replace").strip() or "died silently").splitlines()[-1]}
            if options.verbose and "error" in result:
                print(log.read_text(errors="replace"), file=sys.stderr)
        return result


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """Say on what, with what and how is measured."""
    found = versions()
    for package in sorted({way.package for way in WAYS.values()} - {"", "gradlens-toolkit"}):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    hardware = processor_name()
    if options.device == "cuda":
        import torch

        hardware = f"{torch.cuda.get_device_name()}, {hardware}"
    return {
        "versions": found,
        "hardware": hardware,
        "device": options.device,
        "threads": options.threads,
        "commit": commit(),
        "command": shlex.join(["python", "experiments/overhead/measure.py", *sys.argv[1:]]),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subject", nargs="+", choices=SUBJECTS, help="what is trained (default: all of the device)")
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS), help="how it is watched (default: all)")
    parser.add_argument("--steps", type=int, default=1000, help="rounds at most, each a step of three models (1000)")
    parser.add_argument("--seconds", type=float, default=30, help="time for the rounds of one comparison (30)")
    parser.add_argument("--warmup", type=int, default=10, help="rounds before that (10)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--block", type=int, help="steps timed together (1 on the cpu, 10 on cuda)")
    parser.add_argument("--memory-runs", type=int, default=3, help="runs for the median of the memory; 0 leaves it out")
    parser.add_argument("--json", type=Path, help="where the results go, after each comparison")
    parser.add_argument("--markdown", type=Path, help="where the tables go as well")
    parser.add_argument("--tables", type=Path, nargs="+", help="measure nothing, print the tables of these results")
    parser.add_argument("--verbose", action="store_true", help="print the log of what failed")
    options = parser.parse_args(arguments)
    options.block = options.block or (10 if options.device == "cuda" else 1)
    if options.subject is None:
        options.subject = [name for name, subject in SUBJECTS.items() if options.device in subject.titles]
    if min(options.steps, options.warmup, options.threads, options.block) < 1 or options.memory_runs < 0:
        parser.error("--steps, --warmup, --threads and --block start at 1, --memory-runs at 0")
    unfit = [name for name in options.subject if options.device not in SUBJECTS[name].titles]
    if unfit:
        parser.error(f"{', '.join(unfit)} is not measured on {options.device}")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all that was asked for."""
    run: dict[str, Any] = {"about": describe(options), "pairs": []}
    bench = Bench(options)
    for subject in options.subject:
        for way in options.way:
            pair = bench.compare(subject, way)
            run["pairs"].append(pair)
            if options.json:
                options.json.write_text(json.dumps(run, indent=1), encoding="utf-8")
            said = f"{pair['ratio']['median']:.3f}" if "ratio" in pair else "no result"
            print(f"{subject}, {WAYS[way].title}: {said}", file=sys.stderr, flush=True)
    return run


def main() -> None:
    """Measure, or read results; print tables."""
    options = parse()
    if options.device == "cuda" and not options.tables:
        import torch

        if not torch.cuda.is_available():
            sys.exit("--device cuda: torch sees no GPU here")
    if options.tables:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in options.tables]
    else:
        runs = [measure(options)]
    text = write_tables(runs)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
