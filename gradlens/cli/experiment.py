"""``gradlens run NAME`` or ``FILE.toml``: all runs of an experiment."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradlens.errors import ConfigError, GradlensError
from gradlens.format import plural
from gradlens.launch import LAUNCH_VARIABLES
from gradlens.specs import parse_model


def find_experiment(name: str) -> Path | None:
    """Return the file of an experiment; None if the name is that of a model, which takes precedence.

    Args:
        name: A file that ends in .toml; or the name of an experiment: NAME.toml in the current folder, or one of the
            original study.

    Returns:
        The file of the experiment, or None.

    Raises:
        ConfigError: There is no such model or experiment; the message lists the names.
    """
    if name.endswith(".toml"):
        return Path(name)
    try:
        parse_model(name)
    except ConfigError as unknown:
        return _find_by_name(name, unknown)
    return None


def _find_by_name(name: str, unknown: ConfigError) -> Path:
    from gradlens.studies import experiments

    here, shipped = Path(f"{name}.toml"), experiments()
    if here.is_file():
        return here
    if name in shipped:
        return shipped[name]
    if not shipped or re.match(r"(plain|resnet)\d|.*:", name):
        raise unknown
    raise ConfigError(f"{unknown.message}; or an experiment: {', '.join(shipped)}, or FILE.toml", tip=unknown.tip)


@dataclass(frozen=True)
class Carrying:
    """How the runs of an experiment are carried out, as the command line says it.

    Args:
        engine: The engine; None means that of the file.
        jobs: Runs at a time; None means what the file says.
        cancel: End the runs in the engine's queue instead.
        overwrite: Train all runs again.
        publish: A folder to which copies of the run files are sent while they are written.
    """

    engine: str | None = None
    jobs: int | None = None
    cancel: bool = False
    overwrite: bool = False
    publish: Path | None = None


def run_experiment(
    file: Path, overrides: dict[str, Any], *, seeds: tuple[int, ...] | None, out: Path, how: Carrying
) -> None:
    """Train the runs of an experiment that are not complete yet.

    Args:
        file: The experiment.
        overrides: Settings that replace those of the file.
        seeds: Seeds that replace those of the file; None keeps them.
        out: Folder for the runs of all experiments.
        how: How the runs are carried out.

    Raises:
        ConfigError: The file or an option is wrong.
        GradlensError: Some runs failed; the message names them.
    """
    from gradlens.engines.choose import make_engine
    from gradlens.engines.driver import carry_out
    from gradlens.engines.jobs import make_jobs, remove_runs
    from gradlens.experiment import read_experiment
    from gradlens.terminal.console import messages
    from gradlens.terminal.experiment import ExperimentView

    if os.environ.keys() >= set(LAUNCH_VARIABLES):
        raise ConfigError(f"{file}: an experiment starts its own processes, so run it without torchrun")
    experiment = read_experiment(file)
    settings = experiment.engine
    settings = replace(settings, name=how.engine or settings.name, at_once=how.jobs or settings.at_once)
    publish = None if how.publish is None else experiment.folder(how.publish)
    all_jobs = make_jobs(experiment.plan(out, overrides, seeds), overwrite=how.overwrite, publish=publish)
    todo = sum(job.state == "waiting" for job in all_jobs)
    engine = make_engine(settings, experiment.folder(out), todo)
    console = messages()
    if how.cancel:
        if not engine.outlives:
            raise ConfigError(
                f"--cancel: runs of the engine {engine.name} end with their command",
                tip="Ctrl-C in its terminal closes their files; --engine slurm --cancel ends those in Slurm's queue",
            )
        engine.cancel()
        console.print(f"{experiment.name}: nothing is left in the queue; the same command continues", markup=False)
        return
    if how.overwrite:
        remove_runs(all_jobs)
    console.print(f"{experiment.name}: {experiment.question}", style="bold", markup=False)
    console.print(
        f"{plural(len(all_jobs), 'run')}, {todo} to train, {engine.place}, in {experiment.folder(out)}", markup=False
    )
    try:
        with ExperimentView(console, all_jobs) as view:
            carry_out(all_jobs, engine, settings.retries, view)
    except KeyboardInterrupt:
        if engine.outlives:
            console.print("the runs stay in the queue: the same command shows them, with --cancel it ends them")
        raise
    failed = [job for job in all_jobs if job.state == "failed"]
    if not failed:
        _show([job.path for job in all_jobs], experiment.commands(out))
        return
    reasons = "; ".join(f"{job.label}: {job.error}" for job in failed)
    raise GradlensError(
        f"{len(failed)} of {plural(len(all_jobs), 'run')} failed: {reasons}",
        tip="the same command continues the runs that are not complete",
    )


def _show(paths: list[Path], figures: list[str]) -> None:
    """Print a table of the runs of each group, and the commands that draw the figures."""
    from gradlens.terminal.console import messages, results
    from gradlens.terminal.listing import print_listing, run_rows

    for folder in dict.fromkeys(path.parent for path in paths):
        print_listing(results(), folder, run_rows([path for path in paths if path.parent == folder]))
    for command in figures:
        messages().print(f"figure: {command}", markup=False, soft_wrap=True)
