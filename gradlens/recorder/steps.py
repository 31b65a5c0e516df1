"""The optimizer steps of a training: which backward passes belong to a step, and when a row is closed.

A step is recorded if the rule ``wanted`` says so when the step begins. A *round* is one step by each optimizer; with
one optimizer a round is one step. What is known of the step in progress is a ``StepState``, made anew for each step;
what is known of a backward pass is a ``BackwardPass``. A pass belongs to the row of the step in which an optimizer got
its parameter gradients, layer by layer. A pass whose gradients were all cleared before then is *discarded*: it belongs
to no row.

=========================  ==========================================================================================
Event                      What happens
=========================  ==========================================================================================
Step begins                Make the state. If recorded: hook the layers, and the calls that due metrics need. If not:
                           remove those hooks, except while the first row is not closed or the model is compiled.
Backward pass begins       First close what is due: the row of a step that the GradScaler skipped; a round of
                           optimizers that step in turn. Then find which gradients were cleared since the last pass
                           ended: passes of which nothing is left are discarded. Then remember the states of all
                           gradients. (A pass is noticed at its first gradient of an output of a layer that was the
                           first in an earlier pass, else at one of a few parameters.)
Forward pass with          If a pass failed: drop its gradients. Otherwise: they are of the last pass, or of one whose
gradients left over        end was not detected, which belongs to the row unless all gradients are cleared.
Backward pass ends         Drop it if the row of its step was closed while it ran, or the step is not recorded. If it
                           changed no parameter's gradient it is an inner pass, which counts only if no other pass does.
                           Otherwise: add it to the state, and look at the gradients, to detect clipping later.
                           Compiled autograd hides the end of a pass: nothing happens.
Gradients are cleared      Nothing; it is seen when the next pass begins, or before an optimizer's step.
GradScaler skips a step    Nothing at once: the optimizer is not called. The row of the skipped step is closed when the
                           next pass begins, or at ``log``, ``log_epoch`` or ``close``. A skipped step that is not
                           recorded is not counted. (A fused optimizer is called, and skips by itself.)
Before an optimizer step   If it has stepped in this round: end the round; from then on optimizers *step in turn*.
                           (Those that share parameters do from the start, and one ends the round of another.) If the
                           step is recorded: find what was cleared; read the gradients of its parameters, the
                           learning rate, and the weights if they are due; its passes are used.
Closure returns            The first time in an optimizer step: as before an optimizer step; then remove the hooks on
                           layers, so that later evaluations of the closure are not recorded.
After an optimizer step    If every optimizer has stepped: end the round. Otherwise: put back the hooks that a closure
                           removed.
Round ends                 If recorded: hand the previous row to the sink, read the weights' update if due, close the
                           row; with several ranks, combine it. In any case: count the step; the next step begins, with
                           the passes that another optimizer may still use.
``step()`` by hand         As before an optimizer step and after it; each call ends a round.
``log``                    Close the row of a skipped step. If a pass has begun in this step, or an optimizer has
                           stepped with one of the step before: the values belong to it, and so to the row of the step
                           that uses it. Otherwise: to the row just closed. Before the first pass of all: to the first
                           row, with a warning.
``log_epoch``              Close the row of a skipped step; count the epoch; write the last row and the epoch. Before
                           the first row, the epoch waits.
Error in recording         Stop following steps; drop open rows; close the file as failed. With several ranks: keep the
                           error until the round ends, where all ranks end the recording.
``close``                  Close the row of a skipped step, and of a round in which some optimizer has stepped; remove
                           all hooks; write the last row, notes and epochs; release all tensors.
=========================  ==========================================================================================
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradlens.recorder.hooks.backward_pass import BackwardWatch
from gradlens.recorder.hooks.grad_scaler import ScalerWatch
from gradlens.recorder.hooks.hook_cost import seconds_per_hook
from gradlens.recorder.hooks.other_steps import OtherSteps
from gradlens.recorder.intervals import Intervals
from gradlens.recorder.layers import Learned
from gradlens.recorder.logged_values import LoggedValues
from gradlens.recorder.measuring import Measuring
from gradlens.recorder.notes import Notes
from gradlens.recorder.optimizer_calls import OptimizerCalls
from gradlens.recorder.passes import Passes
from gradlens.recorder.pending_rows import Table
from gradlens.recorder.pipeline_steps import PipelineSteps
from gradlens.recorder.ranks.distributed import Ranks
from gradlens.recorder.rows import Rows
from gradlens.recorder.scalars import Scalar
from gradlens.recorder.schedule import AutoEvery, Clock
from gradlens.recorder.step_reading import StepReader
from gradlens.recorder.step_state import BackwardPass, StepState

MANY_PASSES = 20
"""Backward passes before the first row after which a warning says that no optimizer has stepped."""
SOME_PASSES = 3
"""Backward passes of one step after which steps of other optimizers are counted."""


class Steps:
    """Follows the steps of a training, and closes a row in the table for each recorded step.

    Args:
        model: The model.
        modules: Layer names to modules.
        optimizers: A step ends when each of them has stepped, or when one is about to step again; without any, it ends
            with ``step_by_hand``.
        wrappers: Optimizers that call the step of another one in their own, each with the index of that.
        scaler: Observes the GradScaler.
        intervals: Which metrics a row has.
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
        wrappers: Sequence[tuple[int, Optimizer]],
        scaler: ScalerWatch,
        intervals: Intervals,
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
        self.steps_seen = 0
        """Steps that were ended."""
        self.cleared_steps = 0
        """Calls of ``step()`` by hand that found the gradients cleared."""
        self.state = StepState(first_step, False, time.perf_counter())
        """The step in progress."""
        self._in_turn = False
        """Whether the optimizers step in turn: one has stepped twice before another stepped at all, or they share
        parameters."""

        self.optimizers, self._scaler, self._learned = optimizers, scaler, learned
        self._wanted, self._clock, self._notes, self._guard = wanted, clock, notes, guard
        self._alone = ranks is None
        self._auto = wanted if isinstance(wanted, AutoEvery) and self._alone else None
        self._watch = BackwardWatch(self._begin_backward, self._end_backward)
        self.measuring = Measuring(
            model,
            modules,
            optimizers=optimizers,
            scaler=scaler,
            intervals=intervals,
            learned=learned,
            ranks=ranks,
            watch=self._watch,
            on_error=on_error,
            on_left_over=self._collect_left_over,
        )
        self.passes = Passes(self.measuring, notes, self.state)
        self._sharing = self.measuring.find_sharing()
        self.rows = Rows(self.measuring, notes, ranks, guard)
        self._reader = StepReader(optimizers, self.measuring, self.passes, self.rows, scaler, notes, alone=self._alone)
        self._values = LoggedValues(self.passes, notes)
        self._other_steps = OtherSteps(model, [*optimizers, *(wrapper for _, wrapper in wrappers)])
        self._pipeline = PipelineSteps(model, self.passes, self.measuring, self.rows, notes, guard, lambda: self.on)
        self._calls = OptimizerCalls(
            optimizers, wrappers, before=self._on_step, closure=self._on_closure, after=self._on_stepped
        )

    @property
    def index(self) -> int:
        """Index of the step in progress."""
        return self.state.index

    def start(self, table: Table, on_many_rows: Callable[[], None]) -> None:
        """Place the hooks.

        Args:
            table: Takes the rows.
            on_many_rows: See ``Rows``.
        """
        self.on = True
        self._table = self.passes.table = table
        self.passes.start()
        self.rows.open(table, on_many_rows)
        seconds_per_hook()
        if self._sharing:
            self._in_turn = True
            self._notes.note_in_turn(self._table.n_rows, shared=True)
        self._calls.place()
        self._pipeline.start()
        self.measuring.watch_first()
        self._begin_step(self.index)

    def stop_following(self) -> None:
        """Follow no more steps, but leave the hooks on optimizers: one may be calling them at this moment."""
        self.on = False
        self.measuring.stop()

    def stop(self) -> None:
        """Remove the hooks."""
        self.stop_following()
        self._other_steps.end()
        self._pipeline.remove()
        self._calls.remove()

    def forget(self) -> None:
        """Release every tensor."""
        self.measuring.clear()
        self.passes.forget()

    def warn_of_other_steps(self) -> None:
        """Warn of steps of another optimizer since the last row, if there were several."""
        if self._other_steps.count > 1:
            self._notes.warn_of_other_steps(self._other_steps.name, self.optimizers, self._table.n_rows)

    def step_by_hand(self) -> None:
        """Read the gradients and close the row, where no optimizer was given."""
        self._guard(lambda: self._before_step(0, None))
        state = self.state
        if self.on and state.wanted and state.discarded and not (state.passes or state.inner):
            self._guard(self._drop_cleared_row)
        if self.on:
            self._guard(lambda: self._after_step(0))

    def _drop_cleared_row(self) -> None:
        """Have no row of a step whose gradients were cleared before they could be read."""
        self._notes.warn_of_cleared_step()
        self.cleared_steps += 1
        self.measuring.gradients.end_row()
        self.forget()
        self.state.wanted = False

    def end_started_round(self) -> None:
        """Close the row in progress, at the end of the run, if it is sure to be a step."""
        self.settle_skipped()
        if self.state.stepped and self._alone:
            self._end_round()

    def clipped(self, coefficient: Scalar) -> None:
        """Note the clip coefficient of the step in progress."""
        self.state.clip = coefficient

    def log(self, values: Mapping[str, Scalar]) -> None:
        """Add scalars to the step whose backward pass they follow.

        Args:
            values: Name to number.
        """
        started = time.perf_counter()
        if self.state.wanted:
            self._guard(self.settle_skipped)
        self._values.add(values, first=self.steps_seen == 0)
        self.state.cost += time.perf_counter() - started

    # --- from step to step --------------------------------------------------------------------------------

    def _begin_step(self, index: int, now: float | None = None, passes: Sequence[BackwardPass] = ()) -> None:
        """Make the state of a step, and place or remove hooks.

        Args:
            index: Its index.
            now: The time.
            passes: Passes of the step before that an optimizer may still use.
        """
        now = time.perf_counter() if now is None else now
        wanted = bool(self._wanted(index))
        self.state = self.passes.state = StepState(index, wanted, now, list(passes) if wanted else [])
        self._watch.nested = False
        measuring = self.measuring
        measuring.outputs.armed = wanted
        if wanted:
            measuring.outputs.clear()  # gradients that came in a step that was not recorded
            for measurer in measuring.measurers:
                measurer.clear()
        if wanted or self._table.last_step == index - 1:  # ``log`` must know whether a pass has begun
            self._watch.start()
        else:
            self._watch.stop()
        measuring.begin(self.rows.due(index) if wanted else (), self._table.n_rows)
        measuring.put_hooks(wanted=wanted)

    def _advance(self, started: float) -> None:
        now = time.perf_counter()
        outputs, clock, state = self.measuring.outputs, self._clock, self.state
        state.cost += now - started + outputs.seconds + outputs.count * seconds_per_hook()
        if self.index > 0:
            clock.add_step(now - state.began, state.cost)
        if state.wanted:
            if self._table.n_rows > 1:
                clock.add_row(state.cost)
            if self._auto is not None:
                self._auto.note_row(self.index)
            self.forget()
        self.steps_seen += 1
        self._other_steps.end()
        self._begin_step(self.index + 1, now, self.passes.state.carried() if len(self.optimizers) > 1 else ())

    # --- the backward pass --------------------------------------------------------------------------------

    @torch.no_grad()
    def _collect_left_over(self) -> None:
        self.passes.collect_left_over()

    def _begin_backward(self, *, late: bool) -> None:
        started = time.perf_counter()
        if self.on:
            self._guard(lambda: self._handle_backward_begin(late))
        self.state.cost += time.perf_counter() - started

    @torch.no_grad()
    def _handle_backward_begin(self, late: bool) -> None:
        self.settle_skipped()
        early = []
        if self._in_turn and self.state.stepped:
            early = self.passes.collect_early(late=late)
            self._end_round()
        self.passes.begin(late=late, early=early)

    def _end_backward(self) -> None:
        if self.on:
            started = time.perf_counter()
            self._guard(self._handle_backward_end)
            self.state.cost += time.perf_counter() - started

    @torch.no_grad()
    def _handle_backward_end(self) -> None:
        if not self.passes.end():
            return
        self._calls.come_last()
        ended = self.state.ended
        if ended == SOME_PASSES:
            self._other_steps.begin()
        if self._other_steps.count >= MANY_PASSES and self.steps_seen:
            self.warn_of_other_steps()
        elif ended == MANY_PASSES and not self.steps_seen:
            self._notes.warn_of_no_step(ended, self.optimizers, self._other_steps.name)

    # --- the optimizer ------------------------------------------------------------------------------------

    def _on_step(self, k: int, grad_scale: Tensor | None) -> None:
        if self.on and (self.state.wanted or self.state.stepped):
            self._guard(lambda: self._before_step(k, grad_scale))

    def _on_closure(self, k: int) -> None:
        """Read the gradients after the first call of a closure; later calls in the same step are not recorded."""
        if self.on:
            self._guard(lambda: self._before_step(k, None))
            self.state.closure_ran = True
            self.measuring.pause()

    def _on_stepped(self, k: int) -> None:
        if self.on:
            self._guard(lambda: self._after_step(k))

    @torch.no_grad()
    def _before_step(self, k: int, grad_scale: Tensor | None) -> None:
        started = time.perf_counter()
        state, sharing = self.state, self._sharing.get(k, ())
        if k in state.stepped or not state.stepped.isdisjoint(sharing):  # so the previous round is over
            if len(self.optimizers) > 1 and not self._in_turn:
                self._in_turn = True
                self._notes.note_in_turn(self._table.n_rows)
            self._end_round()
        if self.state.wanted:
            self._reader.read(k, grad_scale, first=not self.steps_seen)
        self.state.cost += time.perf_counter() - started

    def _after_step(self, k: int) -> None:
        state = self.state
        state.stepped.add(k)
        if len(state.stepped) >= len(self.optimizers):
            self._end_round()
        elif state.wanted and state.closure_ran:
            state.closure_ran = False
            self.measuring.go_on(self.rows.due(self.index), self._table.n_rows)

    def _end_round(self) -> None:
        """Close the row and begin the next step."""
        started = time.perf_counter()
        state, rows = self.state, self.rows
        if state.wanted:
            rows.run_part(self._table.hand_over)
            with torch.no_grad():
                for measurer in self.measuring.measurers:
                    rows.run_part(measurer.after_step)
            scalars = dict(state.lrs)
            if self._scaler.present:
                scalars["skipped"] = 0.0 if state.found_inf is None else state.found_inf.reshape(())
            rows.run_part(lambda: self._close_row(scalars))
            rows.combine_ranks()
        self._advance(started)

    def _close_row(self, scalars: dict[str, Scalar]) -> None:
        outputs = self.passes.count()
        if self._watch.missed_compiled_pass:
            self._notes.note_compiled_backward(scaled=self._scaler.present)
        learning = self._learned.open
        self.rows.close(self.state, outputs, scalars)
        if learning:
            self.measuring.end_learning(self._notes, passes_seen=self.passes.seen)

    # --- a step that the scaler skips -----------------------------------------------------------------------

    @property
    def _is_skipped(self) -> bool:
        """Whether the scaler skipped the recorded step: its ``step`` was called, and no optimizer stepped."""
        state = self.state
        return state.wanted and bool(state.passes) and not state.stepped and self._scaler.skipped

    def settle_skipped(self) -> None:
        """Close the row of the step in progress if the scaler skipped it."""
        if self._is_skipped:
            self._close_skipped_row()

    @torch.no_grad()
    def _close_skipped_row(self) -> None:
        started = time.perf_counter()
        rows = self.rows
        rows.run_part(self._table.hand_over)
        self.passes.use_all()
        due, row = rows.due(self.index), self._table.n_rows
        for measurer in self.measuring.measurers:
            rows.run_part(functools.partial(measurer.skip_step, due, row))
        rows.run_part(lambda: self._close_row({"skipped": 1.0}))
        self._advance(started)
