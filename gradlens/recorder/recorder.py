"""The recorder: hooks on, rows closed at the optimizer step, hooks off."""

from __future__ import annotations

import functools
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from gradlens.errors import ConfigError, RecorderError
from gradlens.metrics import DEFAULT_METRICS, get_metric
from gradlens.provenance import commit, versions
from gradlens.recorder.layers import (
    LayerChoice,
    choose_layers,
    describe_layers,
    output_tensors,
    own_parameters,
)
from gradlens.recorder.norms import combine_norms, fast_norm
from gradlens.run import FloatArray, Header, Layer, Row, Sink, Status
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
        self._parameters = {name: own_parameters(module) for name, module in self._modules.items()}
        self._scaler = scaler
        self._info = dict(info or {})
        if not isinstance(self._info.get("config", {}), Mapping):
            raise ConfigError(f"info['config'] must be a mapping, got {self._info['config']!r}")
        self._step, self._epoch, self._n_rows = first_step, first_epoch, first_row
        self._order: dict[str, int] = {}
        self._step_numel: dict[str, int] = {}
        self._output_norms: dict[str, list[Tensor]] = {}
        self._open_row: dict[str, dict[str, Tensor]] = {}
        self._snapshot: dict[str, list[Tensor]] = {}
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
        self._forget_row()
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
            self._measure_parameters()
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
            self._step_numel[name] = self._step_numel.get(name, 0) + numel

    def _on_output_grad(self, name: str, grad: Tensor) -> None:
        if self._state != "recording" or not self._armed:
            return
        norm = fast_norm(grad)
        if self._scaler is not None:
            self._drop_skipped_step()
            scale = getattr(self._scaler, "_scale", None)
            norm = norm if scale is None else norm / scale.to(norm.device, torch.float64)
        self._output_norms.setdefault(name, []).append(norm)

    def _drop_skipped_step(self) -> None:
        """Forget the gradients of a step that the scaler skipped: it is known by a scaler update without a step."""
        now = getattr(self._scaler, "_per_optimizer_states", None)
        if self._output_norms and self._scaler_round is not None and now is not self._scaler_round:
            self._output_norms.clear()
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
        self._measure_parameters(getattr(optimizer, "grad_scale", None))

    def _after_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._armed:
            self._measure_update()
            self._close_row()
        self._advance()

    # --- measuring ----------------------------------------------------------------------------------------

    def _due(self, name: str) -> bool:
        return name in self._rhythm and self._n_rows % self._rhythm[name] == 0

    @torch.no_grad()
    def _measure_parameters(self, grad_scale: Tensor | None = None) -> None:
        if self._due("param_grad_norm"):
            norms = self._norms_per_layer(lambda p: p.grad)
            if grad_scale is not None:  # a fused optimizer, which unscales within its step
                norms = {name: norm / grad_scale.to(norm.device, torch.float64) for name, norm in norms.items()}
            self._open_row["param_grad_norm"] = norms
        if self._due("param_norm") or self._due("update_ratio"):
            self._open_row["param_norm"] = self._norms_per_layer(lambda p: p)
        if self._due("update_ratio"):
            self._snapshot = {name: [p.detach().clone() for p in ps] for name, ps in self._parameters.items()}

    def _norms_per_layer(self, of: Callable[[nn.Parameter], Tensor | None]) -> dict[str, Tensor]:
        """Return a norm for each layer that has such tensors; a parameter that is shared is read once."""
        known: dict[int, Tensor] = {}
        found: dict[str, Tensor] = {}
        for name, parameters in self._parameters.items():
            parts: list[Tensor] = []
            for parameter in parameters:
                tensor = of(parameter)
                if tensor is not None:
                    if id(parameter) not in known:
                        known[id(parameter)] = fast_norm(tensor)
                    parts.append(known[id(parameter)])
            if parts:
                found[name] = combine_norms(parts)
        return found

    @torch.no_grad()
    def _measure_update(self) -> None:
        if not self._snapshot:
            return
        before = self._open_row["param_norm"]
        ratios: dict[str, Tensor] = {}
        for name, olds in self._snapshot.items():
            changes = [fast_norm(old.sub_(p)) for old, p in zip(olds, self._parameters[name], strict=True)]
            if changes:
                change = combine_norms(changes)
                ratios[name] = torch.where(before[name] == 0, torch.nan, change / before[name])
        self._open_row["update_ratio"] = ratios
        self._snapshot = {}

    # --- rows ---------------------------------------------------------------------------------------------

    def _close_row(self) -> None:
        self._write_last_row()
        if not self._layers:
            self._open_sink()
        if self._due("activation_grad_norm"):
            norms = {name: combine_norms(parts) for name, parts in self._output_norms.items()}
            self._open_row["activation_grad_norm"] = norms
        if not self._due("param_norm"):
            self._open_row.pop("param_norm", None)
        scalars = {} if math.isnan(self._lr) else {"lr": self._lr}
        if self._skipped:
            scalars["skipped"] = float(self._skipped)
        self._last_row = Row(self._step, self._epoch, self._to_host(self._open_row), scalars)
        self._skipped = 0
        self._n_rows += 1

    def _to_host(self, table: dict[str, dict[str, Tensor]]) -> dict[str, FloatArray]:
        """Copy all numbers of a row at once; NaN where a layer has none, inf where its tensor was not finite."""
        numbers = [number for column in table.values() for number in column.values()]
        if len({number.device for number in numbers}) > 1:
            numbers = [number.cpu() for number in numbers]
        packed = torch.stack(numbers).cpu().numpy() if numbers else np.empty(0)
        position = {layer.name: i for i, layer in enumerate(self._layers)}
        values: dict[str, FloatArray] = {}
        start = 0
        for metric, column in table.items():
            values[metric] = np.full(len(position), np.nan)
            part = packed[start : start + len(column)]
            if metric != "update_ratio":  # there NaN says that the weights were 0
                part = np.where(np.isnan(part), np.inf, part)
            values[metric][[position[name] for name in column]] = part
            start += len(column)
        return values

    def _advance(self) -> None:
        self._forget_row()
        self._step += 1
        self._armed = self._wanted(self._step)

    def _forget_row(self) -> None:
        self._open_row = {}
        self._output_norms = {}
        self._snapshot = {}
        self._step_numel = {}

    def _write_last_row(self) -> None:
        """Hand the row over, now that no scalar can be added any more."""
        row, self._last_row = self._last_row, None
        if row is not None:
            self._sink.write_row(row)

    def _open_sink(self) -> None:
        out_numel = {name: self._step_numel.get(name, numel) for name, numel in self._order.items()}
        self._layers = describe_layers(self._modules, out_numel)
        extra = {key: value for key, value in self._info.items() if key not in ("model", "seed", "config")}
        header = Header(
            layers=self._layers,
            metrics=self._rhythm,
            model=str(self._info.get("model", type(self._model).__name__)),
            seed=-1 if self._info.get("seed") is None else int(self._info["seed"]),
            config={**self._info.get("config", {}), **extra},
            environment=_environment(self._model),
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


def _environment(model: nn.Module) -> dict[str, Any]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        **versions(),
        "commit": commit(),
        "platform": platform.system(),
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
    }
