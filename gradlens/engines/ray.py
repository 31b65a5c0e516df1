"""The engine for a Ray cluster that is running: a task per run, on whichever node has room.

The tasks belong to this process: Ray ends them when it ends. A switch, a small file that all nodes see
(``OUT/EXPERIMENT/.ray/PID-HOST``), tells them to close their run files.

=========================================  ==================================================================
event                                      what becomes of the run
=========================================  ==================================================================
its node, or Ray's process for it, is lost  the task is submitted again, up to ``LOSSES`` times; it continues
the command of the run fails               the task ends, with the reason; the driver counts the attempt
this process is stopped                    the switch is turned: the run closes its file
this process is killed                     Ray kills the run; the same command continues it
the cluster is lost                        this process ends with an error; the same command continues
=========================================  ==================================================================
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradlens.engines.jobs import Job, environment, error_line
from gradlens.engines.notes import process_has_ended
from gradlens.engines.protocol import Report
from gradlens.errors import ConfigError, GradlensError, MissingLibraryError
from gradlens.format import plural

LOSSES = 10
"""How often a run is started again because its node was lost; its own failures are counted by the driver."""
ASK_S = 1.0
"""Seconds between two looks at which runs are being written."""
LOOK_S = 0.1
"""Seconds between two looks at the process of a run, on the node."""
SWITCH_S = 0.5
"""Seconds between two looks at the switch, on the node."""
CONNECT_S = 10.0
"""Seconds in which a cluster must answer."""
GO, STOP = "go", "stop"
"""What is in the switch."""


class RayEngine:
    """Runs jobs as tasks of Ray.

    Args:
        folder: The folder of the experiment's runs, which all nodes see.
        at_once: Jobs at a time; None means as many as the cluster has room for.
        cores: Cores of a run; None means one.
        gpus: GPUs of a run; below 1 a share of one; None means none.
        memory_gb: Memory of a run, by which Ray counts what fits on a node; None means that it is not counted.

    Raises:
        ConfigError: No cluster is running that this machine is part of.
        MissingLibraryError: Ray is not installed.
    """

    name = "ray"
    outlives = False

    def __init__(
        self, folder: Path, at_once: int | None, cores: int | None, gpus: float | None, memory_gb: float | None
    ) -> None:
        self._ray = _connect()
        self.at_once, self.cores = at_once, cores or 1
        needs = {"num_cpus": self.cores, "num_gpus": gpus or 0}
        needs |= {"memory": round(memory_gb * 2**30)} if memory_gb else {}
        self.place = _place(self._ray.nodes(), at_once, self.cores, gpus or 0)
        self._task = self._ray.remote(run_on_node).options(max_retries=0, scheduling_strategy="SPREAD", **needs)
        self._waiting: deque[Job] = deque()
        self._jobs: dict[Any, Job] = {}
        """Ray's reference to a task, to its job."""
        self._running: set[str] = set()
        self._asked = 0.0
        self._losses: Counter[str] = Counter()
        self._switch = folder.absolute() / ".ray" / f"{os.getpid()}-{platform.node()}"

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs over; they are started as there is room.

        Raises:
            GradlensError: The folder cannot be written to.
        """
        try:
            self._switch.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(self._switch.parent)
            self._switch.write_text(GO)
        except OSError as error:
            raise GradlensError(f"{self._switch.parent} cannot be written: {error.strerror}") from error
        held = {job.label for job in (*self._waiting, *self._jobs.values())}
        self._waiting += [job for job in jobs if job.label not in held]
        self._start()

    def _start(self) -> None:
        while self._waiting and len(self._jobs) < (self.at_once or sys.maxsize):
            job = self._waiting.popleft()
            here = replace(job, path=job.path.absolute(), progress=None)
            self._jobs[self._task.remote(here, os.getcwd(), self.cores, str(self._switch))] = job

    def poll(self) -> Mapping[str, Report]:
        """Return a report for each job; waits for nothing.

        Raises:
            GradlensError: The cluster does not answer any more.
        """
        ended = {}
        for reference in self._over(0):
            job = self._jobs.pop(reference)
            reason, lost = self._outcome(reference)
            self._losses[job.label] += lost
            if lost and self._losses[job.label] <= LOSSES:
                self._waiting.append(job)
            else:
                ended[job.label] = Report("ended", reason)
        self._start()
        self._ask()
        submitted = {job.label: Report("running" if job.label in self._running else "waiting") for job in self._held()}
        return {**submitted, **ended}

    def _held(self) -> list[Job]:
        return [*self._waiting, *self._jobs.values()]

    def _ask(self) -> None:
        """Note which run files are being written; Ray itself does not say which tasks have begun."""
        if time.monotonic() - self._asked >= ASK_S:
            self._running = {job.label for job in self._jobs.values() if job.is_written()}
            self._asked = time.monotonic()

    def _over(self, seconds: float | None) -> list[Any]:
        if not self._jobs:
            return []
        try:
            return list(self._ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=seconds)[0])
        except (self._ray.exceptions.RayError, OSError) as error:
            raise GradlensError(
                f"the Ray cluster does not answer any more: {_first_line(error)}",
                tip="the same command continues the runs once a cluster is running",
            ) from error

    def _outcome(self, reference: Any) -> tuple[str, bool]:
        """Return why a task ended, and whether it was lost with its node or with Ray's process for it."""
        errors = self._ray.exceptions
        try:
            return str(self._ray.get(reference)), False
        except (errors.NodeDiedError, errors.WorkerCrashedError, errors.LocalRayletDiedError) as error:
            return f"its node or Ray's process for it was lost: {_first_line(error)}", True
        except errors.RayError as error:
            return _first_line(error), False

    def cancel(self) -> None:
        """Turn the switch, and wait until all tasks have ended; those that have not begun are dropped."""
        with contextlib.suppress(OSError):
            self._switch.write_text(STOP)
        self._waiting.clear()
        for reference in self._jobs:
            self._ray.cancel(reference)
        with contextlib.suppress(GradlensError):
            self._over(None)
        with contextlib.suppress(OSError):
            self._switch.unlink(missing_ok=True)
            self._switch.parent.rmdir()
        self._ray.shutdown()


def _remove_stale(folder: Path) -> None:
    """Remove the switches of processes of this machine that were killed."""
    for switch in folder.iterdir():
        process, _, host = switch.name.partition("-")
        if host == platform.node() and process.isdecimal() and process_has_ended(int(process)):
            switch.unlink(missing_ok=True)


def _connect() -> Any:
    """Return the module ray, connected to the cluster that is running.

    Raises:
        ConfigError: No cluster is running that this machine is part of.
        MissingLibraryError: Ray is not installed.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise MissingLibraryError(
            "--engine ray needs Ray, which is not installed", tip="pip install 'gradlens-toolkit[ray]'"
        ) from None
    there = os.environ.get("RAY_ADDRESS", "")
    try:
        _check_answers(there)
        ray.init(address="auto", ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        why = f"at {there} can be reached: {_first_line(error)}" if there else "is running that includes this machine"
        raise ConfigError(
            f"--engine ray: no Ray cluster {why}",
            tip="ray start --head begins one, ray start --address=HOST:6379 adds a node; RAY_ADDRESS names another",
        ) from None
    return ray


def _check_answers(address: str) -> None:
    """Raise an OSError if nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), CONNECT_S).close()


def _place(nodes: Sequence[Mapping[str, Any]], at_once: int | None, cores: int, gpus: float) -> str:
    """Return what the cluster has, and whether a run has room on one of its nodes."""
    alive = [node.get("Resources", {}) for node in nodes if node.get("Alive")]
    room = any(node.get("CPU", 0) >= cores and node.get("GPU", 0) >= gpus for node in alive)
    has = [plural(round(sum(node.get("CPU", 0) for node in alive)), "core")]
    has += [plural(round(count), "GPU")] if (count := sum(node.get("GPU", 0) for node in alive)) else []
    limit = "" if at_once is None else f", at most {at_once} at a time"
    wanted = f"{plural(cores, 'core')}{f' and {gpus:g} GPU' if gpus else ''}"
    lack = "" if room else f" (no node has {wanted} yet, so the runs wait)"
    return f"on {plural(len(alive), 'node')} of Ray with {' and '.join(has)}{limit}{lack}"


def run_on_node(job: Job, folder: str, cores: int, switch: str) -> str:
    """Run the command of a job, on a node, and return why it ended.

    Args:
        job: The job, with the absolute path of its run file.
        folder: The working directory.
        cores: Cores of the run.
        switch: The file that tells the run to close its file.

    Returns:
        The reason, in one line; "" if the command succeeded, or if there was nothing to do.
    """
    if not Path(switch).exists() or not Path(folder).is_dir():
        missing = folder if Path(switch).exists() else str(Path(switch).parent)
        return f"{missing} is not there on {platform.node()}: all nodes must see this folder"
    if job.is_complete() or job.is_written():
        return ""
    with tempfile.TemporaryFile() as output, _unblocked():
        process = subprocess.Popen(
            [sys.executable, *job.command[1:]],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(cores),
            start_new_session=True,
        )
        code = _wait(process, Path(switch))
        output.seek(0)
        return error_line(output.read().decode(errors="replace"), code) if code else ""


@contextlib.contextmanager
def _unblocked() -> Iterator[None]:
    """Let SIGINT through to the processes that are started: Ray blocks it in its own, which would inherit that."""
    if sys.platform == "win32":
        yield
        return
    usual = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)


def _wait(process: subprocess.Popen[bytes], switch: Path) -> int:
    """Wait for a process, and return its exit code; ask it to end once the switch is turned or Ray says so."""
    try:
        looked = time.monotonic()
        while process.poll() is None:
            time.sleep(LOOK_S)
            if time.monotonic() - looked >= SWITCH_S:
                if _read(switch) != GO:
                    break
                looked = time.monotonic()
    finally:  # also after a KeyboardInterrupt, which ray.cancel may raise here
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    return process.wait()


def _read(switch: Path) -> str:
    """Return what is in the switch; opening the file shows its newest content on a shared file system, too."""
    try:
        return switch.read_text()
    except FileNotFoundError:
        return STOP
    except OSError:
        return GO  # a shared file system that does not answer for a moment


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
