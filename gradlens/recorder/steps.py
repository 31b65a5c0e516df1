"""One optimizer step after another: when its gradients are read, and when its row is closed."""

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
from gradlens.recorder.parameters import Owners, ParameterGradients, Weights, share_out
from gradlens.recorder.pending_rows import Table
from gradlens.recorder.ratios import CHANGE, addends
from gradlens.recorder.scalars import Scalar, to_number
from gradlens.recorder.schedule import AutoEvery, Clock
from gradlens.run import Status

SPREAD = 16
"""Parameters that tell of backward passes where no gradient of an output does."""

FIRST_SPREAD = 4
"""The same in the first row, in which the hooks on layers tell of them too, unless compiled code has left them out."""
MANY_ROWS = 64


class Steps:
    """Follows a training from step to step, and closes a row in the table for each step that is recorded.

    Args:
        model: The model, of which they are a part.
        modules: Layer names to modules.
        optimizers: A step is over when each of them has stepped, or one would step again; none: ``step_by_hand``.
        scaler: Follows the GradScaler.
        rhythm: Metric to every how many rows it has a value.
        learned: What the first row teaches.
        wanted: Says whether a step is recorded.
        clock: Keeps account of what that costs.
        ranks: The processes that record together.
        notes: Keeps what a reader should know.
        guard: Runs what is given, and meets its errors.
        on_error: Meets an error in a hook.
        first_step: Index of the next optimizer step.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        optimizers: Sequence[Optimizer],
        scaler: ScalerWatch,
        rhythm: Mapping[str, int],
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
        """Of the step in progress."""
        self.epoch = 0
        """Epochs done."""
        self.row_wanted = False
        """Whether the step in progress is recorded."""
        self.clip: Scalar | None = None
        """By how much the gradients of the step in progress were clipped, as the user says."""
        self.cost = 0.0
        """Seconds that the recorder took of the step in progress, but for the hooks on layers."""
        self.local_error: Exception | None = None
        """What went wrong on this rank in the step in progress; all ranks end recording when its row is closed."""

        self._optimizers, self._scaler, self._rhythm, self._learned = optimizers, scaler, rhythm, learned
        self._wanted, self._clock, self._ranks, self._notes, self._guard = wanted, clock, ranks, notes, guard
        self._auto = wanted if isinstance(wanted, AutoEvery) and ranks is None else None
        self._outputs = OutputGradients(len(modules))
        self._own = [[p for p in own_parameters(m) if ranks is None or ranks.reads(p)] for m in modules.values()]
        self._group_sizes = self._count_groups()
        count = "nonfinite_count" in rhythm
        self.gradients = ParameterGradients(self._share_out(), count_nonfinite=count, always_early=scaler.present)
        self._weights = Weights(share_out(self._own, ())[0])
        self._passes = Passes(model)
        self._reads_gradients = "param_grad_norm" in rhythm or count
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
        self._calls = CallWatch(model, modules, rhythm, learned, on_error, self._watch.begin)
        self._handles: list[Any] = []
        self._forget_step(time.perf_counter())

    def _count_groups(self) -> list[int]:
        return [len(group["params"]) for optimizer in self._optimizers for group in optimizer.param_groups]

    def _share_out(self) -> list[Owners]:
        groups = [{id(p) for group in o.param_groups for p in group["params"]} for o in self._optimizers]
        return share_out(self._own, groups)

    def _follow_groups(self) -> None:
        """See whether an optimizer got other parameters (``add_param_group``)."""
        sizes = self._count_groups()
        if sizes != self._group_sizes:
            self._group_sizes = sizes
            self.gradients.share_anew(self._share_out())

    def start(self, table: Table, now_and_then: Callable[[], None]) -> None:
        """Place the hooks.

        Args:
            table: Takes the rows.
            now_and_then: Called after one row in many.
        """
        self.on = True
        self._table, self._now_and_then = table, now_and_then
        seconds_per_hook()
        self._handles = place_step_hooks(self._optimizers, self._on_step, self._on_closure, self._on_stepped)
        spread = SPREAD if self._learned.compiled else FIRST_SPREAD
        self._watch.watch(spread_out([p for p in self.gradients.parameters if p.requires_grad], spread))
        self._forget_step(time.perf_counter())
        self._arm()

    def quieten(self) -> None:
        """Follow no more steps, but leave the optimizers' hooks: one may be going through them at the moment."""
        self.on = self._outputs.armed = self._learned.open = False
        self._hooks.remove()
        self._calls.arm(())
        self._watch.stop()

    def stop(self) -> None:
        """Remove the hooks."""
        self.quieten()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forget(self) -> None:
        """Let go of every tensor."""
        self._outputs.clear()
        self._calls.clear()
        self.gradients.clear()
        self._weights.clear()

    def step_by_hand(self) -> None:
        """Read the gradients, and close the row: where there is no optimizer that does."""
        self._guard(lambda: self._before_step(0, None))
        if self.on:
            self._guard(lambda: self._after_step(0))

    # --- from step to step --------------------------------------------------------------------------------

    def _forget_step(self, now: float) -> None:
        """Forget the step that is over."""
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
        """Get ready for the next step: on or off with the layers' hooks, by whether it is recorded."""
        self.row_wanted = self._outputs.armed = bool(self._wanted(self.index))
        if self.row_wanted:
            self._outputs.clear()  # what came late, in a step that was not recorded
            self._calls.clear()
            self._watch.start()
        else:
            self._watch.stop()
        self._calls.arm(self._due() if self.row_wanted else ())
        learned = self._learned
        needed = learned.open or ("activation_grad_norm" in self._rhythm and (learned.compiled or self.row_wanted))
        if learned.compiled and "activation_grad_norm" not in self._rhythm:
            needed = False  # hooks break compiled code up, so it has none that is not needed
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
        """Meet gradients of a backward pass whose end was not seen: it failed, or no parameter told of it."""
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
            self._guard(self._see_backward)
            self.cost += time.perf_counter() - started

    @torch.no_grad()
    def _see_backward(self) -> None:
        scale = self._scaler.scale
        taken = self._outputs.pending - self._seen
        seen = taken or self._calls.pending
        if seen and self._looks_at_passes and not self._watch.nested and self._passes.left_parameters_alone():
            self._set_aside(scale)
            return
        if self._passes.is_suspicious(taken, learning=self._learned.open) and not self._learned.closely:
            self._learned.closely = True
            self._hooks.renew()
            self._hooks.put()
        self._follow_groups()
        if self._is_skipped:
            of_this_pass, calls = self._outputs.collect_apart(scale), self._calls.take_pass()
            self._learned.take_pass()
            self.settle_skipped()
            if not self.row_wanted:  # the pass belongs to a step without a row
                return
            self._outputs.parts = of_this_pass
            self._calls.add_pass(calls)
        if self._learned.open:
            self._learned.note_end()
        self._calls.add_pass()
        self._backward_seen = True
        self._silent += taken == 0
        self._scaler.begin_round()
        if not self._reads_gradients or self.gradients.looks_closely or self._looks_at_passes:
            self._outputs.collect(scale)
        self._seen = self._outputs.pending
        if self._reads_gradients:
            self.gradients.look(scale)

    @property
    def _looks_at_passes(self) -> bool:
        """Whether those that reach no parameter are told from the others; then the end of each pass is seen."""
        return self._learned.open or self._learned.closely or self._calls.on

    def _begin_backward(self) -> None:
        if self._looks_at_passes:
            self._passes.begin()

    def _set_aside(self, scale: Tensor | None) -> None:
        """Set the gradients of a pass aside that left all parameters alone: it may be no pass of the loss."""
        self._aside += self._outputs.collect_apart(scale)
        self._calls.set_aside()
        self._learned_aside.append(self._learned.take_pass())
        self._seen = 0

    def _settle_aside(self) -> None:
        """Decide what becomes of them: where another pass reached parameters, that one was the loss's."""
        self._calls.settle_aside(counts=not self._backward_seen)
        if self._aside and self._backward_seen:
            self._learned.closely = self._passes.others_seen = True
            self._notes.note_inner_passes(self._table.n_rows)
        elif self._aside:
            self._outputs.parts += self._aside
            for taken in self._learned_aside:
                self._learned.add_pass(taken)
        if self._learned.closely and self._passes.end_row():
            self._learned.closely = False
            self._hooks.renew()

    # --- the optimizer ------------------------------------------------------------------------------------

    def _on_step(self, k: int, optimizer: Optimizer) -> None:
        if self.on and (self.row_wanted or self._stepped):
            self._guard(lambda: self._before_step(k, getattr(optimizer, "grad_scale", None)))

    def _on_closure(self, k: int) -> None:
        """Read the gradients when a closure has computed them first; later calls in the step do not count."""
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
        if k in self._stepped:  # a second step of one of several optimizers: the round before is over
            self._end_round()
        if self.row_wanted:
            self._read(k, grad_scale)
        self.cost += time.perf_counter() - started

    def _read(self, k: int, grad_scale: Tensor | None) -> None:
        self._follow_groups()
        if self._outputs.pending != self._seen:  # by a pass whose end was not seen, so nothing is known of before
            self.gradients.forget_look()
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
        elif self.row_wanted and not self._outputs.armed:  # a closure's end took the hooks off
            self._outputs.armed = True
            self._calls.arm(self._due())
            if "activation_grad_norm" in self._rhythm:
                self._hooks.put()

    def _end_round(self) -> None:
        """Close the row, and begin the next step."""
        started = time.perf_counter()
        if self.row_wanted:
            self._hold(self._table.hand_over)
            if self._weights.has_copies:
                self._hold(torch.no_grad()(self._weights.read_update))
            scalars = dict(self._lrs)
            if self._scaler.present:
                scalars["skipped"] = 0.0 if self._found_inf is None else self._found_inf.reshape(())
            self._hold(lambda: self._close_row(scalars))
            if self._ranks is not None:
                self._meet()
        self._advance(started)

    # --- a step that the scaler skips -----------------------------------------------------------------------

    @property
    def _is_skipped(self) -> bool:
        """Whether the scaler skipped the step: it went through, and no optimizer stepped; known for recorded ones."""
        return self.row_wanted and self._backward_seen and not self._stepped and self._scaler.skipped

    def settle_skipped(self) -> None:
        """Close the row of a step that the scaler skipped, if it did."""
        if self._is_skipped:
            self._close_skipped_row()

    @torch.no_grad()
    def _close_skipped_row(self) -> None:
        started = time.perf_counter()
        self._hold(self._table.hand_over)
        self.gradients.take_as_they_were()
        if "param_norm" in self._due():
            self._hold(lambda: self._weights.read(keep_copies=False))
        self._hold(lambda: self._close_row({"skipped": 1.0}))
        self._advance(started)

    # --- rows ---------------------------------------------------------------------------------------------

    def _due(self) -> list[str]:
        """List the metrics that the row in progress is to have."""
        return [name for name, every in self._rhythm.items() if self._table.n_rows % every == 0]

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
        if self._watch.unheard:
            self._notes.note_compiled_backward(scaled=self._scaler.present)
        was_open = self._learned.open
        self._table.close_row(measured)
        if was_open:
            self._end_learning()
        if self._table.n_rows % MANY_ROWS == 0:
            self._now_and_then()

    @property
    def _outputs_of_all_passes(self) -> list[Part]:
        """The gradients of outputs; none where compiled code without hooks ran in a part of the step."""
        parts = self._outputs.parts
        if parts and self._silent and self._learned.compiled:
            self._notes.warn_of_silent_passes()
            return []
        return parts

    def _end_learning(self) -> None:
        """Go over from the hooks that learn to those that are quick."""
        self._hooks.renew()
        if not self._learned.called and "activation_grad_norm" in self._rhythm:
            self._notes.warn_of_no_hook()
        spread = 0 if "activation_grad_norm" in self._rhythm else SPREAD
        to_watch = [] if self._learned.compiled else self._learned.parameters_to_watch(spread)
        if to_watch:
            self._watch.watch(to_watch)

    # --- several ranks --------------------------------------------------------------------------------------

    def _hold(self, act: Callable[[], None]) -> None:
        """Do a part of closing a row; where several ranks record, an error must not keep this one from its end."""
        if self._ranks is None:
            act()
        else:
            self._guard(act)

    def _meet(self) -> None:
        """End a row together with the other ranks."""
        error, self.local_error = self.local_error, None
        try:
            self._table.meet(error)
        except Exception as failure:
            if self._table.ended:
                raise
            self.local_error = failure

    def end_with_others(self, status: Status) -> None:
        """Add up the rows that wait for that, where all ranks have come to the end.

        Args:
            status: How the run ended on this rank.

        Raises:
            Exception: What went wrong on this rank; or where it did on another, a RecorderError.
        """
        self._table.hand_over()
        if status == "complete":
            self._table.meet_at_the_end(self.local_error)
        if self.local_error is not None:
            raise self.local_error
