"""Many runs, each in its own process, with a limit on processes at a time.

States of a job and their transitions:

=========  =====================================================  ===========
state      event                                                  next state
=========  =====================================================  ===========
waiting    its run file is complete (``make_jobs``)               kept
waiting    ``start``                                              running
running    its process ends with exit code 0                      complete
running    its process ends after Ctrl-C or SIGINT                interrupted
running    its process ends in any other way                      failed
running    all jobs are stopped while its process is starting     interrupted
=========  =====================================================  ===========

A job whose run file is unfinished continues it.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from gradlens.config import RunConfig
from gradlens.errors import ConfigError, GradlensError
from gradlens.experiment import Planned
from gradlens.storage import read_run

State = Literal["waiting", "running", "complete", "kept", "failed", "interrupted"]
MAY_DIFFER = ("workers", "device", "on_record_error")
"""Settings in which an existing run may differ from the experiment."""
LOOK_S = 0.2
"""Seconds between checks of the processes."""
READ_S = 1.0
"""Seconds between reads of the run files."""
RECENT = 20
"""The loss that is shown is the mean over this many steps."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Args:
        epoch: Finished epochs.
        epochs: Epochs of the whole run; it may stop earlier.
        loss: Mean over the last steps; NaN before the first step.
        seconds_left: Estimated time left; NaN before the first epoch is finished.
    """

    epoch: int
    epochs: int
    loss: float
    seconds_left: float


@dataclass
class Job:
    """One run of an experiment.

    Args:
        label: The name that is shown.
        path: The run file.
        epochs: Epochs of the whole run.
        command: The command that trains the run, or continues it if it is unfinished.
    """

    label: str
    path: Path
    epochs: int
    command: Sequence[str]
    state: State = "waiting"
    error: str = ""
    """Why the job failed, in one line."""
    progress: Progress | None = None
    process: subprocess.Popen[bytes] | None = None
    _output: IO[bytes] | None = field(default=None, repr=False)

    def start(self, environment: dict[str, str]) -> None:
        """Start the process in its own session, so that Ctrl-C reaches it only once: from this process."""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self.state = "running"

    def look(self) -> bool:
        """Return whether the process has ended; if so, set state, error and progress."""
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return False
        self.state = "complete" if code == 0 else "interrupted" if code in (130, -signal.SIGINT) else "failed"
        if self.state == "failed":
            self.error = self._error_line(code)
        if self._output is not None:
            self._output.close()
        self.read_progress()
        return True

    def _error_line(self, code: int) -> str:
        """Return the error line of the process's output, or its last line."""
        assert self._output is not None
        self._output.seek(0)
        lines = [line.strip() for line in self._output.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("Error:").strip() for line in lines if line.startswith("Error:")]
        ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return errors[-1] if errors else f"{ended}: {lines[-1]}" if lines else ended

    def read_progress(self) -> None:
        """Read the progress from the run file; if it cannot be read now, the next call reads it."""
        with contextlib.suppress(GradlensError, OSError, KeyError, ValueError):
            if self.path.exists():
                self.progress = _progress(self.path, self.epochs)


def _progress(path: Path, epochs: int) -> Progress:
    run = read_run(path)
    seconds = np.asarray(run.epochs.get("seconds", ()), dtype=np.float64)
    losses = np.asarray(run.scalars.get("loss", ()), dtype=np.float64)[-RECENT:]
    losses = losses[np.isfinite(losses)]
    left = float(np.median(seconds)) * (epochs - len(seconds)) if len(seconds) else math.nan
    return Progress(len(seconds), epochs, float(losses.mean()) if len(losses) else math.nan, left)


def make_jobs(planned: Sequence[Planned], *, overwrite: bool) -> list[Job]:
    """Return a job per run; jobs of complete runs are in the state "kept".

    Args:
        planned: The runs of the experiment.
        overwrite: Whether to train complete runs again.

    Returns:
        The jobs, in the order of the runs.

    Returns:
        A job per run, in the order of the experiment.

    Raises:
        ConfigError: An existing run was made with other settings.
        RunFileError: An existing file cannot be read.
    """
    jobs = []
    for plan in planned:
        arguments = [*plan.arguments(), "--overwrite" if overwrite else "--resume"]
        job = Job(plan.label, plan.path, plan.config.epochs, [sys.executable, "-m", "gradlens", *arguments])
        if not overwrite and plan.path.exists() and _is_finished(plan.path, plan.config):
            job.state = "kept"
        jobs.append(job)
    return jobs


def _is_finished(path: Path, config: RunConfig) -> bool:
    """Return whether a run is complete; raise ConfigError if it was started with other settings."""
    run = read_run(path)
    if "recipe" not in run.config:
        raise ConfigError(f"{path} is a run that gradlens run did not make", tip="--out DIR writes elsewhere")
    differing = [
        line for line in config.differences(RunConfig.from_dict(run.config)) if line.split(":")[0] not in MAY_DIFFER
    ]
    if differing:
        raise ConfigError(
            f"{path} was made with other settings: {'; '.join(differing)}",
            tip="--out DIR writes elsewhere, --overwrite trains all runs of the experiment anew",
        )
    return run.status == "complete"


def count_cores() -> int:
    """Return how many cores this process may use."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def run_jobs(jobs: Sequence[Job], at_once: int, cores: int, view: Callable[[Job | None], None]) -> None:
    """Run the waiting jobs until all have ended; a failed job does not stop the others.

    A ``KeyboardInterrupt`` is raised again after all processes have closed their files and ended.

    Args:
        jobs: The jobs; only those in the state "waiting" are run.
        at_once: Processes at a time, each with an equal share of the cores.
        cores: Cores for all processes.
        view: Called with each job that starts or ends, and with None when progress may be shown.
    """
    environment = _environment(max(cores // at_once, 1))
    waiting = [job for job in jobs if job.state == "waiting"]
    running: list[Job] = []
    read_at = 0.0
    with _stoppable(running):
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(waiting.pop(0))
                running[-1].start(environment)
                view(running[-1])
            time.sleep(LOOK_S)
            for job in [job for job in running if job.look()]:
                running.remove(job)
                view(job)
            if time.monotonic() - read_at > READ_S:
                for job in running:
                    job.read_progress()
                read_at = time.monotonic()
            view(None)


def _environment(threads: int) -> dict[str, str]:
    """Return the environment of a process that uses this many threads and imports the same gradlens."""
    here = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


@contextlib.contextmanager
def _stoppable(running: list[Job]) -> Iterator[None]:
    """End all processes when this one gets a signal or fails; each closes its file first."""
    usual: dict[int, Any] = {}

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        wanted = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
        usual = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield
    finally:
        _end_all(running)
        for number, handler in usual.items():
            signal.signal(number, handler)


def _end_all(running: list[Job]) -> None:
    """Send SIGINT to every process and wait; after a Ctrl-C send it again, and after another one SIGKILL."""
    for signal_number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
        try:
            for job in running:
                if job.process is not None and job.process.poll() is None:
                    job.process.send_signal(signal_number)
            for job in running:
                if job.process is not None:
                    job.process.wait()
        except KeyboardInterrupt:
            continue
        break
    for job in running:
        if job.process is not None and job.process.poll() is not None:
            job.look()
            if job.state == "failed":  # the process was still starting
                job.state = "interrupted"
