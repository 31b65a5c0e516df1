"""Carry out the jobs of an experiment until each run file is complete or no attempt is left.

States of a job and their transitions:

=========  =======================================================  ===========
state      event                                                    next state
=========  =======================================================  ===========
waiting    its run file is complete (``make_jobs``)                 kept
waiting    the engine starts it                                     running
running    it ended, and its run file is complete                   complete
running    it ended, because another process writes the run file    running
running    it ended in any other way, and an attempt is left        waiting
running    it ended in any other way, and no attempt is left        failed
running    all jobs are stopped                                     interrupted
=========  =======================================================  ===========

A job whose run file is unfinished continues it. What the engine reports starts and ends the waiting of this process;
whether a run is complete, its run file alone decides.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gradlens.engines.jobs import Job
from gradlens.engines.notes import remove_note, write_note
from gradlens.engines.protocol import Engine

LOOK_S = 0.2
"""Seconds between two looks at the jobs, at the beginning."""
MOST_LOOK_S = 2.0
"""Seconds between two looks at the jobs, in a long experiment."""
SHARE = 0.01
"""So much of the time that has passed lies between two looks, within these bounds."""
READ_S = 1.0
"""Seconds between reads of the run files."""
SILENT = "it ended without an error, but its run file is not complete"

View = Callable[[Job | None], None]


def carry_out(jobs: Sequence[Job], engine: Engine, retries: int, view: View) -> None:
    """Run the waiting jobs until all have ended; a failed job does not stop the others.

    A ``KeyboardInterrupt`` is raised again after all jobs have closed their files and ended; those of an engine that
    outlives this process go on.

    Args:
        jobs: The jobs; only those in the state "waiting" are run.
        engine: Where they are run.
        retries: How often a job that failed is started again.
        view: Called with each job that starts or ends, and with None when progress may be shown.
    """
    for job in jobs:
        if job.state == "kept":
            remove_note(job.path)  # of a process that was killed
    driver = _Driver([job for job in jobs if job.state == "waiting"], engine, retries, view)
    with _stoppable(driver):
        driver.submit(driver.open)
        began = read_at = time.monotonic()
        while driver.open:
            driver.look()
            if time.monotonic() - read_at > READ_S:
                driver.read_progress()
                read_at = time.monotonic()
            view(None)
            if driver.open:
                time.sleep(min(max(LOOK_S, SHARE * (time.monotonic() - began)), MOST_LOOK_S))


class _Driver:
    """The jobs that are not over, those of them that another process runs, and the engine."""

    def __init__(self, jobs: list[Job], engine: Engine, retries: int, view: View) -> None:
        self.open, self.elsewhere = jobs, list[Job]()
        self.engine, self.retries, self.view = engine, retries, view

    def submit(self, jobs: list[Job]) -> None:
        for job in jobs:
            write_note(job.path, self.engine.name, self.engine.outlives, job.reasons)
        self.engine.submit(jobs)

    def look(self) -> None:
        """Look at every job once, and submit again those that have an attempt left."""
        reports = self.engine.poll()
        again = [job for job in self.elsewhere if not job.is_written()]
        for job in again:
            self.elsewhere.remove(job)
        again = [job for job in again if not self._end_complete(job)]
        for job in list(self.open):
            report = reports.get(job.label)
            if report is None:
                continue
            if report.state == "running" and job.state != "running":
                self._show(job, "running")
            elif report.state == "ended" and not self._end_complete(job):
                again += self._fail(job, report.reason)
        if again:
            self.submit(again)

    def _end_complete(self, job: Job) -> bool:
        """Return whether the run file is complete; if so, the job is over."""
        if not job.is_complete():
            return False
        self.open.remove(job)
        remove_note(job.path)
        job.read_progress()
        self._show(job, "complete")
        return True

    def _fail(self, job: Job, reason: str) -> list[Job]:
        """Note why a job ended; return it if it is to be submitted again now."""
        if job.is_written():  # by a process of another gradlens run
            self.elsewhere.append(job)
            self._show(job, "running")
            return []
        job.reasons.append(reason or SILENT)
        if len(job.reasons) <= self.retries:
            job.state = "waiting"
            return [job]
        self.open.remove(job)
        write_note(job.path, self.engine.name, self.engine.outlives, job.reasons, failed=True)
        job.read_progress()
        self._show(job, "failed")
        return []

    def _show(self, job: Job, state: Any) -> None:
        job.state = state
        self.view(job)

    def read_progress(self) -> None:
        for job in self.open:
            if job.state == "running":
                job.read_progress()

    def stop(self) -> None:
        """End all jobs, unless they go on without this process; each closes its file first."""
        if self.engine.outlives:
            return
        self.engine.cancel()
        for job in list(self.open):
            if job.state == "running" and job not in self.elsewhere and not self._end_complete(job):
                job.read_progress()
                job.state = "interrupted"


@contextlib.contextmanager
def _stoppable(driver: _Driver) -> Iterator[None]:
    """Stop the driver when this process gets a signal or fails."""
    usual: dict[int, Any] = {}

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        wanted = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
        usual = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield
    finally:
        driver.stop()
        for number, handler in usual.items():
            signal.signal(number, handler)
