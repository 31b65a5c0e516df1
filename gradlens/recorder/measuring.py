"""What measures the steps of a recording: gradients of outputs and of parameters, and what metrics need besides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from gradlens.metrics import ACTIVATION_GRAD_NORM, NONFINITE_COUNT, PARAM_GRAD_NORM
from gradlens.recorder.gradient_states import GradientStates
from gradlens.recorder.hooks.backward_pass import BackwardWatch
from gradlens.recorder.hooks.compiled import has_compiled
from gradlens.recorder.hooks.grad_scaler import ScalerWatch
from gradlens.recorder.hooks.placement import LayerHooks
from gradlens.recorder.hooks.registrations import Registrations
from gradlens.recorder.intervals import Intervals
from gradlens.recorder.layers import Learned, own_parameters, spread_out, takes_hooks
from gradlens.recorder.measurer import Context, make_measurers
from gradlens.recorder.notes import Notes
from gradlens.recorder.output_gradients import OutputGradients
from gradlens.recorder.parameters import Owners, ParameterGradients, group_by_optimizer
from gradlens.recorder.ranks.distributed import Ranks
from gradlens.recorder.ranks.tensor_layouts import ShardedGradients, is_distributed

SPREAD = 16
"""Number of parameters with a hook that detects backward passes, where gradients of outputs do not show them."""

FIRST_SPREAD = 4
"""The same in the first row, where the hooks on layers detect passes too, except in code compiled earlier."""


class Measuring:
    """What measures the steps of a recording, and the hooks that it needs.

    Args:
        model: The model.
        modules: Layer names to modules, L of them.
        optimizers: Those whose steps are followed.
        scaler: Observes the GradScaler.
        intervals: Which metrics a row has.
        learned: What the first row shows about the layers.
        ranks: The processes that record together.
        watch: Notices backward passes.
        on_error: Is called with an error in a hook.
        on_left_over: Is called at a forward pass before which gradients of outputs were left over.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        *,
        optimizers: Sequence[Optimizer],
        scaler: ScalerWatch,
        intervals: Intervals,
        learned: Learned,
        ranks: Ranks | None,
        watch: BackwardWatch,
        on_error: Callable[[Exception], None],
        on_left_over: Callable[[], None],
    ) -> None:
        self.scaler, self.intervals, self.learned, self.watch = scaler, intervals, learned, watch
        self.outputs = OutputGradients(len(modules), None if ranks is None else ranks.takes)
        self._optimizers, self._modules = optimizers, list(modules.values())
        self._registrations = Registrations()
        owned = [own_parameters(module) for module in modules.values()]
        self._with_gradient = [[p for p in own if ranks is None or ranks.reads_gradient(p)] for own in owned]
        self.sharded = (
            None
            if ranks is None or not any(map(is_distributed, model.parameters()))
            else ShardedGradients(owned, ranks.world)
        )
        """Makes of gradients what is added up over the ranks; None where no parameter is distributed."""
        self._group_sizes = self._count_groups()
        self.states = GradientStates(model, self._grouped_ids())
        self.own_indices = [frozenset(self.states.indices(map(id, own))) for own in owned]
        """(L,) the indices of each layer's own parameters in the states."""
        self._owned_ids = [frozenset(map(id, own)) for own in owned]
        self._sharded_layers = [any(hasattr(p, "device_mesh") for p in own) for own in owned]
        self.unchanged: NDArray[np.bool_] | None = None
        """(L,) whether a layer still has the parameters that are read; None if all have."""
        count = NONFINITE_COUNT in intervals
        self.gradients = ParameterGradients(
            self._find_owners(), count_nonfinite=count, always_early=scaler.present, sharded=self.sharded
        )
        self.reads_outputs = ACTIVATION_GRAD_NORM in intervals
        self._takes_hooks = any(map(takes_hooks, modules.values()))
        self.reads_gradients = PARAM_GRAD_NORM in intervals or count
        self.hooks = LayerHooks(
            modules, self.outputs, learned, ranks, on_error, on_pass=watch.begin, on_left_over=on_left_over
        )
        read = [[p for p in own if ranks is None or ranks.reads(p)] for own in owned]
        context = Context(model, modules, read, intervals, learned, on_error, watch.begin)
        self.measurers = make_measurers(intervals, context)
        """They measure what is due besides the gradient norms."""

    @property
    def n_optimizers(self) -> int:
        """Number of optimizers whose steps are followed."""
        return len(self._optimizers)

    def _count_groups(self) -> list[int]:
        return [len(group["params"]) for optimizer in self._optimizers for group in optimizer.param_groups]

    def _grouped_ids(self) -> list[set[int]]:
        return [{id(p) for group in o.param_groups for p in group["params"]} for o in self._optimizers]

    def _find_owners(self) -> list[Owners]:
        return group_by_optimizer(self._with_gradient, self._grouped_ids())

    @property
    def takes_gradients(self) -> bool:
        """Whether a parameter of a layer requires a gradient."""
        return any(parameter.requires_grad for parameter in self.gradients.parameters)

    def mask_of(self, modules: Collection[nn.Module]) -> NDArray[np.bool_]:
        """Return (L,) whether each layer is one of these modules."""
        return np.array([module in modules for module in self._modules])

    def find_sharing(self) -> dict[int, frozenset[int]]:
        """Return, for each optimizer that shares parameters with others (Hogwild, phases of a training), those."""
        ids = self._grouped_ids()
        shared = {
            k: frozenset(j for j, other in enumerate(ids) if j != k and other & mine) for k, mine in enumerate(ids)
        }
        return {k: others for k, others in shared.items() if others}

    def follow_groups(self) -> None:
        """Handle parameters that an optimizer has got since (``add_param_group``)."""
        sizes = self._count_groups()
        if sizes != self._group_sizes:
            self._group_sizes = sizes
            self.gradients.set_owners(self._find_owners())
            self.states.follow(self._grouped_ids())

    def find_replaced(self, row: int) -> None:
        """Look for layers that have got parameters which are not read, if one was registered, and at powers of two.

        Args:
            row: Index of the row in progress.
        """
        if not self._registrations.seen and row & (row - 1):
            return
        self._registrations.seen = False
        # sharded parameters are gathered and sharded again in each step
        kept = [
            sharded or all(id(p) in ids for p in own_parameters(module))
            for module, ids, sharded in zip(self._modules, self._owned_ids, self._sharded_layers, strict=True)
        ]
        self.unchanged = None if all(kept) else np.array(kept)

    def watch_first(self) -> None:
        """Watch the parameters by which passes are noticed until the first row has shown more."""
        self._registrations.start()
        spread = SPREAD if self.learned.compiled else FIRST_SPREAD
        self.watch.watch(spread_out([p for p in self.gradients.parameters if p.requires_grad], spread))

    def put_hooks(self, *, wanted: bool) -> None:
        """Place the hooks on layers that a step needs, and remove others.

        Args:
            wanted: Whether the step is recorded.
        """
        learned = self.learned
        needed = learned.open or (self.reads_outputs and (learned.compiled or wanted))
        if learned.compiled and not self.reads_outputs:
            needed = False  # hooks break compiled code into parts, so place only those that are needed
        if needed:
            self.hooks.put()
        else:
            self.hooks.remove()

    def choose_hooks(self) -> None:
        """Choose hooks and watched parameters by what was learned."""
        self.hooks.renew()
        spread = 0 if self.reads_outputs else SPREAD
        to_watch = [] if self.learned.compiled else self.learned.parameters_to_watch(spread)
        if to_watch:
            self.watch.watch(to_watch)

    def end_learning(self, notes: Notes, *, passes_seen: int) -> None:
        """Replace the learning hooks by the faster ones.

        Args:
            notes: Collects the notes of the run.
            passes_seen: Backward passes that have begun.
        """
        if not self.learned.called and self.reads_outputs:
            compiled = has_compiled() and self._takes_hooks  # of TorchScript, torch.compile is not the cause
            notes.warn_of_no_hook(compiled=compiled, backward=passes_seen > 0)
        self.choose_hooks()

    def begin(self, due: Sequence[str], row: int) -> None:
        """Place the hooks that due metrics need.

        Args:
            due: Metrics of the row; none if the step is not recorded.
            row: Index of the row.
        """
        for measurer in self.measurers:
            measurer.begin_step(due, row)

    def take_pass(self) -> list[Any]:
        """Return what the backward pass in progress has brought to each measurer."""
        return [measurer.take_pass() for measurer in self.measurers]

    def pause(self) -> None:
        """Record nothing more in this step."""
        self.outputs.armed = False
        self.hooks.remove()
        for measurer in self.measurers:
            measurer.remove_hooks()
        self.watch.stop()

    def go_on(self, due: Sequence[str], row: int) -> None:
        """Record again after ``pause``.

        Args:
            due: Metrics of the row.
            row: Index of the row.
        """
        self.outputs.armed = True
        self.watch.start()
        self.begin(due, row)
        if self.reads_outputs:
            self.hooks.put()

    def count_nonfinite(self) -> None:
        """Have the metric ``nonfinite_count`` from the first row on."""
        self.intervals.setdefault(NONFINITE_COUNT, 1)
        self.gradients.count_nonfinite = True

    def stop(self) -> None:
        """Record nothing more."""
        self.outputs.armed = self.learned.open = False
        self._registrations.stop()
        self.hooks.remove()
        self.begin((), 0)
        for measurer in self.measurers:
            measurer.stop()
        self.watch.stop()

    def clear(self) -> None:
        """Release every tensor of the step in progress."""
        self.outputs.clear()
        self.gradients.clear()
        for measurer in self.measurers:
            measurer.clear()
