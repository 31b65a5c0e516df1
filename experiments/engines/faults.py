"""What becomes of many short runs when processes, drivers, jobs and nodes are killed: a table of engines x faults.

Usage:
  faults.py table [--runs 200] [--engine local slurm ray] [--fault NAME ...] [--json FILE]
  faults.py drive ENGINE FOLDER RUNS [--seconds S] [--at-once N] [--retries N] [--minutes N]

``drive`` carries out short runs (``short_run.py``) with an engine, as ``gradlens run FILE.toml --engine`` does.
``table`` starts it as a process of its own, does what the fault says, starts it again until it ends well, and counts.
Slurm and Ray are started for it: see ``tests/engines/slurm_cluster.py`` and ``ray_cluster.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradlens.engine_settings import EngineSettings
from gradlens.engines.choose import make_engine
from gradlens.engines.driver import carry_out
from gradlens.engines.jobs import Job
from gradlens.errors import GradlensError
from gradlens.storage import read_run

HERE = Path(__file__).resolve().parent
SHORT_RUN = HERE / "short_run.py"
EPOCHS = 3
ROWS = 4
KILLS = 10
"""Processes that are killed, one after another."""
GIVE_UP_S = 900.0


def make_short_jobs(folder: Path, runs: int, seconds: float) -> list[Job]:
    """Return jobs of short runs; those whose file is complete are kept, as in an experiment."""
    jobs = []
    for i in range(runs):
        path = folder / "group" / f"run{i:03}.h5"
        command = [sys.executable, str(SHORT_RUN), str(path), str(folder / "journal"), str(seconds), str(EPOCHS)]
        jobs.append(Job(f"group/run{i:03}", path, EPOCHS, command))
        if jobs[-1].is_complete():
            jobs[-1].state = "kept"
    return jobs


def drive(engine: str, folder: Path, runs: int, seconds: float, at_once: int, retries: int, minutes: int) -> int:
    """Carry out the short runs; return 0 if all are complete."""
    (folder / "group").mkdir(parents=True, exist_ok=True)
    jobs = make_short_jobs(folder, runs, seconds)
    settings = EngineSettings(engine, at_once=at_once, retries=retries, minutes=minutes)
    carry_out(jobs, make_engine(settings, folder, runs), retries, lambda job: None)
    for job in jobs:
        if job.state == "failed":
            print(f"{job.label}: {job.error}")
    return int(any(job.state == "failed" for job in jobs))


def count(folder: Path, runs: int) -> dict[str, int]:
    """Return how many runs are complete, with each row once, and how many were completed twice or lost."""
    journal = (folder / "journal").read_text().splitlines() if (folder / "journal").exists() else []
    ends = Counter(line.split()[0] for line in journal if line.endswith(" complete"))
    complete = 0
    for i in range(runs):
        with contextlib.suppress(GradlensError):
            run = read_run(folder / "group" / f"run{i:03}.h5")
            complete += run.status == "complete" and np.array_equal(run.steps, np.arange(ROWS * EPOCHS))
    return {
        "complete": complete,
        "lost": runs - complete,
        "twice": sum(times > 1 for times in ends.values()),
        "epochs_repeated": sum(" epoch " in line for line in journal) - runs * EPOCHS,
        "left_behind": sum(path.name.startswith(".") for path in folder.rglob("*")),
    }


def processes_of(folder: Path) -> list[int]:
    """Return the ids of the short runs in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            if str(SHORT_RUN).encode() in words[:3] and str(folder / "journal").encode() in words:
                found.append(int(path.name))
    return found


class Trial:
    """An experiment under a fault: its folder, its drivers, and the cluster if there is one."""

    def __init__(self, engine: str, runs: int, folder: Path, cluster: Any) -> None:
        self.engine, self.runs, self.folder, self.cluster = engine, runs, folder, cluster
        self.drivers: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        """Start a driver."""
        words = ["drive", self.engine, str(self.folder), str(self.runs), "--at-once", "4", "--retries", "3"]
        environment = dict(os.environ if self.cluster is None else self.cluster.environment)
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.drivers.append(subprocess.Popen([sys.executable, str(HERE / "faults.py"), *words], env=environment))
        return self.drivers[-1]

    def wait_for(self, share: float) -> None:
        """Wait until this share of the runs has begun."""
        end = time.monotonic() + GIVE_UP_S
        while len(list(self.folder.glob("group/*.h5"))) < share * self.runs and time.monotonic() < end:
            if all(driver.poll() is not None for driver in self.drivers):
                return
            time.sleep(0.1)

    def end(self) -> None:
        """Wait for all drivers, and start another one until one ends well."""
        for driver in self.drivers:
            self.wait(driver)
        for _ in range(3):
            if self.drivers[-1].returncode == 0:
                return
            self.wait(self.start())

    def wait(self, driver: subprocess.Popen[bytes]) -> None:
        """Wait for a driver; Slurm would start jobs that were put back into its queue after two minutes only."""
        end = time.monotonic() + GIVE_UP_S
        while driver.poll() is None:
            if time.monotonic() > end:
                driver.kill()
            time.sleep(1)
            if self.engine == "slurm":
                self.cluster.start_requeued()


def nothing(trial: Trial) -> None:
    """Let the runs be."""
    trial.start()


def worker_killed(trial: Trial) -> None:
    """Kill running runs with SIGKILL."""
    trial.start()
    for i in range(KILLS):
        trial.wait_for((i + 1) / (KILLS + 2))
        for process in processes_of(trial.folder)[:1]:
            os.kill(process, signal.SIGKILL)


def driver_killed(trial: Trial) -> None:
    """Kill the driver with SIGKILL twice, and start it again."""
    for share in (0.2, 0.5):
        driver = trial.start()
        trial.wait_for(share)
        driver.kill()
        driver.wait()
    trial.start()


def started_twice(trial: Trial) -> None:
    """Start a second driver while the first one is at work."""
    trial.start()
    trial.wait_for(0.1)
    trial.start()


def stopped(trial: Trial) -> None:
    """Send SIGTERM to the driver, and start it again."""
    driver = trial.start()
    trial.wait_for(0.4)
    driver.terminate()
    driver.wait()
    trial.start()


def time_limit(trial: Trial) -> None:
    """Send running jobs the signal that Slurm sends before the time limit."""
    trial.start()
    for i in range(3):
        trial.wait_for((i + 1) / 5)
        for job in trial.cluster.call("squeue", "-h", "-t", "RUNNING", "-o", "%A").split():
            trial.cluster.call("scancel", "--signal=USR2", job)


def preempted(trial: Trial) -> None:
    """Submit jobs of a partition that goes first to both nodes."""
    trial.start()
    trial.wait_for(0.3)
    trial.cluster.call("sbatch", "-p", "first", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")


def node_lost(trial: Trial) -> None:
    """Kill all that runs on a node, and start the node again (Slurm)."""
    trial.start()
    trial.wait_for(0.3)
    if trial.engine == "ray":
        trial.cluster.kill_node()
        return
    trial.cluster.kill_node("n2")
    time.sleep(1)
    trial.cluster.start_node("n2")


FAULTS: dict[str, Callable[[Trial], None]] = {
    "none": nothing,
    "worker killed": worker_killed,
    "driver killed": driver_killed,
    "driver stopped": stopped,
    "started twice": started_twice,
    "time limit": time_limit,
    "preempted": preempted,
    "node lost": node_lost,
}
ONLY = {"time limit": ("slurm",), "preempted": ("slurm",), "node lost": ("slurm", "ray")}
"""Engines that a fault is for; the others are for all. A lost node of Ray stays lost, so this is the last one."""


@contextlib.contextmanager
def cluster_for(engine: str) -> Iterator[Any]:
    """Yield a cluster of Slurm or Ray if the engine needs one."""
    if engine == "local":
        yield None
        return
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.engines import ray_cluster, slurm_cluster
    from tests.processes import free_port

    missing = slurm_cluster.missing() if engine == "slurm" else ray_cluster.missing()
    if missing:
        sys.exit(missing)
    folder = Path(tempfile.mkdtemp(prefix="gl"))
    folder.chmod(0o755)
    if engine == "slurm":
        started = slurm_cluster.running_cluster(folder / "s", [free_port() for _ in range(3)])
    else:
        started = ray_cluster.running_cluster(folder)
    with started as cluster:
        yield cluster
    shutil.rmtree(folder, ignore_errors=True)


def try_out(engine: str, fault: str, runs: int, cluster: Any) -> dict[str, Any]:
    """Return what became of the runs of an engine under a fault."""
    with tempfile.TemporaryDirectory() as name:
        trial = Trial(engine, runs, Path(name) / "experiment", cluster)
        began = time.monotonic()
        FAULTS[fault](trial)
        trial.end()
        seconds = time.monotonic() - began
        for left in trial.folder.rglob(".*"):
            print(f"left behind: {left}", *left.glob("**/*"), file=sys.stderr)
        return {"engine": engine, "fault": fault, "runs": runs, **count(trial.folder, runs), "seconds": round(seconds)}


def table(engines: list[str], faults: list[str], runs: int, out: Path | None) -> None:
    """Print the table, row by row."""
    rows = []
    for engine in engines:
        with cluster_for(engine) as cluster:
            for fault in faults or FAULTS:
                if engine not in ONLY.get(fault, (engine,)):
                    continue
                rows.append(try_out(engine, fault, runs, cluster))
                if len(rows) == 1:
                    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
                print("| " + " | ".join(map(str, rows[-1].values())) + " |", flush=True)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("drive")
    one.add_argument("engine")
    one.add_argument("folder", type=Path)
    one.add_argument("runs", type=int)
    one.add_argument("--seconds", type=float, default=0.1)
    one.add_argument("--at-once", type=int, default=4)
    one.add_argument("--retries", type=int, default=3)
    one.add_argument("--minutes", type=int, default=5, help="time limit")
    many = verbs.add_parser("table")
    many.add_argument("--runs", type=int, default=200)
    many.add_argument("--engine", nargs="+", default=["local", "slurm"])
    many.add_argument("--fault", nargs="+", default=[], choices=list(FAULTS))
    many.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.verb == "drive":
        return drive(given.engine, given.folder, given.runs, given.seconds, given.at_once, given.retries, given.minutes)
    table(given.engine, given.fault, given.runs, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
