"""Backward passes: which one is in progress, what it brings, and to which step it belongs.

A pass belongs to the row of the step in which an optimizer got its parameter gradients, layer by layer. A pass whose
gradients were all cleared before then is *discarded*: it belongs to no row. The events are in ``steps``.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from gradlens.recorder.gradient_states import States
from gradlens.recorder.hooks.inner_passes import InnerPasses
from gradlens.recorder.measured_row import Part
from gradlens.recorder.measuring import Measuring
from gradlens.recorder.notes import Notes
from gradlens.recorder.pending_rows import Table
from gradlens.recorder.step_state import BackwardPass, LayerMask, StepState, only


class Passes:
    """Follows the backward passes of a training, and gives what they bring to the step in progress.

    Args:
        measuring: What measures them.
        notes: Collects the notes of the run.
        state: The step in progress.
    """

    def __init__(self, measuring: Measuring, notes: Notes, state: StepState) -> None:
        self.state = state
        self.table: Table
        """The rows so far; set before the first pass."""
        self.seen = 0
        """Backward passes that began in recorded steps."""
        self.are_split = False
        """Whether a pipeline computes the gradients of inputs and of weights in separate passes."""
        self._measuring, self._notes = measuring, notes
        self._scaler, self._learned, self._outputs = measuring.scaler, measuring.learned, measuring.outputs
        self._gradients, self._states = measuring.gradients, measuring.states
        self._inner_passes = InnerPasses()
        self._distinguished_in = -1
        """The step in which passes were distinguished last."""
        self._running: BackwardPass | None = None
        """The backward pass in progress."""
        self._uncollected: BackwardPass | None = None
        """The pass that has ended, and whose gradients of outputs are still kept."""
        self._at_last_end: States | None = None
        """The states of all gradients when the last pass ended."""
        self._pending_at_end = 0
        """Number of gradients of outputs that were kept when it ended."""
        self._first_step = state.index
        self._from_before: frozenset[int] = frozenset()
        """Parameters that have a gradient of passes before the recording, to which the first step's passes add."""

    def forget(self) -> None:
        """Forget the gradients of outputs that are still kept."""
        self._uncollected = None

    def start(self) -> None:
        """Note the gradients that are there when recording begins."""
        self._from_before = self._states.not_zero()

    @property
    def has_begun(self) -> bool:
        """Whether a pass has begun in the step in progress."""
        return bool(self.state.begun or (self.state.wanted and self._outputs.pending))

    # --- its beginning --------------------------------------------------------------------------------------

    def begin(self, *, late: bool, early: list[Part]) -> None:
        """Handle the beginning of a pass.

        Args:
            late: Whether it is noticed at the gradient of a parameter, when others may have got theirs before.
            early: What it has brought before it was noticed.
        """
        state = self.state
        state.begun += 1
        self._running = BackwardPass(state.index, parts=early, is_late=late)
        if not state.wanted:
            return
        self.seen += 1
        if not late:
            self.collect()
        self.forget_cleared()
        if not late and state.index == self._first_step:
            self._from_before = self._states.not_zero(self._from_before)
        if not late:
            quick = self._states.may_be_quick and not state.passes and self._states.seem_cleared
            self._running.before = None if quick else self._states.now()
        elif self._measuring.hooks.are_quick and not self._learned.stays_on:
            self._distinguish()

    def collect_early(self, *, late: bool) -> list[Part]:
        """Return what a pass has brought before it was noticed, where the layers whose hooks notice it come later."""
        return self._outputs.collect(self._scaler.scale) if late and self._uncollected is None else []

    def _distinguish(self) -> None:
        """Use the hooks that notice the beginning of every pass, for some rows."""
        self._inner_passes.begin_trial()
        self._distinguished_in = self.state.index
        self._learned.stays_on = True
        self._measuring.hooks.renew()
        self._measuring.hooks.put()

    # --- gradients of outputs -------------------------------------------------------------------------------

    def collect_left_over(self) -> None:
        """Handle gradients that are still there when a forward pass begins."""
        if self._measuring.watch.broken_off:
            self._measuring.watch.forget()
            self._running = None
            self._drop()
        else:
            self.collect()

    def collect(self) -> None:
        """Give the gradients of outputs that are kept to the pass that brought them."""
        if not self._outputs.pending:
            return
        if self._uncollected is None:  # a pass whose end was not detected
            self._uncollected = BackwardPass(self.state.index)
            self.state.passes.append(self._uncollected)
            self._gradients.forget_early_reading()
        self._uncollected.parts += self._outputs.collect(self._scaler.scale)
        self._uncollected = None

    def _drop(self) -> None:
        self._outputs.drop_pending()
        self._measuring.take_pass()

    # --- gradients that are cleared -------------------------------------------------------------------------

    def forget_cleared(self, among: frozenset[int] | None = None, *, may_wait: bool = True) -> None:
        """Find the gradients that were cleared since the last pass ended, and discard the passes that brought them.

        Args:
            among: Indices of the parameters to look at; None for all.
            may_wait: Whether the values of gradients on an accelerator may be looked at.
        """
        state = self.state
        if not state.passes or self.are_split:
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
            self._gradients.forget_early_reading()
        if state.discarded:
            self._notes.note_discarded(self.table.n_rows)
        for each in gone:
            if self._uncollected is each:
                self._uncollected = None
                self._outputs.drop_pending()
            self.table.add_missing_scalars(each.logged)

    # --- its end --------------------------------------------------------------------------------------------

    def end(self) -> bool:
        """Handle the end of a pass.

        Returns:
            Whether it changed gradients of parameters, so that the step in progress has one pass more.
        """
        ended, state, learned = self._running, self.state, self._learned
        self._running = None
        if ended is None:  # the outer pass of nested ones, which was counted by parts
            return False
        if ended.step != state.index or not state.wanted:
            self._drop()
            learned.take_pass()
            return False
        self._measuring.follow_groups()
        taken = self._outputs.pending
        brought = taken or any(measurer.pending for measurer in self._measuring.measurers)
        ended.learned, ended.taken = learned.take_pass(), self._measuring.take_pass()
        if ended in state.passes:  # an optimizer has stepped during the pass
            self._uncollected = ended
            self.collect()
            return False
        quick = self._states.may_be_quick and not state.passes and ended.before is None
        ended.after = self._states.now(quick=quick)
        known = not ended.is_late and ended.after is not None and not self._measuring.watch.nested
        if known and not ended.touched:
            if brought:
                ended.parts += self._outputs.collect(self._scaler.scale)
                state.inner.append(ended)
            return False
        self._add(ended, taken)
        return True

    def _add(self, ended: BackwardPass, taken: int) -> None:
        """Add a pass that changed gradients to the step in progress.

        Args:
            ended: The pass.
            taken: Number of gradients of outputs that it brought.
        """
        state, learned, measuring = self.state, self._learned, self._measuring
        learned.note_order(ended.learned)
        for measurer in measuring.measurers:
            measurer.end_pass()
        if self._inner_passes.is_suspicious(taken, learning=learned.open) and not learned.stays_on:
            self._distinguish()
        ended.silent = taken == 0
        state.passes.append(ended)
        state.ended += 1
        self._at_last_end = ended.after
        self._scaler.begin_round()
        self._uncollected, self._pending_at_end = ended, taken
        if not measuring.reads_gradients or self._gradients.reads_early or learned.open or learned.stays_on:
            self.collect()
        if measuring.reads_gradients:
            self._gradients.look(self._scaler.scale, skip=state.read)

    def divide(self, number: float, modules: set[nn.Module] | None = None) -> None:
        """Divide what the passes of this step brought, as a pipeline's schedule has divided the gradients.

        Args:
            number: The number.
            modules: The modules that it is about; None for all.
        """
        self.collect()
        mask = None if modules is None else self._measuring.mask_of(modules)
        self.state.divide(number, mask)
        if mask is None:
            self._gradients.divide_early_reading(number)
        else:
            self._gradients.forget_early_reading()

    def set_scale(self, scale: Tensor | None) -> None:
        """Note that the passes of this step carry a loss scale."""
        self.state.set_scale(scale)
        self._gradients.set_scale(scale)

    # --- an optimizer uses them -----------------------------------------------------------------------------

    def before_step(self) -> None:
        """Note that an optimizer is about to step, perhaps during a pass."""
        running = self._running
        if running is not None and running.step == self.state.index:
            if running not in self.state.passes:
                self.state.passes.append(running)
            self._uncollected, self._at_last_end = running, None
        elif self._outputs.pending not in (0, self._pending_at_end):  # a pass came whose end was not detected
            self._gradients.forget_early_reading()

    def prepare(self, group: frozenset[int]) -> None:
        """Find what was cleared, where it does not need the norms of gradients.

        Args:
            group: Indices of the parameters that the optimizer is about to change.
        """
        if not self._measuring.reads_gradients:
            self.forget_cleared(group, may_wait=False)
        if self._outputs.pending and self._uncollected is None:
            self.collect()

    def read(self, k: int, grad_scale: Tensor | None, group: frozenset[int], *, others: bool) -> None:
        """Read the gradients that an optimizer is about to use; their passes belong to this step.

        Args:
            k: The optimizer's index.
            grad_scale: The scale that its gradients carry, if it unscales them by itself.
            group: Indices of its parameters.
            others: Whether to read those of parameters without an optimizer, too.
        """
        state = self.state
        if self._measuring.reads_gradients:
            scale = self._scaler.scale
            layers, grads = self._outputs.take_kept()
            norms = self._gradients.read(k, grad_scale, grads, layers)
            if layers and self._uncollected is not None:
                self._uncollected.parts.append(self._outputs.make_part(layers, norms, scale))
            if self._gradients.some_missing or len(state.passes) > 1:
                self.forget_cleared(group, may_wait=False)
            if others:
                self._gradients.read_others(scale)
        if self._uncollected is not None and not self._outputs.pending:
            self._uncollected = None
        self.collect()
        for each in state.passes:
            each.use(group)

    def use_all(self) -> None:
        """Count all passes to this step, whose optimizers the GradScaler did not call."""
        self.collect()
        for each in self.state.passes:
            each.use(each.left)
        self._gradients.use_early_reading()

    # --- the row --------------------------------------------------------------------------------------------

    def count(self) -> list[Part]:
        """Count the passes that belong to the step, and return the norms of the gradients of outputs."""
        state, learned = self.state, self._learned
        if self._running in state.passes:  # the round ends during the pass
            self._running.learned, self._running.taken = learned.take_pass(), self._measuring.take_pass()
            learned.note_order(self._running.learned)
        if self.are_split:
            for each in (*state.passes, *state.inner):
                learned.add_pass(each.learned)
            state.discarded = 0
            return []
        counted = state.counted(self._measuring.own_indices)
        if learned.open:
            for each, mask in counted:
                learned.add_pass(only(each.learned, mask))
        if self._from_before and state.index == self._first_step:
            counted = self._without_partial(counted)
        if self._distinguished_in == state.index and len(counted) > 1:
            counted = self._without_some_of(counted)
        for each, mask in counted:
            for measurer, taken in zip(self._measuring.measurers, each.taken, strict=False):
                measurer.add_pass(taken, mask)
        self._note_inner()
        parts = [part.only(mask) for each, mask in counted for part in each.parts]
        if parts and learned.compiled and any(each.silent for each, _ in counted):
            self._notes.warn_of_silent_passes()  # compiled code without hooks ran in some of the passes
            return []
        return parts

    def _without_partial(
        self, counted: list[tuple[BackwardPass, LayerMask | None]]
    ) -> list[tuple[BackwardPass, LayerMask | None]]:
        """Leave out the layers whose gradients in the first row are partly of passes before the recording.

        Args:
            counted: Passes, each with the layers for which it belongs to the step; None for all.

        Returns:
            The same with fewer layers.
        """
        touched = frozenset().union(*[each.touched for each, _ in counted])
        whole = np.array([bool(own & touched) and not own & self._from_before for own in self._measuring.own_indices])
        if counted and not whole.all():
            self._notes.note_earlier_passes(self.table.n_rows)
        return [(each, whole if mask is None else whole & mask) for each, mask in counted]

    def _without_some_of(
        self, counted: list[tuple[BackwardPass, LayerMask | None]]
    ) -> list[tuple[BackwardPass, LayerMask | None]]:
        """Leave out the layers whose gradients came with some passes of the step and not with others.

        A pass inside another one (a function that runs layers again in the backward pass) is told apart from the
        moment on in which passes are distinguished, and is then no part of the outer one.

        Args:
            counted: Passes, each with the layers for which it belongs to the step; None for all.

        Returns:
            The same with fewer layers.
        """
        own = self._measuring.own_indices
        brought = np.zeros((len(counted), len(own)), dtype=bool)
        for k, (each, _) in enumerate(counted):
            for part in each.parts:
                brought[k, part.layers] = True
        wanted = np.array([[bool(mine & each.touched) for mine in own] for each, _ in counted])
        whole: LayerMask = np.logical_not(brought.any(axis=0) & (wanted & ~brought).any(axis=0))
        return [(each, whole if mask is None else whole & mask) for each, mask in counted]

    def _note_inner(self) -> None:
        """Keep the hooks that notice every pass as long as there are inner passes between others."""
        state, learned = self.state, self._learned
        if state.inner and state.passes:
            learned.stays_on = self._inner_passes.seen = True
            self._notes.note_inner_passes(self.table.n_rows)
        if learned.stays_on and self._inner_passes.end_row():
            learned.stays_on = False
            self._measuring.choose_hooks()
