"""Begin a recording: ``gradlens.record``."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from gradlens.errors import ConfigError, GradlensWarning, RunExistsError, RunFileError
from gradlens.format import plural
from gradlens.metrics import choose_metrics
from gradlens.recorder import unclosed_recorders
from gradlens.recorder.layers import LayerChoice, choose_layers
from gradlens.recorder.measurers.gradient_through_time import default_metrics
from gradlens.recorder.ranks.distributed import bare_rank, find_on_first_rank, find_ranks, warn_of_rank
from gradlens.recorder.recorder import DISABLED, OnError, Recorder
from gradlens.recorder.resuming import find_continuation, tip_of_existing
from gradlens.recorder.schedule import Every
from gradlens.recorder.unwrapping import Optimizers
from gradlens.sinks import NullSink, Sink
from gradlens.storage import BackgroundSink, FileSink, Publisher, finish_abandoned

OPEN_TIP = (
    "recorder.close() ends the one that writes it; overwrite=True closes that and replaces the file, resume=True "
    "closes that and appends; or choose another name"
)


def record(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    optimizer: Optimizers = None,
    metrics: str | Iterable[str] = (),
    every: Every | Mapping[str, Every] = 1,
    layers: LayerChoice = None,
    scaler: torch.amp.GradScaler | None = None,
    info: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    first_step: int | None = None,
    on_error: OnError = "warn",
    publish: str | os.PathLike[str] | None = None,
) -> Recorder:
    """Record a model's gradients into a file while it trains.

    Use it as a context manager around the training loop, or call ``start()`` and ``close()``. The hooks only read, and
    are removed on exit, also after an exception. A row holds the gradients that the optimizer got: after accumulation,
    reduction between ranks, unscaling and clipping. Activation gradients of several backward passes within one step are
    combined as those of one larger batch (root of the sum of squares); those of ``torch.autograd.grad``, which reach no
    parameter, are not counted.

    Args:
        model: Any module; in-place activations and ``x += shortcut`` are fine. Under ``torch.compile``, make the
            recorder before the first compiled call; with ``fullgraph=True`` gradients of outputs are missing. With
            DistributedDataParallel (without ``join()``), ``fully_shard`` or tensor parallelism, every rank makes a
            recorder and, if it gave no optimizer, calls ``recorder.step()``; rank 0 writes the file, and only its
            ``log()`` and ``log_epoch()`` count.
        path: The run file; it appears with the first row. A relative path counts from the working directory at the time
            of this call, even if that changes later.
        optimizer: A row is closed at each of its steps. With several optimizers, a row is closed when each of them has
            stepped, or when one is about to step a second time. From then on they step in turn: a step after a
            backward pass of its own is a row of its own. Without an optimizer, call ``recorder.step()``.
            An optimizer in a wrapper of Accelerate, Lightning Fabric, DeepSpeed or Opacus may be passed as it is: the
            recorder follows the optimizer inside. So may an object that is no optimizer of torch but has a ``step`` and
            holds parameters or optimizers; several may be given as a list or a mapping.
        metrics: Names from ``gradlens.metrics.METRICS`` that are added to the default ones; "all" adds all, "-NAME"
            leaves one out. A string may list several, separated by commas.
        every: The interval in steps; or a callable ``step -> bool`` that is true for the steps to record (see
            ``gradlens.log_spaced``); or "auto": as often as possible within 1 % overhead. A mapping of metric to any of
            these gives single metrics an interval of their own: that of the gradient norms (1 if left out) is that of
            the rows, and another metric is measured in the first row at or after each multiple of its interval.
        layers: Which modules to record. None takes modules that own a weight and are not norm layers; a regular
            expression is searched in their names; a callable gets (name, module), for example
            ``gradlens.with_norms`` or ``gradlens.all_leaves``.
        scaler: The GradScaler in use. Gradients are unscaled. A step that it skips counts as a step and has a row, if
            it was to be recorded: with the scalar ``skipped`` = 1 and the metric ``nonfinite_count``. If it is left
            out, the scaler that a wrapper of the optimizer carries is used.
        info: What to store with the run: "model" (name), "seed", "config" (a mapping), and anything else.
        overwrite: Replace an existing file.
        resume: Append to the run if the file exists, also after its writer was killed; otherwise begin a new one. Steps
            are counted on from the last row.
        first_step: Index of the next optimizer step, where training goes on from a checkpoint: rows of an existing run
            from there on are recorded again.
        on_error: What an error in recording does after training has begun: "warn" ends the recording with one warning,
            and training goes on; "raise" raises the error; a function is called with the error, and may raise.
        publish: A folder, such as one on a shared file system, to which a whole copy of the run file is sent every few
            seconds, after every epoch and at the end, for readers on other machines. If that fails, one warning says
            so, and recording goes on.

    Returns:
        The recorder. With the environment variable GRADLENS_DISABLED=1 it does nothing.

    Raises:
        RunExistsError: The file exists, and neither ``overwrite`` nor ``resume`` is True.
        RunFileError: The run cannot be resumed, because it has other layers or cannot be read.
        RecorderError: The model has no layer to record.
        ConfigError: The model is no torch module, or a metric's name, ``every``, ``first_step`` or ``on_error`` is not
            allowed.

    Example::

        with gradlens.record(model, "run.h5", optimizer=optimizer) as recorder:
            for x, y in loader:
                loss = criterion(model(x), y)
                optimizer.zero_grad(); loss.backward(); optimizer.step()
                recorder.log(loss=loss)
    """
    if os.environ.get(DISABLED, "0") not in ("", "0"):
        return Recorder.disabled()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if resume and overwrite:
        raise ConfigError("resume=True appends to a run, overwrite=True replaces it: choose one of them")
    if first_step is not None and first_step < 0:
        raise ConfigError(f"first_step must be a whole number from 0, got {first_step!r}")
    names = choose_metrics(metrics, default_metrics(model))
    ranks = find_ranks(model, warn=False)
    found = None
    if overwrite or resume:
        _take_over(path, "this one replaces the file" if overwrite else "this one goes on from its last row")
    if resume:
        modules = choose_layers(model, layers)
        found = find_on_first_rank(ranks, lambda: find_continuation(path, modules, first_step))
    sink: Sink = NullSink()
    try:
        if ranks is None or ranks.rank == 0:
            resume_at = (found.rows, found.epochs) if found else None
            publisher = None if publish is None else Publisher(publish, onto=resume)
            sink = BackgroundSink(FileSink(path, overwrite=overwrite, resume_at=resume_at, publisher=publisher))
    except RunFileError as error:
        rank = "" if ranks is not None else bare_rank(path)
        if not rank:
            explained = _explain(error, path, model, layers)
            if explained is not error:
                raise explained from None
            raise
        warn_of_rank(error, rank)
    recorder = Recorder(
        model,
        sink,
        optimizer=optimizer,
        metrics=names,
        every=every,
        layers=layers,
        scaler=scaler,
        info=found.info(info) if found else info,
        on_error=on_error,
        first_step=found.step if found else first_step or 0,
        first_epoch=found.epochs if found else 0,
        first_row=found.rows if found else 0,
    )
    for text in found.notes if found else ():
        recorder.note(text)
    recorder.on_never_started = weakref.finalize(recorder, _warn_never_started, type(model).__name__)
    return recorder


def _explain(error: RunFileError, path: str | os.PathLike[str], model: nn.Module, layers: LayerChoice) -> RunFileError:
    """Return an error with the tip that fits what has the file."""
    if isinstance(error, RunExistsError):
        return RunExistsError(error.message, tip=tip_of_existing(path, model, layers, error.tip))
    return RunFileError(error.message, tip=OPEN_TIP) if unclosed_recorders.find_open(path) is not None else error


def _take_over(path: str | os.PathLike[str], then: str) -> None:
    """Close an earlier recorder of this process and thread that still writes the file, as a notebook's cell left it."""
    finish_abandoned()
    earlier = unclosed_recorders.find_replaceable(path)
    if isinstance(earlier, Recorder):
        rows = earlier.counts[0]
        earlier.close("interrupted", reason=f"ended by a new recorder of the same file: {then}")
        text = (
            f"{os.fspath(path)} was still being written by an earlier recorder ({plural(rows, 'row')}): it was closed"
        )
        warnings.warn(f"gradlens: {text}, and {then}", GradlensWarning, stacklevel=3)


def _warn_never_started(model: str) -> None:
    """Warn of a recorder that is collected, or there at the program's end, and was never started."""
    warnings.warn(
        f"gradlens: a recorder of {model} was made and never started, so nothing was recorded; write "
        "`with gradlens.record(...) as recorder:` around the training, or call recorder.start()",
        GradlensWarning,
        stacklevel=2,
    )
