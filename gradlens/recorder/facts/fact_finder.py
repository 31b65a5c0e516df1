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
import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from gradlens.format import plain
from gradlens.recorder.facts.fact_collectors import FactCollectors, make_collectors
from gradlens.recorder.facts.loss.graph_reading import MODEL, READER
from gradlens.recorder.facts.parameter_states import Facts
from gradlens.recorder.hooks.compiled import is_compiled
from gradlens.recorder.hooks.observed_calls import (
    GlobalForwardHook,
    observe_backward,
    observe_clipping,
    observe_gradients,
)
from gradlens.recorder.hooks.optimizer_steps import place_step_hooks
from gradlens.recorder.hooks.pipeline_scaling import is_trial
from gradlens.recorder.layers import clean_name, output_tensors, own_parameters

FIRST_LOOKS = 5
GRAPH_LOOKS = 3
"""Steps in which the graph of the loss is read."""
COMPARED_EVERY = 64
"""Interval in steps at which the groups of optimizers and ``requires_grad`` are read."""

M = TypeVar("M", bound=Callable[..., None])


_numbers = itertools.count(1)


def safely(method: M) -> M:
    """Return a method of ``FactFinder`` that does nothing after an error, and ends the search at the first."""

    @functools.wraps(method)
    def guarded(self: FactFinder, *args: Any, **kwargs: Any) -> None:
        if self.failed:
            return
        reader = READER.set(self.number)
        try:
            method(self, *args, **kwargs)
        except Exception:
            self.failed = True
            with contextlib.suppress(Exception):
                self._put_away()
                self._calls.remove()
                # The hooks on optimizers stay: one may be calling them at this moment.
        finally:
            READER.reset(reader)

    return cast(M, guarded)


def weakly(method: M) -> M:
    """Return a bound method for a place of torch: what is called there keeps no object alive, and then does nothing."""
    found = weakref.WeakMethod(method)

    def call(*args: Any, **kwargs: Any) -> None:
        bound = found()
        if bound is not None:
            bound(*args, **kwargs)

    return cast(M, call)


def is_look(number: int) -> bool:
    """Return whether a step is looked at, counted from the first that was followed."""
    return number < FIRST_LOOKS or number & (number - 1) == 0


@dataclass
class Round:
    """One round of the optimizers, from the end of the last one; it is made anew for each."""

    number: int
    step: int
    """Index of the optimizer step in progress; until one begins, that of the round before."""
    is_look: bool = False
    """Whether it is looked at."""
    stepped: set[int] = field(default_factory=set)
    """Numbers of the optimizers that have stepped."""
    passes: int = 0
    """Backward passes that were observed."""
    depth: int = 0
    """Backward passes that run at this moment."""

    @property
    def reads_graph(self) -> bool:
        """Whether the graph of the loss is read."""
        return self.number < GRAPH_LOOKS


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
        self.number = next(_numbers)
        """Tells its labels in a graph from those of others."""
        self._model, self._optimizers, self._scaler = model, optimizers, scaler
        self._index, self._write = index, write
        self._watched = [
            observe_backward(weakly(self._before_backward), weakly(self._after_backward)),
            observe_clipping(weakly(self._clip)),
            observe_gradients(weakly(self._note_gradients)),
        ]
        self._calls = GlobalForwardHook(weakly(self._note_call))
        self._containers: dict[int, str] = {}
        """Modules that contain others, by ``id``."""
        self._names: dict[int, str] = {}
        """``id`` of each module that is noted when it runs, to its name."""
        self._first_step = self._last_step = 0
        """The first step that was followed, and the last that was looked at."""
        self._round = Round(0, 0)
        self._is_on = False
        self._thread = threading.get_ident()
        """The thread that trains the model, as far as is known."""
        self._collectors: FactCollectors

    @safely
    def start(self) -> None:
        """Place the hooks on optimizers, and begin the first look."""
        self._first_step = self._last_step = self._index()
        self._thread = threading.get_ident()
        self._collectors = make_collectors(self._model, self._optimizers, self._scaler, self._first_step)
        self._step_handles = place_step_hooks(self._optimizers, self._on_step, self._before_step, self._after_step)
        self._is_on = True
        self._begin_round(0, self._first_step)
        self._begin_look()

    def stop(self) -> None:
        """Remove everything from the model, the optimizers and torch."""
        if self._is_on:
            self._is_on = self._round.is_look = False
            self._put_away()
            self._calls.remove()
            self._collectors.parameters.end_look()
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
        looks = sum(map(is_look, range(self._round.number)))
        when = {"version": 1, "first_step": self._first_step, "last_step": self._last_step, "looks": looks}
        found.append(when | self._collectors.facts())

    # --- looks --------------------------------------------------------------------------------------------

    def _begin_round(self, number: int, step: int) -> None:
        looks = self._is_on and not self._collectors.parameters.distributed and is_look(number)
        self._round = Round(number, step, looks)

    def _begin_look(self) -> None:
        if not self._round.is_look:
            return
        self._collectors.parameters.begin_round()
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
        self._containers = {
            id(module): clean_name(name) or MODEL
            for name, module in modules
            if next(module.children(), None) is not None
        }
        self._calls.put()

    def _put_away(self) -> None:
        for watched in self._watched:
            watched.remove()

    @safely
    def _note_call(self, module: nn.Module, args: Any, output: Any) -> None:
        name, found, this = self._names.get(id(module)), self._collectors, self._round
        container = self._containers.get(id(module))
        if not this.is_look or is_trial() or (name is None and container is None):
            return
        outputs = output_tensors(output)
        if container is not None and this.reads_graph:
            found.graph.modules.note_container(container, outputs)
        if module is self._model:
            found.spread.note_call(MODEL, outputs, (MODEL,))
            if this.reads_graph:
                found.graph.note_model(outputs)
        if name is None:
            return
        if module is not self._model:
            found.spread.note_call(name, outputs, found.graph.last_layers)
        self._thread = threading.get_ident()
        found.statistics.note_call(name, module)
        if torch.is_grad_enabled():
            found.random.note_call(self._index())
        inputs = args[0] if torch.is_grad_enabled() and args and isinstance(args[0], Tensor) else None
        if inputs is not None:
            found.norms.note_call(name, inputs, self._index())
        if this.reads_graph:
            own = own_parameters(module)
            trains = any(parameter.requires_grad for parameter in own)
            found.graph.modules.note_call(name, outputs, trains=trains, step=self._index())
            if any(isinstance(arg, Tensor) and arg.grad_fn is not None for arg in args):
                found.graph.modules.fed.add(name)
            if own and inputs is not None:
                found.inputs.note_call(name, module, inputs, outputs, self._index())
                found.tokens.note_call(name, module, inputs, self._index())

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
        return self._round.depth > 0 and type(threading.current_thread()).__name__ == "_DummyThread"

    @safely
    def _before_backward(self, tensors: Sequence[Tensor], nodes: Sequence[Any]) -> None:
        if not self._trains_here:
            return
        found, this = self._collectors, self._round
        this.depth += 1
        if not this.is_look:
            return
        if this.depth == 1:
            found.scaling.note_root(tensors, self._index())
            found.parameters.before_backward()
            found.random.before_backward(self._index())
        if this.reads_graph:
            keys = set(found.settings.groups)
            found.graph.read(tensors, self._index(), "backward", keys, nodes=nodes, is_inner=this.depth > 1)
            found.tokens.read(tensors, self._index())

    @safely
    def _after_backward(self) -> None:
        if not self._trains_here:
            return
        this = self._round
        this.depth = max(this.depth - 1, 0)
        if this.is_look and this.depth == 0:
            this.passes += 1
            self._collectors.parameters.after_backward()

    @safely
    def _note_gradients(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        if self._round.is_look and self._round.reads_graph and self._trains_here:
            self._collectors.graph.note_gradients(outputs, inputs, self._index())

    @safely
    def log(self, scalars: Mapping[str, Any]) -> None:
        """Read the graph of a logged loss, if no backward pass was observed.

        Args:
            scalars: What was logged; "loss" is preferred.
        """
        if self._is_on and 0 < self._round.number <= GRAPH_LOOKS and not self._collectors.graph.was_read:
            first = [scalars["loss"]] if "loss" in scalars else []
            graphs = [v for v in (*first, *scalars.values()) if isinstance(v, Tensor) and v.grad_fn is not None]
            if graphs:
                keys = set(self._collectors.settings.groups)
                self._collectors.graph.read(graphs[:1], self._last_step, "log", keys)

    @safely
    def _clip(self, parameters: list[Tensor], max_norm: float, total_norm: Tensor) -> None:
        if self._round.is_look and self._trains_here:
            found, passes = self._collectors, self._round.passes
            when = "before_step" if passes else "after_step"
            if passes and found.scaling.is_scaled(self._optimizers):
                when = "scaled"
            own = [state.parameter for state in found.parameters.states.values() if state.parameter.grad is not None]
            inside = {id(parameter) for parameter in parameters}
            count = sum(id(parameter) in inside for parameter in own)
            found.clipping.note(when, max_norm, total_norm, count, len(own), self._index())

    # --- the optimizer ------------------------------------------------------------------------------------

    def _on_step(self, k: int, optimizer: Optimizer) -> None:
        self._before_step(k)

    @safely
    def _before_step(self, k: int) -> None:
        if not self._is_on:
            return
        self._thread = threading.get_ident()
        if k in self._round.stepped:
            self._end_round()
        found, this = self._collectors, self._round
        this.step = self._index()
        if self._optimizers:
            found.settings.at_step(k, this.step)
        found.modes.at_step(this.step, thorough=this.is_look)
        if not this.stepped:
            found.parameters.compare_versions(this.step)
        if this.is_look:
            self._look_before_step(k)

    def _look_before_step(self, k: int) -> None:
        found, this = self._collectors, self._round
        this.depth = 0
        found.scaling.note_step(self._optimizers[k] if self._optimizers else None, this.step)
        if not this.stepped:
            found.settings.read_groups()
            found.parameters.look_for_outside_changes(this.step)
        keys = found.settings.keys(k) if self._optimizers else list(found.parameters.states)
        found.parameters.at_step(keys, this.step, passes_seen=this.passes > 0)
        if self._optimizers:
            found.settings.before_write(k)

    @safely
    def _after_step(self, k: int) -> None:
        if not self._is_on:
            return
        found, this = self._collectors, self._round
        this.stepped.add(k)
        if this.is_look and self._optimizers:
            found.settings.after_write(k)
            found.rounding.after_step(found.settings.keys(k))
        if len(this.stepped) >= len(self._optimizers):
            self._end_round()

    def step_by_hand(self) -> None:
        """Look at a step for which no optimizer was given."""
        self._before_step(0)
        self._after_step(0)

    def _end_round(self) -> None:
        found, this = self._collectors, self._round
        if this.is_look:
            self._last_step = this.step
            if self._optimizers:
                others = [key for key in found.parameters.states if key not in found.settings.groups]
                found.parameters.at_step(others, this.step, passes_seen=this.passes > 0)
            found.read_look(this.step)
            self._put_away()
            found.parameters.end_look()
        elif this.number % COMPARED_EVERY == 0:
            found.settings.read_groups()
            found.parameters.compare_requires_grad(this.step)
        found.parameters.note_versions()
        self._begin_round(this.number + 1, this.step)
        if this.is_look:
            if self._round.number == GRAPH_LOOKS:
                found.inputs.forget()
                found.tokens.end()
            self._write(self.facts)
            if not self._round.is_look:
                self._calls.remove()
        self._begin_look()
