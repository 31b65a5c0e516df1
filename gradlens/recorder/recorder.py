"""The recorder: hooks on, rows closed at the optimizer step, hooks off."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradlens.errors import ConfigError, GradlensError, GradlensWarning, RecorderError
from gradlens.metrics import DEFAULT_METRICS, get_metric
from gradlens.recorder.environment import describe_environment
from gradlens.recorder.hooks import LayerHook, at_end_of_backward
from gradlens.recorder.layers import LayerChoice, choose_layers, describe_layers, own_parameters
from gradlens.recorder.norms import HostNorms
from gradlens.recorder.outputs import OutputGradients
from gradlens.recorder.parameters import ParameterGradients, Weights, share_out
from gradlens.recorder.ranks import find_ranks
from gradlens.recorder.rhythm import AutoEvery, Clock, Every, make_rule
from gradlens.recorder.row import CHANGE, MeasuredRow, Part, make_row
from gradlens.recorder.scaling import ScalerWatch
from gradlens.run import Header, Layer, NullSink, Row, Sink, Status
from gradlens.storage import BackgroundSink, FileSink

OnError = Literal["warn", "raise"]
Optimizers = Optimizer | Sequence[Optimizer] | None

GRADIENTS = ("activation_grad_norm", "param_grad_norm")
LISTED = 8
"""Names that a note lists at most."""
TIMED_ROWS = 16
"""One row in so many measures what its hooks cost."""
CHECKED_ROWS = 64
"""One row in so many looks whether the model has other modules than before, and keeps the overhead so far."""


def record(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    optimizer: Optimizers = None,
    metrics: Iterable[str] = DEFAULT_METRICS,
    every: Every = 1,
    layers: LayerChoice = None,
    scaler: torch.amp.GradScaler | None = None,
    info: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_error: OnError = "warn",
) -> Recorder:
    """Record a model's gradients into a file while it trains.

    Use it as a context manager around the training loop. The hooks only read: they change no gradient, draw no
    random number, and are removed on exit, also after an exception. A row holds the gradients that the optimizer got:
    after accumulation, reduction between ranks, unscaling and clipping. Activation gradients of several backward passes
    within one step are combined as those of one larger batch (root of the sum of squares).

    Args:
        model: Any module; in-place activations and ``x += shortcut`` are fine. Under ``torch.compile``, place the
            recorder before the first compiled call. Of a model in DistributedDataParallel or ``fully_shard``, every
            rank makes a recorder, and rank 0 writes.
        path: The run file; it appears with the first row.
        optimizer: A row is closed at each of its steps. Of several, one row is closed when each of them has stepped, or
            one would step again. Without one, call ``recorder.step()``.
        metrics: Names out of ``gradlens.metrics.METRICS``.
        every: Record every so many steps; or the steps for which the callable ``step -> bool`` is true (see
            ``gradlens.log_spaced``); or "auto": as often as keeps the recorder's own time under 1 %.
        layers: Which modules; None takes those that own a weight and are no norm, a regular expression is searched
            in their names, a callable gets (name, module); ``gradlens.with_norms``, ``gradlens.all_leaves``.
        scaler: The GradScaler in use; activation gradients are divided by its scale, and a step that it skips becomes a
            row with the scalar ``skipped`` = 1 and the metric ``nonfinite_count``.
        info: What to store with the run: "model" (name), "seed", "config" (a mapping), and anything else.
        overwrite: Replace a file that is there.
        on_error: What an error in recording does once training has begun: "warn" ends the recording with one warning
            and lets the training go on; "raise" raises it.

    Returns:
        The recorder.

    Raises:
        RunExistsError: The file is there and ``overwrite`` is False.
        RecorderError: The model has no layer to record.
        ConfigError: A metric's name, ``every`` or ``on_error`` is not allowed.

    Example::

        with gradlens.record(model, "run.h5", optimizer=optimizer) as recorder:
            for x, y in loader:
                loss = criterion(model(x), y)
                optimizer.zero_grad(); loss.backward(); optimizer.step()
                recorder.log(loss=loss)
    """
    ranks = find_ranks(model)
    sink: Sink = NullSink()
    if ranks is None or ranks.rank == 0:
        sink = BackgroundSink(FileSink(path, overwrite=overwrite))
    return Recorder(
        model,
        sink,
        optimizer=optimizer,
        metrics=metrics,
        every=every,
        layers=layers,
        scaler=scaler,
        info=info,
        on_error=on_error,
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
        on_error: See ``record``.
        first_step: Index of the next optimizer step, for a run that goes on.
        first_epoch: Epochs that are in the table already, for a run that goes on.
        first_row: Rows that are in the table already, for a run that goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        sink: Sink,
        *,
        optimizer: Optimizers = None,
        metrics: Iterable[str] = DEFAULT_METRICS,
        every: Every = 1,
        layers: LayerChoice = None,
        scaler: torch.amp.GradScaler | None = None,
        info: Mapping[str, Any] | None = None,
        on_error: OnError = "warn",
        first_step: int = 0,
        first_epoch: int = 0,
        first_row: int = 0,
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise ConfigError(f'on_error must be "warn" or "raise", got {on_error!r}')
        self._info = dict(info or {})
        if not isinstance(self._info.get("config", {}), Mapping):
            raise ConfigError(f"info['config'] must be a mapping, got {self._info['config']!r}")
        self._model = model
        self._sink = sink
        self._on_error = on_error
        self._optimizers = _as_list(optimizer)
        self._scaler = ScalerWatch(scaler, self._optimizers)
        self._rhythm = _rhythm(metrics, optimizers=len(self._optimizers), scaled=self._scaler.present)
        self._clock = Clock()
        self._wanted = make_rule(every, self._clock)

        self._choice = layers
        self._modules = choose_layers(model, layers)
        self._names = list(self._modules)
        self._ranks = find_ranks(model)
        own = [
            [p for p in own_parameters(module) if self._ranks is None or self._ranks.reads(p)]
            for module in self._modules.values()
        ]
        groups = [{id(p) for group in o.param_groups for p in group["params"]} for o in self._optimizers]
        self._outputs = OutputGradients()
        self._gradients = ParameterGradients(
            share_out(own, groups), count_nonfinite="nonfinite_count" in self._rhythm, always_early=self._scaler.present
        )
        self._weights = Weights(share_out(own, ())[0])

        self._step, self._epoch, self._n_rows = first_step, first_epoch, first_row
        self._layers: tuple[Layer, ...] = ()
        self._order = np.arange(len(self._names))
        self._forward_numel: dict[int, int] = {}
        self._grad_numel: dict[int, int] = {}
        self._calls: dict[int, int] = {}
        self._met = {name: np.zeros(len(self._names), dtype=bool) for name in GRADIENTS}
        self._measured: MeasuredRow | None = None
        self._last_row: Row | None = None
        self._handles: list[Any] = []
        self._step_handles: list[Any] = []
        self._compiled = _is_compiled(model)
        self._state = "ready"
        self._notes: dict[str, None] = {}
        self._local_error: Exception | None = None

        self.armed = False
        self.learning = True
        self.timing = False
        self.seconds = 0.0
        self._begin_step(time.perf_counter())

    def _begin_step(self, now: float) -> None:
        """Forget the step that is over."""
        self._row_wanted = False
        self._in_backward = self._backward_seen = False
        self._stepped: set[int] = set()
        self._lrs: dict[str, float | Tensor] = {}
        self._found_inf: Tensor | None = None
        self._clip: float | None = None
        self._began = now
        self._cost = 0.0

    # --- context ------------------------------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        """Place the hooks."""
        if self._state != "ready":
            raise RecorderError(f"this recorder is {self._state}; a recorder serves once", tip="make a new one")
        self._state = "recording"
        for k, optimizer in enumerate(self._optimizers):
            self._step_handles.append(optimizer.register_step_pre_hook(self._pre_hook(k)))
            self._step_handles.append(optimizer.register_step_post_hook(self._post_hook(k)))
        self._arm()
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
        was, self._state = self._state, "closed"
        self._remove_hooks()
        if was != "recording":
            return
        try:
            self._settle_skipped_step()
            if not self._layers and self._n_rows:
                self._open_sink()  # a resumed run that had nothing left to do
            self._hand_over()
            self._sink.flush()
            self._note_missing()
            self._sink.write_state(self.overhead, self.notes)
        except Exception as error:
            self._sink.close("failed")
            self._say(error)
            return
        self._forget()
        self._sink.close(status)

    def _forget(self) -> None:
        self._outputs.clear()
        self._gradients.clear()
        self._weights.clear()

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
        """The row that was closed last; waits for the device where its numbers are still there."""
        if self._measured is not None:
            self._last_row = self._finish(self._measured)
            self._measured = None
        return self._last_row

    @property
    def counts(self) -> tuple[int, int]:
        """Rows closed and optimizer steps seen, those of an earlier part of the run included."""
        return self._n_rows, self._step

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the run should know: what is missing, and why; stored in the file."""
        return tuple(self._notes)

    @property
    def overhead(self) -> float:
        """The recorder's own time in the training's thread over the time of the steps without it, so far.

        NaN before the second step; see ``gradlens.recorder.rhythm.Clock`` for what it holds.
        """
        return self._clock.overhead

    def log(self, **scalars: float | Tensor) -> None:
        """Add scalars (loss=...) to the row just closed; nothing happens if that step was not recorded.

        Args:
            scalars: Numbers or tensors of one element; those on an accelerator are not waited for. A "/" in a name
                becomes a "." in the file.

        Raises:
            RecorderError: A value is no single number, or the recorder is not recording.
        """
        if not self._is_recording("log"):
            return
        started = time.perf_counter()
        self._guard(self._settle_skipped_step)
        numbers = _to_numbers(scalars)
        if self._measured is not None and self._measured.step == self._step - 1:
            self._measured.scalars.update(numbers)
        elif self._last_row is not None and self._last_row.step == self._step - 1:
            self._last_row.scalars.update({name: float(value) for name, value in numbers.items()})
        self._cost += time.perf_counter() - started

    def log_epoch(self, **values: float | Tensor) -> None:
        """Add a row to the table of epochs: epoch, train_loss, train_accuracy, val_loss, val_accuracy, ...

        When it returns, everything so far is in the file.

        Args:
            values: As in ``log``.

        Raises:
            RecorderError: As in ``log``.
        """
        if not self._is_recording("log_epoch"):
            return
        numbers = {name: float(value) for name, value in _to_numbers(values).items()}
        self._guard(lambda: self._write_epoch(numbers))

    def _write_epoch(self, numbers: Mapping[str, float]) -> None:
        self._settle_skipped_step()
        if not self._layers:
            self._open_sink()
        self._hand_over()
        self._look_for_changes()
        self._sink.write_state(self.overhead, self.notes)
        self._sink.write_epoch(numbers)
        self._epoch += 1

    def step(self, **scalars: float | Tensor) -> None:
        """Close a row where no optimizer was given; call it while the gradients stand, before they are zeroed.

        Args:
            scalars: As in ``log``.

        Raises:
            RecorderError: An optimizer was given, so its steps close the rows; or the recorder is not recording.
        """
        if not self._is_recording("step"):
            return
        if self._optimizers:
            raise RecorderError("recorder.step() is for loops without optimizer=; here optimizer.step() closes rows")
        self._guard(lambda: self._before_step(0, None))
        self._guard(lambda: self._after_step(0))
        self.log(**scalars)

    def clipped(self, coefficient: float | Tensor) -> None:
        """Say by how much the gradients of the step in progress were clipped; call it before ``optimizer.step()``.

        Seldom needed: what stands between ``backward()`` and ``optimizer.step()`` is seen. What happens within either
        is not: an optimizer that clips by an option of its own, for example.

        Args:
            coefficient: Norm after clipping over norm before.

        Raises:
            RecorderError: It is no single number, or the recorder is not recording.
        """
        if self._is_recording("clipped"):
            self._clip = float(_to_number("coefficient", coefficient))

    def _is_recording(self, call: str) -> bool:
        """Say whether a call has anything to do; none has after an error in recording."""
        if self._state not in ("recording", "broken"):
            raise RecorderError(
                f"recorder.{call}(): the recorder is {self._state}, not recording",
                tip="with gradlens.record(...) as recorder: train in here",
            )
        return self._state == "recording"

    # --- what the hooks call ------------------------------------------------------------------------------

    def note_forward(self, layer: int, tensors: Sequence[Tensor]) -> None:
        """Learn the layers' order by their first forward pass, and the size of outputs that never get a gradient."""
        before = self._forward_numel.setdefault(layer, 0)
        if before == 0 or (self.armed and torch.is_grad_enabled()):
            self._forward_numel[layer] = before + sum(tensor.numel() for tensor in tensors)

    def note_grad(self, layer: int, grad: Tensor, *, new_call: bool) -> None:
        """Learn how many elements a layer puts out in a step, and how often it is called.

        They are counted where gradients come by, so that an evaluation is not counted, nor the second forward pass of a
        checkpoint.
        """
        self._grad_numel[layer] = self._grad_numel.get(layer, 0) + grad.numel()
        self._calls[layer] = self._calls.get(layer, 0) + new_call

    def note_compiled(self) -> None:
        """Keep the hooks on all the time: compiled code does not see them come and go."""
        self._compiled = True

    def take_grad(self, layer: int, grad: Tensor) -> None:
        """Take the gradient of a layer's output."""
        if not self._in_backward:
            self._settle_skipped_step()
            self._in_backward = self._backward_seen = True
            self._gradients.forget_look()
            self._scaler.begin_round()
            at_end_of_backward(self._end_backward)
        self._outputs.take(layer, grad)

    def _end_backward(self) -> None:
        if self._state == "recording" and self._in_backward:
            started = time.perf_counter()
            self._guard(self._reduce_backward)
            self._cost += time.perf_counter() - started

    def _reduce_backward(self) -> None:
        self._in_backward = False
        scale = self._scaler.scale
        self._outputs.end_backward(scale)
        if self._reads_gradients:
            self._gradients.look(scale)

    def _pre_hook(self, k: int) -> Callable[..., Any]:
        """Return what an optimizer calls before its step; a closure is wrapped, since it computes the gradient."""

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
            if self._state != "recording":
                return None
            grad_scale = getattr(optimizer, "grad_scale", None)
            closures = [value for value in (*args, *kwargs.values()) if callable(value) and value is not optimizer]
            if not closures:
                self._guard(lambda: self._before_step(k, grad_scale))
                return None
            watched = self._watch_closure(closures[0], k)
            args = tuple(watched if value is closures[0] else value for value in args)
            return args, {name: watched if value is closures[0] else value for name, value in kwargs.items()}

        return before

    def _watch_closure(self, closure: Callable[[], Any], k: int) -> Callable[[], Any]:
        """Read the gradients when a closure has computed them first; later calls in the step do not count."""
        first = True

        def watched() -> Any:
            nonlocal first
            result = closure()
            if first:
                first = False
                self._guard(lambda: self._before_step(k, None))
                self.armed = False
            return result

        return watched

    def _post_hook(self, k: int) -> Callable[..., None]:
        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if self._state == "recording":
                self._guard(lambda: self._after_step(k))

        return after

    # --- a step -------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Get ready for the next step: on or off with the hooks, by whether it is recorded."""
        self._row_wanted = self.armed = bool(self._wanted(self._step))
        self.timing = self.armed and self._n_rows % TIMED_ROWS == 1
        needed = self.learning or self._compiled or self.armed
        if needed and not self._handles and self._wants_hooks:
            for layer, module in enumerate(self._modules.values()):
                self._handles.append(module.register_forward_hook(LayerHook(self, layer)))
        elif not needed:
            self._remove_layer_hooks()

    @property
    def _wants_hooks(self) -> bool:
        """Compiled code is broken up by hooks, so it has none where no gradient of an output is wanted."""
        return "activation_grad_norm" in self._rhythm or not self._compiled

    def _before_step(self, k: int, grad_scale: Tensor | None) -> None:
        started = time.perf_counter()
        if k in self._stepped:  # a second step of one of several optimizers: the round before is over
            self._end_round()
        if self._row_wanted:
            self._read(k, grad_scale)
        self._cost += time.perf_counter() - started

    def _read(self, k: int, grad_scale: Tensor | None) -> None:
        if self._in_backward:  # its end was not seen, so nothing is known of before
            self._reduce_backward()
            self._gradients.forget_look()
        if self._reads_gradients:
            self._gradients.read(k, grad_scale)
            if not self._stepped and self._optimizers:
                self._gradients.read(len(self._optimizers), self._scaler.scale)
        due = self._due()
        if not self._weights.was_read and ("param_norm" in due or "update_ratio" in due):
            self._weights.read(keep_copies="update_ratio" in due)
        if self._optimizers:
            optimizer = self._optimizers[k]
            name = "lr" if k == 0 else f"lr_{k + 1}"
            self._lrs[name] = _to_number(name, optimizer.param_groups[0]["lr"])
            found_inf = getattr(optimizer, "found_inf", None)
            self._found_inf = found_inf.detach().clone() if isinstance(found_inf, Tensor) else None

    def _after_step(self, k: int) -> None:
        self._stepped.add(k)
        if len(self._stepped) >= len(self._optimizers):
            self._end_round()

    def _end_round(self) -> None:
        """Close the row, and begin the next step."""
        started = time.perf_counter()
        if self._row_wanted:
            self._hand_over()
            self._weights.read_update()
            scalars = dict(self._lrs)
            if self._scaler.present:
                scalars["skipped"] = 0.0 if self._found_inf is None else self._found_inf.reshape(())
            self._close_row(scalars)
        self._advance(started)

    def _settle_skipped_step(self) -> None:
        """Close the row of a step that the scaler skipped: it went through, and no optimizer stepped."""
        skipped = self._backward_seen and not self._in_backward and not self._stepped and self._scaler.skipped
        if not (skipped and self._row_wanted):
            return
        started = time.perf_counter()
        self._hand_over()
        self._gradients.take_as_they_were()
        if "param_norm" in self._due():
            self._weights.read(keep_copies=False)
        self._close_row({"skipped": 1.0})
        self._advance(started)

    def _advance(self, started: float) -> None:
        now = time.perf_counter()
        self._forget()
        self._cost += now - started + self.seconds
        recorded, clock = self._row_wanted, self._clock
        if self._step > 0:
            clock.add_step(now - self._began, self._cost)
        if recorded and self._n_rows > 1:
            clock.add_row(self._cost)
        if recorded and isinstance(self._wanted, AutoEvery) and self._ranks is None:
            self._wanted.note_row(self._step)
        self.seconds = 0.0
        self._step += 1
        self._begin_step(now)
        self._arm()

    @property
    def _reads_gradients(self) -> bool:
        return "param_grad_norm" in self._rhythm or "nonfinite_count" in self._rhythm

    def _due(self) -> list[str]:
        """List the metrics that the row in progress is to have."""
        return [name for name, every in self._rhythm.items() if self._n_rows % every == 0]

    # --- rows ---------------------------------------------------------------------------------------------

    def _close_row(self, scalars: dict[str, float | Tensor]) -> None:
        parts: dict[str, list[Part]] = {
            "activation_grad_norm": self._outputs.parts,
            "param_grad_norm": self._gradients.parts,
            "nonfinite_count": self._gradients.count_parts,
            "param_norm": [] if self._weights.norms is None else [self._weights.norms],
            CHANGE: [] if self._weights.changes is None else [self._weights.changes],
        }
        if self._clip is not None:
            scalars["clip_coefficient"] = self._clip
        due = self._due()
        wanted = {*due, *(("param_norm", CHANGE) if "update_ratio" in due else ())}
        measured = MeasuredRow(
            self._step,
            self._epoch,
            due,
            {name: found for name, found in parts.items() if found and name in wanted},
            scalars,
            self._gradients.parts_before,
            self._gradients.parts if self._gradients.parts_before else [],
        )
        self._gradients.end_row()
        if not self._layers:
            self._open_sink()
        if self._ranks is None:
            self._measured = measured
        else:
            self._last_row = self._finish_together(measured)
        self._n_rows += 1
        if self._n_rows % CHECKED_ROWS == 0:
            self._look_for_changes()
            self._sink.write_state(self.overhead, self.notes)

    def _hand_over(self) -> None:
        """Give the last row to the sink, now that no scalar can be added any more."""
        measured, row = self._measured, self._last_row
        self._measured = self._last_row = None
        if measured is not None:
            measured.start_fetch()
            self._sink.write_row(lambda: self._finish(measured))
        elif row is not None:
            self._sink.write_row(row)

    def _finish(self, measured: MeasuredRow) -> Row:
        """Return the row with all its numbers on the host; may run in the sink's thread."""
        return self._make_row(measured, measured.columns(len(self._names)), measured.totals())

    def _make_row(self, measured: MeasuredRow, columns: Mapping[str, HostNorms], totals: HostNorms) -> Row:
        for name, met in self._met.items():
            if name in columns:
                met |= ~np.isnan(columns[name])
        said = "clip_coefficient" in measured.scalars
        row = make_row(measured, columns, totals, self._order)
        if said:
            return row
        if row.scalars.get("clip_coefficient", 1.0) != 1:
            self._gradients.changes_seen = True
        elif not self._gradients.changes_seen:
            row.scalars.pop("clip_coefficient", None)
        return row

    def _finish_together(self, measured: MeasuredRow) -> Row:
        """Return the row that all ranks measured; each must come here, also one that failed."""
        assert self._ranks is not None
        error, self._local_error = self._local_error, None
        n_layers = len(self._names)
        auto = self._wanted if isinstance(self._wanted, AutoEvery) else None
        if auto is not None:
            auto.note_row(self._step)
        first = self._ranks.rank == 0
        extra = np.array([*measured.totals(), error is not None, auto.next if auto is not None and first else 0])
        columns, sums = self._ranks.combine(measured.due, measured.columns(n_layers), n_layers, extra)
        if auto is not None:
            auto.set_next(int(sums[3]))
        if sums[2] > 0:
            raise error or RecorderError("recording failed on another rank")
        return self._make_row(measured, columns, sums[:2])

    def _open_sink(self) -> None:
        numel = {self._names[i]: self._grad_numel.get(i, first) for i, first in self._forward_numel.items()}
        calls = {self._names[i]: count for i, count in self._calls.items()}
        self._layers = describe_layers(self._modules, numel, calls)
        place = {name: i for i, name in enumerate(self._names)}
        self._order = np.array([place[layer.name] for layer in self._layers])
        self.learning = False
        extra = {key: value for key, value in self._info.items() if key not in ("model", "seed", "config")}
        header = Header(
            layers=self._layers,
            metrics=self._rhythm,
            model=str(self._info.get("model", _unwrapped_name(self._model))),
            seed=-1 if self._info.get("seed") is None else int(self._info["seed"]),
            config={**self._info.get("config", {}), **extra},
            environment={
                **describe_environment(self._model),
                **({} if self._ranks is None else {"world_size": self._ranks.world}),
            },
        )
        self._sink.open(header)

    # --- what a reader should know ------------------------------------------------------------------------

    def _note(self, text: str) -> None:
        self._notes.setdefault(text)

    def _look_for_changes(self) -> None:
        """Say which modules came or were replaced since recording began: they are not recorded."""
        now = choose_layers(self._model, self._choice)
        added = [name for name in now if name not in self._modules]
        replaced = [name for name, module in self._modules.items() if now.get(name) is not module]
        for names, what in ((added, "added to the model"), (replaced, "replaced or removed")):
            if names:
                text = f"{_listed(names)}: {what} after recording began, and not recorded since"
                if text not in self._notes:
                    self._note(text)
                    warnings.warn(f"gradlens: {text}; make a new recorder to record it", GradlensWarning, stacklevel=2)

    def _note_missing(self) -> None:
        """Say which layers never got a gradient, and why as far as it is known."""
        if not self._n_rows:
            return
        never = {name: [self._names[i] for i in np.flatnonzero(~met)] for name, met in self._met.items()}
        if "activation_grad_norm" in self._rhythm:
            outputs = never["activation_grad_norm"]
            called = {self._names[i] for i in self._forward_numel}
            if outputs and not called:
                self._note(
                    "activation_grad_norm is missing: no hook fired; was the model compiled and called before "
                    "gradlens.record()?"
                )
            else:
                silent = [name for name in outputs if name in called]
                uncalled = [name for name in outputs if name not in called]
                if silent:
                    self._note(f"no gradient came to the output of {_listed(silent)}")
                if uncalled:
                    self._note(f"never called, unused or used by a fused operation: {_listed(uncalled)}")
        if "param_grad_norm" in self._rhythm and never["param_grad_norm"]:
            own = [name for name in never["param_grad_norm"] if own_parameters(self._modules[name])]
            if own:
                self._note(f"no gradient came to the parameters (frozen or unused) of {_listed(own)}")

    # --- errors -------------------------------------------------------------------------------------------

    def _guard(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Meet an error in recording: it ends the recording, and the training only if that was asked for.

        Of several ranks, all end the recording together, at the next row.
        """
        if self._state != "recording":
            return
        if self._ranks is not None and self._local_error is None and self._row_wanted:
            self._local_error = error
            return
        self._state = "broken"
        self._remove_hooks()
        self._forget()
        self._measured = self._last_row = None
        self._note(f"recording ended at step {self._step}: {_line(error)}")
        try:
            self._sink.write_state(self.overhead, self.notes)
            self._sink.close("failed")
        except Exception:  # the file is what failed
            pass
        self._say(error)

    def _say(self, error: Exception) -> None:
        if self._on_error == "raise":
            raise error
        text = f"gradlens: recording ended at step {self._step}, training goes on: {_line(error)}"
        warnings.warn(text, GradlensWarning, stacklevel=2)

    def _remove_layer_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _remove_hooks(self) -> None:
        self.armed = self.learning = False
        self._remove_layer_hooks()
        for handle in self._step_handles:
            handle.remove()
        self._step_handles.clear()


def _as_list(optimizer: Optimizers) -> list[Optimizer]:
    if optimizer is None:
        return []
    found = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
    for one in found:
        if not hasattr(one, "register_step_pre_hook"):
            raise RecorderError(
                f"optimizer must be a torch.optim.Optimizer or several, got {type(one).__name__}",
                tip="pass the torch optimizer that it wraps, or leave it out and call recorder.step()",
            )
    return found


def _rhythm(metrics: Iterable[str], *, optimizers: int, scaled: bool) -> dict[str, int]:
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    if scaled:
        names = list(dict.fromkeys((*names, "nonfinite_count")))
    rhythm = {name: get_metric(name).every for name in names}
    if not optimizers:
        rhythm.pop("update_ratio", None)
    return rhythm


def _is_compiled(model: nn.Module) -> bool:
    return any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def _unwrapped_name(model: nn.Module) -> str:
    wrappers = ("DistributedDataParallel", "DataParallel", "OptimizedModule")
    while type(model).__name__ in wrappers:
        model = next(model.children())
    return type(model).__name__.removeprefix("FSDP")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return text if isinstance(error, GradlensError) else f"{type(error).__name__}: {text}"


def _to_numbers(values: Mapping[str, float | Tensor]) -> dict[str, float | Tensor]:
    return {name.replace("/", "."): _to_number(name, value) for name, value in values.items()}


def _to_number(name: str, value: float | Tensor) -> float | Tensor:
    """Return a number; a tensor that is not on the CPU as it is, so that nothing waits for it."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_cpu and not value.is_meta:
        return value.detach()
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise RecorderError(f"{name} must be one number, got {shown}") from None
