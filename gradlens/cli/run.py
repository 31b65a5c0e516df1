"""``gradlens run``: train a model and record its gradients."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import click

from gradlens.cli.early_checks import check_data, check_model
from gradlens.cli.experiment import Carrying, find_experiment, run_experiment
from gradlens.cli.options import GivenPath
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
from gradlens.specs import ENGINES, parse_every, parse_names, parse_seeds

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])
CHECKPOINT = ".ckpt"
"""The ending of the checkpoint beside a run file, as ``gradlens.train.checkpoint`` writes it."""


def _setting(flag: str, text: str, **kind: Any) -> Callable[[AnyCommand], AnyCommand]:
    """Return the option of a setting, whose help shows what each recipe sets, as in ``[quick: 8, report: 30]``."""
    name = flag.removeprefix("--").replace("-", "_")
    values = {recipe: getattr(settings, name) for recipe, settings in RECIPES.items()}
    said = {one: ",".join(value) or "none" if isinstance(value, tuple) else f"{value}" for one, value in values.items()}
    same = len(set(said.values())) == 1
    each = f"default: {said['quick']}" if same else ", ".join(f"{one}: {value}" for one, value in said.items())
    return click.option(flag, help=f"{text} [{each}]", **kind)


@click.command()
@click.argument("model")
@click.option(
    "--data",
    metavar="SPEC",
    help="Training data: patterns (default), folder:PATH, csv:FILE, cifar10, cifar100, fashionmnist, svhn, food101, "
    "flowers102.",
)
@click.option(
    "--recipe",
    type=click.Choice(list(RECIPES)),
    help="Settings to begin with: quick (default), or report, those of the original study. Options override them; "
    "what each recipe sets is shown in brackets.",
)
@_setting("--epochs", "Passes over the training images.", type=int)
@_setting("--batch-size", "Images per optimizer step.", type=int)
@_setting("--image-size", "Height and width of the images in pixels.", type=int)
@_setting("--lr", "Learning rate at the start.", type=float)
@_setting("--optimizer", "Optimizer; sgd has momentum 0.9.", type=click.Choice(OPTIMIZERS))
@_setting("--weight-decay", "L2 for adam and sgd, decoupled for adamw.", type=float)
@_setting("--label-smoothing", "Share of the target spread over all classes.", type=float)
@_setting("--schedule", "Learning rate over epochs: constant, cosine, or step:SIZE,GAMMA.", metavar="SCHEDULE")
@_setting("--patience", "Stop after this many epochs without a lower validation loss; 0 means never.", type=int)
@_setting("--augment", f"Augmentations: some of {','.join(AUGMENTATIONS)}; or none.", metavar="LIST")
@_setting("--val-fraction", "Share of the images used for validation, if the data has no validation set.", type=float)
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    help="How to split off the validation images: group (default) keeps copies of an image on one side; random "
    "does not.",
)
@click.option(
    "--init",
    type=click.Choice(INITS),
    help="Initialisation of plain and residual models: he (default); default, which is PyTorch's own; "
    "delta-orthogonal (Xiao et al. 2018); or looks-linear (Balduzzi et al. 2017).",
)
@click.option(
    "--shortcut",
    type=click.Choice(SHORTCUTS),
    help="Shortcut of residual models: A (zero-padded, default) or B (projection).",
)
@click.option(
    "--freeze",
    type=float,
    metavar="SHARE",
    help="Share of the layers, from the input, that are not trained (default 0).",
)
@click.option(
    "--rescale-to",
    metavar="NAME",
    help="Scale each layer's gradient before each step to its size, relative to the last layer's, in the run "
    "NAME-sSEED.h5, seen from the run's folder. For sgd: adam divides the size out again.",
)
@click.option("--skip-broken", is_flag=True, default=None, help="Skip images that are missing or broken.")
@click.option(
    "--allow-outside", is_flag=True, default=None, help="Train with images of a table that lie outside of its folder."
)
@click.option("--seed", type=int, help="Seed of weights, split, order of images and augmentation (default 0).")
@click.option("--seeds", metavar="LIST", help="Train a run for each seed, one after another: 0,1,2 or 0-4.")
@click.option(
    "--every", metavar="N", help="Record every Nth step (default 1); auto: as often as possible within 1 % overhead."
)
@click.option(
    "--metrics",
    metavar="LIST",
    help=f"Additional metrics to record: {', '.join(METRICS_ON_REQUEST)}, or all; -NAME leaves one out.",
)
@click.option("--norms", is_flag=True, default=None, help="Record norm layers, too.")
@click.option("--device", help="Device to train on: auto (default), cpu, cuda, ...")
@click.option("--amp", is_flag=True, default=None, help="Use bfloat16 autocast in the forward pass.")
@click.option(
    "--workers", type=int, help="Processes that prepare batches; 0 (default) means the training process itself."
)
@click.option(
    "--on-nonfinite",
    type=click.Choice(ON_NONFINITE),
    help="Stop or continue the training when the loss is NaN or infinite (default stop).",
)
@click.option(
    "--on-record-error",
    type=click.Choice(ON_RECORD_ERROR),
    help="Stop the training when the run file or checkpoint cannot be written (default), or continue without it.",
)
@click.option(
    "--out",
    type=GivenPath(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder for the run files.",
)
@click.option(
    "--publish",
    type=GivenPath(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Send whole copies of the run file there while it is written, such as to a shared file system.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="For an experiment: runs at the same time (default: the number of cores).",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="For an experiment: where its runs are carried out: local (default), on this machine; slurm; or ray.",
)
@click.option("--cancel", is_flag=True, help="For an experiment: end its runs in Slurm's queue; each closes its file.")
@click.option("--live", is_flag=True, help="Show the run in full screen, as gradlens watch does; q returns to lines.")
@click.option("--resume", is_flag=True, help="Continue a stopped run after its last finished epoch.")
@click.option("--overwrite", is_flag=True, help="Replace existing runs.")
def run(
    model: str,
    recipe: str | None,
    seed: int | None,
    seeds: str | None,
    augment: str | None,
    metrics: str | None,
    every: str | None,
    out: Path,
    publish: Path | None,
    jobs: int | None,
    engine: str | None,
    cancel: bool,
    live: bool,
    resume: bool,
    overwrite: bool,
    **options: Any,
) -> None:
    """Train MODEL and record its gradients into OUT/MODEL-sSEED.h5; or train an experiment.

    \b
    MODEL is one of
      plain18, plain34, resnet18, resnet34      with the ImageNet stem
      plain20 ... plain110, resnet20 ...        of the CIFAR family
      torchvision:NAME                          a model of torchvision
      path.py:FACTORY, module:FACTORY           a function that returns a model
      an experiment, or a file FILE.toml        see below

    Plain and residual models have variants: -nobn has no batch norm, -sigmoid has sigmoid activations. In residual
    models the shortcut may pass on only the forward value (-valueonly) or only the gradient (-gradonly);
    or the branch has a trained factor that begins at 0 (-skipinit) or at 1 / sqrt(blocks) (-branchscale). Endings
    are combined in the order resnet34-gradonly-nobn-sigmoid.

    An experiment is a .toml file with a list of runs. It is given as a file, as a name for NAME.toml in the current
    folder, or as the name of an experiment of the original study: cause, collapse, controls, depth, full,
    interventions, norm, report, rescaled, sgd. A name that is also that of a model means the model. Runs are written to
    OUT/NAME/GROUP/MODEL-sSEED.h5. Complete runs are kept, unfinished runs are continued. Options override the settings
    of the file.

    With torchrun (torchrun --nproc-per-node 2 -m gradlens run MODEL) the processes share each batch.
    """  # noqa: D301
    if seed is not None and seeds is not None:
        raise ConfigError("--seed and --seeds are both given: choose one of them")
    if resume and overwrite:
        raise ConfigError("--resume continues a run, --overwrite replaces it: choose one of them")
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
            raise ConfigError(
                "--live shows one training, and an experiment has many: gradlens watch RUN shows one of them"
            )
        given |= {} if recipe is None else {"recipe": recipe}
        how = Carrying(engine, jobs, cancel=cancel, overwrite=overwrite, publish=publish)
        run_experiment(experiment, given, seeds=chosen, out=out, how=how)
        return
    for option, value in (("--jobs", jobs), ("--engine", engine), ("--cancel", cancel or None)):
        if value is not None:
            tip = "--seeds trains one run after another" if option == "--jobs" else None
            raise ConfigError(f"{option} is for experiments (gradlens run report)", tip=tip)
    plans = [_plan(model, recipe, number, given, out, resume) for number in chosen or (0,)]
    if not resume and not overwrite:
        _refuse_existing(plans)
    _train_all(plans, overwrite=overwrite, resume=resume, live=live, publish=publish)


def _plan(
    model: str, recipe: str | None, seed: int, given: dict[str, Any], out: Path, resume: bool
) -> tuple[RunConfig, Path]:
    config = make_config(model, recipe or "quick", seed=seed, **given)
    check_model(config.model)
    check_data(config.data)
    path = out / f"{config.run_name}.h5"
    if resume and path.exists():
        config = _resumed(path, recipe, given)
    elif resume:
        _say(f"{path} is not there, so --resume begins a new run")
    if config.lr == 0:
        _say("the learning rate is 0, so no weight will change")
    return config, path


def _say(text: str) -> None:
    """Print a line on stderr; in a torchrun, only the first process prints it."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(text, err=True)


def _resumed(path: Path, recipe: str | None, given: dict[str, Any]) -> RunConfig:
    """Return the settings that the run was started with, changed by the options given now."""
    from dataclasses import replace

    from gradlens.storage import read_run

    stored = read_run(path).config
    if "recipe" not in stored:
        raise ConfigError(f"{path} was not made by gradlens run, and cannot be resumed", tip=_elsewhere([path]))
    started = RunConfig.from_dict(stored)
    if recipe is not None and recipe != started.recipe:
        raise ConfigError(f"{path} was started with recipe {started.recipe}, not {recipe}", tip="omit --recipe")
    return replace(started, **given)


def _refuse_existing(plans: list[tuple[RunConfig, Path]]) -> None:
    from gradlens.errors import RunExistsError

    there = [(config, path) for config, path in plans if path.exists()]
    if not there:
        return
    ways = [_elsewhere([path for _, path in plans])]
    if not any(_is_being_written(path) for _, path in there):
        ways.append("--overwrite replaces it")
        if all(_can_be_resumed(config, path) for config, path in there):
            ways.insert(0, "--resume continues it")
    names = ", ".join(str(path) for _, path in there)
    raise RunExistsError(f"{names} already exists; nothing was overwritten", tip="; ".join(ways))


def _elsewhere(paths: list[Path]) -> str:
    """Return the option for a folder below the chosen one that has none of these files."""
    out = paths[0].parent
    folders = (out / f"again{'' if number == 1 else f'-{number}'}" for number in count(1))
    folder = next(folder for folder in folders if not any((folder / path.name).exists() for path in paths))
    return f"--out {shlex.quote(folder.as_posix())} writes to another folder"


def _is_being_written(path: Path) -> bool:
    from gradlens.storage.lock import check_unlocked

    try:
        check_unlocked(path)
    except GradlensError:
        return True
    return False


def _can_be_resumed(config: RunConfig, path: Path) -> bool:
    """Return whether --resume would go on with a run: it is not complete, and has these settings and a checkpoint."""
    from gradlens.storage import read_run

    try:
        run = read_run(path)
        same = "recipe" in run.config and not config.differences(RunConfig.from_dict(run.config))
    except (GradlensError, TypeError, ValueError, AttributeError):
        return False
    begun = len(run.epochs.get("epoch", ())) > 0
    return same and run.status != "complete" and (not begun or path.with_suffix(CHECKPOINT).exists())


def _train_all(
    plans: list[tuple[RunConfig, Path]], *, overwrite: bool, resume: bool, live: bool, publish: Path | None
) -> None:
    from gradlens.events import Ended, Event, ignore
    from gradlens.terminal.console import messages
    from gradlens.terminal.live.training import LiveTraining
    from gradlens.terminal.progress import TrainingView
    from gradlens.terminal.spinner import working

    with working("loading PyTorch", at_once=True):
        from gradlens.train import joined, train_run

    failed: list[Path] = []
    unrecorded: dict[Path, int] = {}

    shown = LiveTraining if live else TrainingView
    with joined(plans[0][0].device) as world, shown(messages()) if world.first else nullcontext(ignore) as view:
        for config, path in plans:

            def listen(event: Event, path: Path = path) -> None:
                view(event)
                if isinstance(event, Ended) and event.recorded_until is not None:
                    unrecorded[path] = event.recorded_until

            ended = train_run(config, path, overwrite=overwrite, resume=resume, listener=listen, publish=publish)
            if ended == "failed":
                failed.append(path)
    recorded = [path for _, path in plans if path not in unrecorded]
    if world.first and recorded:
        _show(recorded)
    if unrecorded:
        ends = (
            f"{path}: recording ended at step {step}, but the training continued" for path, step in unrecorded.items()
        )
        raise GradlensError(
            f"{'; '.join(ends)}; what was recorded before is kept",
            tip="--resume continues from there and records what is missing",
        )
    if failed:
        raise GradlensError(
            f"{', '.join(map(str, failed))}: stopped because the loss was not finite; what was recorded is kept",
            tip="try a lower --lr, or --on-nonfinite continue",
        )


def _show(paths: list[Path]) -> None:
    """Print a summary of the run, or a list of the runs, and the next command."""
    from gradlens.storage import read_run
    from gradlens.terminal.console import messages, results
    from gradlens.terminal.summary import print_summary

    if len(paths) == 1:
        print_summary(results(), read_run(paths[0]))
    else:
        from gradlens.terminal.listing import print_listing, run_rows

        print_listing(results(), paths[0].parent, run_rows(paths))
    messages().print(f"next: gradlens heatmap {' '.join(map(str, paths[:3]))}", markup=False)
