"""Choose the layers of a model and describe them in execution order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gradlens.errors import RecorderError
from gradlens.recorder.layer_graph import LayerGraph
from gradlens.recorder.layer_tags import find_tags, holds_packed_weight
from gradlens.recorder.norms import local_part
from gradlens.recorder.registered_parameters import registered_parameters
from gradlens.run import Layer, Role

LayerChoice = str | re.Pattern[str] | Callable[[str, nn.Module], bool] | None

NORMS: tuple[type[nn.Module], ...] = (
    _NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Modules that are never called."""
SHORTCUT_NAME = re.compile(r"(^|\.)(downsample|shortcut|skip|identity|proj_shortcut)(\.|$)")
WRAPPERS = re.compile(r"(^|\.)(module|_module|_forward_module|_orig_mod|_fsdp_wrapped_module)(?=\.|$)")


def clean_name(name: str) -> str:
    """Return a module's name without the parts that wrappers (data parallel, compile, Opacus, Fabric) add."""
    return WRAPPERS.sub("", name).lstrip(".")


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a module itself owns, including those behind a parametrization.

    Integers, in which weights are packed, are left out: no gradient reaches them, and they have no norm.
    """
    own = list(dict.fromkeys(registered_parameters(module).values()))
    parametrizations = getattr(module, "parametrizations", None)
    if isinstance(parametrizations, nn.Module):
        own += list(parametrizations.parameters())
    return [parameter for parameter in own if parameter.is_floating_point() or parameter.is_complex()]


def own_parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """Return a module's own parameter of this name; None if there is none, or another one is made of others.

    ``getattr`` would compute what a parametrization makes, which changes the state of some (spectral norm).
    """
    own = module._parameters  # TorchScript's own class has no get()
    return own[name] if name in own else None  # noqa: SIM401


def refuse_uninitialised(model: nn.Module) -> None:
    """Raise an error where lazy modules have no shapes yet.

    Args:
        model: The model.

    Raises:
        RecorderError: They have none.
    """
    names = [clean_name(name) or "(model)" for name, module in model.named_modules() if _is_uninitialised(module)]
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise RecorderError(
            f"{names[0]}{more}: a lazy module has no shape before it is called first",
            tip="call the model once with a batch, under torch.no_grad(), before the optimizer is made and recording "
            "begins",
        )


def _is_uninitialised(module: nn.Module) -> bool:
    return any(isinstance(parameter, nn.UninitializedParameter) for parameter in registered_parameters(module).values())


def takes_hooks(module: nn.Module) -> bool:
    """Return whether hooks can be placed on a module: TorchScript refuses or ignores them."""
    return not isinstance(module, torch.jit.ScriptModule)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm layer: one of torch, or named so and with only vectors as parameters."""
    if isinstance(module, NORMS):
        return True
    if "norm" not in type(module).__name__.lower():
        return False
    own = own_parameters(module)
    return bool(own) and all(parameter.numel() == max(parameter.shape, default=1) for parameter in own)


def is_container(module: nn.Module) -> bool:
    """Return whether a module only holds others: it owns no weight, and has children or is never called."""
    if own_parameters(module) or holds_packed_weight(module):
        return False
    return isinstance(module, CONTAINERS) or next(module.children(), None) is not None


def choose_layers(model: nn.Module, choice: LayerChoice = None) -> dict[str, nn.Module]:
    """Choose the modules to record.

    Args:
        model: Any model.
        choice: None takes every module that owns a weight and is not a norm layer; a regular expression is searched in
            the names of modules that are not only containers; a callable gets name and module.

    Returns:
        Name to module, in the order of registration.

    Raises:
        RecorderError: No module was chosen.
    """
    chosen: dict[str, nn.Module] = {}
    for raw_name, module in model.named_modules():
        name = clean_name(raw_name) or "(model)"
        if ".parametrizations" in f".{raw_name}":
            continue
        if _takes(choice, name, module):
            chosen.setdefault(name, module)
    if not chosen:
        wanted = "that owns a weight" if choice is None else f"that layers={choice!r} takes"
        raise RecorderError(
            f"{type(model).__name__} has no module {wanted}",
            tip="layers= is a regular expression over module names, or a callable (name, module) -> bool",
        )
    return chosen


def _takes(choice: LayerChoice, name: str, module: nn.Module) -> bool:
    if choice is None:
        return (bool(own_parameters(module)) or holds_packed_weight(module)) and not is_norm(module)
    if callable(choice):
        return bool(choice(name, module))
    return name != "(model)" and re.search(choice, name) is not None and not is_container(module)


def find_role(name: str, module: nn.Module) -> Role:
    """Return whether a layer lies on the main path or a shortcut, or is a norm layer."""
    if is_norm(module):
        return "norm"
    return "shortcut" if SHORTCUT_NAME.search(name) else "main"


def with_norms(name: str, module: nn.Module) -> bool:
    """Return whether a module owns a weight, norm layers included; for ``record(layers=...)``."""
    return bool(own_parameters(module))


def all_leaves(name: str, module: nn.Module) -> bool:
    """Return whether a module has no child or owns a weight, activations included; for ``record(layers=...)``."""
    return next(module.children(), None) is None or bool(own_parameters(module))


def spread_out(parameters: Sequence[nn.Parameter], count: int) -> list[nn.Parameter]:
    """Return at most ``count`` parameters, evenly spaced, including the first and the last."""
    if not parameters:
        return []
    return [parameters[i] for i in sorted({round(i) for i in np.linspace(0, len(parameters) - 1, count)})]


MOST_ORDERS = 64
"""The most orders of layers in backward passes that are kept."""
MOST_OTHERS = 16
"""The most layers whose parameters are watched although no backward pass has reached them yet."""

Pass = dict[int, tuple[int, int]]
"""Layer to the number of elements of its outputs' gradients and its number of calls, in one backward pass."""


class Learned:
    """What the first recorded row shows about the layers: their order, the sizes of their outputs, their calls.

    Args:
        modules: Name to module, in the order of registration.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._names = list(modules)
        self.open = True
        """Whether the first row is not closed yet."""
        self.compiled = False
        """Whether layers run in compiled code."""
        self.stays_on = False
        """Whether the learning hooks stay on after the first row, so that the end of each pass is detected."""
        self.replicated = False
        """Whether copies of the layers run instead of them (``nn.DataParallel``)."""
        self.note_layout: Callable[[int, Sequence[Tensor]], None] = lambda layer, tensors: None
        """Is called with each layer's outputs in the first row."""
        self.graph = LayerGraph()
        """Which layer's output feeds which layer."""
        self.on_base: set[int] = set()
        """Layers whose output is a view that is then changed in place."""
        self._forward_numel: dict[int, int] = {}
        self._grad_numel: dict[int, int] = {}
        self._calls: dict[int, int] = {}
        self._pass: Pass = {}
        self._passes: dict[tuple[int, ...], None] = {}
        self.first_in_pass: set[int] = set()
        """Layers whose output was the first to get a gradient in some backward pass."""

    def note_forward(self, layer: int, tensors: Sequence[Tensor], *, counts: bool) -> None:
        """Note a layer's place in the order of the first forward pass, and the size of its outputs.

        Args:
            layer: Its index.
            tensors: Its outputs.
            counts: Whether the call is part of a recorded step.
        """
        self.note_layout(layer, tensors)
        before = self._forward_numel.setdefault(layer, 0)
        if before == 0 or counts:
            self._forward_numel[layer] = before + sum(local_part(tensor).numel() for tensor in tensors)

    def note_grad(self, layer: int, grad: Tensor, *, new_call: bool) -> None:
        """Note the number of output elements and calls of a layer in a step.

        They are counted when gradients arrive, so evaluations and the second forward pass of a checkpoint do not count.
        """
        numel, calls = self._pass.get(layer, (0, 0))
        self._pass[layer] = numel + local_part(grad).numel(), calls + new_call

    def note_order(self, taken: Pass) -> None:
        """Note in which order gradients arrived in a backward pass.

        Args:
            taken: See ``take_pass``.
        """
        if taken and len(self._passes) < MOST_ORDERS:
            self._passes.setdefault(tuple(taken))
            self.first_in_pass.add(next(iter(taken)))

    def take_pass(self) -> Pass:
        """Return what was noted in the backward pass in progress, and reset it."""
        taken, self._pass = self._pass, {}
        return taken

    def add_pass(self, taken: Pass) -> None:
        """Count a pass that belongs to the first row.

        Args:
            taken: See ``take_pass``.
        """
        for layer, (numel, calls) in taken.items():
            self._grad_numel[layer] = self._grad_numel.get(layer, 0) + numel
            self._calls[layer] = self._calls.get(layer, 0) + calls

    def parameters_to_watch(self, spread: int) -> list[nn.Parameter]:
        """Choose parameters whose hooks detect backward passes.

        Those seen so far are detected by the first and the last layer that they reach, others by layers not reached.

        Args:
            spread: Number of layers between them whose parameters are chosen too.

        Returns:
            The parameters, possibly repeated.
        """
        found: list[nn.Parameter] = []
        modules = list(self._modules.values())
        for layers in self._passes:
            candidates = [[p for p in own_parameters(modules[i]) if p.requires_grad] for i in layers]
            found += spread_out([parameters[0] for parameters in candidates if parameters], spread + 2)
        reached = {layer for layers in self._passes for layer in layers}
        others = [own_parameters(module) for layer, module in enumerate(modules) if layer not in reached]
        return found + spread_out([own[0] for own in others if own and own[0].requires_grad], MOST_OTHERS)

    @property
    def called(self) -> set[str]:
        """Names of the layers that ran."""
        return {self._names[layer] for layer in self._forward_numel}

    def places(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the index, in the order of registration, of each of these layers."""
        place = {name: i for i, name in enumerate(self._names)}
        return np.array([place[name] for name in names])

    def describe(self) -> tuple[Layer, ...]:
        """Return descriptions of the layers in the order in which they first ran.

        A layer that never ran (unused, or part of a fused operation) follows the layer registered before it.
        """
        ordered = self._ordered()
        place = {layer: i for i, layer in enumerate(ordered)}
        parents = {place[layer]: [place[i] for i in feeding] for layer, feeding in self.graph.parents().items()}
        tags = find_tags(self._modules, self.called, [self._names[i] for i in self.graph.writers])
        layers: list[Layer] = []
        depth = 0
        for i, layer in enumerate(ordered):
            name = self._names[layer]
            role = find_role(name, self._modules[name])
            depth += role == "main"
            layers.append(self._describe(layer, role, max(depth, 1), tags.get(name, ()), parents.get(i, ())))
        return tuple(layers)

    def _ordered(self) -> list[int]:
        followers: dict[int, list[int]] = {-1: []}
        """Layer that ran, or -1, to the layers registered after it that never ran."""
        last = -1
        for layer in range(len(self._names)):
            if layer in self._forward_numel:
                last = layer
                followers[layer] = []
            else:
                followers[last].append(layer)
        return [*followers[-1], *(one for layer in self._forward_numel for one in (layer, *followers[layer]))]

    def _describe(self, layer: int, role: Role, depth: int, tags: Iterable[str], parents: Iterable[int]) -> Layer:
        name = self._names[layer]
        module = self._modules[name]
        ran = self._forward_numel.get(layer, 0)
        return Layer(
            name,
            type(module).__name__.removeprefix("FSDP").removeprefix("Parametrized"),
            role,
            depth,
            out_numel=self._grad_numel.get(layer, ran),
            param_numel=sum(parameter.numel() for parameter in own_parameters(module)),
            calls=self._calls.get(layer, int(layer in self._forward_numel)),
            tags=tuple(tags),
            parents=tuple(sorted(parents)),
        )


def output_tensors(output: Any) -> list[Tensor]:
    """Return the floating-point tensors in a module's output, each once, from nested containers too."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() or output.is_complex() else []
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif hasattr(output, "__dataclass_fields__"):
        parts = [getattr(output, key) for key in output.__dataclass_fields__]
    elif isinstance(output, list | tuple):
        parts = list(output)
    else:
        return []
    found = {id(tensor): tensor for part in parts for tensor in output_tensors(part)}
    return list(found.values())
