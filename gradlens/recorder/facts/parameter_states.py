"""The states of a model's parameters: gradients at the optimizer step, and changes elsewhere."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.recorder.layers import clean_name
from gradlens.recorder.registered_parameters import registered_parameters

SAMPLE = 256
"""Elements of each parameter that are compared between two steps."""
ALIKE = 1e-3
"""Rows of weights count as the same where they differ by less than this share; rounding drives equal units apart."""
WATCHED = 4
"""Weights whose versions are compared at every step."""
MOST_GAINS = 16
"""Layers whose weights are measured at the start."""
MOST_WRITES = 64
"""Most steps that are kept of those before which weights were written."""
MOST_QUESTIONS = 64
"""Most questions about tensors that are kept until they are answered; without a limit they would pile up where no
optimizer steps."""

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Types of numbers of which torch finds the least and the largest."""
Facts = dict[str, Any]


class Questions:
    """Whether elements of tensors are not 0: computed when it is asked, and read later, all together.

    So an accelerator is waited for once. What follows from the answers is done when they are read, in the order in
    which the questions were asked.
    """

    def __init__(self) -> None:
        self._asked: list[tuple[list[tuple[Tensor, ...]], Callable[[list[bool]], None]]] = []

    def ask(self, tensors: Sequence[Tensor | None], then: Callable[[list[bool]], None]) -> None:
        """Ask whether an element is not 0.

        Args:
            tensors: They may change afterwards; None, and an empty one, have no such element.
            then: Is called with the answers when they are read.
        """
        if len(self._asked) >= MOST_QUESTIONS:
            self.read()
        self._asked.append(([_extremes(tensor) for tensor in tensors], then))

    def read(self) -> None:
        """Read the answers: one copy to the host per device."""
        devices: dict[torch.device, list[Tensor]] = {}
        for flag in [flag for flags, _ in self._asked for each in flags for flag in each]:
            devices.setdefault(flag.device, []).append(flag)
        found = {
            id(flag): answer
            for flags in devices.values()
            for flag, answer in zip(flags, torch.stack(flags).tolist(), strict=True)
        }
        asked, self._asked = self._asked, []
        for flags, then in asked:
            then([any(found[id(flag)] for flag in each) for each in flags])

    def forget(self) -> None:
        """Forget what was asked."""
        self._asked.clear()


def _extremes(tensor: Tensor | None) -> tuple[Tensor, ...]:
    """Return numbers (0-d) that are all 0 only if every element is; none for no element.

    They are the least and the largest element where torch finds these, which it does five times faster than ``any``.
    """
    if tensor is None or not tensor.numel():
        return ()
    values = tensor.detach()
    values = values._values() if values.is_sparse else values
    return tuple(torch.aminmax(values)) if values.dtype in FLOATS else (values.any(),)


MOST_SHARES = 4
"""Steps in succession of which is taken how much of them was left."""


def sample(tensor: Tensor) -> Tensor:
    """Return a copy of some elements of a tensor, evenly spaced."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(flat.numel() // SAMPLE, 1)].clone()


@dataclass
class ParameterState:
    """What is known of one parameter.

    Args:
        parameter: It.
        layer: The module that owns it.
        name: Its name in that module.
    """

    parameter: nn.Parameter
    layer: str
    name: str
    gradient: str | None = None
    requires_grad: bool = True
    since: int = 0
    seen: set[str] = field(default_factory=set)
    weights_zero: bool = False
    rows_alike: bool = False
    """Whether all rows of these weights are the same (within ``ALIKE``) at the last look, and not 0."""
    sample: Tensor | None = None
    """Some of its elements after the last step before a look."""
    written: bool = False
    """Whether a backward pass of this step wrote its gradient, which was not cleared since."""
    written_nonzero: bool = False
    """Whether a backward pass of this step wrote a gradient that is not 0, cleared or not."""
    kept_looks: int = 0
    """In how many looks the last step's gradient was still there."""
    kept: bool = False
    """Whether such a pass added to the last step's gradient."""
    before: tuple[weakref.ref[Tensor] | None, int] = (None, -1)
    """The gradient before the pass in progress: which tensor, and its version."""
    was_there: bool = False
    """Whether an element of it was not 0."""
    changed: tuple[int, ...] = ()
    """First and last step in which it changed outside the optimizer, and in how many looks."""
    start: tuple[Tensor | None, int] = (None, -1)
    """Some of its elements before a step that was looked at, and that step."""

    def begin_round(self) -> None:
        """Forget the last step."""
        self.written = self.written_nonzero = self.kept = False

    def note_state(self, gradient: str | None, step: int) -> None:
        """Note the gradient's state at a step, and whether a gradient is required."""
        if (gradient, self.parameter.requires_grad) != (self.gradient, self.requires_grad):
            self.gradient, self.requires_grad, self.since = gradient, self.parameter.requires_grad, step
        if gradient is not None:
            self.seen.add(gradient)


class ParameterStates:
    """The states of all parameters of the model.

    Args:
        model: The model.
        step: The step in progress.
    """

    def __init__(self, model: nn.Module, step: int) -> None:
        self._model = model
        self.states: dict[int, ParameterState] = {}
        for raw_name, module in model.named_modules():
            layer = clean_name(raw_name) or "(model)"
            for name, parameter in registered_parameters(module).items():
                state = ParameterState(parameter, layer, name, requires_grad=parameter.requires_grad, since=step)
                self.states.setdefault(id(parameter), state)
        self._watched: list[ParameterState] | None = None
        self._versions: list[int] = []
        self._written: dict[str, None] = {}
        self._writes: list[int] = []
        self._count_of_writes, self._all_written = 0, True
        self._questions = Questions()
        self._undone: list[Tensor] = []
        """(2,) norms of how far some weights moved from before one step to before the next, and in the step alone."""
        self._shares: list[float] = []
        self.distributed = any(hasattr(state.parameter, "device_mesh") for state in self.states.values())

    @torch.no_grad()
    def gains(self) -> list[Facts]:
        """Return the size of weights for their number of inputs, from samples; He initialisation has sqrt(2)."""
        states = [s for s in self.states.values() if s.parameter.dim() > 1 and s.parameter.is_floating_point()]
        states = [s for s in states if s.name == "weight" and not s.parameter.is_meta and s.parameter.numel()]
        states = [] if self.distributed else states[:: max(len(states) // MOST_GAINS, 1)][:MOST_GAINS]
        sizes = [float(sample(s.parameter).float().square().mean().sqrt()) for s in states]
        inputs = [s.parameter[0].numel() for s in states]
        return [
            {"layer": state.layer, "gain": size * math.sqrt(count)}
            for state, size, count in zip(states, sizes, inputs, strict=True)
            if math.isfinite(size)
        ]

    def note_versions(self) -> None:
        """Remember the versions of a few weights after a step: every operation that writes in place counts them up."""
        if self._watched is None:
            matrices = [s for s in self.states.values() if s.parameter.dim() > 1 and s.parameter.requires_grad]
            self._watched = [] if self.distributed else matrices[:: max(len(matrices) // WATCHED, 1)][:WATCHED]
        self._versions = [state.parameter._version for state in self._watched]

    def compare_versions(self, step: int) -> None:
        """Note which of those weights something other than the optimizer wrote since the step before."""
        pairs = zip(self._watched or (), self._versions, strict=False)
        written = [state for state, version in pairs if state.parameter._version != version]
        if written:
            self._written.update(dict.fromkeys(state.layer for state in written))
            self._count_of_writes += 1
            self._all_written &= len(written) == len(self._versions)
            self._writes += [step] if len(self._writes) < MOST_WRITES else []

    def written_between(self) -> Facts:
        """Return the steps before which a few weights were written, and their layers."""
        return {
            "layers": list(self._written),
            "all": self._all_written,
            "count": self._count_of_writes,
            "steps": self._writes,
            "left": self._left(),
        }

    def _left(self) -> list[float]:
        """Return which share of a step was left when the next one began, by norms; this waits for an accelerator."""
        taken, self._undone = self._undone, []
        self._shares += [(moved / stepped) ** 0.5 for moved, stepped in to_host(taken) if stepped > 0]
        return self._shares

    @property
    def with_gradient(self) -> set[str]:
        """Names of modules of which a parameter had a gradient at some look."""
        return {state.layer for state in self.states.values() if state.seen - {"none", "stale"}}

    def begin_round(self) -> None:
        """Remember the weights after a step, and forget its backward passes."""
        self._questions.forget()
        for state in self.states.values():
            state.begin_round()
            state.sample = sample(state.parameter)

    def end_look(self) -> None:
        """Forget all tensors."""
        self._questions.forget()
        for state in self.states.values():
            state.sample, state.before, state.was_there = None, (None, -1), False

    def before_backward(self) -> None:
        """Note the gradients that are there before a backward pass."""
        states = list(self.states.values())
        grads = [state.parameter.grad for state in states]
        for state, grad in zip(states, grads, strict=True):
            state.before = (None, -1) if grad is None else (weakref.ref(grad), grad._version)

        def note(flags: list[bool]) -> None:
            for state, there in zip(states, flags, strict=True):
                state.was_there = there
                if not there:
                    state.written = state.kept = False

        self._questions.ask(grads, note)

    def after_backward(self) -> None:
        """Note which gradients a backward pass wrote."""
        written = []
        for state in self.states.values():
            grad, (before, version) = state.parameter.grad, state.before
            if grad is not None and (before is None or before() is not grad or grad._version != version):
                written.append(state)

        def note(flags: list[bool]) -> None:
            for state, there in zip(written, flags, strict=True):
                state.kept |= state.was_there and not state.written
                state.written, state.written_nonzero = True, state.written_nonzero or there

        self._questions.ask([state.parameter.grad for state in written], note)

    def at_step(self, keys: Iterable[int], step: int, *, passes_seen: bool) -> None:
        """Note the state of gradients when an optimizer gets them.

        Args:
            keys: ``id`` of the parameters.
            step: The step in progress.
            passes_seen: Whether a backward pass of this step was observed.
        """
        states = [self.states[key] for key in keys if key in self.states]
        grads = [state.parameter.grad for state in states]
        is_none = [grad is None for grad in grads]

        def note(flags: list[bool]) -> None:
            for state, there, none in zip(states, flags, is_none, strict=True):
                if there and not passes_seen:
                    gradient = "arriving"
                elif there:
                    gradient = "kept" if state.kept else "arriving" if state.written else "stale"
                elif state.written_nonzero:
                    gradient = "cleared"
                else:
                    gradient = "zero" if not none and (state.written or not passes_seen) else "none"
                state.note_state(gradient, step)
                state.kept_looks += gradient == "kept"

        self._questions.ask(grads, note)

    def look_for_outside_changes(self, step: int) -> None:
        """Compare the weights before a step with those after the step before."""
        states = [state for state in self.states.values() if state.sample is not None]

        def note(flags: list[bool]) -> None:
            for state, changed in zip(states, flags, strict=True):
                if changed:
                    first, _, looks = state.changed or (step, step, 0)
                    state.changed = first, step, looks + 1

        now = [sample(state.parameter) for state in states]
        self._questions.ask([difference_of(each, state.sample) for each, state in zip(now, states, strict=True)], note)
        self._compare_moves(states, now, step)

    def _compare_moves(self, states: list[ParameterState], now: list[Tensor], step: int) -> None:
        """Take how far weights moved since the step before began, and in that step alone, unread."""
        moves = []
        for state, here in zip(states, now, strict=True):
            (start, last), after = state.start, state.sample
            state.start = (here, step) if len(self._undone) + len(self._shares) < MOST_SHARES else (None, -1)
            if last != step - 1 or start is None or after is None or not here.is_floating_point():
                continue
            if start.shape == here.shape == after.shape and start.device == here.device:
                moves.append(torch.stack([(here - start).square().sum(), (after - start).square().sum()]).double())
        if moves and len({each.device for each in moves}) == 1:
            self._undone.append(torch.stack(moves).sum(0))

    def read(self) -> None:
        """Read everything that was asked in this step; an accelerator is waited for here."""
        several: list[ParameterState] = []
        self._ask_odd_weights(several)
        self._questions.read()
        if several:  # few: their first two rows are the same
            differ = [_units_differ(state.parameter) for state in several]
            self._questions.ask(differ, _note_alike(several))
            self._questions.read()

    def _ask_odd_weights(self, several: list[ParameterState]) -> None:
        """Ask which weights are all 0, and in which the first two rows are the same; those are added to a list."""
        matrices = [state for state in self.states.values() if state.parameter.dim() > 1]
        rows = [_rows_differ(each.parameter, slice(1, 2)) if _has_rows(each.parameter) else None for each in matrices]

        def note_zero(flags: list[bool]) -> None:
            for state, there in zip(matrices, flags, strict=True):
                state.weights_zero, state.rows_alike = not there, False

        def note_rows(flags: list[bool]) -> None:
            for state, asked, differ in zip(matrices, rows, flags, strict=True):
                if asked is not None and not differ and not state.weights_zero:
                    several.append(state)

        self._questions.ask([state.parameter for state in matrices], note_zero)
        self._questions.ask(rows, note_rows)

    def compare_requires_grad(self, step: int) -> None:
        """Note for which parameters ``requires_grad`` has changed."""
        for state in self.states.values():
            state.note_state(state.gradient, step)

    def _present(self) -> dict[int, ParameterState]:
        """Return the states of the parameters that the model still has, by their ``id``."""
        if self.distributed:  # they are exchanged for gathered ones while the model runs
            return self.states
        now = set(map(id, self._model.parameters()))
        return {key: state for key, state in self.states.items() if key in now}

    def facts(self, groups: Mapping[int, tuple[int, int]]) -> list[Facts]:
        """Return parameters by their state.

        Args:
            groups: ``id`` of a parameter to its optimizer and its group there.
        """
        found: dict[tuple[Any, ...], list[ParameterState]] = {}
        differ = {
            state.layer
            for state in self.states.values()
            if _has_rows(state.parameter) and not (state.rows_alike or state.weights_zero)
        }
        for key, state in self._present().items():
            traits = (
                state.requires_grad,
                *groups.get(key, (None, None)),
                str(state.parameter.dtype).removeprefix("torch."),
                state.gradient,
                state.since,
                tuple(sorted(state.seen)),
                state.weights_zero,
                state.rows_alike and state.layer not in differ,
                state.kept_looks,
            )
            found.setdefault(traits, []).append(state)
        names = (
            "requires_grad",
            "optimizer",
            "group",
            "dtype",
            "gradient",
            "since",
            "seen",
            "weights_zero",
            "rows_alike",
            "kept",
        )
        return [listed_states(states) | dict(zip(names, traits, strict=True)) for traits, states in found.items()]

    def changed_outside(self, groups: Mapping[int, tuple[int, int]]) -> list[Facts]:
        """Return parameters that changed between steps."""
        found: dict[tuple[Any, ...], list[ParameterState]] = {}
        for key, state in self.states.items():
            if state.changed:
                found.setdefault((key in groups, state.requires_grad, *state.changed), []).append(state)
        names = ("in_optimizer", "requires_grad", "first_step", "last_step", "looks")
        return [listed_states(states) | dict(zip(names, traits, strict=True)) for traits, states in found.items()]

    def totals(self, groups: Mapping[int, tuple[int, int]]) -> Facts:
        """Return numbers of parameters."""
        present = self._present()
        sizes = {key: state.parameter.numel() for key, state in present.items()}
        needed = {key for key, state in present.items() if state.parameter.requires_grad}
        return {
            "count": len(sizes),
            "numel": sum(sizes.values()),
            "trainable": sum(sizes[key] for key in needed),
            "in_optimizer": sum(size for key, size in sizes.items() if key in groups),
            "without_optimizer": sum(sizes[key] for key in needed if key not in groups),
        }


def _note_alike(states: list[ParameterState]) -> Callable[[list[bool]], None]:
    def note(flags: list[bool]) -> None:
        for state, differ in zip(states, flags, strict=True):
            state.rows_alike = not differ

    return note


def _units_differ(parameter: nn.Parameter) -> Tensor:
    """Return whether rows differ from the first one, or their gradients do: those that differ part the rows."""
    differ, grad = _rows_differ(parameter, slice(1, None)).any(), parameter.grad
    if grad is None or grad.is_sparse or grad.shape != parameter.shape:
        return differ
    return differ | _rows_differ(grad, slice(1, None)).any()


def _rows_differ(parameter: Tensor, rows: slice) -> Tensor:
    """Return where rows differ from the first one."""
    weights = parameter.detach()
    return ~((weights[rows] - weights[0]).abs() <= ALIKE * weights[0].abs().mean())


def _has_rows(tensor: Tensor) -> bool:
    return (
        tensor.dim() > 1
        and len(tensor) > 1
        and tensor.shape[1:].numel() > 1  # of a sharded tensor, an element would be fetched from other ranks
        and (tensor.is_floating_point() or tensor.is_complex())
        and not tensor.is_sparse
    )


def difference_of(a: Tensor, b: Tensor | None) -> Tensor | None:
    """Return where two tensors differ; None if they cannot be compared, because one was moved or resized."""
    if b is None or (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return None
    return torch.ne(a, b) & ~(torch.isnan(a) & torch.isnan(b))


def listed_states(states: Sequence[ParameterState]) -> Facts:
    """Return the names of some parameters and of their modules, and how large they are."""
    return {
        "layers": list(dict.fromkeys(state.layer for state in states)),
        "names": list(dict.fromkeys(state.name for state in states)),
        "count": len(states),
        "numel": sum(state.parameter.numel() for state in states),
    }


def to_host(numbers: Sequence[Tensor]) -> list[list[float]]:
    """Return the values of tensors of one shape; one copy to the host where they are all on one device."""
    if len({each.device for each in numbers}) > 1:
        return [each.tolist() for each in numbers]
    return torch.stack(list(numbers)).tolist() if numbers else []
