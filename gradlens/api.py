"""What one asks of runs in Python, a line each; the commands of the same names do it in a terminal.

Runs may be named as they are there: what ``read_run`` returned, a file, a name under ``runs/``, a folder for all in it,
or several of these. What comes back shows itself where it is the last thing in a cell of a notebook.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gradlens.errors import ConfigError
from gradlens.run import Run
from gradlens.storage import read_runs

if TYPE_CHECKING:
    from gradlens.analysis.compare import Comparison
    from gradlens.plots.figure import GradlensFigure
    from gradlens.studies import Judgement

One = Run | str | Path
Runs = One | Iterable[One]
Steps = tuple[int | None, int | None]
DEFAULT = "activation_grad_norm"


def as_runs(runs: Runs, *, deep: bool = False) -> list[Run]:
    """Return runs, read where they are named.

    Args:
        runs: A run, a file, a name under ``runs/``, a folder, or several of these.
        deep: A folder also stands for the runs in the folders below it.

    Raises:
        NoRunError: A file or folder is not there, or a folder holds no run.
    """
    if isinstance(runs, Run):
        return [runs]
    if isinstance(runs, str | Path):
        return read_runs(runs, deep=deep)
    return [run for one in runs for run in as_runs(one, deep=deep)]


def heatmap(
    runs: Runs,
    metric: str | list[str] = DEFAULT,
    *,
    per_element: bool = False,
    relative: bool = False,
    steps: Steps = (None, None),
    minus: One | None = None,
) -> GradlensFigure:
    """Draw a metric of runs as layers by steps, on one scale.

    Args:
        runs: One panel each.
        metric: Which; of several, each has a column.
        per_element: Divide norms by sqrt of the number of elements (RMS).
        relative: Divide magnitudes by that of the last hidden layer, step by step.
        steps: First and last optimizer step to show; None is the beginning, or the end.
        minus: Show the difference to this run; of magnitudes log10 of the ratio.

    Returns:
        A matplotlib figure: ``gradlens.heatmap(run).savefig("heatmap.pdf")``.

    Raises:
        ConfigError: A run lacks the metric, or has no row of it among the steps.
        NoRunError: As in ``as_runs``.
    """
    from gradlens.analysis.derived_metrics import with_derived
    from gradlens.plots import draw_heatmap

    shown = [with_derived(run) for run in as_runs(runs)]
    others = [with_derived(run) for run in as_runs(minus)] if minus is not None else []
    if len(others) > 1:
        raise ConfigError(f"minus={str(minus)!r}: expected one run, got {len(others)}")
    other = others[0] if others else None
    return draw_heatmap(shown, metric, per_element=per_element, relative=relative, steps=steps, minus=other)


def profile(
    runs: Runs, metric: str = DEFAULT, *, per_element: bool = False, steps: Steps = (None, None)
) -> GradlensFigure:
    """Draw a metric over the layers, a line per net, and where there is one the first step beside theory.

    Args:
        runs: Seeds of one model are put together.
        metric: Which.
        per_element: The root mean square per element instead of the L2 norm.
        steps: First and last optimizer step to take; None is the beginning, or the end.

    Returns:
        A matplotlib figure: ``gradlens.profile(runs).savefig("profile.pdf")``.

    Raises:
        ConfigError: A run lacks the metric, or has no row of it among the steps.
        NoRunError: As in ``as_runs``.
    """
    from gradlens.charts.curves import make_curves
    from gradlens.plots import draw_profile

    curves = make_curves(as_runs(runs), metric, per_element=per_element, steps=steps)
    return draw_profile(curves, metric, per_element=per_element, steps=steps)


def compare(runs: Runs) -> Comparison:
    """Compare accuracy and loss of runs over epochs; seeds of one model are put together, with intervals.

    Args:
        runs: Those that have not finished an epoch, and repeats of a seed, are left out, and named.

    Returns:
        The comparison: ``print`` shows the table of the last epoch, ``.table()`` returns its numbers.

    Raises:
        ConfigError: No run has finished an epoch.
        NoRunError: As in ``as_runs``.
    """
    from gradlens.analysis.compare import compare_runs

    return compare_runs(as_runs(runs))


def claims(runs: Runs) -> Judgement:
    """Judge the original study's claims by runs of plain and residual nets that were trained alike.

    Args:
        runs: In any order; two seeds or more in common. A folder stands for all runs in it and below.

    Returns:
        The judgement: ``.claims`` with their verdicts, ``.explanation``, ``.rows()`` with all numbers.

    Raises:
        ConfigError: None of them is of a plain or a residual net.
        NoRunError: As in ``as_runs``.
    """
    from gradlens.studies import judge

    return judge(as_runs(runs, deep=True))
