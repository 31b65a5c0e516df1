"""Experiments on a real Ray cluster of two nodes, started on this machine; what is lost, and what is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradlens import read_run
from gradlens.cli import run_command
from tests.engines.ray_cluster import RayCluster, missing, running_cluster
from tests.engines.short_runs import assert_each_once, journal, wait_for
from tests.processes import PATIENCE

ROOT = Path(__file__).parents[2]
FAULTS = ROOT / "experiments" / "engines" / "faults.py"
EXPERIMENT = 'question = "Does it run?"\n[engine]\nname = "ray"\n[group.small]\nmodels = ["plain8"]\n'
needs_ray = pytest.mark.skipif(bool(missing()), reason=missing())


def test_ray_is_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_command(["run", "tiny.toml"]) == 1
    assert "needs Ray, which is not installed\nTip: pip install 'gradlens-toolkit[ray]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    short = tempfile.TemporaryDirectory(prefix="gl", ignore_cleanup_errors=True)  # sockets lie in it
    with short as folder, running_cluster(Path(folder)) as started:
        yield started


def drive(cluster: RayCluster, folder: Path, runs: int, seconds: float, retries: int = 0) -> subprocess.Popen[str]:
    words = ("drive", "ray", folder, str(runs), "--seconds", str(seconds), "--retries", str(retries))
    return subprocess.Popen(
        [sys.executable, str(FAULTS), *map(str, words)],
        env=cluster.environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(driver: subprocess.Popen[str]) -> None:
    said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, said


@pytest.mark.slow
@needs_ray
def test_a_driver_is_stopped_and_another_is_killed(cluster: RayCluster, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "hold").touch()
    stopped = drive(cluster, folder, 2, 0.1)
    wait_for(lambda: {"run000.h5 epoch 1", "run001.h5 epoch 1"} <= set(journal(folder)), stopped)
    stopped.send_signal(signal.SIGINT)
    stopped.communicate(timeout=PATIENCE)
    paths = [folder / "group" / f"run{i:03}.h5" for i in range(2)]
    assert [read_run(path).status for path in paths] == ["interrupted"] * 2  # closed by the runs themselves
    assert not (folder / ".ray").exists()
    killed = drive(cluster, folder, 2, 0.1)
    wait_for(lambda: journal(folder).count("run000.h5 epoch 1") == 2, killed)
    killed.kill()
    killed.communicate()
    (folder / "hold").unlink()
    finish(drive(cluster, folder, 2, 0.1))
    assert_each_once(folder, 2)
    assert not (folder / ".ray").exists()
    assert journal(folder).count("run000.h5 epoch 0") == 1  # it continued


@pytest.mark.slow
@needs_ray
def test_the_runs_of_a_node_that_is_killed_go_on_elsewhere(cluster: RayCluster, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "hold").touch()
    driver = drive(cluster, folder, 5, 0.1)
    wait_for(lambda: len([line for line in journal(folder) if line.endswith("epoch 1")]) == 4, driver)  # on both nodes
    cluster.kill_node()
    (folder / "hold").unlink()
    finish(driver)  # without a retry: a lost node is no failure of a run
    assert_each_once(folder, 5)
    assert not (folder / ".ray").exists()
    assert len(journal(folder)) > 5 * 4  # some epochs were begun again


@pytest.mark.slow
@needs_ray
def test_no_cluster_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"} | {"RAY_ADDRESS": "127.0.0.1:1"}
    command = [sys.executable, "-m", "gradlens", "run", "tiny.toml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert "Error: --engine ray: no Ray cluster at 127.0.0.1:1 can be reached: " in done.stderr
    assert "Tip: ray start --head begins one" in done.stderr
    assert "Traceback" not in done.stderr
