"""The runs of an experiment as jobs: what each is called, which command trains it, and what its run file says."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from gradlens.analysis.stats import median_of_all
from gradlens.atomic import write_errors
from gradlens.config import RunConfig
from gradlens.errors import ConfigError, GradlensError, RunFileError
from gradlens.experiment import Planned
from gradlens.storage import lock_path, read_card, read_run
from gradlens.storage.lock import check_unlocked, seconds_silent

State = Literal["waiting", "running", "complete", "kept", "failed", "interrupted"]
MAY_DIFFER = ("workers", "device", "on_record_error")
"""Settings in which an existing run may differ from the experiment."""
RECENT = 20
"""The loss that is shown is the mean over this many steps."""
ALIVE_S = 60.0
"""A run that another machine writes has ended when its last sign of life, which comes every second, is this old."""


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
        label: The name that is shown; no two jobs share one.
        path: The run file.
        epochs: Epochs of the whole run.
        command: The command that trains the run, or continues it if it is unfinished.
    """

    label: str
    path: Path
    epochs: int
    command: Sequence[str]
    state: State = "waiting"
    reasons: list[str] = field(default_factory=list)
    """Why each attempt failed, each in one line."""
    progress: Progress | None = None

    @property
    def error(self) -> str:
        """Why the job failed; "" if it did not."""
        if self.state != "failed" or not self.reasons:
            return ""
        tries = f" (attempt {len(self.reasons)})" if len(self.reasons) > 1 else ""
        return self.reasons[-1] + tries

    def is_complete(self) -> bool:
        """Return whether the run file is complete; an engine's own word for it does not count."""
        try:
            return self.path.exists() and read_card(self.path)["status"] == "complete"
        except (GradlensError, OSError):
            return False

    def is_written(self) -> bool:
        """Return whether a process writes the run file: it holds its lock, or is alive on another machine."""
        try:
            check_unlocked(self.path)
        except RunFileError:
            return True
        owner = _lock_text(self.path)
        if not owner or owner.endswith(f" on {platform.node()}"):
            return False  # a lock of this machine is free once its process has ended
        with contextlib.suppress(GradlensError, OSError):
            card = read_card(self.path)
            return card["status"] == "running" and seconds_silent(float(card.get("heartbeat", 0))) < ALIVE_S
        return False

    def read_progress(self) -> None:
        """Read the progress from the run file; if it cannot be read now, the next call reads it."""
        with contextlib.suppress(GradlensError, OSError, KeyError, ValueError):
            if self.path.exists():
                self.progress = _progress(self.path, self.epochs)


def _lock_text(path: Path) -> str:
    """Return who writes the run file, as its process noted it (``process 12 on host``); "" if it closed the file."""
    try:
        return lock_path(path).read_text(errors="replace")
    except OSError:
        return ""


def _progress(path: Path, epochs: int) -> Progress:
    run = read_run(path)
    seconds = np.asarray(run.epochs.get("seconds", ()), dtype=np.float64)
    losses = np.asarray(run.scalars.get("loss", ()), dtype=np.float64)[-RECENT:]
    losses = losses[np.isfinite(losses)]
    left = median_of_all(seconds) * (epochs - len(seconds)) if len(seconds) else math.nan
    return Progress(len(seconds), epochs, float(losses.mean()) if len(losses) else math.nan, left)


def make_jobs(planned: Sequence[Planned], *, overwrite: bool, publish: Path | None = None) -> list[Job]:
    """Return a job per run; jobs of complete runs are in the state "kept".

    Args:
        planned: The runs of the experiment.
        overwrite: Whether to train complete runs again.
        publish: A folder to which copies of the run files are sent while they are written, in a folder per group.

    Returns:
        A job per run, in the order of the experiment.

    Raises:
        ConfigError: An existing run was made with other settings.
        RunFileError: An existing file cannot be read.
    """
    jobs = []
    for plan in planned:
        published = [] if publish is None else ["--publish", str(publish / plan.path.parent.name)]
        command = [sys.executable, "-m", "gradlens", *plan.arguments(), *published, "--resume"]
        job = Job(plan.label, plan.path, plan.config.epochs, command)
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


def remove_runs(jobs: Sequence[Job]) -> None:
    """Remove the run files that are to be replaced; their commands then only ever resume, however often they start.

    Args:
        jobs: The jobs.

    Raises:
        RunFileError: A process writes one of the files; none is removed.
    """
    for job in jobs:
        if job.is_written():
            raise RunFileError(
                f"{job.path} is being written, so it is not replaced", tip="wait until that run has ended"
            )
    for job in jobs:
        for path in (job.path.with_suffix(".ckpt"), job.path):
            with write_errors(f"{path} cannot be replaced"):
                path.unlink(missing_ok=True)


def count_cores() -> int:
    """Return how many cores this process may use."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def environment(cores: int) -> dict[str, str]:
    """Return the environment of a run that imports the same gradlens.

    Args:
        cores: Cores that it may use; fewer, if OMP_NUM_THREADS or MKL_NUM_THREADS is set to fewer.
    """
    here = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", ""))))
    threads = {}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        asked = os.environ.get(name, "")
        threads[name] = str(min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores)
    return {**os.environ, "PYTHONPATH": paths, **threads}


def error_line(output: str, code: int) -> str:
    """Return why a process ended, in one line: its last error line, or how it ended with the last line it printed.

    Args:
        output: What it printed.
        code: Its exit code; below 0 the number of the signal that ended it.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("Error:").strip() for line in lines if line.startswith("Error:")]
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return errors[-1] if errors else f"{ended}: {lines[-1]}" if lines else ended
