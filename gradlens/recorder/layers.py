"""Choose the layers of a model and describe them in execution order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gradlens.errors import RecorderError
from gradlens.run import Layer, Role

LayerChoice = str | re.Pattern[str] | Callable[[str, nn.Module], bool] | None

NORMS: tuple[type[nn.Module], ...] = (
    _NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
SHORTCUT_NAME = re.compile(r"(^|\.)(downsample|shortcut|skip|identity|proj_shortcut)(\.|$)")
WRAPPERS = re.compile(r"(^|\.)(module|_orig_mod|_fsdp_wrapped_module)(?=\.|$)")


def clean_name(name: str) -> str:
    """Remove what wrappers (data parallel, compile) put into a module's name."""
    return WRAPPERS.sub("", name).lstrip(".")


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """List the parameters that a module owns itself, those behind a parametrization included."""
    own = list(module.parameters(recurse=False))
    parametrizations = getattr(module, "parametrizations", None)
    if isinstance(parametrizations, nn.Module):
        own += list(parametrizations.parameters())
    return own


def choose_layers(model: nn.Module, choice: LayerChoice = None) -> dict[str, nn.Module]:
    """Choose the modules to record.

    Args:
        model: Any model.
        choice: None takes every module that owns a weight and is no norm layer; a regular expression takes
            those modules whose name it is found in; a callable gets name and module.

    Returns:
        Name to module, in the order of registration.

    Raises:
        RecorderError: Nothing was chosen.
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
        return bool(own_parameters(module)) and not isinstance(module, NORMS)
    if callable(choice):
        return bool(choice(name, module))
    return name != "(model)" and re.search(choice, name) is not None


def find_role(name: str, module: nn.Module) -> Role:
    """Say whether a layer lies on the main path, on a shortcut, or is a norm."""
    if isinstance(module, NORMS):
        return "norm"
    return "shortcut" if SHORTCUT_NAME.search(name) else "main"


def with_norms(name: str, module: nn.Module) -> bool:
    """Take every module that owns a weight, norm layers too; for ``record(layers=...)``."""
    return bool(own_parameters(module))


def all_leaves(name: str, module: nn.Module) -> bool:
    """Take every module that has no modules of its own, activations and pooling too; for ``record(layers=...)``."""
    return next(module.children(), None) is None or bool(own_parameters(module))


def describe_layers(
    modules: dict[str, nn.Module], out_numel: dict[str, int], calls: Mapping[str, int]
) -> tuple[Layer, ...]:
    """Describe layers in the order in which they first ran.

    Args:
        modules: Name to module.
        out_numel: Name to elements of the output, in execution order. A layer that never ran (a part of a fused
            operation, or unused) stands behind the one that was registered before it.
        calls: Name to how often a layer was called in the first step; left out where no gradient came back.
    """
    ordered = list(out_numel)
    before = None
    for name in modules:
        if name not in out_numel:
            ordered.insert(0 if before is None else ordered.index(before) + 1, name)
        before = name
    layers: list[Layer] = []
    depth = 0
    for name in ordered:
        module = modules[name]
        role = find_role(name, module)
        depth += role == "main"
        numel = sum(p.numel() for p in own_parameters(module))
        kind = type(module).__name__.removeprefix("FSDP").removeprefix("Parametrized")
        layers.append(
            Layer(
                name, kind, role, max(depth, 1), out_numel.get(name, 0), numel, calls.get(name, int(name in out_numel))
            )
        )
    return tuple(layers)


def output_tensors(output: Any) -> list[Tensor]:
    """List the floating-point tensors in a module's output, each once, however they are wrapped."""
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
