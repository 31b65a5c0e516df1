"""A real Slurm on this machine: a controller and two nodes on the loopback, in a folder of their own.

It needs Debian's packages ``slurm-wlm`` and ``munge`` and the user root; systemd is not used. As a program it starts a
cluster, runs a command in it, and stops it: ``python tests/engines/slurm_cluster.py FOLDER COMMAND...``
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo", "runuser")
NODES = ("n1", "n2")
START_S = 60.0
CALL_S = 10.0
CONF = """
ClusterName=gradlens
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PriorityType=priority/basic
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=100000,bf_interval=1
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs={cpus}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs={cpus}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=first Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=2
"""


def missing() -> str:
    """Return why no cluster can be started here; "" if one can."""
    lacking = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if lacking:
        return f"no Slurm here ({', '.join(lacking)} not found): apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "a cluster of Slurm is started by root"


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


class Cluster:
    """A running cluster; its commands need ``environment``.

    Args:
        folder: For its files; one with a short name, as a socket lies in it.
        ports: Three free ports.
        cpus: CPUs of a node, whatever the machine has.
    """

    def __init__(self, folder: Path, ports: list[int], cpus: int = 2) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        host = platform.node().split(".")[0]
        text = CONF.format(host=host, folder=folder, port=ports[0], port1=ports[1], port2=ports[2], cpus=cpus)
        (folder / "slurm.conf").write_text(text)
        (folder / "state").mkdir()

    def start(self) -> None:
        """Start all daemons, and wait until both nodes are idle."""
        munge = self.folder / "munge"
        munge.mkdir()
        munge.chmod(0o711)  # all must reach the socket
        (munge / "key").write_bytes(secrets.token_bytes(1024))
        (munge / "key").chmod(0o400)
        for path in (munge, munge / "key"):
            shutil.chown(path, "munge", "munge")
        files = [f"--{what}-file={munge}/{what}" for what in ("key", "pid", "log", "seed")]
        self._start("munged", "runuser", "-u", "munge", "--", "munged", "-F", f"--socket={munge}/socket", *files)
        self._wait(lambda: (munge / "socket").exists())
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        for node in NODES:
            self.start_node(node)
        self._wait(lambda: self.call("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D").strip() == str(len(NODES)))

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._start(node, "slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill the daemon of a node and all that runs there, as a power cut does."""
        pids = [self._daemons.pop(node).pid]
        for pid in pids:
            pids += _children(pid)
        stepds = [pid for pid, line in _processes() if line.startswith("slurmstepd:") and _of_node(pid, self, node)]
        for pid in stepds:
            pids += [pid, *_descendants(pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def steps(self, job: str) -> list[int]:
        """Return the daemons that carry out a job on the nodes; the last ends when all that ran there has ended."""
        lines = [(pid, line) for pid, line in _processes() if line.startswith(f"slurmstepd: [{job}.")]
        return [pid for pid, _ in lines if any(_of_node(pid, self, node) for node in NODES)]

    def call(self, *command: str) -> str:
        """Return what a command of Slurm prints; "" if it fails, or hangs as scancel does on a job that is ending."""
        try:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=CALL_S, check=False
            )
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout if done.returncode == 0 else ""

    def start_requeued(self) -> None:
        """Let the jobs that were put back into the queue start now, not after two minutes."""
        for line in self.call("squeue", "-h", "-r", "-t", "PD", "-o", "%i %r").splitlines():
            if line.endswith("BeginTime"):
                self.call("scontrol", "update", f"JobId={line.split()[0]}", "StartTime=now")

    def stop(self) -> None:
        """Cancel all jobs and stop the daemons."""
        self.call("scancel", "--quiet", "-u", "root")
        with contextlib.suppress(TimeoutError, RuntimeError):
            self._wait(lambda: not self.call("squeue", "-h").strip(), patience=20)
        for name in ("n1", "n2", "slurmctld", "munged"):
            daemon = self._daemons.get(name)
            if daemon is not None:
                daemon.terminate()
                daemon.wait()

    def _start(self, name: str, *command: str) -> None:
        self._daemons[name] = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _wait(self, ready: object, patience: float = START_S) -> None:
        assert callable(ready)
        end = time.monotonic() + patience
        while not ready():
            for name, daemon in self._daemons.items():
                if daemon.poll() not in (None, -signal.SIGKILL):
                    raise RuntimeError(f"{name} ended with exit code {daemon.returncode}; its log is in {self.folder}")
            if time.monotonic() > end:
                raise TimeoutError(f"Slurm was not ready after {patience:g} s; its logs are in {self.folder}")
            time.sleep(0.1)


def _processes() -> list[tuple[int, str]]:
    """Return the id and command line of every process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append(
                (int(path.name), (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            )
    return found


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.name))
    return found


def _descendants(pid: int) -> list[int]:
    return [each for child in _children(pid) for each in (child, *_descendants(child))]


def _of_node(pid: int, cluster: Cluster, node: str) -> bool:
    """Return whether a step's daemon belongs to a node of this cluster: it holds that node's log open."""
    with contextlib.suppress(OSError):
        opened = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
        return str(cluster.folder / f"slurmd-{node}.log") in opened
    return False


@contextlib.contextmanager
def running_cluster(folder: Path, ports: list[int], cpus: int = 2) -> Iterator[Cluster]:
    """Start a cluster, yield it, and stop it; its folder is removed."""
    folder.mkdir(parents=True, mode=0o755)
    cluster = Cluster(folder, ports, cpus)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if missing():
        sys.exit(missing())
    with running_cluster(Path(sys.argv[1]), [17010, 17011, 17012]) as here:
        sys.exit(subprocess.run(sys.argv[2:], env=here.environment, check=False).returncode)
