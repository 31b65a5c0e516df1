"""``gradlens run NAME`` or ``FILE.toml``: all runs of an experiment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from gradlens.errors import ConfigError, GradlensError
from gradlens.format import plural
from gradlens.launch import LAUNCH_VARIABLES
from gradlens.specs import parse_model


def find_experiment(name: str) -> Path | None:
    """Return the file of an experiment; None if the name is that of a model, which goes first.

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


def run_experiment(
    file: Path,
    overrides: dict[str, Any],
    *,
    seeds: tuple[int, ...] | None,
    out: Path,
    jobs: int | None,
    overwrite: bool,
) -> None:
    """Train the runs of an experiment that are not complete yet.

    Args:
        file: The experiment.
        overrides: Settings that replace those of the file.
        seeds: Seeds that replace those of the file; None keeps them.
        out: Folder for the runs of all experiments.
        jobs: Processes at a time; None means one per core, at most one per run.
        overwrite: Train all runs again.

    Raises:
        ConfigError: The file or an option is wrong.
        GradlensError: Some runs failed; the message names them.
    """
    from gradlens.engines.local import count_cores, make_jobs, run_jobs
    from gradlens.experiment import read_experiment
    from gradlens.terminal.console import messages
    from gradlens.terminal.experiment import ExperimentView

    if os.environ.keys() >= set(LAUNCH_VARIABLES):
        raise ConfigError(f"{file}: an experiment starts its own processes, so run it without torchrun")
    experiment = read_experiment(file)
    all_jobs = make_jobs(experiment.plan(out, overrides, seeds), overwrite=overwrite)
    todo = sum(job.state == "waiting" for job in all_jobs)
    cores = count_cores()
    at_once = min(jobs or cores, max(todo, 1))
    console = messages()
    console.print(f"{experiment.name}: {experiment.question}", style="bold", markup=False)
    console.print(
        f"{plural(len(all_jobs), 'run')}, {todo} to train, {at_once} at a time, in {experiment.folder(out)}",
        markup=False,
    )
    with ExperimentView(console, all_jobs) as view:
        run_jobs(all_jobs, at_once, cores, view)
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
