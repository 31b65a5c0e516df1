"""The recorder: it follows a training from ``start`` to ``close``, and writes what is recorded into the run file."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradlens.errors import ConfigError, GradlensWarning, RecorderError, RunFileError
from gradlens.format import plural
from gradlens.metrics import ACTIVATION_GRAD_NORM, DEFAULT_METRICS
from gradlens.recorder import unclosed_recorders
from gradlens.recorder.closing_notes import warn_of_no_row
from gradlens.recorder.hooks.compiled import forget_broken_code, forget_compiled_code, outside_graphs
from gradlens.recorder.layers import LayerChoice
from gradlens.recorder.notes import line
from gradlens.recorder.parts import Callbacks, make_parts
from gradlens.recorder.ranks.distributed import bare_rank, warn_of_rank
from gradlens.recorder.scalars import to_number, to_numbers
from gradlens.recorder.schedule import Every
from gradlens.recorder.unwrapping import Optimizers
from gradlens.run import Layer, Row, Status
from gradlens.sinks import NullSink, Sink
from gradlens.storage import BackgroundSink

DISABLED = "GRADLENS_DISABLED"
"""The environment variable that switches all recording off."""
OnError = Literal["warn", "raise"] | Callable[[Exception], None]


class Recorder:
    """Records one model while it trains; see ``gradlens.record`` for the arguments.

    Args:
        model: Any module.
        sink: Receives the rows.
        optimizer: See ``record``.
        metrics: Names of all metrics to record.
        every: See ``record``.
        layers: See ``record``.
        scaler: See ``record``.
        info: See ``record``.
        on_error: See ``record``.
        first_step: Index of the next optimizer step, for a resumed run.
        first_epoch: Epochs already in the file, for a resumed run.
        first_row: Rows already in the file, for a resumed run.
    """

    def __init__(
        self,
        model: nn.Module,
        sink: Sink,
        *,
        optimizer: Optimizers = None,
        metrics: Iterable[str] = DEFAULT_METRICS,
        every: Every | Mapping[str, Every] = 1,
        layers: LayerChoice = None,
        scaler: torch.amp.GradScaler | None = None,
        info: Mapping[str, Any] | None = None,
        on_error: OnError = "warn",
        first_step: int = 0,
        first_epoch: int = 0,
        first_row: int = 0,
    ) -> None:
        if on_error not in ("warn", "raise") and not callable(on_error):
            raise ConfigError(f'on_error must be "warn" or "raise", got {on_error!r}')
        self._model, self._on_error = model, on_error
        parts = make_parts(
            model,
            sink,
            optimizer=optimizer,
            metrics=metrics,
            every=every,
            layers=layers,
            scaler=scaler,
            info=dict(info or {}),
            begin=(first_step, first_epoch, first_row),
            callbacks=Callbacks(self._guard, self.fail, self._write_facts),
        )
        self._optimizers, self._modules, self._ranks = parts.optimizers, parts.modules, parts.ranks
        self._intervals, self._learned, self._notes, self._clock = (
            parts.intervals,
            parts.learned,
            parts.notes,
            parts.clock,
        )
        self._steps, self._writer, self._table, self._facts = parts.steps, parts.writer, parts.table, parts.facts
        self._state = "ready"
        self._logged, self._logged_epochs = set[str](), set[str]()
        self._at_exit = False
        self.path: Path | None = getattr(sink, "path", None)
        """The run file, if the rows go to one."""
        self.process = os.getpid()
        """The process that made the recorder, and that alone writes its file."""
        self.thread = threading.current_thread()
        """The thread that made it, or started it."""
        self.on_never_started: Callable[[], object] | None = None
        """A finalizer to be called if the recorder is collected, or closed, without having been started."""

    @classmethod
    def disabled(cls) -> Recorder:
        """Return a recorder that does nothing, whatever is called."""
        recorder = cls(nn.Linear(1, 1, device="meta"), NullSink())  # takes no random number
        recorder._state = "disabled"
        return recorder

    # --- context ------------------------------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        """Do the same as ``start``.

        Returns:
            The recorder itself.
        """
        return self.start()

    def start(self) -> Recorder:
        """Place the hooks; training is recorded from then on, until ``close``.

        Returns:
            The recorder itself.

        Raises:
            RecorderError: The recorder was used before.
            RunFileError: The file cannot be written, or somebody else is writing it.
        """
        if self._state == "disabled":
            return self
        if isinstance(self.on_never_started, weakref.finalize):
            self.on_never_started.detach()
        if self._state != "ready":
            raise RecorderError(f"this recorder is {self._state}; a recorder can be used once", tip="make a new one")
        self._state = "recording"
        if self._learned.compiled and ACTIVATION_GRAD_NORM in self._intervals:
            forget_compiled_code(self._model)
        claimed = False
        try:
            try:
                self._table.sink.claim()
            except RunFileError as error:
                rank = "" if self.path is None else bare_rank(self.path)
                if self._ranks is not None or not rank:
                    raise
                warn_of_rank(error, rank)
                self._table.sink = NullSink()
            if self._ranks is not None:
                self._ranks.connect()
            claimed = True
            self._steps.start(self._table, self._writer.write_state)
            if self._ranks is None or self._ranks.rank == 0:
                self._facts.start()
            self.thread = threading.current_thread()
            if isinstance(self._table.sink, BackgroundSink):
                self._table.sink.when_idle = weakref.WeakMethod(self._table.offer_row)
            unclosed_recorders.follow(self)
        except BaseException:
            if claimed:
                self._steps.stop()
            self._state = "closed"
            self._table.sink.close("failed")
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks and close the file as complete, interrupted (Ctrl-C) or failed (any other exception)."""
        if kind is None:
            self.close("complete")
        else:
            status, note = unclosed_recorders.describe(error if error is not None else kind())
            self.close(status, reason=note)

    def close(self, status: Status = "complete", *, reason: str = "") -> None:
        """Remove the hooks and close the file with this status; a second call does nothing.

        Ctrl-C waits until the file is closed. Where it is not called, the file is closed at the end of the interpreter.

        Args:
            status: How the run ended.
            reason: Why, as a note in the file.
        """
        if self._state in ("closed", "disabled"):
            return
        with unclosed_recorders.interrupts_held(str(self.path or "the run"), drop=status == "interrupted"):
            self._close(status, reason)

    def close_at_exit(self, status: Status, reason: str) -> None:
        """Close the file at the end of the interpreter; the hooks stay, since another thread may be calling them."""
        self._at_exit = True
        self.close(status, reason=reason)
        self._state = "broken"

    def _close(self, status: Status, reason: str) -> None:
        state = self._state
        if state == "recording" and os.getpid() != self.process and isinstance(self._table.sink, BackgroundSink):
            self._state = "broken"  # the file belongs to the process from which this one was forked
            self._steps.stop()
            self._facts.stop()
            return
        if state == "ready":
            self._state = "closed"
            if self.on_never_started is not None:
                self.on_never_started()
            return
        if state == "recording":
            if self._table.n_rows:
                self._guard(self._steps.warn_of_other_steps)
            self._guard(self._steps.end_started_round)
            state = self._state  # an error there has ended the recording
        self._state = "closed"
        if self._at_exit:
            self._steps.on = False
        else:
            self._steps.stop()
            self._facts.stop()
            forget_broken_code()
        unclosed_recorders.forget(self)
        if state != "recording":
            return
        table = self._table
        if reason:
            self._notes.add(reason)
        try:
            self._writer.end(status)
        except (KeyboardInterrupt, SystemExit):
            if isinstance(table.sink, BackgroundSink):
                table.sink.abandon(status)
            raise
        except Exception as error:
            with contextlib.suppress(Exception):
                table.sink.close("failed")
            self._report_error(error)
        finally:
            self._steps.forget()
            if self._ranks is not None and not self._table.ended:
                self._ranks.disconnect()
        if status != "failed" and not table.n_rows:
            warn_of_no_row(self._steps, self._notes, type(self._model).__name__)

    def __del__(self) -> None:
        """Let the writer's thread close the file, if the recorder is collected while it records."""
        if getattr(self, "_state", "closed") != "recording" or os.getpid() != self.process:
            return
        self._state = "closed"
        with contextlib.suppress(Exception):  # this may be at any moment, in any thread: nothing here may wait
            self._steps.stop()
            self._facts.stop()
            self._notes.add(f"ended because the recorder was garbage-collected; {unclosed_recorders.NO_CLOSE}")
            if isinstance(self._table.sink, BackgroundSink):
                self._table.leave(self.overhead, self.notes)
                self._table.sink.abandon("interrupted")

    def __repr__(self) -> str:
        if self._state == "disabled":
            return f"Recorder(disabled by the environment variable {DISABLED})"
        return (
            f"Recorder({self._state}: {type(self._model).__name__}, {plural(len(self._modules), 'layer')}, "
            f"{plural(self._table.n_rows, 'row')}, next step {self._steps.index})"
        )

    # --- what the user calls ------------------------------------------------------------------------------

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in execution order; empty before the first row."""
        return self._table.layers

    @property
    def last_row(self) -> Row | None:
        """The row that was closed last; reading it waits for the device if its numbers are still there.

        None before the first row, and from ``log_epoch`` to the next row.
        """
        found: list[Row | None] = []
        self._guard(lambda: found.append(self._table.last_row))
        return found[0] if found else None

    @property
    def has_failed(self) -> bool:
        """Whether an error has ended the recording, or will end it at the next row, where all ranks learn of it."""
        return self._state == "broken" or self._steps.rows.local_error is not None

    @property
    def counts(self) -> tuple[int, int]:
        """Rows closed and optimizer steps counted, including those before a resume."""
        return self._table.n_rows, self._steps.index

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return what the metrics remember from earlier rows, to be kept with a training's checkpoint.

        Without it a resumed recording begins anew: ``dead_fraction`` is NaN until its window is full again.

        Returns:
            Name of what measures to its tensors, on the CPU.
        """
        found = {type(each).__name__: each.state_dict() for each in self._steps.measuring.measurers}
        return {name: state for name, state in found.items() if state}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Remember what ``state_dict`` of an earlier recording returned.

        Args:
            state: Its result; layers that this model has not are passed over.
        """
        for each in self._steps.measuring.measurers:
            each.load_state_dict(state.get(type(each).__name__, {}))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing in the run, and why; stored in the file."""
        return self._notes.texts

    def note(self, text: str) -> None:
        """Add a sentence to the notes."""
        self._notes.add(text)

    @property
    def overhead(self) -> float:
        """The recorder's own time divided by the time of the steps without it; NaN before the second step.

        See ``gradlens.recorder.schedule.Clock`` for what is measured.
        """
        return self._clock.overhead

    @outside_graphs
    def log(self, **scalars: float | Tensor) -> None:
        """Add scalars (loss=...) to the step whose backward pass they follow.

        While a step is being accumulated they go into its row; after the optimizer's step and before the next backward
        pass into the row just closed. Several values of one name in one step are averaged. Values of a step that is not
        recorded are dropped. Those that follow a backward pass which is discarded later go into the row before it, if
        that has no value of this name. After ``log_epoch``, which writes the row, a warning says that they are lost.

        Args:
            scalars: Numbers or tensors of one element. The call does not wait for tensors on an accelerator. A "/" in
                a name becomes a "." in the file.

        Raises:
            RecorderError: A value is not a single number, a name is not one of the file, or the recorder is not
                recording. The other values are logged.
        """
        if not self._is_recording("log"):
            return
        numbers, error = to_numbers(scalars, self._logged)
        self._facts.log({name: scalars[name] for name in scalars if name in numbers} if error else scalars)
        self._steps.log(numbers)
        if error is not None:
            raise error

    def log_epoch(self, **values: float | Tensor) -> None:
        """Add a row to the table of epochs: epoch, train_loss, train_accuracy, val_loss, val_accuracy, ...

        When it returns, everything recorded so far is in the file. An epoch logged before the first row is written
        together with that row.

        Args:
            values: As in ``log``.

        Raises:
            RecorderError: As in ``log``.
        """
        if not self._is_recording("log_epoch"):
            return
        found, error = to_numbers(values, self._logged_epochs, reserved=())
        numbers = {name: float(value) for name, value in found.items()}
        self._guard(lambda: self._write_epoch(numbers))
        if error is not None:
            raise error

    def _write_epoch(self, numbers: Mapping[str, float]) -> None:
        self._steps.settle_skipped()
        self._steps.rows.epoch += 1
        self._writer.write_epoch(numbers)

    def _write_facts(self, facts: Mapping[str, Any]) -> None:
        if self._state == "recording":
            self._guard(lambda: self._writer.write_facts(facts))

    @outside_graphs
    def step(self, **scalars: float | Tensor) -> None:
        """Close a row where no optimizer was given; call it after the backward pass, before gradients are cleared.

        Args:
            scalars: As in ``log``.

        Raises:
            RecorderError: An optimizer was given, whose steps close the rows; or the recorder is not recording.
        """
        if not self._is_recording("step"):
            return
        if self._optimizers:
            raise RecorderError("recorder.step() is for loops without optimizer=; here optimizer.step() closes rows")
        self._facts.step_by_hand()
        self._steps.step_by_hand()
        self.log(**scalars)

    @outside_graphs
    def clipped(self, coefficient: float | Tensor) -> None:
        """Report by how much the gradients of the step in progress were clipped; call it before ``optimizer.step()``.

        It is seldom needed: the recorder sees any change between ``backward()`` and ``optimizer.step()``. It does not
        see a change within either of them, such as an optimizer that clips inside its own ``step``.

        Args:
            coefficient: Norm after clipping divided by norm before.

        Raises:
            RecorderError: The coefficient is not a single number, or the recorder is not recording.
        """
        if self._is_recording("clipped"):
            self._steps.clipped(to_number("coefficient", coefficient))

    def _is_recording(self, call: str) -> bool:
        """Return whether the recorder is recording; False after an error has ended it, or where it is disabled."""
        if self._at_exit:  # another thread still trains
            return False
        if self._state not in ("recording", "broken", "disabled"):
            raise RecorderError(
                f"recorder.{call}(): the recorder is {self._state}, not recording",
                tip="with gradlens.record(...) as recorder: train in here; or recorder.start()",
            )
        return self._state == "recording"

    # --- errors -------------------------------------------------------------------------------------------

    def _guard(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Handle an error in recording: end the recording, and raise the error only if ``on_error`` is "raise".

        With several ranks, the error is kept, and all of them end the recording together at the next row.

        Args:
            error: The error.
        """
        if self._state != "recording":
            return
        if self._ranks is not None and not self._table.ended:
            self._steps.rows.local_error = self._steps.rows.local_error or error
            return
        self._state = "broken"
        self._steps.stop_following()
        self._steps.forget()
        self._table.drop()
        self._notes.add(f"recording ended at step {self._steps.index}: {line(error)}")
        with contextlib.suppress(Exception):  # the file itself may have failed
            self._table.sink.write_state(self.overhead, self.notes)
            if self._ranks is not None:
                self._table.sink.write_facts(self._writer.find_facts())
        with contextlib.suppress(Exception):
            self._table.sink.close("failed")
        self._report_error(error)

    def _report_error(self, error: Exception) -> None:
        if callable(self._on_error):
            self._on_error(error)
            return
        if self._on_error == "raise":
            raise error
        text = f"gradlens: recording ended at step {self._steps.index}, training goes on: {line(error)}"
        warnings.warn(text, GradlensWarning, stacklevel=2)
