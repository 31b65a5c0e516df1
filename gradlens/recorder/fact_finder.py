"""Find the facts of a training (``docs/facts.md``): when it is looked at, and what is put in place for a look.

A look lasts from the end of one optimizer step to the end of the next. The first steps are looked at, and then steps at
twice the distance each time, so that the cost of all looks grows with the logarithm of the number of steps.

=========================  ==========================================================================================
Event                      What happens
=========================  ==========================================================================================
A look begins              Place the forward hooks, and observe backward passes and clipping. Keep samples of weights.
Module runs (look)         First three steps: note the call and the data, label the output's node. Batch norm: compare
                           statistics. The last module: measure how far outputs are from their mean.
Backward pass (look)       Before: note gradients that are there; first three steps: read the loss's graph. After: note
                           which gradients were written.
Before an optimizer step   Compare learning rates and training modes; in a look, note the states of gradients, and
                           which weights changed since the step before.
Round ends                 As in ``steps``: every optimizer has stepped, or one is about to step again. A look ends:
                           remove what was placed, release tensors, write the facts. Every 64th: read the groups.
``log``                    First three steps: read the graph of a logged loss if no backward pass was observed.
torch compiles             Remove the forward hook for good: compiled code must know nothing of it.
A pipeline tries a stage   Nothing: its numbers have no meaning.
Error                      Remove everything; there are no facts. The training and the recording go on.
``stop``                   Remove everything.
=========================  ==========================================================================================
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from gradlens.format import plain
from gradlens.recorder.copied_statistics import CopiedStatistics
from gradlens.recorder.gradient_scaling import Clipping, Scaling
from gradlens.recorder.graph_reading import MODEL
from gradlens.recorder.hooks.compiled import is_compiled
from gradlens.recorder.hooks.observed_calls import (
    GlobalForwardHook,
    observe_backward,
    observe_clipping,
    observe_gradients,
)
from gradlens.recorder.hooks.optimizer_steps import place_step_hooks
from gradlens.recorder.hooks.pipeline_scaling import is_trial
from gradlens.recorder.layer_inputs import LayerInputs
from gradlens.recorder.layers import clean_name, output_tensors, own_parameters
from gradlens.recorder.loss_graph import LossGraph, find_weights_in_buffers
from gradlens.recorder.module_modes import BatchNorms, Modes
from gradlens.recorder.optimizer_settings import OptimizerSettings
from gradlens.recorder.output_spread import OutputSpread
from gradlens.recorder.parameter_states import Copies, Facts, ParameterStates
from gradlens.recorder.rounding import Rounding
from gradlens.recorder.token_reading import TokenReading

FIRST_LOOKS = 5
GRAPH_LOOKS = 3
"""Steps in which the graph of the loss is read."""
COMPARED_EVERY = 64
"""Interval in steps at which the groups of optimizers and ``requires_grad`` are read."""

M = TypeVar("M", bound=Callable[..., None])


def safely(method: M) -> M:
    """Return a method of ``FactFinder`` that does nothing after an error, and ends the search at the first."""

    @functools.wraps(method)
    def guarded(self: FactFinder, *args: Any, **kwargs: Any) -> None:
        if self.failed:
            return
        try:
            method(self, *args, **kwargs)
        except Exception:
            self.failed = True
            with contextlib.suppress(Exception):
                self._put_away()
                self._calls.remove()
                # The hooks on optimizers stay: one may be calling them at this moment.

    return cast(M, guarded)


def weakly(method: M) -> M:
    """Return a bound method for a place of torch: what is called there keeps no object alive, and then does nothing."""
    found = weakref.WeakMethod(method)

    def call(*args: Any, **kwargs: Any) -> None:
        bound = found()
        if bound is not None:
            bound(*args, **kwargs)

    return cast(M, call)


class FactFinder:
    """Finds the facts of one training.

    Args:
        model: The model.
        optimizers: Those whose steps end a round.
        scaler: The GradScaler that the recorder was given.
        index: Returns the index of the optimizer step in progress.
        write: Stores the facts.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        scaler: GradScaler | None,
        index: Callable[[], int],
        write: Callable[[Facts], None],
    ) -> None:
        self.failed = False
        self._model, self._optimizers, self._index, self._write = model, optimizers, index, write
        self._watched = [
            observe_backward(weakly(self._before_backward), weakly(self._after_backward)),
            observe_clipping(weakly(self._clip)),
            observe_gradients(weakly(self._note_gradients)),
        ]
        self._scaling = Scaling(scaler)
        self._clipping = Clipping()
        self._calls = GlobalForwardHook(weakly(self._note_call))
        self._names: dict[int, str] = {}
        """``id`` of each module that is noted when it runs, to its name."""
        self._round = 0
        self._first_step = self._last_step = self._step = 0
        self._stepped: set[int] = set()
        self._passes = self._depth = 0
        """Backward passes observed in this round, and those that run at this moment."""
        self._is_on = False
        self._is_looking = False
        """Whether the step in progress is looked at."""
        self._thread = threading.get_ident()
        """The thread that trains the model, as far as is known."""

    @safely
    def start(self) -> None:
        """Place the hooks on optimizers, and begin the first look."""
        self._first_step = self._last_step = self._step = self._index()
        self._thread = threading.get_ident()
        self._parameters = ParameterStates(self._model, self._step)
        self._gains = self._parameters.gains()
        self._rounding = Rounding(self._parameters.states)
        self._spread = OutputSpread()
        self._settings = OptimizerSettings(self._optimizers, self._step)
        self._modes = Modes(self._model, self._step)
        self._norms = BatchNorms(self._model)
        self._copies = Copies(self._model, self._parameters)
        self._statistics = CopiedStatistics(self._model)
        self._inputs = LayerInputs()
        self._tokens = TokenReading()
        self._buffers = find_weights_in_buffers(self._model)
        names = {key: state.layer for key, state in self._parameters.states.items()}
        self._graph = LossGraph(self._model, names)
        self._step_handles = place_step_hooks(self._optimizers, self._on_step, self._before_step, self._after_step)
        self._is_on = True
        self._begin_round(0)
        self._begin_look()

    def stop(self) -> None:
        """Remove everything from the model, the optimizers and torch."""
        if self._is_on:
            self._is_on = self._is_looking = False
            self._put_away()
            self._calls.remove()
            self._parameters.end_look()
            for handle in self._step_handles:
                handle.remove()

    @property
    def facts(self) -> Facts:
        """The facts so far; none after an error."""
        found: list[Facts] = []
        self._collect(found)
        return dict(plain(found[0])) if found else {}

    @safely
    def _collect(self, found: list[Facts]) -> None:
        parameters, groups = self._parameters, self._settings.groups
        found.append(
            {
                "version": 1,
                "first_step": self._first_step,
                "last_step": self._last_step,
                "looks": sum(map(is_look, range(self._round))),
                "totals": parameters.totals(groups),
                "parameters": parameters.facts(groups),
                "optimizers": self._settings.facts(parameters.states),
                "modes": self._modes.facts(),
                "batch_norm": self._norms.facts(),
                "clipping": self._clipping.facts(),
                "scaling": self._scaling.facts(),
                "changed_outside": parameters.changed_outside(groups),
                "gains": self._gains,
                "rounding": self._rounding.facts(),
                "spread": self._spread.facts(),
                "written_between": parameters.written_between(),
                "copies": [f | self._statistics.describe(f["layer"], f["of"]) for f in self._copies.facts()],
                "inputs": self._inputs.facts(),
                "tokens": self._tokens.facts(),
                "buffers": self._buffers,
                "graph": self._graph.facts(parameters.with_gradient),
            }
        )

    # --- looks --------------------------------------------------------------------------------------------

    def _begin_round(self, number: int) -> None:
        self._round = number
        self._is_looking = self._is_on and not self._parameters.distributed and is_look(number)
        self._passes = self._depth = 0
        self._stepped.clear()

    def _begin_look(self) -> None:
        if not self._is_looking:
            return
        self._parameters.begin_round()
        for watched in self._watched:
            watched.put()
        modules = list(self._model.named_modules())
        if any(is_compiled(module) for _, module in modules):
            return  # a hook would make torch compile the model once more
        self._names = {
            id(module): clean_name(name) or "(model)"
            for name, module in modules
            if next(module.children(), None) is None or own_parameters(module)
        }
        if self._needs_calls:
            self._calls.put()

    @property
    def _needs_calls(self) -> bool:
        return self._is_looking

    def _put_away(self) -> None:
        for watched in self._watched:
            watched.remove()

    @safely
    def _note_call(self, module: nn.Module, args: Any, output: Any) -> None:
        name = self._names.get(id(module))
        if not self._is_looking or is_trial() or (name is None and module is not self._model):
            return
        outputs = output_tensors(output)
        if module is self._model:
            self._spread.note_call(MODEL, outputs, (MODEL,))
            if self._round < GRAPH_LOOKS:
                self._graph.note_model(outputs)
        if name is None:
            return
        if module is not self._model:
            self._spread.note_call(name, outputs, self._graph.last_layers)
        self._thread = threading.get_ident()
        self._statistics.note_call(name, module)
        if torch.is_grad_enabled() and args and isinstance(args[0], Tensor):
            self._norms.note_call(name, args[0], self._index())
        if self._round < GRAPH_LOOKS:
            own = own_parameters(module)
            trains = any(parameter.requires_grad for parameter in own)
            self._graph.note_call(name, outputs, trains=trains, step=self._index())
            if own and torch.is_grad_enabled() and args and isinstance(args[0], Tensor):
                self._inputs.note_call(name, module, args[0], outputs, self._index())
                self._tokens.note_call(name, module, args[0], self._index())

    # --- the backward pass --------------------------------------------------------------------------------

    @property
    def _trains_here(self) -> bool:
        """Whether this thread trains the model.

        All threads call what is observed, and a gradient that another thread writes at the same moment must not be
        read: torch ends the process in a segmentation fault. A pass inside a pass may run in a thread of autograd.
        """
        if is_trial():
            return False
        if threading.get_ident() == self._thread:
            return True
        return self._depth > 0 and type(threading.current_thread()).__name__ == "_DummyThread"

    @safely
    def _before_backward(self, tensors: Sequence[Tensor], nodes: Sequence[Any]) -> None:
        if not self._trains_here:
            return
        self._depth += 1
        if not self._is_looking:
            return
        if self._depth == 1:
            self._scaling.note_root(tensors, self._index())
            self._parameters.before_backward()
        if self._round < GRAPH_LOOKS:
            keys = set(self._settings.groups)
            self._graph.read(tensors, self._index(), "backward", keys, nodes=nodes, is_inner=self._depth > 1)
            self._tokens.read(tensors, self._index())

    @safely
    def _after_backward(self) -> None:
        if not self._trains_here:
            return
        self._depth = max(self._depth - 1, 0)
        if self._is_looking and self._depth == 0:
            self._passes += 1
            self._parameters.after_backward()

    @safely
    def _note_gradients(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        if self._is_looking and self._round < GRAPH_LOOKS and self._trains_here:
            self._graph.note_gradients(outputs, inputs, self._index())

    @safely
    def log(self, scalars: Mapping[str, Any]) -> None:
        """Read the graph of a logged loss, if no backward pass was observed.

        Args:
            scalars: What was logged; "loss" is preferred.
        """
        if self._is_on and 0 < self._round <= GRAPH_LOOKS and not self._graph.was_read:
            first = [scalars["loss"]] if "loss" in scalars else []
            graphs = [v for v in (*first, *scalars.values()) if isinstance(v, Tensor) and v.grad_fn is not None]
            if graphs:
                self._graph.read(graphs[:1], self._last_step, "log", set(self._settings.groups))

    @safely
    def _clip(self, parameters: list[Tensor], max_norm: float, total_norm: Tensor) -> None:
        if self._is_looking and self._trains_here:
            when = "before_step" if self._passes else "after_step"
            if self._passes and self._scaling.is_scaled(self._optimizers):
                when = "scaled"
            own = [state.parameter for state in self._parameters.states.values() if state.parameter.grad is not None]
            inside = {id(parameter) for parameter in parameters}
            count = sum(id(parameter) in inside for parameter in own)
            self._clipping.note(when, max_norm, total_norm, count, len(own), self._index())

    # --- the optimizer ------------------------------------------------------------------------------------

    def _on_step(self, k: int, optimizer: Optimizer) -> None:
        self._before_step(k)

    @safely
    def _before_step(self, k: int) -> None:
        if not self._is_on:
            return
        self._thread = threading.get_ident()
        if k in self._stepped:
            self._end_round()
        self._step = self._index()
        looks = self._is_looking
        if self._optimizers:
            self._settings.at_step(k, self._step)
        self._modes.at_step(self._step, thorough=looks)
        if not self._stepped:
            self._parameters.compare_versions(self._step)
        if not looks:
            return
        self._depth = 0
        self._scaling.note_step(self._optimizers[k] if self._optimizers else None, self._step)
        if not self._stepped:
            self._settings.read_groups()
            self._parameters.look_for_outside_changes(self._step)
        keys = self._settings.keys(k) if self._optimizers else list(self._parameters.states)
        self._parameters.at_step(keys, self._step, passes_seen=self._passes > 0)
        if self._optimizers:
            self._settings.before_write(k)

    @safely
    def _after_step(self, k: int) -> None:
        self._stepped.add(k)
        if self._is_looking and self._optimizers:
            self._settings.after_write(k)
            self._rounding.after_step(self._settings.keys(k))
        if self._is_on and len(self._stepped) >= len(self._optimizers):
            self._end_round()

    def step_by_hand(self) -> None:
        """Look at a step for which no optimizer was given."""
        self._before_step(0)
        self._after_step(0)

    def _end_round(self) -> None:
        looked = self._is_looking
        if looked:
            self._last_step = self._step
            others = [key for key in self._parameters.states if key not in self._settings.groups]
            if self._optimizers:
                self._parameters.at_step(others, self._step, passes_seen=self._passes > 0)
            self._parameters.read()
            self._rounding.read(self._step)
            self._spread.read(self._step)
            self._copies.look(self._step, self._settings.groups)
            self._put_away()
            self._parameters.end_look()
        elif self._round % COMPARED_EVERY == 0:
            self._settings.read_groups()
            self._parameters.compare_requires_grad(self._step)
        self._parameters.note_versions()
        self._begin_round(self._round + 1)
        if looked:
            if self._round == GRAPH_LOOKS:
                self._inputs.forget()
                self._tokens.end()
            self._write(self.facts)
            if not self._needs_calls:
                self._calls.remove()
        self._begin_look()


def is_look(number: int) -> bool:
    """Return whether a step is looked at, counted from the first that was followed."""
    return number < FIRST_LOOKS or number & (number - 1) == 0
