"""Recording of one checkout against that of another: what a change costs in a training step.

    python experiments/overhead/versions.py OLD NEW --steps 1500

OLD and NEW are folders that hold a ``gradlens`` package. Three processes train the same 50-layer MLP with the recorder
on: one with OLD, two with NEW, the second of which is the null. They take turns step by step, so that whatever else the
machine does meets all of them alike. Printed are the median and the quartiles of the ratios within rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WARM_UP = 100


def train_on_demand() -> None:
    """Make one recorded step for each line on stdin, and print what it took, in seconds."""
    import torch
    from subjects import make_subject

    import gradlens

    torch.set_num_threads(1)
    trained = make_subject("mlp", "cpu")
    with (
        tempfile.TemporaryDirectory() as folder,
        gradlens.record(trained.model, Path(folder) / "run.h5", optimizer=trained.optimizer) as recorder,
    ):
        for _ in sys.stdin:
            began = time.perf_counter()
            loss = trained.compute_loss()
            trained.optimizer.zero_grad()
            loss.backward()
            trained.optimizer.step()
            recorder.log(loss=loss)
            print(time.perf_counter() - began, flush=True)


def start(checkout: Path) -> subprocess.Popen[str]:
    """Start a process that trains with the package of a checkout."""
    paths = os.pathsep.join((str(checkout.resolve()), str(Path(__file__).parent)))
    return subprocess.Popen(
        [sys.executable, __file__, "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=checkout,
    )


def step(worker: subprocess.Popen[str]) -> float:
    """Let a process make a step; return its seconds."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(file=worker.stdin, flush=True)
    return float(worker.stdout.readline())


def main() -> None:
    """Compare two checkouts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs="*", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return train_on_demand()
    if len(options.checkouts) != 2:
        parser.error("expected two checkouts: OLD NEW")
    from stats import compare

    old, new = options.checkouts
    workers = {"old": start(old), "new": start(new), "null": start(new)}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(WARM_UP + options.steps):
        order = list(workers)[number % 3 :] + list(workers)[: number % 3]
        for name in order:
            took = step(workers[name])
            if number >= WARM_UP:
                seconds[name].append(took)
    for worker in workers.values():
        worker.communicate()
    result = {
        "steps": options.steps,
        "step_ms": {name: 1000 * sorted(taken)[len(taken) // 2] for name, taken in seconds.items()},
        "new over old": compare(seconds["new"], seconds["old"]),
        "null over new": compare(seconds["null"], seconds["new"]),
    }
    print(json.dumps(result, indent=2))
    return None


if __name__ == "__main__":
    main()
