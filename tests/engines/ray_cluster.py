"""A real Ray cluster of two nodes on this machine, in a folder of its own, started by a process that holds it.

As a program it starts a cluster, writes its address and the processes of its nodes to a file, and ends with its input:
``python tests/engines/ray_cluster.py FOLDER CPUS``
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_S = 120.0
ATTEMPTS = 3
STORE_BYTES = 80 * 2**20


def missing() -> str:
    """Return why no cluster can be started here; "" if one can."""
    return "" if importlib.util.find_spec("ray") is not None else "the extra ray is not installed"


class RayCluster:
    """A running cluster; its commands need ``environment``.

    Args:
        folder: For its files; one with a short name, as sockets lie in it.
        cpus: CPUs of a node, whatever the machine has.
    """

    def __init__(self, folder: Path, cpus: int) -> None:
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "RAY_DISABLE_IMPORT_WARNING": "1"}
        with (folder / "log").open("w") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, __file__, str(folder), str(cpus)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        end = time.monotonic() + START_S
        while not (folder / "ready").exists():
            if self._keeper.poll() is not None or time.monotonic() > end:
                self._keeper.kill()
                self.stop()
                raise RuntimeError(f"Ray did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        self.facts: dict[str, Any] = json.loads((folder / "ready").read_text())
        self.environment = {**environment, "RAY_ADDRESS": self.facts["address"]}

    def kill_node(self, which: int = 1) -> None:
        """Kill a node and all that runs there, as a power cut does; the second one unless told otherwise."""
        pids = [pid for root in self.facts["nodes"][which] for pid in (root, *_descendants(root))]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Stop all nodes."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait(60)


def _descendants(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    with contextlib.suppress(OSError):
        return [each for child in map(int, listed.read_text().split()) for each in (child, *_descendants(child))]
    return []


@contextlib.contextmanager
def running_cluster(folder: Path, cpus: int = 2) -> Iterator[RayCluster]:
    """Start a cluster, yield it, and stop it."""
    cluster = _start(folder, cpus)
    try:
        yield cluster
    finally:
        cluster.stop()


def _start(folder: Path, cpus: int) -> RayCluster:
    """Start a cluster; on a busy machine not at the first attempt, as Ray waits 30 s for its own processes."""
    for attempt in range(ATTEMPTS - 1):
        with contextlib.suppress(RuntimeError):
            return RayCluster(_made(folder / str(attempt)), cpus)
    return RayCluster(_made(folder / "last"), cpus)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def keep(folder: Path, cpus: int) -> None:
    """Start a cluster, say where it is, and stop it when the input ends."""
    from ray._private.utils import get_ray_address_file
    from ray.cluster_utils import Cluster

    Path(get_ray_address_file(None)).parent.mkdir(parents=True, exist_ok=True)  # Ray writes there without making it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    one = {"num_cpus": cpus, "object_store_memory": STORE_BYTES, "temp_dir": str(folder / "r")}
    cluster = Cluster(initialize_head=True, head_node_args={**one, "include_dashboard": False})
    second = cluster.add_node(**one)
    cluster.wait_for_nodes()
    nodes = [
        [info.process.pid for infos in node.all_processes.values() for info in infos]
        for node in (cluster.head_node, second)
    ]
    facts = {"address": cluster.address, "nodes": nodes}
    (folder / "starting").write_text(json.dumps(facts))
    (folder / "starting").rename(folder / "ready")
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    keep(Path(sys.argv[1]), int(sys.argv[2]))
