"""Train and record one run, from its configuration to its closed file."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, StepLR

from gradlens.config import RunConfig
from gradlens.data import Share, Splits, load_data, make_batches
from gradlens.errors import ConfigError, GradlensError, ModelError
from gradlens.events import Ended, Listener, Note, Started, ignore
from gradlens.metrics import METRICS_OF_PATHS, choose_metrics
from gradlens.models import Init, build_model
from gradlens.models.blocks import Block
from gradlens.models.early_layers import freeze
from gradlens.models.gradient_sizes import follow_sizes
from gradlens.recorder import Recorder, with_norms
from gradlens.recorder.layers import LayerChoice, is_norm
from gradlens.recorder.measurers.gradient_through_time import default_metrics
from gradlens.recorder.measurers.residual_paths import find_blocks
from gradlens.run import Status
from gradlens.specs import parse_data, parse_model, parse_schedule
from gradlens.storage import read_run
from gradlens.train.checkpoint import checkpoint_path, restore
from gradlens.train.distributed import World, has_batch_norm, joined
from gradlens.train.loop import StoppedError, Trainer, find_logits
from gradlens.train.resume import Start, check_starts, find_start
from gradlens.train.rng_state import seed_generators
from gradlens.train.saving import CheckpointWriter


def train_run(
    config: RunConfig,
    path: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    listener: Listener = ignore,
    publish: Path | None = None,
) -> Status:
    """Train one model with one seed and record it, together with other processes if torchrun started them.

    Args:
        config: What to train and how.
        path: The run file.
        overwrite: Replace an existing run.
        resume: Continue a run after its last finished epoch.
        listener: Is called with the events of the training, on the first process only.
        publish: A folder to which whole copies of the run file are sent while it is written.

    Returns:
        "complete"; or "failed" after a loss that was not finite, or if recording ended while training continued.

    Raises:
        GradlensError: The model, the data, the file or the options cannot be used.
        KeyboardInterrupt: The user stopped the run; its file is closed as "interrupted" and can be resumed.
    """
    with joined(config.device) as world:
        listener = listener if world.first else ignore
        world.gather(None)  # wait until rank 0 has closed the file of the previous run
        start = world.together(lambda: find_start(config, path, overwrite, resume, listener, world, publish))
        if start.complete:
            return "complete"
        check_starts(path, start, world)
        trainer, recorder, checkpoints = _prepare(config, path, start, listener, world)
        return _run(trainer, recorder, checkpoints, path, start.time)


def _prepare(
    config: RunConfig, path: Path, start: Start, listener: Listener, world: World
) -> tuple[Trainer, Recorder, CheckpointWriter]:
    """Build everything that a training needs."""
    there = path.absolute()  # before the user's own code runs, which may change the working directory
    device = world.together(lambda: choose_device(world.device_name(config.device)))
    data = _load(config, listener, world)
    seed_generators(config.seed)
    trainer = world.together(lambda: _make_trainer(config, data, device, listener, world))
    net = trainer.model
    world.together(lambda: check_model(net, config, data, device))
    world.together(lambda: _rescale(trainer, there, int(start.state["steps"]) if start.state else 0))
    if world.first and not start.keep_checkpoint:
        checkpoint_path(there).unlink(missing_ok=True)  # it belongs to a run that is replaced
    trainer.model = world.wrap(net, config)
    counts = start.counts or (0, 0)
    checkpoints = CheckpointWriter(trainer, there, counts[1])
    recorder = checkpoints.recorder = Recorder(
        trainer.model,
        start.sink,
        optimizer=trainer.optimizer,
        metrics=metrics_of(config, net),
        every=config.every,
        layers=choose_recorded(config),
        info={
            "model": config.model,
            "seed": config.seed,
            "config": {**config.to_dict(), **_bounded(config), "data_facts": data.facts, **world.describe(net)},
        },
        on_error=checkpoints.handle,
        first_step=int(start.state["steps"]) if start.state else 0,
        first_epoch=counts[1],
        first_row=counts[0],
    )
    for text in start.resumes:
        recorder.note(text)
    world.seed(config.seed)
    if start.state:
        trainer.progress = restore(start.state, net, trainer.optimizer, trainer.scheduler, world.rank)
        recorder.load_state_dict(start.state.get("recorder", {}))
    trainer.before_record, trainer.after_epoch = checkpoints.before_record, checkpoints.after_epoch
    listener(_started(trainer, data, path))
    if world.shared:
        listener(Note(_say_processes(net, world)))
    return trainer, recorder, checkpoints


def _rescale(trainer: Trainer, path: Path, first_step: int) -> None:
    """Scale the gradients as the settings ask; before there is a recorder, so that it sees what the optimizer gets."""
    config = trainer.config
    if config.rescale_to:
        place = os.path.normpath(path.parent / f"{config.rescale_to}-s{config.seed}.h5")  # ".." of no folder as yet
        run = read_run(Path(place))
        if run.status != "complete":
            raise ConfigError(f"{run.path} is not complete: rescale_to needs all of its steps")
        follow_sizes(trainer.model, trainer.optimizer, run, first_step)


def choose_recorded(config: RunConfig) -> LayerChoice:
    """Return which layers to record: the usual ones, norm layers on request, and no block for its branch's factor."""
    if not config.norms and parse_model(config.model).branch == "whole":
        return None

    def choose(name: str, module: nn.Module) -> bool:
        return with_norms(name, module) and not isinstance(module, Block) and (config.norms or not is_norm(module))

    return choose


def metrics_of(config: RunConfig, model: nn.Module) -> tuple[str, ...]:
    """Return the metrics to record: the defaults, those of residual blocks if there are any, and the chosen ones."""
    of_paths = METRICS_OF_PATHS if find_blocks(model) else ()
    return choose_metrics(config.metrics, (*default_metrics(model), *of_paths))


def _bounded(config: RunConfig) -> dict[str, str]:
    """Record for the diagnosis that sigmoids directly follow the layers, if they do."""
    spec = parse_model(config.model)
    return {"activation": "sigmoid"} if spec.activation == "sigmoid" and not spec.norm else {}


def _load(config: RunConfig, listener: Listener, world: World) -> Splits:
    if parse_data(config.data).kind == "torchvision":  # may be downloaded
        return world.in_turn(lambda: load_data(config, listener))
    return world.together(lambda: load_data(config, listener))


def _say_processes(net: nn.Module, world: World) -> str:
    text = f"{world.size} processes share each batch"
    return f"{text}; batch norm normalises the part of each by itself" if has_batch_norm(net) else text


def _run(trainer: Trainer, recorder: Recorder, checkpoints: CheckpointWriter, path: Path, started: float) -> Status:
    """Train under the recorder and report the end."""

    def ended(status: Status, reason: str = "") -> Status:
        seconds, at = time.perf_counter() - started, checkpoints.ended_at
        if at is not None:
            reason = "; ".join(filter(None, (f"recording ended at step {at}", reason)))
        trainer.listener(Ended(status, str(path), trainer.progress.epoch, seconds, reason, at))
        return status

    try:
        with _deferred_interrupt(alone=not trainer.world.shared) as interrupted, recorder:
            trainer.interrupted = interrupted
            reason = trainer.train(recorder)
    except StoppedError as stopped:
        return ended("failed", str(stopped))
    except KeyboardInterrupt:
        ended("interrupted")
        raise
    if checkpoints.ended_at is not None:  # the checkpoint remains, so that the run can be resumed
        return ended("failed", reason or "training continued to its end")
    if trainer.world.first:
        checkpoint_path(checkpoints.path).unlink(missing_ok=True)
    return ended("complete", reason)


def _make_trainer(config: RunConfig, data: Splits, device: torch.device, listener: Listener, world: World) -> Trainer:
    model = build_model(
        config.model,
        num_classes=len(data.classes),
        seed=config.seed,
        init=cast(Init, config.init),
        shortcut="A" if config.shortcut == "A" else "B",
    ).to(device)
    if not any(True for _ in model.parameters()):
        raise ModelError(f"{config.model} has no parameters: there is nothing to train")
    freeze(model, config.freeze)
    optimizer = make_optimizer(config, model)
    train_batches, val_batches = make_batches(
        data.train,
        data.val,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=config.augment,
        side=config.image_size,
        workers=config.workers,
        share=Share(world.rank, world.size) if world.shared else None,
    )
    return Trainer(
        config=config,
        model=model,
        optimizer=optimizer,
        scheduler=make_scheduler(config, optimizer),
        train_batches=train_batches,
        val_batches=val_batches,
        device=device,
        listener=listener,
        before_record=lambda: None,
        after_epoch=lambda values: None,
        interrupted=lambda: False,
        world=world,
    )


@torch.no_grad()
def check_model(model: nn.Module, config: RunConfig, data: Splits, device: torch.device) -> None:
    """Run a model on two images in evaluation mode, to find a mismatch before anything is written.

    Args:
        model: The model, on its device.
        config: Names the model and the image size in the error.
        data: The images and classes.
        device: The model's device.

    Raises:
        GradlensError: The model cannot take the images, or its output does not fit the classes.
        ModelError: The model cannot take the images, or does not return one score per class.
    """
    images = data.train.images[[0, 1]].float().div(255).to(device)
    training = model.training
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            logits = find_logits(model.eval()(images))
    except GradlensError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        shape = f"{config.image_size} x {config.image_size} pixels"
        raise ModelError(
            f"{config.model} cannot take images of {shape}: {reason}", tip="another --image-size"
        ) from error
    finally:
        model.train(training)
    if logits.shape[1] != len(data.classes):
        raise ModelError(
            f"{config.model} gives {logits.shape[1]} scores for {len(data.classes)} classes",
            tip="a factory with a parameter num_classes gets the number",
        )


def _started(trainer: Trainer, data: Splits, path: Path) -> Started:
    return Started(
        config=trainer.config,
        path=str(path),
        device=str(trainer.device),
        train_images=len(data.train),
        val_images=len(data.val),
        classes=data.classes,
        steps_per_epoch=len(trainer.train_batches),
        first_epoch=trainer.progress.epoch + 1,
    )


def choose_device(name: str) -> torch.device:
    """Return the device with this name.

    Args:
        name: A name of torch; "auto" chooses a GPU if there is one.

    Raises:
        ConfigError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used: {reason}", tip="--device cpu works everywhere") from None
    return device


def make_optimizer(config: RunConfig, model: nn.Module) -> Optimizer:
    """Return the optimizer over all parameters of a model."""
    if config.optimizer == "sgd":
        return SGD(model.parameters(), config.lr, momentum=0.9, weight_decay=config.weight_decay)
    kind = Adam if config.optimizer == "adam" else AdamW
    return kind(model.parameters(), config.lr, weight_decay=config.weight_decay)


def make_scheduler(config: RunConfig, optimizer: Optimizer) -> LRScheduler:
    """Return the learning-rate schedule, to be stepped once per epoch."""
    schedule = parse_schedule(config.schedule)
    if schedule.kind == "step":
        return StepLR(optimizer, schedule.step_size, schedule.gamma)
    if schedule.kind == "cosine":
        return CosineAnnealingLR(optimizer, config.epochs)
    return LambdaLR(optimizer, _unchanged)


def _unchanged(epoch: int) -> float:
    return 1.0


@contextlib.contextmanager
def _deferred_interrupt(*, alone: bool) -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C take effect between two steps, so that no step is half recorded; a second one takes effect at once.

    Args:
        alone: No other process trains along. Then SIGTERM, which kill, containers and Slurm send, has the same effect;
            torchrun sends it to processes whose fellow has died, and those end at once.

    Yields:
        A function that returns whether the training is to stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False
    usual = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
    if alone and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        usual[signal.SIGTERM] = signal.SIG_DFL

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            set_back()
            raise KeyboardInterrupt
        asked = True

    def set_back() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    for number in usual:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        set_back()
