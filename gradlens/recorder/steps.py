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
Before an optimizer step   If it has stepped in this round: end the round; from then on optimizers *step in turn*. If
                           the step is recorded: find what was cleared; read the gradients of its parameters, the
                           learning rate, and the weights if they are due; its passes are used.
Closure returns            The first time in an optimizer step: as before an optimizer step; then remove the hooks on
                           layers, so that later evaluations of the closure are not recorded.
After an optimizer step    If every optimizer has stepped: end the round. Otherwise: put back the hooks that a closure
                           removed.
Round ends                 If recorded: hand the previous row to the sink, read the weights' update if due, close the
                           row; with several ranks, combine it. In any case: count the step; the next step begins, with
                           the passes that another optimizer may still use.
``step()`` by hand         As before an optimizer step and after it; each call ends a round.
``log``                    Close the row of a skipped step. If a pass has begun in this step: the values belong to it,
                           and so to the row of the step that uses it. Otherwise: to the row just closed. Before the
                           first pass of all: to the first row, with a warning.
``log_epoch``              Close the row of a skipped step; count the epoch; write the last row and the epoch. Before
                           the first row, the epoch waits.
Error in recording         Stop following steps; drop open rows; close the file as failed. With several ranks: keep the
                           error until the round ends, where all ranks end the recording.
``close``                  Close the row of a skipped step, and of a round in which some optimizer has stepped; remove
                           all hooks; write the last row, notes and epochs; release all tensors.
=========================  ==========================================================================================
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradlens.errors import RecorderError
from gradlens.recorder.distributed import Ranks
from gradlens.recorder.gradient_states import GradientStates, States
from gradlens.recorder.hooks.backward_pass import BackwardWatch
from gradlens.recorder.hooks.compiled import has_compiled
from gradlens.recorder.hooks.grad_scaler import ScalerWatch, find_stepping_scaler
from gradlens.recorder.hooks.hook_cost import seconds_per_hook
from gradlens.recorder.hooks.inner_passes import InnerPasses
from gradlens.recorder.hooks.optimizer_steps import place_step_hooks, place_wrapper_hooks
from gradlens.recorder.hooks.other_steps import OtherSteps
from gradlens.recorder.hooks.pipeline_scaling import PipelineWatch
from gradlens.recorder.hooks.placement import LayerHooks
from gradlens.recorder.intervals import Intervals
from gradlens.recorder.layers import Learned, own_parameters, spread_out
from gradlens.recorder.measured_row import SHRUNK, MeasuredRow, Part
from gradlens.recorder.measurer import Context, make_measurers
from gradlens.recorder.notes import Notes
from gradlens.recorder.output_gradients import OutputGradients
from gradlens.recorder.parameters import Owners, ParameterGradients, group_by_optimizer
from gradlens.recorder.pending_rows import Table
from gradlens.recorder.ratios import addends
from gradlens.recorder.scalars import Scalar, to_number
from gradlens.recorder.schedule import AutoEvery, Clock
from gradlens.recorder.step_state import BackwardPass, StepState, add_logged, only
from gradlens.recorder.tensor_layouts import ShardedGradients, is_distributed
from gradlens.run import Status

SPREAD = 16
"""Number of parameters with a hook that detects backward passes, where gradients of outputs do not show them."""

FIRST_SPREAD = 4
"""The same in the first row, where the hooks on layers detect passes too, except in code compiled earlier."""
MANY_PASSES = 20
"""Backward passes before the first row after which a warning says that no optimizer has stepped."""
SOME_PASSES = 3
"""Backward passes of one step after which steps of other optimizers are counted."""
SCALER_ROWS = 3
"""Number of first rows in which a GradScaler that was not given is looked for."""
MANY_ROWS = 64
"""Rows from one write of notes and overhead to the next, in runs that log no epochs."""


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
        self.epoch = 0
        """Epochs done."""
        self.local_error: Exception | None = None
        """An error on this rank in the step in progress; all ranks end recording when its row is closed."""
        self.passes_seen = 0
        """Backward passes that began in recorded steps."""
        self.steps_seen = 0
        """Steps that were ended."""
        self.cleared_steps = 0
        """Calls of ``step()`` by hand that found the gradients cleared."""
        self.other_steps = OtherSteps(model, [*optimizers, *(wrapper for _, wrapper in wrappers)])
        """Steps of optimizers that were not given."""

        self._optimizers, self._scaler, self._intervals, self._learned = optimizers, scaler, intervals, learned
        self._wanted, self._clock, self._ranks, self._notes, self._guard = wanted, clock, ranks, notes, guard
        self._auto = wanted if isinstance(wanted, AutoEvery) and ranks is None else None
        self._outputs = OutputGradients(len(modules), None if ranks is None else ranks.takes)
        owned = [own_parameters(module) for module in modules.values()]
        self._own = [[p for p in own if ranks is None or ranks.reads(p)] for own in owned]
        self._with_gradient = [[p for p in own if ranks is None or ranks.reads_gradient(p)] for own in owned]
        self.sharded = (
            None
            if ranks is None or not any(map(is_distributed, model.parameters()))
            else ShardedGradients(owned, ranks.world)
        )
        """Makes of gradients what is added up over the ranks; None where no parameter is distributed."""
        self._group_sizes = self._count_groups()
        self._states = GradientStates(model, self._grouped_ids())
        self._own_indices = [frozenset(self._states.indices(map(id, own))) for own in owned]
        count = "nonfinite_count" in intervals
        self.gradients = ParameterGradients(
            self._find_owners(), count_nonfinite=count, always_early=scaler.present, sharded=self.sharded
        )
        self._inner_passes = InnerPasses()
        self._reads_gradients = "param_grad_norm" in intervals or count
        self._watch = BackwardWatch(self._begin_backward, self._end_backward)
        self._pipeline = PipelineWatch(model, self._divide)
        self._hooks = LayerHooks(
            modules,
            self._outputs,
            learned,
            ranks,
            on_error,
            on_pass=self._watch.begin,
            on_left_over=self._collect_left_over,
        )
        context = Context(model, modules, self._own, intervals, learned, on_error, self._watch.begin)
        self.measurers = make_measurers(intervals, context)
        """They measure what is due besides the gradient norms."""
        self._handles: list[Any] = []
        self._in_turn = False
        """Whether the optimizers step in turn: one has stepped twice before another stepped at all."""
        self._wrappers = wrappers
        self._inside: set[int] = set()
        """Optimizers whose wrapper is in its step."""
        self._waiting: set[int] = set()
        """Optimizers that have stepped while their wrapper goes on."""
        self._running: BackwardPass | None = None
        """The backward pass in progress."""
        self._uncollected: BackwardPass | None = None
        """The pass that has ended, and whose gradients of outputs are still kept."""
        self._at_last_end: States | None = None
        """The states of all gradients when the last pass ended."""
        self._pending_at_end = 0
        """Number of gradients of outputs that were kept when it ended."""
        self.state = StepState(first_step, False, time.perf_counter())
        """The step in progress."""

    def _count_groups(self) -> list[int]:
        return [len(group["params"]) for optimizer in self._optimizers for group in optimizer.param_groups]

    def _grouped_ids(self) -> list[set[int]]:
        return [{id(p) for group in o.param_groups for p in group["params"]} for o in self._optimizers]

    def _find_owners(self) -> list[Owners]:
        return group_by_optimizer(self._with_gradient, self._grouped_ids())

    @property
    def index(self) -> int:
        """Index of the step in progress."""
        return self.state.index

    @property
    def row_wanted(self) -> bool:
        """Whether the step in progress is recorded."""
        return self.state.wanted

    def _follow_groups(self) -> None:
        """Handle parameters that an optimizer has got since (``add_param_group``)."""
        sizes = self._count_groups()
        if sizes != self._group_sizes:
            self._group_sizes = sizes
            self.gradients.set_owners(self._find_owners())
            self._states.follow(self._grouped_ids())

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
        self._handles += place_wrapper_hooks(self._wrappers, self._on_wrapper)
        self._pipeline.put()
        spread = SPREAD if self._learned.compiled else FIRST_SPREAD
        self._watch.watch(spread_out([p for p in self.gradients.parameters if p.requires_grad], spread))
        self._begin_step(self.index)

    def stop_following(self) -> None:
        """Follow no more steps, but leave the hooks on optimizers: one may be calling them at this moment."""
        self.on = self._outputs.armed = self._learned.open = False
        self._hooks.remove()
        self._begin_measuring(())
        for measurer in self.measurers:
            measurer.stop()
        self._watch.stop()

    def stop(self) -> None:
        """Remove the hooks."""
        self.stop_following()
        self.other_steps.end()
        self._pipeline.remove()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forget(self) -> None:
        """Release every tensor."""
        self._outputs.clear()
        self.gradients.clear()
        for measurer in self.measurers:
            measurer.clear()
        self._uncollected = None

    def warn_of_other_steps(self) -> None:
        """Warn of steps of another optimizer since the last row, if there were several."""
        if self.other_steps.count > 1:
            self._notes.warn_of_other_steps(self.other_steps.name, self._optimizers, self._table.n_rows)

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
        self.gradients.end_row()
        self.forget()
        self.state.wanted = False

    def end_started_round(self) -> None:
        """Close the row in progress, at the end of the run, if it is sure to be a step."""
        self.settle_skipped()
        if self.state.stepped and self._ranks is None:
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
        if self.row_wanted:
            self._guard(self.settle_skipped)
        state = self.state
        if state.begun or (state.wanted and self._outputs.pending):
            passes = [*state.passes, *state.inner]
            add_logged(passes[-1].logged if passes else state.logged, values)
        elif self._table.last_step == self.index - 1 >= 0:
            if not self._table.add_scalars(values):
                self._notes.warn_of_late_log()
        elif self.steps_seen == 0 and state.wanted:
            self._notes.warn_of_early_log()
            add_logged(state.logged, values)
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
        state = self.state = StepState(index, wanted, now, list(passes) if wanted else [])
        self._watch.nested = False
        self._outputs.armed = wanted
        if wanted:
            self._outputs.clear()  # gradients that came in a step that was not recorded
            for measurer in self.measurers:
                measurer.clear()
        if wanted or self._table.last_step == index - 1:  # ``log`` must know whether a pass has begun
            self._watch.start()
        else:
            self._watch.stop()
        self._begin_measuring(self._due() if wanted else ())
        learned = self._learned
        needed = learned.open or ("activation_grad_norm" in self._intervals and (learned.compiled or state.wanted))
        if learned.compiled and "activation_grad_norm" not in self._intervals:
            needed = False  # hooks break compiled code into parts, so place only those that are needed
        if needed:
            self._hooks.put()
        else:
            self._hooks.remove()

    def _advance(self, started: float) -> None:
        now = time.perf_counter()
        outputs, clock, state = self._outputs, self._clock, self.state
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
        self.other_steps.end()
        several = len(self._optimizers) > 1
        self._begin_step(self.index + 1, now, [each.carry() for each in state.passes if each.left] if several else ())

    # --- the backward pass --------------------------------------------------------------------------------

    def _collect_left_over(self) -> None:
        """Handle gradients that are still there when a forward pass begins."""
        if self._watch.broken_off:
            self._watch.forget()
            self._running = None
            self._outputs.drop_pending()
            self._take_pass()
        else:
            with torch.no_grad():
                self._collect_outputs()

    def _collect_outputs(self) -> None:
        """Give the gradients of outputs that are kept to the pass that brought them."""
        if not self._outputs.pending:
            return
        if self._uncollected is None:  # a pass whose end was not detected
            self._uncollected = BackwardPass(self.index)
            self.state.passes.append(self._uncollected)
            self.gradients.forget_early_reading()
        self._uncollected.parts += self._outputs.collect(self._scaler.scale)
        self._uncollected = None

    def _begin_backward(self, *, late: bool) -> None:
        """Handle the beginning of a pass.

        Args:
            late: Whether it is noticed at the gradient of a parameter, when others may have got theirs before.
        """
        started = time.perf_counter()
        if self.on:
            self._guard(lambda: self._handle_backward_begin(late))
        self.state.cost += time.perf_counter() - started

    @torch.no_grad()
    def _handle_backward_begin(self, late: bool) -> None:
        self.settle_skipped()
        early = []
        if self._in_turn and self.state.stepped:
            if late and self._uncollected is None:  # the layers whose hooks do not notice a pass came first
                early = self._outputs.collect(self._scaler.scale)
            self._end_round()
        state = self.state
        state.begun += 1
        self._running = BackwardPass(state.index, parts=early)
        if not state.wanted:
            return
        self.passes_seen += 1
        if not late:
            self._collect_outputs()
        self._forget_cleared()
        self._running.is_late = late
        if not late:
            quick = self._states.may_be_quick and not state.passes and self._states.seem_cleared
            self._running.before = None if quick else self._states.now()
        elif self._hooks.are_quick and not self._learned.stays_on:
            self._distinguish_passes()

    def _forget_cleared(self, among: frozenset[int] | None = None, *, may_wait: bool = True) -> None:
        """Find the gradients that were cleared since the last pass ended, and discard the passes that brought them.

        Args:
            among: Indices of the parameters to look at; None for all.
            may_wait: Whether the values of gradients on an accelerator may be looked at.
        """
        state = self.state
        if not state.passes:
            return
        last = self._at_last_end
        cleared = set() if last is None else self._states.cleared(last, among, may_wait=may_wait)
        gone = state.lose(cleared)
        unknown = [each for each in state.passes if each.after is None and not each.is_used]
        if unknown and self._states.all_cleared:
            gone += unknown
            state.passes = [each for each in state.passes if each not in unknown]
            state.discarded += len(unknown)
        if cleared or gone:
            self.gradients.forget_early_reading()
        if state.discarded:
            self._notes.note_discarded(self._table.n_rows)
        for each in gone:
            if self._uncollected is each:
                self._uncollected = None
                self._outputs.drop_pending()
            self._table.add_missing_scalars(each.logged)

    def _distinguish_passes(self) -> None:
        """Use the hooks that notice the beginning of every pass, for some rows."""
        self._inner_passes.begin_trial()
        self._learned.stays_on = True
        self._hooks.renew()
        self._hooks.put()

    def _end_backward(self) -> None:
        if self.on:
            started = time.perf_counter()
            self._guard(self._handle_backward_end)
            self.state.cost += time.perf_counter() - started

    @torch.no_grad()
    def _handle_backward_end(self) -> None:
        ended, state = self._running, self.state
        self._running = None
        if ended is None:  # the outer pass of nested ones, which was counted by parts
            return
        if ended.step != state.index or not state.wanted:
            self._outputs.drop_pending()
            self._take_pass()
            self._learned.take_pass()
            return
        self._follow_groups()
        taken = self._outputs.pending
        brought = taken or any(measurer.pending for measurer in self.measurers)
        ended.learned, ended.taken = self._learned.take_pass(), self._take_pass()
        if ended in state.passes:  # an optimizer has stepped during the pass
            self._uncollected = ended
            self._collect_outputs()
            return
        quick = self._states.may_be_quick and not state.passes and ended.before is None
        ended.after = self._states.now(quick=quick)
        known = not ended.is_late and ended.after is not None and not self._watch.nested
        if known and not ended.touched:
            if brought:
                ended.parts += self._outputs.collect(self._scaler.scale)
                state.inner.append(ended)
            return
        self._learned.note_order(ended.learned)
        for measurer in self.measurers:
            measurer.end_pass()
        if self._inner_passes.is_suspicious(taken, learning=self._learned.open) and not self._learned.stays_on:
            self._distinguish_passes()
        ended.silent = taken == 0
        state.passes.append(ended)
        state.ended += 1
        self._at_last_end = ended.after
        self._scaler.begin_round()
        self._uncollected, self._pending_at_end = ended, taken
        if not self._reads_gradients or self.gradients.reads_early or self._learned.open or self._learned.stays_on:
            self._collect_outputs()
        if self._reads_gradients:
            self.gradients.look(self._scaler.scale, skip=state.read)
        if state.ended == SOME_PASSES:
            self.other_steps.begin()
        if self.other_steps.count >= MANY_PASSES and self.steps_seen:
            self.warn_of_other_steps()
        elif state.ended == MANY_PASSES and not self.steps_seen:
            self._notes.warn_of_no_step(state.ended, self._optimizers, self.other_steps.name)

    def _divide(self, number: float) -> None:
        """Divide what the passes of this step brought, as a pipeline's schedule has divided the gradients."""
        if self.on and self.state.wanted:
            self._guard(lambda: self._handle_division(number))

    @torch.no_grad()
    def _handle_division(self, number: float) -> None:
        self._collect_outputs()
        for each in [*self.state.passes, *self.state.inner]:
            for part in each.parts:
                part.scale = number if part.scale is None else part.scale * number
        self.gradients.divide_early_reading(number)

    # --- the optimizer ------------------------------------------------------------------------------------

    def _on_step(self, k: int, optimizer: Optimizer) -> None:
        if self.on and (self.row_wanted or self.state.stepped):
            self._guard(lambda: self._before_step(k, getattr(optimizer, "grad_scale", None)))

    def _on_closure(self, k: int) -> None:
        """Read the gradients after the first call of a closure; later calls in the same step are not recorded."""
        if self.on:
            self._guard(lambda: self._before_step(k, None))
            self.state.closure_ran = True
            self._outputs.armed = False
            self._hooks.remove()
            for measurer in self.measurers:
                measurer.remove_hooks()
            self._watch.stop()

    def _on_stepped(self, k: int) -> None:
        if k in self._inside:  # the wrapper may change the weights once more before it returns
            self._waiting.add(k)
        elif self.on:
            self._guard(lambda: self._after_step(k))

    def _on_wrapper(self, k: int, begins: bool) -> None:
        """Handle the beginning or the end of the step of an optimizer that wraps another one."""
        if begins:
            self._inside.add(k)
            return
        self._inside.discard(k)
        if k in self._waiting:
            self._waiting.discard(k)
            self._on_stepped(k)

    @torch.no_grad()
    def _before_step(self, k: int, grad_scale: Tensor | None) -> None:
        started = time.perf_counter()
        if k in self._waiting:  # the wrapper failed after that step
            self._waiting.discard(k)
            self._after_step(k)
        if k in self.state.stepped:  # this optimizer steps a second time, so the previous round is over
            if len(self._optimizers) > 1 and not self._in_turn:
                self._in_turn = True
                self._notes.note_in_turn(self._table.n_rows)
            self._end_round()
        if self.row_wanted:
            self._read(k, grad_scale)
        self.state.cost += time.perf_counter() - started

    def _read(self, k: int, grad_scale: Tensor | None) -> None:
        self._follow_groups()
        state = self.state
        running = self._running
        if running is not None and running.step == state.index:  # the optimizer steps during the pass
            if running not in state.passes:
                state.passes.append(running)
            self._uncollected, self._at_last_end = running, None
        elif self._outputs.pending not in (0, self._pending_at_end):  # a pass came whose end was not detected
            self.gradients.forget_early_reading()
        strange = not self.steps_seen and self._optimizers and not any(self._states.groups[:-1])
        if strange and any(each.touched for each in state.passes):
            self._notes.warn_of_strangers(self._optimizers)
        group = self._states.groups[k] | (frozenset() if state.read else self._states.groups[-1])
        if not self._reads_gradients:
            self._forget_cleared(group, may_wait=False)
        if self._outputs.pending and self._uncollected is None:
            self._collect_outputs()
        if self._table.n_rows_here < SCALER_ROWS and not self._scaler.present and self._optimizers:
            self._look_for_scaler()
        if self._reads_gradients:
            scale = self._scaler.scale
            layers, grads = self._outputs.take_kept()
            norms = self.gradients.read(k, grad_scale, grads, layers)
            if layers and self._uncollected is not None:
                self._uncollected.parts.append(self._outputs.make_part(layers, norms, scale))
            if self.gradients.some_missing or len(state.passes) > 1:
                self._forget_cleared(group, may_wait=False)
            if not state.read and self._optimizers:
                self.gradients.read_others(scale)
        if self._uncollected is not None and not self._outputs.pending:
            self._uncollected = None
        self._collect_outputs()
        for each in state.passes:
            each.use(group)
        if not state.read:
            for measurer in self.measurers:
                measurer.before_step(self._due(), self._table.n_rows)
        state.read.add(k)
        if self._optimizers:
            optimizer = self._optimizers[k]
            name = "lr" if k == 0 else f"lr_{k + 1}"
            with contextlib.suppress(RecorderError):  # some choose their rate themselves, and hold None
                rate: Any = optimizer.param_groups[0].get("lr")
                state.lrs[name] = to_number(name, rate)
            found_inf = getattr(optimizer, "found_inf", None)
            state.found_inf = found_inf.detach().clone() if isinstance(found_inf, Tensor) else None

    def _look_for_scaler(self) -> None:
        """Follow the GradScaler that calls the optimizer, if there is one."""
        scaler = find_stepping_scaler()
        if scaler is None:
            return
        self._scaler.adopt(scaler)
        scale = self._scaler.scale
        self._notes.note_found_scaler()
        for each in [*self.state.passes, *self.state.inner]:
            for part in each.parts:
                part.scale = scale
        self.gradients.set_scale(scale)
        if self._table.n_rows_here == 0 and self._ranks is None:
            self._intervals.setdefault("nonfinite_count", 1)
            self.gradients.count_nonfinite = True

    def _after_step(self, k: int) -> None:
        state = self.state
        state.stepped.add(k)
        if len(state.stepped) >= len(self._optimizers):
            self._end_round()
        elif state.wanted and state.closure_ran:
            state.closure_ran = False
            self._outputs.armed = True
            self._watch.start()
            self._begin_measuring(self._due())
            if "activation_grad_norm" in self._intervals:
                self._hooks.put()

    def _end_round(self) -> None:
        """Close the row and begin the next step."""
        started = time.perf_counter()
        state = self.state
        if state.wanted:
            self._run_part(self._table.hand_over)
            with torch.no_grad():
                for measurer in self.measurers:
                    self._run_part(measurer.after_step)
            scalars = dict(state.lrs)
            if self._scaler.present:
                scalars["skipped"] = 0.0 if state.found_inf is None else state.found_inf.reshape(())
            self._run_part(lambda: self._close_row(scalars))
            if self._ranks is not None:
                self._combine_ranks()
        self._advance(started)

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
        self._run_part(self._table.hand_over)
        self._collect_outputs()
        for each in self.state.passes:
            each.use(each.left)
        self.gradients.use_early_reading()
        for measurer in self.measurers:
            self._run_part(functools.partial(measurer.skip_step, self._due(), self._table.n_rows))
        self._run_part(lambda: self._close_row({"skipped": 1.0}))
        self._advance(started)

    # --- rows ---------------------------------------------------------------------------------------------

    def _due(self) -> list[str]:
        """Return the metrics that the row in progress will have."""
        due = self._intervals.due(self._table.n_rows, self.index)
        for measurer in self.measurers:
            due = measurer.choose(due, self._table.n_rows)
        return due

    @property
    def spread_metrics(self) -> list[str]:
        """Metrics of which each row has only some layers, in turn."""
        return [name for measurer in self.measurers for name in measurer.spread_over_rows]

    def _begin_measuring(self, due: Sequence[str]) -> None:
        for measurer in self.measurers:
            measurer.begin_step(due, self._table.n_rows)

    def _take_pass(self) -> list[Any]:
        """Return what the backward pass in progress has brought to each measurer."""
        return [measurer.take_pass() for measurer in self.measurers]

    def _close_row(self, scalars: dict[str, Scalar]) -> None:
        state = self.state
        outputs = self._count_passes()
        parts: dict[str, list[Part]] = {
            "activation_grad_norm": outputs,
            "param_grad_norm": self.gradients.parts,
            "nonfinite_count": self.gradients.count_parts,
        }
        for measurer in self.measurers:
            parts |= measurer.parts(self._scaler.scale)
        if state.clip is not None:
            scalars["clip_coefficient"] = state.clip
        if state.discarded or self._notes.discarded_seen:
            scalars["discarded_passes"] = float(state.discarded)
        if self.gradients.shrunk is not None:
            scalars[SHRUNK] = to_number(SHRUNK, self.gradients.shrunk)
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
            summed=self.gradients.summed,
        )
        self.gradients.end_row()
        if self._watch.missed_compiled_pass:
            self._notes.note_compiled_backward(scaled=self._scaler.present)
        was_open = self._learned.open
        self._table.close_row(measured)
        for values in [state.logged, *[each.logged for each in (*state.passes, *state.inner)]]:
            self._table.add_lists(values)
            values.clear()
        if was_open:
            self._end_learning()
        if self._table.n_rows % MANY_ROWS == 0:
            self._on_many_rows()

    def _count_passes(self) -> list[Part]:
        """Count the passes that belong to the step, and return the norms of the gradients of outputs."""
        state, learned = self.state, self._learned
        if self._running in state.passes:  # the round ends during the pass
            self._running.learned, self._running.taken = learned.take_pass(), self._take_pass()
            learned.note_order(self._running.learned)
        counted = state.counted(self._own_indices)
        for each, mask in counted:
            for measurer, taken in zip(self.measurers, each.taken, strict=False):
                measurer.add_pass(taken, mask)
            if learned.open:
                learned.add_pass(only(each.learned, mask))
        if state.inner and state.passes:
            learned.stays_on = self._inner_passes.seen = True
            self._notes.note_inner_passes(self._table.n_rows)
        if learned.stays_on and self._inner_passes.end_row():
            learned.stays_on = False
            self._choose_hooks()
        parts = [part.only(mask) for each, mask in counted for part in each.parts]
        if parts and learned.compiled and any(each.silent for each, _ in counted):
            self._notes.warn_of_silent_passes()  # compiled code without hooks ran in some of the passes
            return []
        return parts

    def _end_learning(self) -> None:
        """Replace the learning hooks by the faster ones."""
        if not self._learned.called and "activation_grad_norm" in self._intervals:
            self._notes.warn_of_no_hook(compiled=has_compiled(), backward=self.passes_seen > 0)
        self._choose_hooks()

    def _choose_hooks(self) -> None:
        """Choose hooks and watched parameters by what was learned."""
        self._hooks.renew()
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
        assert self._ranks is not None
        error, self.local_error = self.local_error or self._ranks.find_refusal(), None
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
