"""``gradlens run``: train with the recorder on."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from gradlens.cli.experiment import find_experiment, run_experiment
from gradlens.config import (
    AUGMENTATIONS,
    INITS,
    ON_NONFINITE,
    ON_RECORD_ERROR,
    OPTIMIZERS,
    RECIPES,
    SHORTCUTS,
    SPLITS,
    RunConfig,
    make_config,
)
from gradlens.errors import ConfigError, GradlensError
from gradlens.metrics import METRICS_ON_REQUEST
from gradlens.specs import parse_every, parse_names, parse_seeds


@click.command()
@click.argument("model")
@click.option(
    "--data",
    metavar="SPEC",
    help="patterns (default), folder:PATH, csv:FILE, cifar10, cifar100, fashionmnist, svhn, food101, flowers102.",
)
@click.option(
    "--recipe",
    type=click.Choice(list(RECIPES)),
    help="quick (default) or report (the original study's); the options below change its fields.",
)
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--image-size", type=int, help="Side in pixels.")
@click.option("--lr", type=float, help="Learning rate at the start.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS))
@click.option("--weight-decay", type=float)
@click.option("--label-smoothing", type=float)
@click.option("--schedule", metavar="SCHEDULE", help="constant, cosine, or step:SIZE,GAMMA by epochs.")
@click.option("--patience", type=int, help="Stop after so many epochs without a lower validation loss; 0 never.")
@click.option("--augment", metavar="LIST", help=f"Of {','.join(AUGMENTATIONS)}; or none.")
@click.option("--val-fraction", type=float, help="Share held out where the data has no validation set.")
@click.option("--split", type=click.Choice(SPLITS), help="group (default) keeps copies of a picture on one side.")
@click.option(
    "--init",
    type=click.Choice(INITS),
    help="Initialisation of plain and residual nets: he (default) or PyTorch's.",
)
@click.option(
    "--shortcut",
    type=click.Choice(SHORTCUTS),
    help="Shortcut option of residual nets: A (zero-padded, default) or B.",
)
@click.option("--skip-broken", is_flag=True, default=None, help="Pass over images that are missing or broken.")
@click.option("--seed", type=int, help="Seeds weights, split, order and augmentation (default 0).")
@click.option("--seeds", metavar="LIST", help="Train one run after another: 0,1,2 or 0-4.")
@click.option("--every", metavar="N", help="Record every so many steps (default 1); auto: as often as costs under 1 %.")
@click.option(
    "--metrics", metavar="LIST", help=f"Record these too, beside what always is: of {', '.join(METRICS_ON_REQUEST)}."
)
@click.option("--device", help="auto (default), cpu, cuda, ...")
@click.option("--amp", is_flag=True, default=None, help="bfloat16 autocast in the forward pass.")
@click.option("--workers", type=int, help="Processes that prepare batches (default 0).")
@click.option(
    "--on-nonfinite", type=click.Choice(ON_NONFINITE), help="What a NaN or infinite loss does (default stop)."
)
@click.option(
    "--on-record-error",
    type=click.Choice(ON_RECORD_ERROR),
    help="Where the file or its checkpoint cannot be written: end the training (stop, default), or go on without.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder for run files.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Of an experiment: processes at a time (default: the cores).")
@click.option("--live", is_flag=True, help="Show it in a full screen, as gradlens watch does; q goes back to lines.")
@click.option("--resume", is_flag=True, help="Go on after the last finished epoch of a run that was stopped.")
@click.option("--overwrite", is_flag=True, help="Replace runs that are there.")
def run(
    model: str,
    recipe: str | None,
    seed: int | None,
    seeds: str | None,
    augment: str | None,
    metrics: str | None,
    every: str | None,
    out: Path,
    jobs: int | None,
    live: bool,
    resume: bool,
    overwrite: bool,
    **options: Any,
) -> None:
    """Train MODEL with the recorder on, or what is missing of an experiment (MODEL is its name or a .toml file).

    MODEL is plain18, plain34, resnet18, resnet34 (ImageNet stem), plain20 ... plain110, resnet20 ... resnet110
    (CIFAR family), each also with -nobn (no batch norm) and -sigmoid, residual ones with -valueonly or -gradonly (what
    the shortcut passes on), in the order resnet34-gradonly-nobn-sigmoid; torchvision:NAME; path.py:FACTORY; or
    module:FACTORY.
    Writes OUT/MODEL-sSEED.h5.
    An experiment is a file that ends in .toml, or a name: NAME.toml in this folder, or one of the original study's
    (cause, controls, depth, full, norm, report); where a model has the same name, the model is trained. It writes
    OUT/NAME/GROUP/MODEL-sSEED.h5, goes on with runs that are unfinished and keeps those that are complete; options go
    before what its file says.
    Under torchrun (torchrun --nproc-per-node 2 -m gradlens run MODEL) the processes share each batch.
    """
    if seed is not None and seeds is not None:
        raise ConfigError("--seed and --seeds are both given: choose one of them")
    if resume and overwrite:
        raise ConfigError("--resume goes on with a run, --overwrite replaces it: choose one of them")
    chosen = parse_seeds(seeds) if seeds is not None else None if seed is None else (seed,)
    if augment is not None:
        options["augment"] = parse_names(augment)
    if metrics is not None:
        options["metrics"] = parse_names(metrics)
    if every is not None:
        options["every"] = parse_every(every)
    given = {key: value for key, value in options.items() if value is not None}
    experiment = find_experiment(model)
    if experiment is not None:
        if live:
            raise ConfigError("--live shows one training; an experiment has many: gradlens watch RUN shows one of them")
        given |= {} if recipe is None else {"recipe": recipe}
        run_experiment(experiment, given, seeds=chosen, out=out, jobs=jobs, overwrite=overwrite)
        return
    if jobs is not None:
        raise ConfigError("--jobs is of experiments (gradlens run report); --seeds trains in turn")
    plans = [_plan(model, recipe, number, given, out, resume) for number in chosen or (0,)]
    if not resume and not overwrite:
        _refuse_existing([path for _, path in plans])
    _train_all(plans, overwrite=overwrite, resume=resume, live=live)


def _plan(
    model: str, recipe: str | None, seed: int, given: dict[str, Any], out: Path, resume: bool
) -> tuple[RunConfig, Path]:
    config = make_config(model, recipe or "quick", seed=seed, **given)
    path = out / f"{config.run_name}.h5"
    if resume and path.exists():
        config = _resumed(path, recipe, given) or config
    return config, path


def _resumed(path: Path, recipe: str | None, given: dict[str, Any]) -> RunConfig | None:
    """Take the settings that the run was started with; options given now are checked against them."""
    from dataclasses import replace

    from gradlens.storage import read_run

    stored = read_run(path).config
    if "recipe" not in stored:
        return None
    started = RunConfig.from_dict(stored)
    if recipe is not None and recipe != started.recipe:
        raise ConfigError(f"{path} was started with recipe {started.recipe}, not {recipe}", tip="leave --recipe out")
    return replace(started, **given)


def _refuse_existing(paths: list[Path]) -> None:
    from gradlens.errors import RunExistsError

    there = [path for path in paths if path.exists()]
    if there:
        raise RunExistsError(
            f"{', '.join(map(str, there))} is there already, and nothing is overwritten unasked",
            tip="--resume goes on with it, --overwrite replaces it, --out DIR writes elsewhere",
        )


def _train_all(plans: list[tuple[RunConfig, Path]], *, overwrite: bool, resume: bool, live: bool) -> None:
    from gradlens.events import Ended, Event, ignore
    from gradlens.terminal.console import talk
    from gradlens.terminal.live.training import LiveTraining
    from gradlens.terminal.progress import TrainingView
    from gradlens.train import joined, train_run

    failed: list[Path] = []
    unrecorded: dict[Path, int] = {}

    shown = LiveTraining if live else TrainingView
    with joined(plans[0][0].device) as world, shown(talk()) if world.first else nullcontext(ignore) as view:
        for config, path in plans:

            def listen(event: Event, path: Path = path) -> None:
                view(event)
                if isinstance(event, Ended) and event.recorded_until is not None:
                    unrecorded[path] = event.recorded_until

            if train_run(config, path, overwrite=overwrite, resume=resume, listener=listen) == "failed":
                failed.append(path)
    whole = [path for _, path in plans if path not in unrecorded]
    if world.first and whole:
        _show(whole)
    if unrecorded:
        ends = (f"{path}: recording ended at step {step}, though training went on" for path, step in unrecorded.items())
        raise GradlensError(
            f"{'; '.join(ends)}; what was recorded before is kept",
            tip="--resume goes on from there, and records what is missing",
        )
    if failed:
        raise GradlensError(
            f"{', '.join(map(str, failed))}: stopped by a loss that was not finite; what was recorded is kept",
            tip="a lower --lr, or --on-nonfinite continue",
        )


def _show(paths: list[Path]) -> None:
    """Show what came out."""
    from gradlens.storage import read_run
    from gradlens.terminal.console import results, talk
    from gradlens.terminal.summary import print_summary

    if len(paths) == 1:
        print_summary(results(), read_run(paths[0]))
    else:
        from gradlens.terminal.listing import print_listing, run_rows

        print_listing(results(), paths[0].parent, run_rows(paths))
    talk().print(f"next: gradlens heatmap {' '.join(map(str, paths[:3]))}", markup=False)
