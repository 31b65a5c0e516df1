"""Experiments on a real Slurm of two nodes, started on this machine; what is lost, and what is done twice."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradlens import read_run
from tests.engines.short_runs import assert_each_once, journal, wait_for
from tests.engines.slurm_cluster import Cluster, missing, running_cluster
from tests.processes import PATIENCE, free_port

ROOT = Path(__file__).parents[2]
FAULTS = ROOT / "experiments" / "engines" / "faults.py"
EXPERIMENT = """
question = "Does it run?"
[engine]
name = "slurm"
time = 5
[run]
image_size = 16
epochs = 1
batch_size = 200
[group.small]
models = ["plain8"]
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(shutil.which("runuser") is None, reason="needs Linux"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    folder = Path(tempfile.mkdtemp(prefix="gl"))  # a socket's path must be short
    folder.chmod(0o755)
    with running_cluster(folder / "s", [free_port() for _ in range(3)]) as started:
        yield started
    shutil.rmtree(folder, ignore_errors=True)


def start(cluster: Cluster, *words: str | Path) -> subprocess.Popen[str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**cluster.environment, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, *map(str, words)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def drive(cluster: Cluster, folder: Path, runs: int, seconds: float, retries: int) -> subprocess.Popen[str]:
    words = ("drive", "slurm", folder, str(runs), "--seconds", str(seconds), "--retries", str(retries))
    return start(cluster, FAULTS, *words)


def finish(cluster: Cluster, driver: subprocess.Popen[str]) -> None:
    def ended() -> bool:
        cluster.start_requeued()
        return driver.poll() is not None

    wait_for(ended)
    said = driver.communicate()
    assert driver.returncode == 0, said


def states(cluster: Cluster) -> list[str]:
    return cluster.call("squeue", "-h", "-r", "-p", "main", "-o", "%T").split()


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def test_runs_end_complete_whoever_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    folder, runs = tmp_path / "many", 6
    killed = drive(cluster, folder, runs, 0.5, 1)
    wait_for(lambda: journal(folder), killed)
    killed.kill()
    killed.communicate()
    both = [drive(cluster, folder, runs, 0.5, 1) for _ in range(2)]
    wait_for(lambda: len(journal(folder)) > 4)
    process = next(iter(processes_of(folder)), None)
    if process is not None:
        os.kill(process, signal.SIGKILL)
    for driver in both:
        finish(cluster, driver)
    assert_each_once(folder, runs)
    assert hidden(folder / "group") == []
    assert cluster.call("squeue", "-h") == ""


def processes_of(folder: Path) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if f"{folder}/journal" in line and "-m" not in line]


@pytest.mark.parametrize("event", ["time limit", "preempted"])
def test_a_run_is_closed_and_goes_on_in_the_next_job(event: str, cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "hold").touch()
    driver = drive(cluster, folder, 1, 0.1, 0)  # without a retry: Slurm puts the job back
    wait_for(lambda: "run000.h5 epoch 1" in journal(folder), driver)
    number = cluster.call("squeue", "-h", "-o", "%A").strip()
    assert cluster.steps(number)
    if event == "time limit":
        cluster.call("scancel", "--signal=USR2", number)
    else:
        cluster.call("sbatch", "-p", "first", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true")
    wait_for(lambda: read_run(folder / "group" / "run000.h5").status == "interrupted")
    (folder / "hold").unlink()

    def has_left() -> bool:
        """Return whether nothing of the first job is on its node; or the next one has ended already."""
        waits = states(cluster) == ["PENDING"] and not cluster.steps(number)
        return waits or read_run(folder / "group" / "run000.h5").status == "complete"

    wait_for(has_left)
    time.sleep(8)  # its node kills what has the number of this job for some seconds more
    finish(cluster, driver)
    assert read_run(folder / "group" / "run000.h5").status == "complete"
    assert journal(folder).count("run000.h5 epoch 0") == 1  # it continued
    assert journal(folder).count("run000.h5 epoch 1") == 2


def test_a_time_limit_before_the_first_epoch_is_a_failure_with_its_reason(cluster: Cluster, tmp_path: Path) -> None:
    driver = drive(cluster, tmp_path / "one", 1, 8, 0)
    wait_for(lambda: journal(tmp_path / "one"), driver)
    cluster.call("scancel", "--signal=USR2", cluster.call("squeue", "-h", "-o", "%A").strip())
    said = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 1
    assert "the time limit came before an epoch was finished; engine.time must be longer" in said


def test_the_command_leaves_its_runs_in_the_queue_shows_and_cancels_them(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    gradlens = ("-m", "gradlens")
    blocker = cluster.call("sbatch", "-p", "first", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 300")
    number = re.findall(r"\d+", blocker)[0]
    wait_for(lambda: "RUNNING" in cluster.call("squeue", "-h", "-j", number, "-o", "%T"))
    first = start(cluster, *gradlens, "run", "tiny.toml")
    wait_for(lambda: cluster.call("squeue", "-h", "-p", "main"), first)
    wait_for(lambda: (tmp_path / "runs/tiny/small/.plain8-s0.h5.job").exists())
    wait_for(lambda: list((tmp_path / "runs/tiny/.slurm").glob("*/*_submitted.pkl")), first)  # sbatch has answered
    first.send_signal(signal.SIGINT)
    told = first.communicate(timeout=PATIENCE)[1]
    assert first.returncode == 130
    assert "the runs stay in the queue" in told
    listed = start(cluster, *gradlens, "ls", "runs/tiny", "--format", "csv").communicate(timeout=PATIENCE)[0]
    assert "plain8-s0,waiting" in listed.replace("small/", "")
    assert cluster.call("squeue", "-h", "-p", "main")
    ended = start(cluster, *gradlens, "run", "tiny.toml", "--cancel").communicate(timeout=PATIENCE)[1]
    assert "nothing is left in the queue" in ended
    assert cluster.call("squeue", "-h", "-p", "main") == ""
    cluster.call("scancel", number)


def test_what_slurm_refuses_is_told_in_a_line(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(EXPERIMENT.replace("time = 5", 'partition = "nowhere"'))
    told = start(cluster, "-m", "gradlens", "run", "tiny.toml").communicate(timeout=PATIENCE)[1]
    assert "Error: Slurm did not take the jobs: " in told
    assert "invalid partition specified: nowhere" in told
    assert "Tip: the tables [engine] and [engine.slurm]" in told
    assert "Traceback" not in told
