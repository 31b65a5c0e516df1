"""Progress of the runs of an experiment: in a terminal a line per running job, elsewhere a line per epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gradlens.engines.jobs import Job
from gradlens.format import say_seconds
from gradlens.terminal.console import start_live

STYLES = {"complete": "green", "kept": "dim", "failed": "red", "interrupted": "yellow", "running": "cyan"}


class ExperimentView:
    """Shows the progress of jobs on a console; a context manager, and the ``view`` of ``carry_out``.

    Args:
        console: The console to print to.
        jobs: All jobs of the experiment.
    """

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self.console, self.jobs = console, jobs
        self._live: Live | None = None
        self._epochs_printed: dict[str, int] = {}

    def __enter__(self) -> ExperimentView:
        kept = [job for job in self.jobs if job.state == "kept"]
        for job in kept:
            self.console.print(Text(f"{job.label}: kept, as it is complete", style="dim"))
        self._live = start_live(self.console, self._render, per_second=4)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        for job in self.jobs:
            if job.state == "interrupted":
                self._end(job)

    def __call__(self, job: Job | None) -> None:
        """Show that a job started or ended; None means that progress may be shown."""
        if job is None:
            if self._live is None:
                self._print_epochs()
        elif job.state == "running":
            if self._live is None:
                self.console.print(Text(f"{job.label}: started"))
        elif job.state != "interrupted":
            self._end(job)

    def _end(self, job: Job) -> None:
        text = f"{job.label}: {job.state}"
        if job.progress is not None:
            text += f" after epoch {job.progress.epoch} of {job.progress.epochs}, {_loss(job)}"
        text += f": {job.error}" if job.error else ""
        self.console.print(Text(text, style=STYLES[job.state]))

    def _print_epochs(self) -> None:
        for job in self.jobs:
            progress = job.progress
            if (
                job.state == "running"
                and progress is not None
                and progress.epoch > self._epochs_printed.get(job.label, 0)
            ):
                self._epochs_printed[job.label] = progress.epoch
                text = f"epoch {progress.epoch} of {progress.epochs}, {_loss(job)}{_left(job)}"
                self.console.print(Text(f"{job.label}: {text}"))

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for job in self.jobs:
            if job.state == "running":
                progress = job.progress
                epoch = f"epoch {progress.epoch if progress else 0}/{job.epochs}"
                table.add_row(Text(job.label, style="cyan"), epoch, _loss(job), _left(job).removeprefix(", "))
        states = [job.state for job in self.jobs]
        done = states.count("complete") + states.count("kept")
        counts = f"{done} of {len(states)} done, {states.count('running')} running, {states.count('waiting')} waiting"
        failed = f", {states.count('failed')} failed" if "failed" in states else ""
        return Group(table, Text(counts + failed, style="bold"))


def _loss(job: Job) -> str:
    known = job.progress is not None and not math.isnan(job.progress.loss)
    return f"loss {job.progress.loss:.3f}" if known and job.progress is not None else "loss -"


def _left(job: Job) -> str:
    left = math.nan if job.progress is None else job.progress.seconds_left
    return "" if math.isnan(left) else f", {say_seconds(left)} left"
