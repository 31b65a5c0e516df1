"""Logged scalars of runs over optimizer steps, smoothed alike in all runs that are compared.

A value at a step is the mean of the rows in the window that ends there, so that the end of a curve is the number in
the table. Shapes: T rows, G steps at which curves are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlens.run import FloatArray, Run

WINDOWS = 20
"""A curve of the common steps is smoothed over a twentieth of them."""
MOST_POINTS = 240
"""Steps at which a smoothed curve is computed; a figure is hardly wider in points that the eye can tell apart."""
LARGEST = 2.0**62
"""The largest step of a curve, which no training has."""
LAST = ("lr", "clip_coefficient")
"""Scalars that the recorder adds by itself; they follow those that the user logged."""


@dataclass(frozen=True)
class StepWindow:
    """At which steps runs are compared, and over how many steps values are averaged.

    Args:
        end: The last step that all runs have.
        last: The last step of the longest run.
        width: Steps in the window; 1 is no smoothing.
    """

    end: int
    last: int
    width: int

    @property
    def grid(self) -> NDArray[np.int64]:
        """(G,) steps at which curves are drawn, evenly spaced; ``end`` and ``last`` are among them."""
        last = max(self.last, 0)  # a damaged file has -1 where a step is lost
        spaced = np.linspace(0, last, min(last + 1, MOST_POINTS)).round()
        return np.unique(np.append(np.minimum(spaced, LARGEST).astype(np.int64), self.end))

    def curve(self, run: Run, name: str) -> FloatArray:
        """Return a smoothed scalar of a run at the steps of the grid.

        Args:
            run: The run.
            name: Name of the scalar.

        Returns:
            (G,) in the scalar's unit; NaN after the run's last step, and where no finite value is in the window.
        """
        return self.means(run, name, self.grid)

    def final(self, run: Run, name: str, *, own: bool = False) -> float:
        """Return the mean of a scalar over the window that ends at the common step.

        Args:
            run: The run.
            name: Name of the scalar.
            own: Whether the window ends at the run's own last step instead.

        Returns:
            The mean, in the scalar's unit; NaN where no finite value is in the window.
        """
        at = int(run.steps[-1]) if own else self.end
        return float(self.means(run, name, np.array([at]))[0])

    def means(self, run: Run, name: str, ends: NDArray[np.int64]) -> FloatArray:
        """Return the means of a scalar over the windows that end at some steps; as in ``curve``."""
        values = np.asarray(run.scalars[name], dtype=np.float64)
        known = np.isfinite(values)
        sums = np.append(0.0, np.cumsum(np.where(known, values, 0.0)))
        counts = np.append(0, np.cumsum(known))
        first = np.searchsorted(run.steps, ends - self.width, side="right")
        stop = np.searchsorted(run.steps, ends, side="right")
        count = (counts[stop] - counts[first]).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (sums[stop] - sums[first]) / count
        return np.where((count > 0) & (ends <= run.steps[-1]), means, np.nan)


def make_window(runs: Sequence[Run]) -> StepWindow:
    """Return the window for runs that are compared: each has a row, and at each step of the grid one of every run."""
    lasts = [int(run.steps[-1]) for run in runs]
    gap = max((int(np.diff(run.steps).max()) for run in runs if len(run.steps) > 1), default=1)
    return StepWindow(min(lasts), max(lasts), max((min(lasts) + 1) // WINDOWS, gap, 1))


def has_scalars(run: Run) -> bool:
    """Return whether a run has a logged scalar with a finite value."""
    return any(was_logged(run, name) for name in run.scalars)


def was_logged(run: Run, name: str) -> bool:
    """Return whether a scalar of a run has any value; one that was never logged is NaN in all rows."""
    return name in run.scalars and not bool(np.isnan(run.scalars[name]).all())


def logged_scalars(runs: Iterable[Run]) -> Mapping[str, str]:
    """Return the scalars that runs logged, with their titles: losses first, then accuracies, then all others.

    A learning rate that never changes is a setting, not a curve, and is left out.
    """
    runs = list(runs)
    names = {name: None for run in runs for name in run.scalars if was_logged(run, name)}
    if all(np.ptp(values) == 0 for run in runs if len(values := _known(run, "lr"))):
        names.pop("lr", None)

    def place(name: str) -> tuple[int, int]:
        kind = 3 if name in LAST else 0 if "loss" in name else 1 if "acc" in name else 2
        return kind, -sum(was_logged(run, name) for run in runs)

    return {name: name.replace("_", " ") for name in sorted(names, key=place)}


def _known(run: Run, name: str) -> FloatArray:
    values = run.scalars.get(name, np.empty(0))
    return values[np.isfinite(values)]
