"""The engine for one machine: a process per run, with a limit on processes at a time and a share of cores and GPUs."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait

from gradlens.engines.jobs import Job, count_cores, environment, error_line
from gradlens.engines.protocol import Report
from gradlens.errors import ConfigError

LIST_GPUS_S = 30.0
"""Seconds after which the driver of the GPUs is taken for broken."""


class LocalEngine:
    """Runs jobs in processes of this machine; each is waited for by a thread.

    Args:
        at_once: Processes at a time, at most; fewer where GPUs are asked for that are not there.
        cores: Cores of a run; None means an equal share.
        gpus: GPUs of a run; 0.5 means that two runs share one; None means that runs are spread evenly over all.

    Raises:
        ConfigError: There are not as many GPUs.
    """

    name = "local"
    outlives = False

    def __init__(self, at_once: int, cores: int | None, gpus: float | None) -> None:
        shares = gpu_shares(gpus, visible_gpus())
        self.at_once = min(at_once, len(shares)) if gpus else at_once
        self.cores = cores or max(count_cores() // self.at_once, 1)
        self.place = f"{self.at_once} at a time"
        self._shares: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for i in range(self.at_once):
            self._shares.put(shares[i % len(shares)] if shares else None)
        self._pool = ThreadPoolExecutor(self.at_once)
        self._futures: dict[str, Future[str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._starting = threading.Lock()
        self._cancelled = False

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs over; they are started in this order."""
        self._futures |= {job.label: self._pool.submit(self._run, job) for job in jobs}

    def poll(self) -> Mapping[str, Report]:
        """Return a report for each job; waits for nothing."""
        over = {label: future for label, future in self._futures.items() if future.done()}
        for label in over:
            del self._futures[label]
        ended = {label: Report("ended", _outcome(future)) for label, future in over.items()}
        held = {label: Report("running" if label in self._processes else "waiting") for label in self._futures}
        return {**held, **ended}

    def cancel(self) -> None:
        """Send SIGINT to every process and wait; after a Ctrl-C send it again, and after another one SIGKILL."""
        with self._starting:
            self._cancelled = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
            try:
                for process in list(self._processes.values()):
                    process.send_signal(number)
                wait([future for future in self._futures.values() if not future.cancelled()])
            except KeyboardInterrupt:
                continue
            break

    def _run(self, job: Job) -> str:
        """Run a job and return why it ended; one that another process has finished or writes is left alone."""
        if job.is_complete() or job.is_written():
            return ""
        share = self._shares.get()
        try:
            with tempfile.TemporaryFile() as output:
                code = self._start(job, share, output.fileno()).wait()
                output.seek(0)
                return error_line(output.read().decode(errors="replace"), code) if code else ""
        finally:
            self._processes.pop(job.label, None)
            self._shares.put(share)

    def _start(self, job: Job, share: str | None, output: int) -> subprocess.Popen[bytes]:
        """Start a process in its own session, so that Ctrl-C reaches it only once: from this process."""
        gpus = {} if share is None else {"CUDA_VISIBLE_DEVICES": share}
        with self._starting:
            if self._cancelled:
                raise CancelledError
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment(self.cores), **gpus},
                start_new_session=True,
            )
            self._processes[job.label] = process
            return process


def _outcome(future: Future[str]) -> str:
    """Return why a job ended; of one that could not be started, the reason of the system."""
    if future.cancelled():
        return ""
    error = future.exception()
    return future.result() if error is None else f"it could not be started: {error}"


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, by the names that ``CUDA_VISIBLE_DEVICES`` takes."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=LIST_GPUS_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))]


def gpu_shares(gpus: float | None, there: Sequence[str]) -> list[str]:
    """Return a value of ``CUDA_VISIBLE_DEVICES`` for each run that finds room.

    Args:
        gpus: GPUs of a run; below 1 a share of one; None means that every run gets one, whatever it has to share.
        there: The GPUs of this machine.

    Returns:
        The values; those of the same GPU are as far apart as possible.

    Raises:
        ConfigError: There is not room for one run.
    """
    if gpus is None:
        return list(there)
    if gpus < 1:
        shares = list(there) * int(1 / gpus) if gpus else []
    else:
        size = int(gpus)
        shares = [",".join(there[i : i + size]) for i in range(0, len(there) - size + 1, size)]
    if gpus and not shares:
        raise ConfigError(
            f"engine.gpus is {gpus:g}, and this machine shows {len(there)}", tip="gpus = 0 and --device cpu use none"
        )
    return shares
