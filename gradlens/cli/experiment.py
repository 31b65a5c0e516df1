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
    """Return the file of an experiment; None where the name is a model's, which wins over an experiment's.

    Args:
        name: A file that ends in .toml; or the name of an experiment: NAME.toml in this folder, or one of the study's.

    Raises:
        ConfigError: It is the name of neither; says which there are.
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
    """Train what is missing of an experiment.

    Args:
        file: The experiment.
        overrides: Settings that go before those of the file.
        seeds: In place of those of the file.
        out: Folder of all experiments' runs.
        jobs: Processes at a time; None: as many as there are cores, or runs.
        overwrite: Train all anew.

    Raises:
        ConfigError: The file or an option is wrong.
        GradlensError: Some runs failed; names them.
    """
    from gradlens.engines.local import count_cores, make_jobs, run_jobs
    from gradlens.experiment import read_experiment
    from gradlens.terminal.console import talk
    from gradlens.terminal.experiment import ExperimentView

    if os.environ.keys() >= set(LAUNCH_VARIABLES):
        raise ConfigError(f"{file}: an experiment starts its own processes; run it without torchrun")
    experiment = read_experiment(file)
    all_jobs = make_jobs(experiment.plan(out, overrides, seeds), overwrite=overwrite)
    todo = sum(job.state == "waiting" for job in all_jobs)
    cores = count_cores()
    at_once = min(jobs or cores, max(todo, 1))
    console = talk()
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
        tip="the same command goes on with what is missing",
    )


def _show(paths: list[Path], figures: list[str]) -> None:
    """Show what came out, a table for each group."""
    from gradlens.terminal.console import results, talk
    from gradlens.terminal.listing import print_listing, run_rows

    for folder in dict.fromkeys(path.parent for path in paths):
        print_listing(results(), folder, run_rows([path for path in paths if path.parent == folder]))
    for command in figures:
        talk().print(f"figure: {command}", markup=False, soft_wrap=True)
