"""What an engine is: three verbs. The driver calls them; whether a run is complete, only its run file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from gradlens.engines.jobs import Job


class Report(NamedTuple):
    """What an engine reports on a job: that it waits, runs, or has ended, in whatever way.

    Args:
        state: "ended" is reported once.
        reason: Why it ended, or its last line; "" if it printed nothing.
    """

    state: Literal["waiting", "running", "ended"]
    reason: str = ""


class Engine(Protocol):
    """Starts commands somewhere."""

    name: str
    outlives: bool
    """Whether its jobs go on when this process ends."""
    place: str
    """What it has for the runs, for the first line that is shown: "2 at a time"."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs over, to be started as there is room; those that it has already are not taken twice.

        Raises:
            GradlensError: It takes none.
        """

    def poll(self) -> Mapping[str, Report]:
        """Return a report for the label of each job that it has or had; waits for nothing."""

    def cancel(self) -> None:
        """End all jobs, and return when they have closed their run files."""
