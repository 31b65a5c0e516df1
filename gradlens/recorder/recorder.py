"""The recorder: hooks on, rows closed at the optimizer step, hooks off."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from gradlens.errors import ConfigError, RecorderError
from gradlens.metrics import DEFAULT_METRICS, get_metric
from gradlens.recorder.environment import describe_environment
from gradlens.recorder.layers import (
    LayerChoice,
    choose_layers,
    describe_layers,
    output_tensors,
    own_parameters,
)
from gradlens.recorder.step import OpenStep
from gradlens.run import Header, Layer, Row, Sink, Status
from gradlens.storage import FileSink

Every = int | Callable[[int], bool]
NEEDS_OPTIMIZER = "update_ratio"


def record(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    optimizer: Optimizer | None = None,
    metrics: Iterable[str] = DEFAULT_METRICS,
    every: Every = 1,
    layers: LayerChoice = None,
    scaler: torch.amp.GradScaler | None = None,
    info: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Recorder:
    """Record a model's gradients into a file while it trains.

    Use it as a context manager around the training loop. The hooks only read: they change no gradient, draw no
    random number, and are removed on exit, also after an exception. Activation gradients of several backward passes
    within one step are combined as those of one larger batch (root of the sum of squares).

    Args:
        model: Any module; in-place activations and ``x += shortcut`` are fine.
        path: The run file; it appears with the first row.
        optimizer: A row is closed at each of its steps. Without one, call ``recorder.step()``.
        metrics: Names out of ``gradlens.metrics.METRICS``.
        every: Record every so many steps, or the steps for which the callable ``step -> bool`` is true.
        layers: Which modules; None takes those that own a weight and are no norm, a regular expression is searched
            in their names, a callable gets (name, module).
        scaler: The GradScaler in use; activation gradients are divided by its scale.
        info: What to store with the run: "model" (name), "seed", "config" (a mapping), and anything else.
        overwrite: Replace a file that is there.

    Returns:
        The recorder.

    Raises:
        RunExistsError: The file is there and ``overwrite`` is False.
        RecorderError: The model has no layer to record, or the optimizer cannot be followed (LBFGS).
        ConfigError: A metric's name or ``every`` is not allowed.

    Example::

        with gradlens.record(model, "run.h5", optimizer=optimizer) as recorder:
            for x, y in loader:
                loss = criterion(model(x), y)
                optimizer.zero_grad(); loss.backward(); optimizer.step()
                recorder.log(loss=loss)
    """
    sink = FileSink(path, overwrite=overwrite)
    return Recorder(
        model,
        sink,
        optimizer=optimizer,
        metrics=metrics,
        every=every,
        layers=layers,
        scaler=scaler,
        info=info,
    )


class Recorder:
    """Follows one model through its training; see ``record`` for the arguments.

    Args:
        model: Any module.
        sink: Where rows go.
        optimizer: See ``record``.
        metrics: See ``record``.
        every: See ``record``.
        layers: See ``record``.
        scaler: See ``record``.
        info: See ``record``.
        first_step: Index of the next optimizer step, for a run that goes on.
        first_epoch: Epochs that are in the table already, for a run that goes on.
        first_row: Rows that are in the table already, for a run that goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        sink: Sink,
        *,
        optimizer: Optimizer | None = None,
        metrics: Iterable[str] = DEFAULT_METRICS,
        every: Every = 1,
        layers: LayerChoice = None,
        scaler: torch.amp.GradScaler | None = None,
        info: Mapping[str, Any] | None = None,
        first_step: int = 0,
        first_epoch: int = 0,
        first_row: int = 0,
    ) -> None:
        if isinstance(optimizer, LBFGS):
            raise RecorderError(
                "LBFGS evaluates the gradient several times within one step, so a row has no single gradient",
                tip="leave optimizer= out and call recorder.step() after each backward pass",
            )
        self._model = model
        self._sink = sink
        self._optimizer = optimizer
        names = [metrics] if isinstance(metrics, str) else metrics
        self._rhythm = {name: get_metric(name).every for name in names}
        if optimizer is None:
            self._rhythm.pop(NEEDS_OPTIMIZER, None)
        self._wanted = _make_rule(every)
        self._modules = choose_layers(model, layers)
        self._open_step = OpenStep({name: own_parameters(module) for name, module in self._modules.items()})
        self._scaler = scaler
        self._info = dict(info or {})
        if not isinstance(self._info.get("config", {}), Mapping):
            raise ConfigError(f"info['config'] must be a mapping, got {self._info['config']!r}")
        self._step, self._epoch, self._n_rows = first_step, first_epoch, first_row
        self._order: dict[str, int] = {}
        self._last_row: Row | None = None
        self._layers: tuple[Layer, ...] = ()
        self._handles: list[Any] = []
        self._state = "ready"
        self._armed = False
        self._lr = math.nan
        self._scaler_round: object = None
        self._skipped = 0

    # --- context ------------------------------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        """Place the hooks."""
        if self._state != "ready":
            raise RecorderError(f"this recorder is {self._state}; a recorder serves once", tip="make a new one")
        self._state = "recording"
        self._armed = self._wanted(self._step)
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(functools.partial(self._after_forward, name)))
        if self._optimizer is not None:
            self._handles.append(self._optimizer.register_step_pre_hook(self._before_optimizer_step))
            self._handles.append(self._optimizer.register_step_post_hook(self._after_optimizer_step))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks and close the file: complete, interrupted (Ctrl-C) or failed (any other exception)."""
        if kind is None:
            self.close("complete")
        else:
            self.close("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")

    def close(self, status: Status = "complete") -> None:
        """Remove the hooks and close the file with this status; a second call does nothing."""
        if self._state == "closed":
            return
        self._state = "closed"
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._open_step.clear()
        if not self._layers and self._n_rows:
            self._open_sink()  # a resumed run that had nothing left to do
        self._write_last_row()
        self._sink.close(status)

    def __repr__(self) -> str:
        return (
            f"Recorder({self._state}: {type(self._model).__name__}, {len(self._modules)} layers, "
            f"{self._n_rows} rows, next step {self._step})"
        )

    # --- what the user calls ------------------------------------------------------------------------------

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in execution order; empty before the first row."""
        return self._layers

    @property
    def last_row(self) -> Row | None:
        """The row that was closed last."""
        return self._last_row

    @property
    def counts(self) -> tuple[int, int]:
        """Rows closed and optimizer steps seen, those of an earlier part of the run included."""
        return self._n_rows, self._step

    def _check_recording(self, call: str) -> None:
        if self._state != "recording":
            raise RecorderError(
                f"recorder.{call}(): the recorder is {self._state}, not recording",
                tip="with gradlens.record(...) as recorder: train in here",
            )

    def log(self, **scalars: float | Tensor) -> None:
        """Add scalars (loss=...) to the row just closed; nothing happens if that step was not recorded.

        Args:
            scalars: Numbers or tensors of one element. A "/" in a name becomes a "." in the file.

        Raises:
            RecorderError: A value is no single number, or the recorder is not recording.
        """
        self._check_recording("log")
        row = self._last_row
        if row is not None and row.step == self._step - 1:
            row.scalars.update(_to_numbers(scalars))

    def log_epoch(self, **values: float | Tensor) -> None:
        """Add a row to the table of epochs: epoch, train_loss, train_accuracy, val_loss, val_accuracy, ...

        Args:
            values: As in ``log``.

        Raises:
            RecorderError: As in ``log``.
        """
        self._check_recording("log_epoch")
        if not self._layers:
            self._open_sink()
        self._write_last_row()
        self._sink.write_epoch(_to_numbers(values))
        self._epoch += 1

    def step(self, **scalars: float | Tensor) -> None:
        """Close a row where no optimizer was given; call it while the gradients stand, before they are zeroed.

        Args:
            scalars: As in ``log``.

        Raises:
            RecorderError: An optimizer was given, so its steps close the rows; or the recorder is not recording.
        """
        self._check_recording("step")
        if self._optimizer is not None:
            raise RecorderError("recorder.step() is for loops without optimizer=; here optimizer.step() closes rows")
        if self._armed:
            self._read_before_step()
            self._close_row()
        self._advance()
        self.log(**scalars)

    # --- hooks --------------------------------------------------------------------------------------------

    def _after_forward(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Put a tensor hook on the layer's output.

        A hook on the tensor, not on the module: module backward hooks wrap the output in a view, which in-place
        activations and ``x += shortcut`` then refuse to change.
        """
        if not torch.is_grad_enabled() or (self._layers and not self._armed):
            return
        tensors = output_tensors(output)
        if not self._layers:
            self._note_output(name, sum(tensor.numel() for tensor in tensors))
        if not self._armed or "activation_grad_norm" not in self._rhythm:
            return
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(functools.partial(self._on_output_grad, name))  # type: ignore[no-untyped-call]

    def _note_output(self, name: str, numel: int) -> None:
        """Keep the execution order, and how many elements a whole step puts out (all micro-batches and calls)."""
        self._order.setdefault(name, numel)
        if self._armed:
            self._open_step.add_output(name, numel)

    def _on_output_grad(self, name: str, grad: Tensor) -> None:
        if self._state != "recording" or not self._armed:
            return
        if self._scaler is not None:
            self._drop_skipped_step()
        self._open_step.add_output_grad(name, grad, getattr(self._scaler, "_scale", None))

    def _drop_skipped_step(self) -> None:
        """Forget the gradients of a step that the scaler skipped: it is known by a scaler update without a step."""
        now = getattr(self._scaler, "_per_optimizer_states", None)
        if self._open_step.has_output_grads and self._scaler_round is not None and now is not self._scaler_round:
            self._open_step.clear_output_grads()
            self._skipped += 1
        self._scaler_round = now

    def _before_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._armed:
            return
        closures = [*(argument for argument in args if argument is not optimizer), kwargs.get("closure")]
        if any(callable(closure) for closure in closures):
            raise RecorderError(
                "optimizer.step(closure) computes the gradient within the step, after it would be read",
                tip="call backward() before step(), or leave optimizer= out and call recorder.step()",
            )
        self._lr = float(optimizer.param_groups[0]["lr"])
        self._read_before_step(getattr(optimizer, "grad_scale", None))

    def _after_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._armed:
            self._open_step.read_update()
            self._close_row()
        self._advance()

    # --- rows ---------------------------------------------------------------------------------------------

    def _due(self) -> list[str]:
        """List the metrics that the row in progress is to have."""
        return [name for name, every in self._rhythm.items() if self._n_rows % every == 0]

    def _read_before_step(self, grad_scale: Tensor | None = None) -> None:
        due = self._due()
        if "param_grad_norm" in due:
            self._open_step.read_gradients(grad_scale)
        if "param_norm" in due or "update_ratio" in due:
            self._open_step.read_weights(keep_copies="update_ratio" in due)

    def _close_row(self) -> None:
        self._write_last_row()
        if not self._layers:
            self._open_sink()
        self._open_step.read_output_grads()
        scalars = {} if math.isnan(self._lr) else {"lr": self._lr}
        if self._skipped:
            scalars["skipped"] = float(self._skipped)
        values = self._open_step.to_host(self._due(), self._layers)
        self._last_row = Row(self._step, self._epoch, values, scalars)
        self._skipped = 0
        self._n_rows += 1

    def _advance(self) -> None:
        self._open_step.clear()
        self._step += 1
        self._armed = self._wanted(self._step)

    def _write_last_row(self) -> None:
        """Hand the row over, now that no scalar can be added any more."""
        row, self._last_row = self._last_row, None
        if row is not None:
            self._sink.write_row(row)

    def _open_sink(self) -> None:
        out_numel = {name: self._open_step.out_numel(name, first) for name, first in self._order.items()}
        self._layers = describe_layers(self._modules, out_numel)
        extra = {key: value for key, value in self._info.items() if key not in ("model", "seed", "config")}
        header = Header(
            layers=self._layers,
            metrics=self._rhythm,
            model=str(self._info.get("model", type(self._model).__name__)),
            seed=-1 if self._info.get("seed") is None else int(self._info["seed"]),
            config={**self._info.get("config", {}), **extra},
            environment=describe_environment(self._model),
        )
        self._sink.open(header)


def _make_rule(every: Every) -> Callable[[int], bool]:
    if callable(every):
        return every
    if isinstance(every, int) and not isinstance(every, bool) and every >= 1:
        return lambda step: step % every == 0
    raise ConfigError(f"every must be a whole number from 1 or a callable step -> bool, got {every!r}")


def _to_numbers(values: Mapping[str, float | Tensor]) -> dict[str, float]:
    return {name.replace("/", "."): _to_number(name, value) for name, value in values.items()}


def _to_number(name: str, value: float | Tensor) -> float:
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise RecorderError(f"{name} must be one number, got {shown}") from None
