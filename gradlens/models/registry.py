"""Build a model from its name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from gradlens.errors import GradlensError, ModelError
from gradlens.format import say_error
from gradlens.models.plain_and_residual import Init, build_from_spec
from gradlens.specs import ModelSpec, parse_model


def build_model(
    name: str, *, num_classes: int, seed: int = 0, init: Init = "he", shortcut: Literal["A", "B"] = "A"
) -> nn.Module:
    """Build a model by name.

    Args:
        name: ``plain34``, ``resnet56-nobn``, ``resnet34-valueonly``, ``torchvision:NAME``, ``path.py:FACTORY``
            or ``module:FACTORY``.
            A factory is called with ``num_classes`` if it accepts that, else without arguments.
        num_classes: Number of outputs.
        seed: Seed of the weights.
        init: Initialisation of plain and residual models.
        shortcut: Shortcut option of residual models.

    Returns:
        The model, on the CPU.

    Raises:
        ConfigError: The name is unknown.
        ModelError: The factory cannot be found, fails, or returns no module.

    Example::

        model = build_model("plain34", num_classes=5, seed=0)
    """
    spec = parse_model(name)
    if spec.source == "registry":
        return build_from_spec(spec, num_classes=num_classes, seed=seed, init=init, shortcut=shortcut)
    torch.manual_seed(seed)
    if spec.source == "torchvision":
        return _build_torchvision(spec.location, num_classes)
    return _call_factory(spec, num_classes)


def _build_torchvision(name: str, num_classes: int) -> nn.Module:
    from torchvision import models

    try:
        builder = models.get_model_builder(name)
    except ValueError:
        known = ", ".join(models.list_models(module=models)[:12])
        raise ModelError(f"torchvision has no model {name!r}; expected {known}, ...") from None
    options: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = builder(weights=None, num_classes=num_classes, **options)
    return model


def _call_factory(spec: ModelSpec, num_classes: int) -> nn.Module:
    factory = _find_factory(spec)
    try:
        takes = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        takes = {}  # type: ignore[assignment]
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    options = {"num_classes": num_classes} if "num_classes" in takes or anything else {}
    try:
        model = factory(**options)
    except (Exception, SystemExit) as error:
        raise ModelError(f"{spec.name} failed: {say_error(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec.name} returned a value of type {type(model).__name__}; expected a torch.nn.Module")
    return model


def _find_factory(spec: ModelSpec) -> Callable[..., Any]:
    try:
        module = _load_file(Path(spec.location)) if spec.source == "file" else _import(spec.location)
    except GradlensError:
        raise
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{spec.name}: no module named {error.name!r}", tip="to name a file, write path/to/file.py:FACTORY"
        ) from None
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{spec.location} cannot be loaded: {say_error(error)}",
            tip='a file is run when it is loaded: what trains belongs under if __name__ == "__main__":',
        ) from error
    factory = getattr(module, spec.factory, None)
    if not callable(factory):
        raise ModelError(f"{spec.location} has no callable {spec.factory!r}")
    found: Callable[..., Any] = factory
    return found


def _import(name: str) -> Any:
    """Return a module, from the working folder too: the installed command does not search that by itself."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    return importlib.import_module(name)


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
