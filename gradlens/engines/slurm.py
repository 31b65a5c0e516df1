"""The engine for a cluster with Slurm: job arrays, submitted with submitit, that go on when this process ends.

An array has a name of its own, ``gradlens-EXPERIMENT-1a2b3c4d``. Before it is submitted, the labels of its jobs are
written to ``OUT/EXPERIMENT/.slurm/NAME/jobs.json``; what of it waits or runs is then asked of ``squeue`` by that name.
So another process finds the jobs of one that was killed at any moment, and submits none of them twice.

=============================================  ==========================================================
event on the node                              what becomes of the run
=============================================  ==========================================================
the time limit is near (SIGUSR2)               it closes its file; the job is put into the queue again
the same, and no epoch was finished            it closes its file; the job ends, with this reason
preemption, scancel (SIGTERM to all)           it closes its file; Slurm puts the job back, or ends it
the process, the job or the node is killed     its file holds all but the last rows; the next attempt resumes
=============================================  ==========================================================
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradlens.atomic import write_text
from gradlens.engines.jobs import Job, environment, error_line
from gradlens.engines.protocol import Report
from gradlens.errors import ConfigError, GradlensError, MissingLibraryError
from gradlens.storage import read_card

ASK_S = 1.0
"""Seconds between two questions to Slurm at the beginning."""
MOST_ASK_S = 15.0
"""Seconds between two questions to Slurm in a long experiment."""
SHARE = 0.02
"""So much of the time that has passed lies between two questions, within these bounds."""
MOST_SILENCE_S = 600.0
"""Seconds without an answer of Slurm after which this process gives up; the jobs go on."""
ABSENT_S = 3.0
"""Seconds that a job must be missing in the queue to have ended: one that is put back is not listed for a moment."""
ANSWER_S = 60.0
"""Seconds after which a command of Slurm is given up."""
WARNING_S = 90
"""Seconds before the time limit at which a run is asked to close its file."""
DEFAULT_MINUTES = 60
"""The time limit where none is set; a run that needs longer continues in the next job."""
MOST_IN_ARRAY = 1000
"""Jobs of an array; Slurm's own limit is 1001 unless a cluster has another."""
MOST_LIMITS = 10_000
"""Time limits that a run may reach, each after at least one more epoch."""
LOOK_S = 0.2
"""Seconds between two looks at the process, on the node."""


class SlurmEngine:
    """Runs jobs as arrays of Slurm.

    Args:
        folder: The folder of the experiment's runs, which all nodes see.
        at_once: Jobs at a time; None means as many as Slurm starts.
        options: What ``sbatch`` is given, by submitit's names of it: ``time`` in minutes, ``partition``,
            ``cpus_per_task``, ``gpus_per_node``, ``mem``, ...; others go into ``additional_parameters``.

    Raises:
        ConfigError: There is no Slurm on this machine.
        MissingLibraryError: submitit is not installed.
    """

    name = "slurm"
    outlives = True

    def __init__(self, folder: Path, at_once: int | None, options: Mapping[str, Any]) -> None:
        if shutil.which("sbatch") is None:
            raise ConfigError(
                "--engine slurm: the command sbatch was not found",
                tip="log in where jobs are submitted (or load Slurm's module); --engine local runs on this machine",
            )
        try:
            self._submitit: Any = importlib.import_module("submitit")
        except ImportError:
            raise MissingLibraryError(
                "--engine slurm needs submitit, which is not installed", tip="pip install 'gradlens-toolkit[slurm]'"
            ) from None
        self.folder = folder.absolute() / ".slurm"
        self.at_once, self.options = at_once, options
        self.place = "in Slurm's queue" if at_once is None else f"at most {at_once} at a time in Slurm's queue"
        self._arrays = {path.parent.name: _read_labels(path) for path in self.folder.glob("*/jobs.json")}
        self._began = self._answered = time.monotonic()
        self._queue = self._ask()
        self._absent: dict[str, float] = {}
        """Label of a job that is missing in the queue to the time since when."""
        self._held = set(self._queue)
        """Labels of jobs that were submitted, here or earlier, and whose end was not reported."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Submit arrays of the jobs that are not in the queue.

        Raises:
            GradlensError: sbatch refuses the jobs.
        """
        missing = [job for job in jobs if job.label not in self._queue]
        self._held |= {job.label for job in jobs}
        before = ""
        for start in range(0, len(missing), MOST_IN_ARRAY):
            before = self._submit_array(missing[start : start + MOST_IN_ARRAY], before)
        self._asked = 0.0

    def _submit_array(self, jobs: Sequence[Job], before: str) -> str:
        """Submit an array, to be started after another one, and return its number."""
        experiment = re.sub(r"[^\w.-]", "_", self.folder.parent.name)
        name = f"gradlens-{experiment}-{uuid.uuid4().hex[:8]}"
        labels = [job.label for job in jobs]
        write_text(self.folder / name / "jobs.json", json.dumps(labels))
        executor = self._submitit.SlurmExecutor(folder=self.folder / name, max_num_timeout=MOST_LIMITS)
        own: dict[str, Any] = {"job_name": name, "stderr_to_stdout": True, "wckey": None}
        minutes = self.options.get("time", DEFAULT_MINUTES)
        own |= {"time": minutes, "signal_delay_s": min(WARNING_S, 15 * minutes)}
        own |= {} if self.at_once is None else {"array_parallelism": self.at_once}
        own |= {"dependency": f"afterany:{before}"} if before else {}
        try:
            executor.update_parameters(**{**self.options, **own})
            with _quiet():
                submitted = executor.map_array(_OnNode(), [(list(job.command), str(job.path)) for job in jobs])
        except Exception as error:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            raise GradlensError(
                f"Slurm did not take the jobs: {_first_line(error)}",
                tip="the tables [engine] and [engine.slurm] of the experiment set partition, time, account, ...",
            ) from error
        self._arrays[name] = labels
        return str(submitted[0].job_id).split("_")[0]

    def poll(self) -> Mapping[str, Report]:
        """Return a report for each job; asks Slurm now and then.

        Raises:
            GradlensError: Slurm has not answered for ten minutes.
        """
        pause = min(max(ASK_S, SHARE * (time.monotonic() - self._began)), MOST_ASK_S)
        if time.monotonic() - self._asked < pause:
            return {}
        try:
            self._queue = self._ask()
        except GradlensError:
            if time.monotonic() - self._answered > MOST_SILENCE_S:
                raise
            return {}
        absent, now = self._held - self._queue.keys(), time.monotonic()
        self._absent = {label: self._absent.get(label, now) for label in absent}
        ended = {label for label, since in self._absent.items() if now - since >= ABSENT_S}
        self._held -= ended
        found = {label: Report("ended", self._reason(label)) for label in ended}
        found |= {label: self._queue[label][1] for label in self._held - absent}
        self._remove_folders()
        return found

    def cancel(self) -> None:
        """Cancel all jobs and wait until they have left the queue; those that run close their files."""
        names = sorted({name for name, _ in self._queue.values()})
        if names:
            _call("scancel", "--name", ",".join(names))
        while self._ask():
            time.sleep(ASK_S)

    def _ask(self) -> dict[str, tuple[str, Report]]:
        """Return the label of each job in Slurm's queue, with the name of its array and a report."""
        self._asked = time.monotonic()
        found: dict[str, tuple[str, Report]] = {}
        if self._arrays:
            listed = _call("squeue", "--noheader", "--array", "--format", "%j|%K|%T", "--name", ",".join(self._arrays))
            for line in listed.splitlines():
                name, number, state = line.strip().split("|")
                label = self._arrays[name][int(number) if number.isdecimal() else 0]
                found[label] = (name, Report("waiting" if state in ("PENDING", "REQUEUED") else "running"))
        self._answered = time.monotonic()
        return found

    def _reason(self, label: str) -> str:
        """Return why a job ended, from the last output of its newest attempt; "" where it printed nothing."""
        logs = [
            log
            for name, labels in self._arrays.items()
            for log in (self.folder / name).glob("*_log.out")
            if label in labels and _number(log, labels) == labels.index(label)
        ]
        if not logs:
            return "Slurm ended it before it began"
        text = max(logs, key=lambda log: log.stat().st_mtime).read_text(errors="replace")
        return error_line(text, 0).removeprefix("exit code 0: ")

    def _remove_folders(self) -> None:
        """Remove the folders of arrays of which nothing is in the queue, once this process knows how each job ended."""
        busy = {name for name, _ in self._queue.values()}
        for name, labels in list(self._arrays.items()):
            if name not in busy and not self._held & set(labels):
                shutil.rmtree(self.folder / name, ignore_errors=True)
                if not (self.folder / name).exists():  # else a log that is being closed; it is tried again
                    del self._arrays[name]
        with contextlib.suppress(OSError):
            self.folder.rmdir()


class _OnNode:
    """What submitit runs on the node: the command of a run, in a process of its own."""

    def __call__(self, work: tuple[list[str], str]) -> int:
        """Run the command and return its exit code; after a SIGTERM, which it gets as well, requeue the job."""
        command, self.path = work
        self.epochs = _count_epochs(self.path)
        cores = os.environ.get("SLURM_CPUS_PER_TASK", "1")
        usual = signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # is inherited: Slurm sends it to every process
        self.process = subprocess.Popen(command, env=environment(int(cores)), start_new_session=True)
        signal.signal(signal.SIGUSR2, usual)
        terminated: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: terminated.append(number))
        while (code := self.process.poll()) is None:
            time.sleep(LOOK_S)
        if terminated:
            _requeue_unless_cancelled()
        if code:
            print(f"exit code {code}", flush=True)  # noqa: T201
        return code

    def checkpoint(self, work: tuple[list[str], str]) -> Any:
        """Close the run file before the time limit; return the rest of the work, or None if nothing was achieved."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGINT)
        with contextlib.suppress(ChildProcessError):  # leave the exit code to the loop that may be asking for it
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        if _count_epochs(self.path) <= self.epochs:
            print("Error: the time limit came before an epoch was finished; engine.time must be longer")  # noqa: T201
            return None
        return importlib.import_module("submitit").helpers.DelayedSubmission(_OnNode(), work)


def _requeue_unless_cancelled() -> None:
    """Put this job back into the queue if it was preempted, before its grace time ends, not if it was cancelled."""
    number = os.environ.get("SLURM_JOB_ID", "")
    with contextlib.suppress(GradlensError):
        if _call("squeue", "--noheader", "--jobs", number, "--format", "%T").strip() == "RUNNING":
            _call("scontrol", "requeue", number)


def _count_epochs(path: str) -> int:
    try:
        return int(read_card(Path(path))["epochs"])
    except (GradlensError, OSError):
        return 0


def _call(*command: str) -> str:
    """Return what a command of Slurm prints.

    Raises:
        GradlensError: It fails, or does not end.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GradlensError(f"{command[0]}: {_first_line(error)}") from error
    if done.returncode:
        raise GradlensError(f"{command[0]}: {_first_line(done.stderr or f'exit code {done.returncode}')}")
    return done.stdout


def _first_line(error: object) -> str:
    """Return the line of a message that says most: that of the command itself, if there is one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "error:" in line), lines[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what submitit prints about a refusal from the terminal; the error has it."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield


def _read_labels(path: Path) -> list[str]:
    try:
        return [str(label) for label in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        return []


def _number(log: Path, labels: Sequence[str]) -> int:
    """Return the index of the job that wrote a log: of 12_3_0_log.out, 3; an array of one is none: 12_0_log.out."""
    parts = log.name.split("_")
    return int(parts[1]) if len(labels) > 1 and parts[1].isdecimal() else 0
