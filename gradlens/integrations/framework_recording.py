"""The recorder inside a framework: an error ends the recording with one warning, and never the training.

=======================  ============================================================================================
Event                    What happens
=======================  ============================================================================================
``begin``                A recording that is still open was broken off: close it as failed. Then start a recorder; one
                         of the same model, or of a training that goes on from a checkpoint, appends to its run.
``log``, ``log_epoch``   Passed on to the recorder; values that are no numbers are left out.
``end``                  Close the file with the status that the framework reports.
Error in a callback      Warn once, close the file as failed; later calls of the callback do nothing (``guarded``).
Object is collected, or  Close the file: as interrupted if Ctrl-C ended the program, else as failed. Frameworks do not
the program ends         call their callbacks after an exception, so an open file means that training was broken off.
=======================  ============================================================================================
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradlens.errors import GradlensWarning
from gradlens.integrations.run_paths import choose_path
from gradlens.recorder import Recorder, record, unclosed_recorders
from gradlens.recorder.notes import line
from gradlens.recorder.ranks.distributed import is_engine
from gradlens.recorder.scalars import is_name
from gradlens.run import Status

OWN_PART = (
    "activation gradients are those of rank 0's part of the batch: the framework gives the model without its wrapper"
)


def guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """Decorate a callback's method: an error in it ends the recording with one warning, and not the training.

    Args:
        hook: A method of an object with the attribute ``recording``.

    Returns:
        The method, which raises nothing.
    """

    @functools.wraps(hook)
    def quiet(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.recording.has_failed:
            return
        try:
            hook(self, *args, **kwargs)
        except Exception as error:
            self.recording.fail(error)

    return quiet


class FrameworkRecording:
    """Records the training of a framework.

    Args:
        path: The run file; None is ``runs/MODEL-sSEED.h5``, with a number if that exists.
        options: Arguments of ``gradlens.record``.
        tracker: Its ``log(run_file)`` is called after each epoch and at the end (``gradlens.integrations.trackers``).
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, options: Mapping[str, Any] | None = None, tracker: Any = None
    ) -> None:
        self.path = None if path is None else Path(path)
        """The run file; known from the first ``begin`` on."""
        self.has_failed = False
        """Whether an error has ended the recording."""
        self._options, self._tracker = dict(options or {}), tracker
        self._given = path is not None
        self._recorder: Recorder | None = None
        self._model: weakref.ref[nn.Module] | None = None
        self._losses: list[float | Tensor] = []

    @property
    def recorder(self) -> Recorder | None:
        """The recorder; None before ``begin`` and on ranks that do not record."""
        return self._recorder

    def close_with(self, owner: object) -> None:
        """Close the file when an object is collected or the program ends, if training was broken off before."""
        weakref.finalize(owner, self.break_off)

    def begin(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        seed: int | None = None,
        config: Mapping[str, Any] | None = None,
        step: int | None = None,
        resumed: bool = False,
        name: str | None = None,
        **options: Any,
    ) -> None:
        """Start to record.

        Args:
            model: The model, in its wrapper for several ranks if the framework gives it.
            optimizer: See ``gradlens.record``.
            seed: Stored with the run.
            config: Stored with the run; what JSON does not know is stored as text.
            step: Optimizer steps done before, if the framework counts them.
            resumed: Whether training goes on from a checkpoint.
            name: Name of the run; None takes the model's class.
            options: Arguments of ``gradlens.record``, unless the user gave others.
        """
        self.break_off()
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        wrapped = isinstance(model, nn.parallel.DistributedDataParallel) or is_engine(model)
        shared = wrapped or any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
        if several and not shared and dist.get_rank() > 0:
            return
        inner: Any = model.module if wrapped else model
        bare: nn.Module = inner
        again = self._model is not None and self._model() is bare and self.path is not None and self.path.exists()
        self._model = weakref.ref(bare)
        name = name or type(bare).__name__
        if not self._given and not again:
            self.path = choose_path(name, seed, resumed=resumed)
        assert self.path is not None
        info = {"model": name, "seed": seed, "config": _as_json(config or {})}
        given = {"optimizer": optimizer, "info": info, **options, **self._options}
        if (again or resumed) and "resume" not in given:
            given |= {"resume": True, "first_step": step if resumed else None}
        with warnings.catch_warnings():
            if several:  # it is about models that no rank wraps, and here the framework wraps them
                warnings.filterwarnings("ignore", message="gradlens: this is one of")
            self._recorder = record(model, self.path, **given)
            if several and not shared:
                self._recorder.note(OWN_PART)
            self._recorder.start()
            unclosed_recorders.forget(self._recorder)  # this object closes it at the end
        self._losses = []

    def log(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Add scalars to the step in progress, or to the one just done; see ``Recorder.log``."""
        numbers = _numbers({**(values or {}), **more})
        if self._recorder is not None and numbers:
            self._recorder.log(**numbers)
            if "loss" in numbers:
                self._losses.append(_detached(numbers["loss"]))

    def log_epoch(self, epoch: int, values: Mapping[str, Any]) -> None:
        """Add a row to the table of epochs; ``train_loss`` is the mean of the losses logged, unless it is given.

        Args:
            epoch: Its number, from 1.
            values: What the framework measured, with the names of the file (``val_loss``, ``val_accuracy``, ...).
        """
        if self._recorder is None:
            return
        numbers = {name: float(value) for name, value in _numbers(values).items()}
        if self._losses:
            numbers.setdefault("train_loss", float(np.mean([float(loss) for loss in self._losses])))
        self._losses = []
        self._recorder.log_epoch(**{"epoch": epoch, **numbers})
        self._track()

    def end(self, status: Status = "complete", reason: str = "") -> None:
        """Close the file.

        Args:
            status: How training ended.
            reason: Why, as a note in the file.
        """
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close(status, reason=reason)
            self._track()

    def _track(self) -> None:
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        if self._tracker is not None and rank == 0 and self.path is not None and self.path.exists():
            self._tracker.log(self.path)

    def break_off(self) -> None:
        """Close the file if it is still open, because no callback was called at the end of training."""
        if self._recorder is None:
            return
        with contextlib.suppress(Exception):
            note = unclosed_recorders.describe_exit()[1]
            ended_by = getattr(sys, "last_type", None)
            interrupted = isinstance(ended_by, type) and issubclass(ended_by, KeyboardInterrupt)
            self.end("interrupted" if interrupted else "failed", note)

    def fail(self, error: Exception) -> None:
        """End the recording with one warning; training goes on.

        Args:
            error: What went wrong.
        """
        if self.has_failed:
            return
        self.has_failed = True
        recorder, self._recorder = self._recorder, None
        with contextlib.suppress(Exception):
            if recorder is not None:
                recorder.close("failed")
        warnings.warn(
            f"gradlens: the callback could not record, training goes on without it: {line(error)}",
            GradlensWarning,
            stacklevel=3,
        )


def renamed(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return what a framework measured on the validation set, with the names of the file.

    Args:
        values: Name to value.
        prefix: The framework's prefix, which becomes ``val_``; values without it are left out.
    """
    found = {f"val_{name.removeprefix(prefix)}": value for name, value in values.items() if name.startswith(prefix)}
    return {{"val_acc": "val_accuracy"}.get(name, name): value for name, value in found.items()}


def parameters_of(optimizers: Iterable[Any]) -> set[int]:
    """Return the ids of the parameters that optimizers hold."""
    return {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}


def _numbers(values: Mapping[str, Any]) -> dict[str, float | Tensor]:
    found: dict[str, float | Tensor] = {}
    for name, value in values.items():
        if not is_name(name):
            continue
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
            found[name] = value
        elif isinstance(value, Number) and not isinstance(value, complex):
            found[name] = float(value)  # type: ignore[arg-type]
    return found


def _detached(value: float | Tensor) -> float | Tensor:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps({str(key): value for key, value in config.items()}, default=str)))
