"""The recorder: hooks on, rows closed at the optimizer step, hooks off."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradlens.errors import ConfigError, GradlensWarning, RecorderError
from gradlens.metrics import DEFAULT_METRICS, get_metric
from gradlens.recorder.backward import BackwardWatch
from gradlens.recorder.calibrate import seconds_per_hook
from gradlens.recorder.environment import describe_environment
from gradlens.recorder.hooks import ForwardPlace, LayerHook, LearningHook, Place, find_place
from gradlens.recorder.layers import LayerChoice, Learned, choose_layers, own_parameters, spread_out
from gradlens.recorder.notes import Notes, line
from gradlens.recorder.outputs import OutputGradients
from gradlens.recorder.parameters import ParameterGradients, Weights, share_out
from gradlens.recorder.ranks import find_ranks
from gradlens.recorder.rhythm import AutoEvery, Clock, Every, make_rule
from gradlens.recorder.row import CHANGE, MeasuredRow, Part
from gradlens.recorder.scaling import ScalerWatch
from gradlens.recorder.table import Table
from gradlens.run import Header, Layer, NullSink, Row, Sink, Status
from gradlens.storage import BackgroundSink, FileSink

OnError = Literal["warn", "raise"]
Optimizers = Optimizer | Sequence[Optimizer] | None

SPREAD = 16
"""Parameters that tell of backward passes where no gradient of an output does."""
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
        self._on_error = on_error
        self._optimizers = _as_list(optimizer)
        self._scaler = ScalerWatch(scaler, self._optimizers)
        self._rhythm = _rhythm(metrics, optimizers=len(self._optimizers), scaled=self._scaler.present)
        self._clock = Clock(lambda: float(getattr(sink, "seconds", 0.0)))
        self._wanted = make_rule(every, self._clock)
        self._auto = self._wanted if isinstance(self._wanted, AutoEvery) else None

        self._modules = choose_layers(model, layers)
        self._ranks = find_ranks(model)
        self._learned = Learned(self._modules)
        self._learned.compiled = _is_compiled(model)
        self._outputs = OutputGradients(len(self._modules))
        own = [self._parameters_to_read(module) for module in self._modules.values()]
        groups = [{id(p) for group in o.param_groups for p in group["params"]} for o in self._optimizers]
        self._gradients = ParameterGradients(
            share_out(own, groups), count_nonfinite="nonfinite_count" in self._rhythm, always_early=self._scaler.present
        )
        self._weights = Weights(share_out(own, ())[0])
        self._watch = BackwardWatch(self._end_backward)
        self._notes = Notes(model, layers, self._modules)
        self._table = Table(
            sink,
            self._learned,
            len(self._modules),
            self._make_header,
            self._gradients,
            self._ranks,
            self._auto,
            first_row,
        )
        self._step, self._epoch = first_step, first_epoch
        self._places: list[Place] = []
        self._hooked = False
        self._step_handles: list[Any] = []
        self._state = "ready"
        self._local_error: Exception | None = None
        self._row_wanted = False
        self._clip: float | Tensor | None = None
        self._begin_step(time.perf_counter())

    def _parameters_to_read(self, module: nn.Module) -> list[nn.Parameter]:
        return [p for p in own_parameters(module) if self._ranks is None or self._ranks.reads(p)]

    # --- context ------------------------------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        """Place the hooks."""
        if self._state != "ready":
            raise RecorderError(f"this recorder is {self._state}; a recorder serves once", tip="make a new one")
        self._state = "recording"
        seconds_per_hook()
        for k, optimizer in enumerate(self._optimizers):
            self._step_handles.append(optimizer.register_step_pre_hook(self._pre_hook(k)))
            self._step_handles.append(optimizer.register_step_post_hook(self._post_hook(k)))
        if self._learned.compiled and "activation_grad_norm" not in self._rhythm:
            self._watch.watch(spread_out(self._gradients.parameters, SPREAD))
        self._begin_step(time.perf_counter())
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
        was = self._state
        if was == "recording":
            self._guard(self._settle_skipped_step)
            was = self._state
        self._state = "closed"
        self._remove_hooks()
        if was != "recording":
            return
        table = self._table
        try:
            if table.n_rows:
                table.open()  # a resumed run that had nothing left to do is not open yet
            if table.layers:
                table.hand_over()
                table.sink.flush()
                self._note_missing()
                table.sink.write_state(self.overhead, self.notes)
        except Exception as error:
            table.sink.close("failed")
            self._say(error)
            return
        self._forget()
        table.sink.close(status)

    def __repr__(self) -> str:
        return (
            f"Recorder({self._state}: {type(self._model).__name__}, {len(self._modules)} layers, "
            f"{self._table.n_rows} rows, next step {self._step})"
        )

    # --- what the user calls ------------------------------------------------------------------------------

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in execution order; empty before the first row."""
        return self._table.layers

    @property
    def last_row(self) -> Row | None:
        """The row that was closed last; waits for the device where its numbers are still there."""
        return self._table.last_row

    @property
    def counts(self) -> tuple[int, int]:
        """Rows closed and optimizer steps seen, those of an earlier part of the run included."""
        return self._table.n_rows, self._step

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the run should know: what is missing, and why; stored in the file."""
        return self._notes.texts

    @property
    def overhead(self) -> float:
        """The recorder's own time over the time of the steps without it, so far; NaN before the second step.

        See ``gradlens.recorder.rhythm.Clock`` for what it holds.
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
        if self._row_wanted:
            self._guard(self._settle_skipped_step)
        if self._table.last_step == self._step - 1:
            self._table.add_scalars(_to_numbers(scalars))
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
        table = self._table
        table.open()
        table.hand_over()
        self._notes.look_for_changes()
        table.sink.write_state(self.overhead, self.notes)
        table.sink.write_epoch(numbers)
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
            self._clip = _to_number("coefficient", coefficient)

    def _is_recording(self, call: str) -> bool:
        """Say whether a call has anything to do; none has after an error in recording."""
        if self._state not in ("recording", "broken"):
            raise RecorderError(
                f"recorder.{call}(): the recorder is {self._state}, not recording",
                tip="with gradlens.record(...) as recorder: train in here",
            )
        return self._state == "recording"

    # --- a step: forward and backward ---------------------------------------------------------------------

    def _begin_step(self, now: float) -> None:
        """Forget the step that is over."""
        self._backward_seen = False
        self._seen = 0
        self._stepped: set[int] = set()
        self._lrs: dict[str, float | Tensor] = {}
        self._found_inf: Tensor | None = None
        self._clip = None
        self._began = now
        self._cost = 0.0

    def _arm(self) -> None:
        """Get ready for the next step: on or off with the layers' hooks, by whether it is recorded."""
        self._row_wanted = self._outputs.armed = bool(self._wanted(self._step))
        if self._row_wanted:
            self._outputs.drop_pending()  # what came late, in a step that was not recorded
            self._watch.start()
        else:
            self._watch.stop()
        learned = self._learned
        needed = learned.open or ("activation_grad_norm" in self._rhythm and (learned.compiled or self._row_wanted))
        if learned.compiled and "activation_grad_norm" not in self._rhythm:
            needed = False  # hooks break compiled code up, so it has none that is not needed
        if needed and not self._hooked:
            self._put_layer_hooks()
        elif not needed and self._hooked:
            self._remove_layer_hooks()

    def _put_layer_hooks(self) -> None:
        if not self._places:
            self._places = self._find_places()
        for place in self._places:
            place.put()
        self._hooked = True

    def _find_places(self) -> list[Place]:
        learned, outputs = self._learned, self._outputs
        if learned.open or learned.compiled:
            return [
                ForwardPlace(
                    module,
                    LearningHook(layer, outputs, self.fail, module=module, learned=learned, on_pass=self._watch.begin),
                )
                for layer, module in enumerate(self._modules.values())
            ]
        directly, left_over = self._may_place_directly, self._collect_left_over
        hooks = [
            LayerHook(layer, outputs, self.fail, on_base=layer in learned.on_base, on_left_over=left_over)
            for layer in range(len(self._modules))
        ]
        modules = self._modules.values()
        return [find_place(module, hook, directly=directly) for module, hook in zip(modules, hooks, strict=True)]

    @property
    def _may_place_directly(self) -> bool:
        """Whether no copy of a layer can run in its place: those of ``nn.DataParallel`` would call the layer itself."""
        alone = self._ranks is not None or torch.cuda.device_count() <= 1
        return alone and not self._learned.replicated

    def _collect_left_over(self) -> None:
        """Meet gradients of a backward pass whose end was not seen: it failed, or no parameter told of it."""
        if self._watch.broken_off:
            self._watch.forget()
            self._outputs.drop_pending()
        else:
            with torch.no_grad():
                self._outputs.collect(self._scaler.scale)
                self._seen = 0

    def _end_backward(self) -> None:
        if self._state == "recording":
            started = time.perf_counter()
            self._guard(self._see_backward)
            self._cost += time.perf_counter() - started

    @torch.no_grad()
    def _see_backward(self) -> None:
        if self._learned.open:
            self._learned.note_end()
        scale = self._scaler.scale
        if self._is_skipped:
            of_this_pass = self._outputs.collect_apart(scale)
            self._settle_skipped_step()
            self._outputs.parts = of_this_pass
        self._backward_seen = True
        self._scaler.begin_round()
        if not self._reads_gradients or self._gradients.looks_closely:
            self._outputs.collect(scale)
        self._seen = self._outputs.pending
        if self._reads_gradients:
            self._gradients.look(scale)

    # --- a step: the optimizer ----------------------------------------------------------------------------

    def _pre_hook(self, k: int) -> Callable[..., Any]:
        """Return what an optimizer calls before its step; a closure is wrapped, since it computes the gradient."""

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
            if self._state != "recording":
                return None
            closures = [value for value in (*args[1:], *kwargs.values()) if callable(value)]
            if not closures:
                if self._row_wanted or self._stepped:
                    self._guard(lambda: self._before_step(k, getattr(optimizer, "grad_scale", None)))
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
                self._outputs.armed = False
                self._remove_layer_hooks()
            return result

        return watched

    def _post_hook(self, k: int) -> Callable[..., None]:
        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if self._state == "recording":
                self._guard(lambda: self._after_step(k))

        return after

    @torch.no_grad()
    def _before_step(self, k: int, grad_scale: Tensor | None) -> None:
        started = time.perf_counter()
        if k in self._stepped:  # a second step of one of several optimizers: the round before is over
            self._end_round()
        if self._row_wanted:
            self._read(k, grad_scale)
        self._cost += time.perf_counter() - started

    def _read(self, k: int, grad_scale: Tensor | None) -> None:
        if self._outputs.pending != self._seen:  # by a pass whose end was not seen, so nothing is known of before
            self._gradients.forget_look()
        self._seen = 0
        if self._reads_gradients:
            scale = self._scaler.scale
            layers, grads = self._outputs.take_kept()
            norms = self._gradients.read(k, grad_scale, grads, layers)
            if layers:
                self._outputs.add(layers, norms, scale)
            if not self._stepped and self._optimizers:
                self._gradients.read_others(scale)
        self._outputs.collect(self._scaler.scale)
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
            self._table.hand_over()
            if self._weights.has_copies:
                with torch.no_grad():
                    self._weights.read_update()
            scalars = dict(self._lrs)
            if self._scaler.present:
                scalars["skipped"] = 0.0 if self._found_inf is None else self._found_inf.reshape(())
            self._close_row(scalars)
        self._advance(started)

    @property
    def _is_skipped(self) -> bool:
        """Whether the scaler skipped the step: it went through, and no optimizer stepped; known for recorded ones."""
        return self._row_wanted and self._backward_seen and not self._stepped and self._scaler.skipped

    def _settle_skipped_step(self) -> None:
        """Close the row of a step that the scaler skipped, if it did."""
        if self._is_skipped:
            self._close_skipped_row()

    @torch.no_grad()
    def _close_skipped_row(self) -> None:
        started = time.perf_counter()
        self._table.hand_over()
        self._gradients.take_as_they_were()
        if "param_norm" in self._due():
            self._weights.read(keep_copies=False)
        self._close_row({"skipped": 1.0})
        self._advance(started)

    def _advance(self, started: float) -> None:
        now = time.perf_counter()
        outputs, clock = self._outputs, self._clock
        self._cost += now - started + outputs.seconds + outputs.count * seconds_per_hook()
        if self._step > 0:
            clock.add_step(now - self._began, self._cost)
        if self._row_wanted:
            if self._table.n_rows > 1:
                clock.add_row(self._cost)
            if self._auto is not None and self._ranks is None:
                self._auto.note_row(self._step)
            self._forget()
        self._step += 1
        self._begin_step(now)
        self._arm()

    def _forget(self) -> None:
        self._outputs.clear()
        self._gradients.clear()
        self._weights.clear()

    @property
    def _reads_gradients(self) -> bool:
        return "param_grad_norm" in self._rhythm or "nonfinite_count" in self._rhythm

    def _due(self) -> list[str]:
        """List the metrics that the row in progress is to have."""
        return [name for name, every in self._rhythm.items() if self._table.n_rows % every == 0]

    # --- rows ---------------------------------------------------------------------------------------------

    def _close_row(self, scalars: dict[str, float | Tensor]) -> None:
        if self._outputs.pending:
            self._outputs.collect(self._scaler.scale)
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
        was_open = self._learned.open
        error, self._local_error = self._local_error, None
        self._table.close_row(measured, error)
        if was_open:
            self._end_learning()
        if self._table.n_rows % CHECKED_ROWS == 0:
            self._notes.look_for_changes()
            self._table.sink.write_state(self.overhead, self.notes)

    def _end_learning(self) -> None:
        """Go over from the hooks that learn to those that are quick."""
        self._remove_layer_hooks()
        self._places = []
        if not self._learned.compiled:
            spread = 0 if "activation_grad_norm" in self._rhythm else SPREAD
            self._watch.watch(self._learned.parameters_to_watch(spread))

    def _make_header(self, layers: tuple[Layer, ...]) -> Header:
        extra = {key: value for key, value in self._info.items() if key not in ("model", "seed", "config")}
        world = {} if self._ranks is None else {"world_size": self._ranks.world}
        return Header(
            layers=layers,
            metrics=self._rhythm,
            model=str(self._info.get("model", _unwrapped_name(self._model))),
            seed=-1 if self._info.get("seed") is None else int(self._info["seed"]),
            config={**self._info.get("config", {}), **extra},
            environment={**describe_environment(self._model), **world},
        )

    def _note_missing(self) -> None:
        table = self._table
        if not table.n_rows:
            return
        if "activation_grad_norm" in self._rhythm:
            last = table.last_met["activation_grad_norm"]
            self._notes.note_missing_outputs(last, table.n_rows, self._learned.called)
        if "param_grad_norm" in self._rhythm:
            self._notes.note_missing_parameters(table.last_met["param_grad_norm"])

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
        self._table.drop()
        self._notes.add(f"recording ended at step {self._step}: {line(error)}")
        try:
            self._table.sink.write_state(self.overhead, self.notes)
            self._table.sink.close("failed")
        except Exception:  # the file is what failed
            pass
        self._say(error)

    def _say(self, error: Exception) -> None:
        if self._on_error == "raise":
            raise error
        text = f"gradlens: recording ended at step {self._step}, training goes on: {line(error)}"
        warnings.warn(text, GradlensWarning, stacklevel=2)

    def _remove_layer_hooks(self) -> None:
        if self._hooked:
            for place in self._places:
                place.clear()
        self._hooked = False

    def _remove_hooks(self) -> None:
        self._outputs.armed = self._learned.open = False
        self._remove_layer_hooks()
        self._watch.stop()
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
