"""What a model's name says, known without importing torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from gradlens.errors import ConfigError

FAMILIES = ("plain", "resnet")
IMAGENET_DEPTHS = (18, 34)
CIFAR_DEPTHS = (20, 32, 44, 56, 110)
BOTTLENECK_DEPTHS = (50, 101, 152)
MODEL_SUFFIXES = ("-valueonly", "-gradonly", "-nobn", "-sigmoid")
"""What a name of a plain or residual net may end in, in this order."""


@dataclass(frozen=True)
class ModelSpec:
    """A model's name, taken apart.

    Args:
        name: As the user wrote it.
        source: Where it comes from.
        family: "plain" or "resnet" (registry only).
        depth: Weighted layers on the main path (registry only).
        norm: With batch norm (registry only).
        carries: What the shortcut passes on (registry only): "both", the forward "value" alone (no gradient comes back
            through it), or the "gradient" alone (it adds nothing to the forward value).
        activation: "relu" or "sigmoid" (registry only).
        location: Module name or file (factories), or torchvision's name.
        factory: The callable's name (factories only).
    """

    name: str
    source: Literal["registry", "torchvision", "file", "module"]
    family: str = ""
    depth: int = 0
    norm: bool = True
    carries: Literal["both", "value", "gradient"] = "both"
    activation: Literal["relu", "sigmoid"] = "relu"
    location: str = ""
    factory: str = ""

    @property
    def slug(self) -> str:
        """The name as it stands in a file name."""
        name = self.factory or self.name.replace(":", "-")
        return re.sub(r"[^\w.+-]+", "-", name)


def model_names() -> list[str]:
    """List the models that have a name of their own, each also with ``-nobn``; then the variants, likewise.

    A variant changes one thing: what the shortcut passes on, or the activation function.
    """
    depths = (*IMAGENET_DEPTHS, *CIFAR_DEPTHS)
    plain = [f"{family}{depth}" for family in FAMILIES for depth in depths]
    halves = [f"resnet{depth}{half}" for depth in depths for half in ("-valueonly", "-gradonly")]
    relu = [name + suffix for name in (*plain, *halves) for suffix in ("", "-nobn")]
    return relu + [f"{name}{suffix}-sigmoid" for name in plain for suffix in ("", "-nobn")]


def parse_model(name: str) -> ModelSpec:
    """Take a model's name apart.

    Args:
        name: ``plain34``, ``resnet56-nobn``, ``resnet34-valueonly``, ``resnet34-gradonly-nobn``,
            ``plain34-nobn-sigmoid``; ``torchvision:NAME``, ``path.py:FACTORY`` or ``module:FACTORY``.

    Raises:
        ConfigError: The name fits none of these.
    """
    if match := re.fullmatch(r"(plain|resnet)(\d+)((?:-[a-z]+)*)", name):
        return _parse_registered(name, match[1], int(match[2]), re.findall(r"-[a-z]+", match[3]))
    if ":" in name:
        location, _, factory = name.rpartition(":")
        if location == "torchvision":
            return ModelSpec(name, "torchvision", location=factory)
        if location and factory.isidentifier():
            source: Literal["file", "module"] = "file" if location.endswith(".py") else "module"
            return ModelSpec(name, source, location=location, factory=factory)
    names = [n for n in model_names() if "-" not in n]
    raise ConfigError(
        f"unknown model {name!r}; expected one of {', '.join(names)}, each also with "
        f"{', '.join(MODEL_SUFFIXES)}, or torchvision:NAME, path.py:FACTORY, module:FACTORY",
        tip="gradlens run plain34",
    )


def _parse_registered(name: str, family: str, depth: int, suffixes: list[str]) -> ModelSpec:
    for suffix in suffixes:
        if suffix not in MODEL_SUFFIXES:
            raise ConfigError(
                f"unknown model {name!r}: nothing is called {suffix}; expected {', '.join(MODEL_SUFFIXES)}"
            )
    ordered = [suffix for suffix in MODEL_SUFFIXES if suffix in suffixes]
    if suffixes != ordered:
        raise ConfigError(f"unknown model {name!r}: it is written {family}{depth}{''.join(ordered)}")
    halves = [suffix for suffix in ordered if suffix in ("-valueonly", "-gradonly")]
    if len(halves) > 1:
        raise ConfigError(f"unknown model {name!r}: a shortcut passes on the value alone, or the gradient alone")
    if halves and family == "plain":
        raise ConfigError(f"unknown model {name!r}: {halves[0]} is of shortcuts, and a plain net has none")
    _check_depth(name, depth)
    carries: Literal["both", "value", "gradient"] = "both"
    if halves:
        carries = "value" if halves == ["-valueonly"] else "gradient"
    activation: Literal["relu", "sigmoid"] = "sigmoid" if "-sigmoid" in ordered else "relu"
    return ModelSpec(name, "registry", family, depth, "-nobn" not in ordered, carries, activation)


def _check_depth(name: str, depth: int) -> None:
    if depth in BOTTLENECK_DEPTHS:
        raise ConfigError(
            f"{name}: depth {depth} is built of bottleneck blocks, which the plain/residual pair does not have",
            tip=f"torchvision:resnet{depth} runs torchvision's own",
        )
    if depth not in IMAGENET_DEPTHS and (depth < 8 or depth % 6 != 2):
        raise ConfigError(
            f"{name}: there is no net of depth {depth}; expected 18 or 34 (ImageNet stem), or 6n+2 such as "
            f"{', '.join(map(str, CIFAR_DEPTHS))} (CIFAR family)"
        )
