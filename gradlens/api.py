"""The functions for runs in Python; the commands of the same names do the same in a terminal.

Runs are given as the result of ``read_run``, a file, a name under ``runs/``, a folder for all runs in it, or several of
these. A notebook displays the result of a function if it is the last expression in a cell.
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
    """Return a list of runs, and read those that are given by name.

    Args:
        runs: A run, a file, a name under ``runs/``, a folder, or several of these.
        deep: Whether a folder also stands for the runs in the folders below it.

    Returns:
        The runs.

    Raises:
        NoRunError: A file or folder does not exist, or a folder has no run.
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
        metric: The metric; each of several gets a column of panels.
        per_element: Divide norms by sqrt of the number of elements (RMS).
        relative: Divide magnitudes by that of the last hidden layer, step by step.
        steps: First and last optimizer step to show; None is the beginning, or the end.
        minus: Show the difference from this run; for magnitudes, log10 of the ratio.

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
    """Draw a metric over the layers, a line per model, and compare the first step with theory if there is one.

    Args:
        runs: The runs; seeds of one model are grouped.
        metric: The metric.
        per_element: Use the root mean square per element instead of the L2 norm.
        steps: First and last optimizer step to use; None is the beginning, or the end.

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
    """Compare accuracy and loss of runs over epochs; seeds of one model are grouped, with intervals.

    Args:
        runs: The runs. Runs without a finished epoch, and repeats of a seed, are left out; the result lists them.

    Returns:
        The comparison: ``print`` shows the table of the last epoch, ``.table()`` returns its numbers.

    Raises:
        ConfigError: No run has finished an epoch.
        NoRunError: As in ``as_runs``.
    """
    from gradlens.analysis.compare import compare_runs

    return compare_runs(as_runs(runs))


def claims(runs: Runs) -> Judgement:
    """Test the claims of the original study with runs of plain and residual models that were trained alike.

    Args:
        runs: Runs of both kinds that share at least two seeds. A folder stands for all runs in it and below.

    Returns:
        The judgement: ``.claims`` with their verdicts, ``.explanation``, ``.rows()`` with all numbers.

    Raises:
        ConfigError: There is no run of a plain or a residual model.
        NoRunError: As in ``as_runs``.
    """
    from gradlens.studies import judge

    return judge(as_runs(runs, deep=True))
