"""The states of a model's parameters: gradients at the optimizer step, changes elsewhere, and copies of layers."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.recorder.layers import clean_name

SAMPLE = 256
"""Elements of each parameter that are compared between two steps."""
NEAR_COPY = 0.5
"""A module is a copy of another if their weights ever differed by less than this part of their norm."""
ALIKE = 1e-3
"""Rows of weights count as the same where they differ by less than this share; rounding drives equal units apart."""
MOST_MODULES = 2000
WATCHED = 4
"""Weights whose versions are compared at every step."""
MOST_GAINS = 16
"""Layers whose weights are measured at the start."""
MOST_WRITES = 64
"""Steps before which weights were written that are kept."""

Facts = dict[str, Any]


def nonzero(tensors: Sequence[Tensor | None]) -> list[bool]:
    """Return, for each tensor, whether an element is not 0; one copy to the host per device."""
    found = [False] * len(tensors)
    devices: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if tensor is not None and tensor.numel():
            devices.setdefault(tensor.device, []).append(i)
    for places in devices.values():
        flags = torch.stack([_dense(tensors[i]).any() for i in places])
        for i, flag in zip(places, flags.tolist(), strict=True):
            found[i] = flag
    return found


def _dense(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    values = tensor.detach()
    return values._values() if values.is_sparse else values


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
    before: tuple[weakref.ref[Tensor] | None, int, bool] = (None, -1, False)
    """The gradient before the pass in progress: which tensor, its version, and whether an element was not 0."""
    changed: tuple[int, ...] = ()
    """First and last step in which it changed outside the optimizer, and in how many looks."""

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
            for name, parameter in module.named_parameters(recurse=False):
                state = ParameterState(parameter, layer, name, requires_grad=parameter.requires_grad, since=step)
                self.states.setdefault(id(parameter), state)
        self._watched: list[ParameterState] | None = None
        self._versions: list[int] = []
        self._written: dict[str, None] = {}
        self._writes: list[int] = []
        self._count_of_writes = 0
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
            self._writes += [step] if len(self._writes) < MOST_WRITES else []

    def written_between(self) -> Facts:
        """Return the steps before which a few weights were written, and their layers."""
        return {"layers": list(self._written), "count": self._count_of_writes, "steps": self._writes}

    @property
    def trainable(self) -> set[str]:
        """Names of modules that own a parameter that requires a gradient."""
        return {state.layer for state in self.states.values() if state.parameter.requires_grad}

    @property
    def with_gradient(self) -> set[str]:
        """Names of modules of which a parameter had a gradient at some look."""
        return {state.layer for state in self.states.values() if state.seen - {"none", "stale"}}

    def begin_round(self) -> None:
        """Remember the weights after a step, and forget its backward passes."""
        for state in self.states.values():
            state.begin_round()
            state.sample = sample(state.parameter)

    def end_look(self) -> None:
        """Forget all tensors."""
        for state in self.states.values():
            state.sample, state.before = None, (None, -1, False)

    def before_backward(self) -> None:
        """Note the gradients that are there before a backward pass."""
        states = list(self.states.values())
        grads = [state.parameter.grad for state in states]
        for state, grad, there in zip(states, grads, nonzero(grads), strict=True):
            state.before = (None, -1, False) if grad is None else (weakref.ref(grad), grad._version, there)
            if not there:
                state.written = state.kept = False

    def after_backward(self) -> None:
        """Note which gradients a backward pass wrote."""
        written = []
        for state in self.states.values():
            grad, (before, version, _) = state.parameter.grad, state.before
            if grad is not None and (before is None or before() is not grad or grad._version != version):
                written.append(state)
        for state, there in zip(written, nonzero([state.parameter.grad for state in written]), strict=True):
            state.kept |= state.before[2] and not state.written
            state.written, state.written_nonzero = True, state.written_nonzero or there

    def at_step(self, keys: Iterable[int], step: int, *, passes_seen: bool) -> None:
        """Note the state of gradients when an optimizer gets them.

        Args:
            keys: ``id`` of the parameters.
            step: The step in progress.
            passes_seen: Whether a backward pass of this step was observed.
        """
        states = [self.states[key] for key in keys if key in self.states]
        for state, there in zip(states, nonzero([state.parameter.grad for state in states]), strict=True):
            if there and not passes_seen:
                gradient = "arriving"
            elif there:
                gradient = "kept" if state.kept else "arriving" if state.written else "stale"
            elif state.written_nonzero:
                gradient = "cleared"
            else:
                has_zeros = state.parameter.grad is not None and (state.written or not passes_seen)
                gradient = "zero" if has_zeros else "none"
            state.note_state(gradient, step)
            state.kept_looks += gradient == "kept"

    def look_for_outside_changes(self, step: int) -> None:
        """Compare the weights before a step with those after the step before."""
        states = [state for state in self.states.values() if state.sample is not None]
        now = [sample(state.parameter) for state in states]
        differ = nonzero([_difference(new, state.sample) for new, state in zip(now, states, strict=True)])
        for state, changed in zip(states, differ, strict=True):
            if changed:
                first, _, looks = state.changed or (step, step, 0)
                state.changed = first, step, looks + 1

    def compare_requires_grad(self, step: int) -> None:
        """Note for which parameters ``requires_grad`` has changed."""
        for state in self.states.values():
            state.note_state(state.gradient, step)

    def note_odd_weights(self) -> None:
        """Note which weights are all 0, and in which all rows are the same: first two rows, then the few others."""
        matrices = [state for state in self.states.values() if state.parameter.dim() > 1]
        for state, there in zip(matrices, nonzero([state.parameter for state in matrices]), strict=True):
            state.weights_zero, state.rows_alike = not there, False
        several = [state for state in matrices if _has_rows(state.parameter) and not state.weights_zero]
        for rows in (slice(1, 2), slice(1, None)):
            weights = [state.parameter.detach() for state in several]
            differ = nonzero([~((w[rows] - w[0]).abs() <= ALIKE * w[0].abs().mean()) for w in weights])
            several = [state for state, does in zip(several, differ, strict=True) if not does]
        for state in several:
            state.rows_alike = True

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
        for key, state in self._present().items():
            traits = (
                state.requires_grad,
                *groups.get(key, (None, None)),
                str(state.parameter.dtype).removeprefix("torch."),
                state.gradient,
                state.since,
                tuple(sorted(state.seen)),
                state.weights_zero,
                state.rows_alike,
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


def _has_rows(tensor: Tensor) -> bool:
    return (
        len(tensor) > 1
        and tensor[0].numel() > 1
        and (tensor.is_floating_point() or tensor.is_complex())
        and not tensor.is_sparse
    )


def _difference(a: Tensor, b: Tensor | None) -> Tensor | None:
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


class Copies:
    """Modules without a gradient that are built like others of the model, and whose weights are or become theirs.

    Args:
        model: The model.
        parameters: The states of its parameters.
    """

    def __init__(self, model: nn.Module, parameters: ParameterStates) -> None:
        self._parameters = parameters
        self._found: dict[tuple[str, str], Facts] = {}
        self._alike: dict[tuple[Any, ...], list[tuple[str, list[int]]]] = {}
        for i, (raw_name, module) in enumerate(model.named_modules()):
            if i >= MOST_MODULES:
                break
            own = list(module.named_parameters())
            if any(parameter.dim() > 1 for _, parameter in own):
                shape = (type(module).__name__, *((name, tuple(parameter.shape)) for name, parameter in own))
                self._alike.setdefault(shape, []).append((clean_name(raw_name), [id(p) for _, p in own]))
        self._alike = {shape: modules for shape, modules in self._alike.items() if len(modules) > 1}

    def look(self, step: int, groups: Mapping[int, tuple[int, int]]) -> None:
        """Compare modules without a gradient with those that have one."""
        states = self._parameters.states
        for modules in self._alike.values():
            silent = [m for m in modules if all(states[key].seen <= {"none", "stale"} for key in m[1])]
            trained = [m for m in modules if any(states[key].seen - {"none", "stale"} for key in m[1])]
            for name, keys in silent[:8]:
                for other, others in trained[:8]:
                    self._compare(name, keys, other, others, step, groups)

    def _compare(
        self, name: str, keys: list[int], other: str, others: list[int], step: int, groups: Mapping[int, Any]
    ) -> None:
        states = self._parameters.states
        mine = [sample(states[key].parameter).float() for key in keys]
        theirs = [sample(states[key].parameter).float() for key in others]
        if any(_difference(a, b) is None for a, b in zip(mine, theirs, strict=True)):
            return
        norm = math.sqrt(sum(float(b.square().sum()) for b in theirs))
        if not norm:
            return
        distance = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(mine, theirs, strict=True))) / norm
        fact = self._found.setdefault(
            (name, other),
            {"layer": name, "of": other, "count": len(keys), "numel": sum(states[k].parameter.numel() for k in keys)}
            | {"first_distance": distance, "least": distance},
        )
        fact |= {"distance": distance, "least": min(distance, fact["least"]), "step": step}
        fact["in_optimizer"] = any(key in groups for key in keys)

    def facts(self) -> list[Facts]:
        """Return the copies, each with the module that it is nearest to, but none inside a larger copy."""
        near = sorted((f for f in self._found.values() if f["least"] < NEAR_COPY), key=lambda f: float(f["least"]))
        found: dict[str, Facts] = {}
        for fact in near:
            found.setdefault(fact["layer"], fact)
        states = self._parameters.states.values()
        moved = {state.layer for state in states if state.changed}
        return [
            {key: value for key, value in fact.items() if key != "least"}
            | {"moves": any(layer == name or layer.startswith(f"{name}.") for layer in moved)}
            for name, fact in found.items()
            if not any(name.startswith(f"{larger}.") for larger in found)
        ]
