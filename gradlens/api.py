"""The Python functions of the commands' names: each takes runs (or a module) and returns an object, a figure or paths.

Runs may be named as they are there: what ``read_run`` returned, a file, a name under ``runs/``, a folder for all in it,
or several of these. What they return is displayed when it is the last expression in a cell of a notebook.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradlens.errors import ConfigError, GradlensError
from gradlens.format import plural
from gradlens.metrics import ACTIVATION_GRAD_NORM
from gradlens.run import Run
from gradlens.storage import read_run, read_runs, recover_run, resolve_runs

if TYPE_CHECKING:
    from gradlens.analysis.compare import Comparison
    from gradlens.plots.figure import GradlensFigure
    from gradlens.probe.judge import Judged
    from gradlens.probe.module import Loss, Module
    from gradlens.run_summary import Summary
    from gradlens.storage import Recovery
    from gradlens.studies import Judgement
    from gradlens.theory.laws import Check

One = Run | str | Path
Runs = One | Iterable[One]
Place = str | os.PathLike[str]
Places = Place | Iterable[Place]
Steps = tuple[int | None, int | None]
DEFAULT = ACTIVATION_GRAD_NORM


def as_runs(runs: Runs) -> list[Run]:
    """Return a list of runs, and read those that are given by name.

    Args:
        runs: A run, a file, a name under ``runs/``, a folder, or several of these.

    Returns:
        The runs.

    Raises:
        NoRunError: A file or folder does not exist, or a folder has no run.
    """
    if isinstance(runs, Run):
        return [runs]
    if isinstance(runs, str | Path):
        return read_runs(runs)
    return [run for one in runs for run in as_runs(one)]


def summary(run: One | None = None) -> Summary:
    """Summarise a run: its diagnosis, what else is notable, and a row per layer.

    Args:
        run: A run, a file, or a name under ``runs/``; None is the newest run there.

    Returns:
        The summary: ``print`` shows it as text, ``.layers`` are its rows, ``.to_dict()`` returns all of it.

    Raises:
        ConfigError: A folder with several runs was given.
        NoRunError: As in ``as_runs``.

    Example::

        print(gradlens.summary("runs/plain34-s0.h5"))
    """
    from gradlens.run_summary import summarise

    found = _found(run, default="newest")
    if len(found) != 1:
        raise ConfigError(f"expected one run, got {len(found)} in {run}")
    return summarise(found[0])


def heatmap(
    runs: Runs | None = None,
    metric: str | list[str] = DEFAULT,
    *,
    per_element: bool = False,
    relative: bool = False,
    steps: Steps = (None, None),
    minus: One | None = None,
) -> GradlensFigure:
    """Draw a metric of runs as layers by steps, on one scale.

    Args:
        runs: One panel each; None is the newest run.
        metric: Which; of several, each has a column.
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

    shown = [with_derived(run) for run in _found(runs, default="newest")]
    others = [with_derived(run) for run in as_runs(minus)] if minus is not None else []
    if len(others) > 1:
        raise ConfigError(f"minus={str(minus)!r}: expected one run, got {len(others)}")
    other = others[0] if others else None
    return draw_heatmap(shown, metric, per_element=per_element, relative=relative, steps=steps, minus=other)


def profile(
    runs: Runs | None = None, metric: str = DEFAULT, *, per_element: bool = False, steps: Steps = (None, None)
) -> GradlensFigure:
    """Draw a metric over the layers, a line per model, and the first step compared with theory where theory applies.

    Args:
        runs: Seeds of one model are put together; None is the newest run.
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

    curves = make_curves(_found(runs, default="newest"), metric, per_element=per_element, steps=steps)
    return draw_profile(curves, metric, per_element=per_element, steps=steps)


def compare(runs: Runs | None = None, *, by: Literal["epoch", "step"] | None = None) -> Comparison:
    """Compare accuracy and loss of runs over epochs, or logged scalars over steps where no epochs were logged.

    Seeds of one model are put together, with intervals. The comparison is at the last epoch or step that all have.

    Args:
        runs: Those that have not finished an epoch, and repeats of a seed, are left out, and named. None is
            all runs under ``runs/``.
        by: "epoch" or "step"; None is steps where fewer than two runs have epochs and more have logged scalars.

    Returns:
        The comparison: ``print`` shows the table, ``.table()`` returns its numbers, ``.unequal`` says in what the runs
        are not equal; ``.groups[0].curve("loss")`` is a curve at ``.groups[0].positions``.

    Raises:
        ConfigError: No run has finished an epoch, or logged a scalar.
        NoRunError: As in ``as_runs``.
    """
    from gradlens.analysis.compare import compare_runs

    return compare_runs(_found(runs, default="all"), by=by)


def claims(
    runs: Runs | None = None,
    *,
    keep: str | os.PathLike[str] | None = None,
    kept: str | os.PathLike[str] | None = None,
) -> Judgement:
    """Judge the original study's claims by runs of plain and residual networks that were trained alike.

    Args:
        runs: In any order; two seeds or more in common. A folder stands for all runs in it and below; None
            is all runs under ``runs/``.
        keep: A folder in which to write the numbers of the runs that the claims use.
        kept: Such a folder, instead of runs: every number is that of the runs.

    Returns:
        The judgement: ``.claims`` with their verdicts, ``.explanation``, ``.rows()`` with all numbers.

    Raises:
        ConfigError: No run is of a plain or a residual network, or both ``kept`` and runs are given.
        NoRunError: As in ``as_runs``.
        RunFileError: The kept numbers cannot be written or read.
    """
    from gradlens import studies

    if kept is not None:
        if runs is not None or keep is not None:
            raise ConfigError("kept numbers take the place of runs, and are kept already: give one of runs and kept")
        return studies.judge_kept(Path(kept))
    found = _found(runs, default="all")
    if keep is not None:
        studies.keep(found, Path(keep))
    return studies.judge(found)


def report(
    runs: Runs | None = None, output: str | os.PathLike[str] | None = None, *, language: str = "en"
) -> list[Path]:
    """Write everything about runs on one page: claims, findings, heatmaps, curves and hyper-parameters.

    Args:
        runs: A folder stands for all runs in it and below; None for all under ``runs/``. A run that repeats a seed
            of the same model and settings is left out.
        output: A name that ends in .html, .md, .pdf or .docx; a file of this name is replaced. None is
            ``report.html``, and only a page of gradlens is replaced.
        language: "en", or "id" (Indonesian).

    Returns:
        The files that were written: the report first, then the figures of a Markdown report.

    Raises:
        ConfigError: The ending or the language is not known, or no run has a row.
        MissingLibraryError: A .docx file was asked for and python-docx is not installed.
        NoRunError: As in ``as_runs``.
        RunExistsError: ``report.html`` is there, and is not of gradlens.
        RunFileError: The file cannot be written.

    Example::

        gradlens.report("runs", "report.html")
    """
    from gradlens.report.content import collect
    from gradlens.report.files import DEFAULT, check_report, write_report

    path = Path(output) if output is not None else DEFAULT
    check_report(path, language)
    facts = collect(_found(runs, default="all"), command=f"gradlens report --lang {language} -o {path}")
    return write_report(facts, path, language=language, asked=output is not None)


def probe(module: Module, example_input: Any, loss: Loss | None = None) -> Judged:
    """Check a module before it is trained: one backward pass with the weights as they are; nothing is written.

    Parameters, buffers, gradients, modes and hooks of the module and all random states are as before afterwards. The
    module runs in the mode in which it is, with its own hooks.

    Args:
        module: A ``torch.nn.Module`` on any device.
        example_input: A whole batch: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        loss: A function of the module's output that returns a scalar; None where the output is class scores: the
            cross-entropy against labels that are independent of the input.

    Returns:
        The verdict: ``print`` shows it with its facts, ``.findings`` and ``.remarks`` say what was found, ``.ratio`` is
        the gradient's size at the first layer over the last hidden one's, in powers of ten.

    Raises:
        ConfigError: An argument has another type.
        ModelError: The module is lazy, has no parameters, cannot take the input, or needs ``loss``.

    Example::

        judged = gradlens.probe(model, inputs)
        print(judged)
        assert judged.kind != "vanishing"
    """
    from gradlens.probe.judge import judge
    from gradlens.probe.module import probe_module

    return judge(probe_module(module, example_input, loss))


def verify() -> list[Check]:
    """Measure known laws of gradients with the recorder; this trains nothing and takes about half a minute.

    Returns:
        The laws: each has its value, what was measured, and ``.passed``.

    Example::

        assert all(check.passed for check in gradlens.verify())
    """
    from gradlens.probe.verify import verify as measure

    return list(measure())


def recover(runs: Places | None = None, *, repack: bool = False) -> list[Recovery]:
    """Make the files of killed runs appendable again, and keep what is intact of damaged ones.

    Args:
        runs: Files, names under ``runs/``, or folders; None for all runs under ``runs/``. Intact files, and files that
            are being written, are left untouched.
        repack: Write intact files anew, too: files of an earlier gradlens get smaller.

    Returns:
        What was found in each file, and what was saved.

    Raises:
        GradlensError: Files could not be recovered; all others were.
        NoRunError: A file or folder is not there, or a folder holds no run.

    Example::

        (found,) = gradlens.recover("runs/plain34-s0.h5")
        print(found.found, found.rows)
    """
    places = [] if runs is None else [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    paths = resolve_runs([Path(place) for place in places], default="all")
    done: list[Recovery] = []
    failed: list[GradlensError] = []
    for path in paths:
        try:
            done.append(recover_run(path, repack=repack))
        except GradlensError as error:
            failed.append(error)
    if failed and len(paths) == 1:
        raise failed[0]
    if failed:
        raise GradlensError(f"{plural(len(failed), 'file')} could not be recovered: {'; '.join(map(str, failed))}")
    return done


def export(
    runs: Runs | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    to: str | None = None,
    table: str | None = None,
    metrics: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write runs as tidy CSV, as Parquet, or as TensorBoard events.

    Args:
        runs: Several go into one table, with a column ``run``; as events, into a folder each. None is the newest run.
        output: A file, for events a folder; None is a name under ``exports/``.
        to: "csv", "parquet" or "tensorboard"; None chooses by the ending of ``output``, else CSV.
        table: "metrics" (the default), "scalars", "epochs" or "layers"; events hold all of them.
        metrics: Only these metrics; () for all.
        overwrite: Replace what is there.

    Returns:
        The file or folder that was written.

    Raises:
        ConfigError: Two arguments contradict each other, or a format, table or metric is not known.
        GradlensError: The library that writes the format is not installed.
        NoRunError: As in ``as_runs``.
        RunExistsError: The output is there, and ``overwrite`` is False.
        RunFileError: The output cannot be written.

    Example::

        gradlens.export("runs/plain34-s0.h5", "plain34.csv")
    """
    from gradlens.export import STDOUT, make_wanted, write_runs

    if output is not None and os.fspath(output) == STDOUT:
        raise ConfigError(f"output={STDOUT!r}: expected the name of a file; only the command prints")
    wanted = make_wanted(to, output, table, metrics)
    return write_runs(_found(runs, default="newest"), wanted, output, overwrite=overwrite).path


def _found(runs: Runs | None, *, default: str) -> list[Run]:
    """Return runs; where none is named, what the command of the same name takes then."""
    if runs is None:
        return [read_run(path) for path in resolve_runs([], default=default)]
    return as_runs(runs)
