"""The optimizer steps of a training: when gradients are read, and when a row is closed.

A step is recorded if the rule ``wanted`` says so when the step begins (``row_wanted``). "Round" is the sequence of one
step by each optimizer; with one optimizer a round is one step.

=========================  ==========================================================================================
Event                      What happens
=========================  ==========================================================================================
Step begins                Decide ``row_wanted``. If True: hook the layers, and the calls that due metrics need.
                           If False: remove those hooks, except while the first row is not closed or the model is
                           compiled; those hooks then take no gradient.
Backward pass begins       At the first gradient that a hook sees in a recorded step: ask autograd for a call at the
                           end of the pass. If passes are distinguished (in the first row, where calls are watched, or
                           after a suspicious pass): remember the parameters' gradients.
Forward pass with          If the pass is known to have failed: drop its gradients. Otherwise: add them to the step.
gradients left over
Backward pass ends         If passes are distinguished and this one changed no parameter's gradient: set its gradients
(recorded steps)           aside until the row is closed. Otherwise: first close the row of a step that the GradScaler
                           skipped; then count the pass, and check the parameters' gradients, so that a later change
                           (clipping) is detected. Compiled autograd hides the end of a pass: nothing happens.
Gradients are cleared      Nothing; no hook sees it. The reading before the optimizer step takes what is there.
GradScaler skips a step    Nothing at once: the optimizer is not called. The row of the skipped step is closed at the
                           end of the next backward pass, or at ``log``, ``log_epoch`` or ``close``. A skipped step
                           that is not recorded is not counted. (A fused optimizer is called, and skips by itself;
                           its row is closed like any other.)
Before an optimizer step   If this optimizer has stepped in this round: end the round. If the step is recorded: read
                           the gradients of its parameters and of the outputs, the learning rate, and the weights if
                           they are due.
Closure returns            The first time in an optimizer step: as before an optimizer step; then remove the hooks on
                           layers, so that later evaluations of the closure are not recorded.
After an optimizer step    If every optimizer has stepped: end the round. Otherwise: put back the hooks that a closure
                           removed.
Round ends                 If recorded: hand the previous row to the sink, read the weights' update if due, close the
                           row; with several ranks, combine it. In any case: count the step; the next step begins.
``step()`` by hand         As before an optimizer step and after it; each call ends a round.
``log``                    Close the row of a skipped step. If the last step was recorded: add the scalars to its row.
``log_epoch``              Close the row of a skipped step; count the epoch; write the last row and the epoch. Before
                           the first row, the epoch waits.
Error in recording         Stop following steps; drop open rows; close the file as failed. With several ranks: keep the
                           error until the round ends, where all ranks end the recording.
``close``                  Close the row of a skipped step; remove all hooks; write the last row, notes and epochs;
                           release all tensors. A step in progress is dropped.
=========================  ==========================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradlens.recorder.activations import CallWatch
from gradlens.recorder.distributed import Ranks
from gradlens.recorder.hooks.backward_pass import BackwardWatch
from gradlens.recorder.hooks.grad_scaler import ScalerWatch
from gradlens.recorder.hooks.hook_cost import seconds_per_hook
from gradlens.recorder.hooks.loss_passes import Passes
from gradlens.recorder.hooks.optimizer_steps import place_step_hooks
from gradlens.recorder.hooks.placement import LayerHooks
from gradlens.recorder.layers import Learned, Pass, own_parameters, spread_out
from gradlens.recorder.measured_row import MeasuredRow, Part
from gradlens.recorder.notes import Notes
from gradlens.recorder.output_gradients import OutputGradients
from gradlens.recorder.parameters import Owners, ParameterGradients, Weights, group_by_optimizer
from gradlens.recorder.pending_rows import Table
from gradlens.recorder.ratios import CHANGE, addends
from gradlens.recorder.scalars import Scalar, to_number
from gradlens.recorder.schedule import AutoEvery, Clock
from gradlens.run import Status

SPREAD = 16
"""Number of parameters with a hook that detects backward passes, where gradients of outputs do not show them."""

FIRST_SPREAD = 4
"""The same in the first row, where the hooks on layers detect passes too, except in code compiled earlier."""
MANY_ROWS = 64
"""Rows from one write of notes and overhead to the next, in runs that log no epochs."""


class Steps:
    """Follows the steps of a training, and closes a row in the table for each recorded step.

    Args:
        model: The model.
        modules: Layer names to modules.
        optimizers: A step ends when each of them has stepped, or when one is about to step again; without any, it ends
            with ``step_by_hand``.
        scaler: Observes the GradScaler.
        intervals: Metric to its interval in rows.
        learned: What the first row shows about the layers.
        wanted: Returns whether a step is recorded.
        clock: Measures the recorder's own time.
        ranks: The processes that record together.
        notes: Collects the notes of the run.
        guard: Calls a function and handles its errors.
        on_error: Is called with an error in a hook.
        first_step: Index of the next optimizer step.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        optimizers: Sequence[Optimizer],
        scaler: ScalerWatch,
        intervals: Mapping[str, int],
        learned: Learned,
        wanted: Callable[[int], bool],
        clock: Clock,
        ranks: Ranks | None,
        notes: Notes,
        guard: Callable[[Callable[[], None]], None],
        on_error: Callable[[Exception], None],
        first_step: int,
    ) -> None:
        self.on = False
        """Whether steps are followed."""
        self.index = first_step
        """Index of the step in progress."""
        self.epoch = 0
        """Epochs done."""
        self.row_wanted = False
        """Whether the step in progress is recorded."""
        self.clip: Scalar | None = None
        """The clip coefficient of the step in progress that the user reported."""
        self.cost = 0.0
        """Seconds that the recorder took in the step in progress, without the hooks on layers."""
        self.local_error: Exception | None = None
        """An error on this rank in the step in progress; all ranks end recording when its row is closed."""

        self._optimizers, self._scaler, self._intervals, self._learned = optimizers, scaler, intervals, learned
        self._wanted, self._clock, self._ranks, self._notes, self._guard = wanted, clock, ranks, notes, guard
        self._auto = wanted if isinstance(wanted, AutoEvery) and ranks is None else None
        self._outputs = OutputGradients(len(modules))
        self._own = [[p for p in own_parameters(m) if ranks is None or ranks.reads(p)] for m in modules.values()]
        self._group_sizes = self._count_groups()
        count = "nonfinite_count" in intervals
        self.gradients = ParameterGradients(self._find_owners(), count_nonfinite=count, always_early=scaler.present)
        self._weights = Weights(group_by_optimizer(self._own, ())[0])
        self._passes = Passes(model)
        self._reads_gradients = "param_grad_norm" in intervals or count
        self._watch = BackwardWatch(self._begin_backward, self._end_backward)
        self._hooks = LayerHooks(
            modules,
            self._outputs,
            learned,
            ranks,
            on_error,
            on_pass=self._watch.begin,
            on_left_over=self._collect_left_over,
        )
        self._calls = CallWatch(model, modules, intervals, learned, on_error, self._watch.begin)
        self._handles: list[Any] = []
        self._forget_step(time.perf_counter())

    def _count_groups(self) -> list[int]:
        return [len(group["params"]) for optimizer in self._optimizers for group in optimizer.param_groups]

    def _find_owners(self) -> list[Owners]:
        groups = [{id(p) for group in o.param_groups for p in group["params"]} for o in self._optimizers]
        return group_by_optimizer(self._own, groups)

    def _follow_groups(self) -> None:
        """Handle parameters that an optimizer has got since (``add_param_group``)."""
        sizes = self._count_groups()
        if sizes != self._group_sizes:
            self._group_sizes = sizes
            self.gradients.set_owners(self._find_owners())

    def start(self, table: Table, on_many_rows: Callable[[], None]) -> None:
        """Place the hooks.

        Args:
            table: Takes the rows.
            on_many_rows: Called after every ``MANY_ROWS`` rows.
        """
        self.on = True
        self._table, self._on_many_rows = table, on_many_rows
        seconds_per_hook()
        self._handles = place_step_hooks(self._optimizers, self._on_step, self._on_closure, self._on_stepped)
        spread = SPREAD if self._learned.compiled else FIRST_SPREAD
        self._watch.watch(spread_out([p for p in self.gradients.parameters if p.requires_grad], spread))
        self._forget_step(time.perf_counter())
        self._arm()

    def stop_following(self) -> None:
        """Follow no more steps, but leave the hooks on optimizers: one may be calling them at this moment."""
        self.on = self._outputs.armed = self._learned.open = False
        self._hooks.remove()
        self._calls.arm(())
        self._watch.stop()

    def stop(self) -> None:
        """Remove the hooks."""
        self.stop_following()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forget(self) -> None:
        """Release every tensor."""
        self._outputs.clear()
        self._calls.clear()
        self.gradients.clear()
        self._weights.clear()

    def step_by_hand(self) -> None:
        """Read the gradients and close the row, where no optimizer was given."""
        self._guard(lambda: self._before_step(0, None))
        if self.on:
            self._guard(lambda: self._after_step(0))

    # --- from step to step --------------------------------------------------------------------------------

    def _forget_step(self, now: float) -> None:
        """Reset the state of a step."""
        self._backward_seen = False
        self._seen = self._silent = 0
        self._aside: list[Part] = []
        self._learned_aside: list[Pass] = []
        self._watch.nested = False
        self._stepped: set[int] = set()
        self._lrs: dict[str, Scalar] = {}
        self._found_inf: Tensor | None = None
        self.clip = None
        self._began = now
        self.cost = 0.0

    def _arm(self) -> None:
        """Prepare the next step: place the layers' hooks if it is recorded, else remove them."""
        self.row_wanted = self._outputs.armed = bool(self._wanted(self.index))
        if self.row_wanted:
            self._outputs.clear()  # gradients that came in a step that was not recorded
            self._calls.clear()
            self._watch.start()
        else:
            self._watch.stop()
        self._calls.arm(self._due() if self.row_wanted else ())
        learned = self._learned
        needed = learned.open or ("activation_grad_norm" in self._intervals and (learned.compiled or self.row_wanted))
        if learned.compiled and "activation_grad_norm" not in self._intervals:
            needed = False  # hooks break compiled code into parts, so place only those that are needed
        if needed:
            self._hooks.put()
        else:
            self._hooks.remove()

    def _advance(self, started: float) -> None:
        now = time.perf_counter()
        outputs, clock = self._outputs, self._clock
        self.cost += now - started + outputs.seconds + outputs.count * seconds_per_hook()
        if self.index > 0:
            clock.add_step(now - self._began, self.cost)
        if self.row_wanted:
            if self._table.n_rows > 1:
                clock.add_row(self.cost)
            if self._auto is not None:
                self._auto.note_row(self.index)
            self.forget()
        self.index += 1
        self._forget_step(now)
        self._arm()

    # --- the backward pass --------------------------------------------------------------------------------

    def _collect_left_over(self) -> None:
        """Handle gradients of a backward pass whose end was not detected: it failed, or had no watched parameter."""
        if self._watch.broken_off:
            self._watch.forget()
            self._outputs.drop_pending()
            self._calls.take_pass()
        else:
            with torch.no_grad():
                self._outputs.collect(self._scaler.scale)
                self._seen = 0

    def _end_backward(self) -> None:
        if self.on:
            started = time.perf_counter()
            self._guard(self._handle_backward_end)
            self.cost += time.perf_counter() - started

    @torch.no_grad()
    def _handle_backward_end(self) -> None:
        scale = self._scaler.scale
        taken = self._outputs.pending - self._seen
        seen = taken or self._calls.pending
        if seen and self._distinguishes_passes and not self._watch.nested and self._passes.left_gradients_unchanged():
            self._set_aside(scale)
            return
        if self._passes.is_suspicious(taken, learning=self._learned.open) and not self._learned.stays_on:
            self._learned.stays_on = True
            self._hooks.renew()
            self._hooks.put()
        self._follow_groups()
        if self._is_skipped:
            of_this_pass, calls = self._outputs.collect_apart(scale), self._calls.take_pass()
            self._learned.take_pass()
            self.settle_skipped()
            if not self.row_wanted:  # the pass belongs to the next step, which is not recorded
                return
            self._outputs.parts = of_this_pass
            self._calls.add_pass(calls)
        if self._learned.open:
            self._learned.note_end()
        self._calls.add_pass()
        self._backward_seen = True
        self._silent += taken == 0
        self._scaler.begin_round()
        if not self._reads_gradients or self.gradients.reads_early or self._distinguishes_passes:
            self._outputs.collect(scale)
        self._seen = self._outputs.pending
        if self._reads_gradients:
            self.gradients.look(scale)

    @property
    def _distinguishes_passes(self) -> bool:
        """Whether passes that reach no parameter are distinguished; the end of each pass is then detected."""
        return self._learned.open or self._learned.stays_on or self._calls.on

    def _begin_backward(self) -> None:
        if self._distinguishes_passes:
            self._passes.begin()

    def _set_aside(self, scale: Tensor | None) -> None:
        """Set aside the gradients of a pass that changed no parameter's gradient: it may not be a pass of the loss."""
        self._aside += self._outputs.collect_apart(scale)
        self._calls.set_aside()
        self._learned_aside.append(self._learned.take_pass())
        self._seen = 0

    def _settle_aside(self) -> None:
        """Count the passes set aside only if no other pass of the step reached parameters."""
        self._calls.settle_aside(counts=not self._backward_seen)
        if self._aside and self._backward_seen:
            self._learned.stays_on = self._passes.others_seen = True
            self._notes.note_inner_passes(self._table.n_rows)
        elif self._aside:
            self._outputs.parts += self._aside
            for taken in self._learned_aside:
                self._learned.add_pass(taken)
        if self._learned.stays_on and self._passes.end_row():
            self._learned.stays_on = False
            self._hooks.renew()

    # --- the optimizer ------------------------------------------------------------------------------------

    def _on_step(self, k: int, optimizer: Optimizer) -> None:
        if self.on and (self.row_wanted or self._stepped):
            self._guard(lambda: self._before_step(k, getattr(optimizer, "grad_scale", None)))

    def _on_closure(self, k: int) -> None:
        """Read the gradients after the first call of a closure; later calls in the same step are not recorded."""
        if self.on:
            self._guard(lambda: self._before_step(k, None))
            self._outputs.armed = False
            self._hooks.remove()
            self._calls.remove()

    def _on_stepped(self, k: int) -> None:
        if self.on:
            self._guard(lambda: self._after_step(k))

    @torch.no_grad()
    def _before_step(self, k: int, grad_scale: Tensor | None) -> None:
        started = time.perf_counter()
        if k in self._stepped:  # this optimizer steps a second time, so the previous round is over
            self._end_round()
        if self.row_wanted:
            self._read(k, grad_scale)
        self.cost += time.perf_counter() - started

    def _read(self, k: int, grad_scale: Tensor | None) -> None:
        self._follow_groups()
        if self._outputs.pending != self._seen:  # a pass whose end was not detected: the last reading is outdated
            self.gradients.forget_early_reading()
        self._seen = 0
        if self._reads_gradients:
            scale = self._scaler.scale
            layers, grads = self._outputs.take_kept()
            norms = self.gradients.read(k, grad_scale, grads, layers)
            if layers:
                self._outputs.add(layers, norms, scale)
            if not self._stepped and self._optimizers:
                self.gradients.read_others(scale)
        self._outputs.collect(self._scaler.scale)
        due = self._due()
        if not self._weights.was_read and ("param_norm" in due or "update_ratio" in due):
            self._weights.read(keep_copies="update_ratio" in due)
        if self._optimizers:
            optimizer = self._optimizers[k]
            name = "lr" if k == 0 else f"lr_{k + 1}"
            self._lrs[name] = to_number(name, optimizer.param_groups[0]["lr"])
            found_inf = getattr(optimizer, "found_inf", None)
            self._found_inf = found_inf.detach().clone() if isinstance(found_inf, Tensor) else None

    def _after_step(self, k: int) -> None:
        self._stepped.add(k)
        if len(self._stepped) >= len(self._optimizers):
            self._end_round()
        elif self.row_wanted and not self._outputs.armed:  # a closure has returned, and the hooks were removed
            self._outputs.armed = True
            self._calls.arm(self._due())
            if "activation_grad_norm" in self._intervals:
                self._hooks.put()

    def _end_round(self) -> None:
        """Close the row and begin the next step."""
        started = time.perf_counter()
        if self.row_wanted:
            self._run_part(self._table.hand_over)
            if self._weights.has_copies:
                self._run_part(torch.no_grad()(self._weights.read_update))
            scalars = dict(self._lrs)
            if self._scaler.present:
                scalars["skipped"] = 0.0 if self._found_inf is None else self._found_inf.reshape(())
            self._run_part(lambda: self._close_row(scalars))
            if self._ranks is not None:
                self._combine_ranks()
        self._advance(started)

    # --- a step that the scaler skips -----------------------------------------------------------------------

    @property
    def _is_skipped(self) -> bool:
        """Whether the scaler skipped the recorded step: its ``step`` was called, and no optimizer stepped."""
        return self.row_wanted and self._backward_seen and not self._stepped and self._scaler.skipped

    def settle_skipped(self) -> None:
        """Close the row of the step in progress if the scaler skipped it."""
        if self._is_skipped:
            self._close_skipped_row()

    @torch.no_grad()
    def _close_skipped_row(self) -> None:
        started = time.perf_counter()
        self._run_part(self._table.hand_over)
        self.gradients.use_early_reading()
        if "param_norm" in self._due():
            self._run_part(lambda: self._weights.read(keep_copies=False))
        self._run_part(lambda: self._close_row({"skipped": 1.0}))
        self._advance(started)

    # --- rows ---------------------------------------------------------------------------------------------

    def _due(self) -> list[str]:
        """Return the metrics that the row in progress will have."""
        return [name for name, every in self._intervals.items() if self._table.n_rows % every == 0]

    def _close_row(self, scalars: dict[str, Scalar]) -> None:
        if self._outputs.pending:
            self._outputs.collect(self._scaler.scale)
        self._settle_aside()
        self._calls.add_pass()
        parts: dict[str, list[Part]] = {
            "activation_grad_norm": self._outputs_of_all_passes,
            "param_grad_norm": self.gradients.parts,
            "nonfinite_count": self.gradients.count_parts,
            "param_norm": [] if self._weights.norms is None else [self._weights.norms],
            CHANGE: [] if self._weights.changes is None else [self._weights.changes],
            **self._calls.parts(self._scaler.scale),
        }
        if self.clip is not None:
            scalars["clip_coefficient"] = self.clip
        due = self._due()
        wanted = addends(due)
        measured = MeasuredRow(
            self.index,
            self.epoch,
            due,
            {name: found for name, found in parts.items() if found and name in wanted},
            scalars,
            self.gradients.parts_before,
            self.gradients.parts if self.gradients.parts_before else [],
        )
        self.gradients.end_row()
        if self._watch.missed_compiled_pass:
            self._notes.note_compiled_backward(scaled=self._scaler.present)
        was_open = self._learned.open
        self._table.close_row(measured)
        if was_open:
            self._end_learning()
        if self._table.n_rows % MANY_ROWS == 0:
            self._on_many_rows()

    @property
    def _outputs_of_all_passes(self) -> list[Part]:
        """The gradients of outputs; none if compiled code without hooks ran in some of the passes."""
        parts = self._outputs.parts
        if parts and self._silent and self._learned.compiled:
            self._notes.warn_of_silent_passes()
            return []
        return parts

    def _end_learning(self) -> None:
        """Replace the learning hooks by the faster ones."""
        self._hooks.renew()
        if not self._learned.called and "activation_grad_norm" in self._intervals:
            self._notes.warn_of_no_hook()
        spread = 0 if "activation_grad_norm" in self._intervals else SPREAD
        to_watch = [] if self._learned.compiled else self._learned.parameters_to_watch(spread)
        if to_watch:
            self._watch.watch(to_watch)

    # --- several ranks --------------------------------------------------------------------------------------

    def _run_part(self, act: Callable[[], None]) -> None:
        """Run a part of closing a row; with several ranks, keep an error, so that this rank joins the collective."""
        if self._ranks is None:
            act()
        else:
            self._guard(act)

    def _combine_ranks(self) -> None:
        """Combine the row just closed with those of the other ranks."""
        error, self.local_error = self.local_error, None
        try:
            self._table.combine_ranks(error)
        except Exception as failure:
            if self._table.ended:
                raise
            self.local_error = failure

    def end_with_others(self, status: Status) -> None:
        """Combine the rows that wait for other ranks, if the run is complete on all of them.

        Args:
            status: How the run ended on this rank.

        Raises:
            Exception: The error on this rank; a RecorderError if it was on another.
        """
        self._table.hand_over()
        if status == "complete":
            self._table.combine_ranks_at_end(self.local_error)
        if self.local_error is not None:
            raise self.local_error
