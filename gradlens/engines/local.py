"""Many runs, each in a process of its own, so many at a time; an unfinished one goes on, a finished one is kept."""

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
"""Settings in which a run that is there may differ from what the experiment asks for."""
LOOK_S = 0.2
"""Seconds between two looks at the processes."""
READ_S = 1.0
"""Seconds between two looks at the run files."""
RECENT = 20
"""Steps over which the loss that is shown is averaged."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        epoch: Epochs done.
        epochs: Epochs in all; an early stop may spare some.
        loss: Mean of the last steps; NaN before the first.
        seconds_left: NaN before the first epoch is over.
    """

    epoch: int
    epochs: int
    loss: float
    seconds_left: float


@dataclass
class Job:
    """One run of an experiment.

    Args:
        label: What it is called.
        path: Its file.
        epochs: It is to have.
        command: Trains it, and goes on with it where it is unfinished.
    """

    label: str
    path: Path
    epochs: int
    command: Sequence[str]
    state: State = "waiting"
    error: str = ""
    """Why it failed, in a line."""
    progress: Progress | None = None
    process: subprocess.Popen[bytes] | None = None
    _said: IO[bytes] | None = field(default=None, repr=False)

    def start(self, environment: dict[str, str]) -> None:
        """Start its process, in a session of its own, so that Ctrl-C in the terminal reaches it once, and from here."""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self.state = "running"

    def look(self) -> bool:
        """See whether its process has ended."""
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return False
        self.state = "complete" if code == 0 else "interrupted" if code in (130, -signal.SIGINT) else "failed"
        if self.state == "failed":
            self.error = self._last_words(code)
        if self._said is not None:
            self._said.close()
        self.read_progress()
        return True

    def _last_words(self, code: int) -> str:
        """Return the line in which the process said what was wrong."""
        assert self._said is not None
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("Error:").strip() for line in lines if line.startswith("Error:")]
        ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return errors[-1] if errors else f"{ended}: {lines[-1]}" if lines else ended

    def read_progress(self) -> None:
        """Look into its file; what cannot be read at the moment is read the next time."""
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
    """See which runs are there, and make a job of each.

    Returns:
        A job per run, in the order of the experiment.

    Raises:
        ConfigError: A finished run was made with other settings.
        RunFileError: A file is there that cannot be read.
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
    """Return whether a run is complete; a run with other settings is refused before anything starts."""
    run = read_run(path)
    if "recipe" not in run.config:
        raise ConfigError(f"{path} is of a training that gradlens run did not make", tip="--out DIR writes elsewhere")
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
    """Run what waits, so many at a time, until all have ended; a failed one leaves the others going.

    Args:
        jobs: Those that are kept are left alone.
        at_once: Processes at a time, each with its share of the cores.
        cores: In all.
        view: Called with each job that begins or ends, and with None where progress may be shown.

    Raises:
        KeyboardInterrupt: The user stopped it; all processes have closed their files and ended.
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
    """Return the environment of a process with so many threads, that imports this very package."""
    here = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


@contextlib.contextmanager
def _stoppable(running: list[Job]) -> Iterator[None]:
    """End all processes when this one receives a signal to end, or fails; each closes its file first."""
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
    """Ask every process to end, and wait; asked once more, they end at once, and at the third time they are killed."""
    for signs in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
        try:
            for job in running:
                if job.process is not None and job.process.poll() is None:
                    job.process.send_signal(signs)
            for job in running:
                if job.process is not None:
                    job.process.wait()
        except KeyboardInterrupt:
            continue
        break
    for job in running:
        if job.process is not None and job.process.poll() is not None:
            job.look()
            if job.state == "failed":  # it was still starting
                job.state = "interrupted"
