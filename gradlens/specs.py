"""Parsers of names and options, which do not import torch: models, data sets, schedules, seeds, steps."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gradlens.errors import ConfigError

FAMILIES = ("plain", "resnet")
IMAGENET_DEPTHS = (18, 34)
CIFAR_DEPTHS = (20, 32, 44, 56, 110)
BOTTLENECK_DEPTHS = (50, 101, 152)
MODEL_SUFFIXES = ("-valueonly", "-gradonly", "-skipinit", "-branchscale", "-nobn", "-sigmoid")
"""The endings of the names of plain and residual models, in this order."""
HALVES, BRANCHES = MODEL_SUFFIXES[:2], MODEL_SUFFIXES[2:4]
FIGURE_ENDINGS = (".png", ".svg", ".pdf")
ENGINES = ("local", "slurm", "ray")
"""Where the runs of an experiment are carried out."""
EXPORT_FORMS = ("csv", "parquet", "tensorboard")
EXPORT_TABLES = ("metrics", "scalars", "epochs", "layers")
TORCHVISION_SETS = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "fashionmnist": "FashionMNIST",
    "svhn": "SVHN",
    "food101": "Food101",
    "flowers102": "Flowers102",
}


# --- models -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSpec:
    """The parts of a model's name.

    Args:
        name: As the user wrote it.
        source: Where the model comes from.
        family: "plain" or "resnet" (registry only).
        depth: Weighted layers on the main path (registry only).
        norm: Whether it has batch norm (registry only).
        carries: What the shortcut passes on (registry only): "both", only the forward "value" (it passes no gradient),
            or only the "gradient" (it adds nothing to the forward value).
        branch: What the residual branch is multiplied by (registry only): nothing ("whole"), or a trained factor that
            begins at 0 ("from zero") or at 1 / sqrt(number of blocks) ("from scale").
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
    branch: Literal["whole", "from zero", "from scale"] = "whole"
    activation: Literal["relu", "sigmoid"] = "relu"
    location: str = ""
    factory: str = ""

    @property
    def slug(self) -> str:
        """The name for use in a file name."""
        name = self.factory or self.name.replace(":", "-")
        return re.sub(r"[^\w.+-]+", "-", name)


def model_names() -> list[str]:
    """Return the names of the models of the registry and of their variants, with and without ``-nobn``.

    A variant changes one thing: what the shortcut passes on, the factor of the branch, or the activation function.

    Returns:
        The names.
    """
    depths = (*IMAGENET_DEPTHS, *CIFAR_DEPTHS)
    plain = [f"{family}{depth}" for family in FAMILIES for depth in depths]
    variants = [f"resnet{depth}{variant}" for depth in depths for variant in (*HALVES, *BRANCHES)]
    relu = [name + suffix for name in (*plain, *variants) for suffix in ("", "-nobn")]
    return relu + [f"{name}{suffix}-sigmoid" for name in plain for suffix in ("", "-nobn")]


def parse_model(name: str) -> ModelSpec:
    """Parse a model's name.

    Args:
        name: ``plain34``, ``resnet56-nobn``, ``resnet34-valueonly``, ``resnet34-gradonly-nobn``,
            ``plain34-nobn-sigmoid``; ``torchvision:NAME``, ``path.py:FACTORY`` or ``module:FACTORY``.

    Returns:
        The parts of the name.

    Raises:
        ConfigError: The name has none of these forms.
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
    if name.endswith(".py"):
        raise ConfigError(
            f"{name} names no model; expected {name}:FACTORY, where FACTORY is a function in it that returns a model"
        )
    names = [n for n in model_names() if "-" not in n]
    near = difflib.get_close_matches(name, [*model_names(), "torchvision:NAME"], 1, 0.5)
    raise ConfigError(
        f"unknown model {name!r}; expected one of {', '.join(names)}, each also with "
        f"{', '.join(MODEL_SUFFIXES)}, or torchvision:NAME, path.py:FACTORY, module:FACTORY",
        tip=f"did you mean {near[0]}?" if near else "gradlens run plain34",
    )


def _parse_registered(name: str, family: str, depth: int, suffixes: list[str]) -> ModelSpec:
    for suffix in suffixes:
        if suffix not in MODEL_SUFFIXES:
            raise ConfigError(f"unknown model {name!r}: {suffix} is unknown; expected {', '.join(MODEL_SUFFIXES)}")
    ordered = [suffix for suffix in MODEL_SUFFIXES if suffix in suffixes]
    if suffixes != ordered:
        raise ConfigError(f"unknown model {name!r}: the correct order is {family}{depth}{''.join(ordered)}")
    halves, branches = ([suffix for suffix in ordered if suffix in kinds] for kinds in (HALVES, BRANCHES))
    if len(halves) > 1:
        raise ConfigError(f"unknown model {name!r}: a shortcut passes on only the value, or only the gradient")
    if len(branches) > 1:
        raise ConfigError(f"unknown model {name!r}: the factor of the branch begins at 0, or at 1 / sqrt(blocks)")
    if (halves or branches) and family == "plain":
        changed = "changes shortcuts" if halves else "scales residual branches"
        raise ConfigError(f"unknown model {name!r}: {(halves or branches)[0]} {changed}, and a plain model has none")
    _check_depth(name, depth)
    branch: Literal["whole", "from zero", "from scale"] = "whole"
    if branches:
        branch = "from zero" if branches == ["-skipinit"] else "from scale"
    carries: Literal["both", "value", "gradient"] = "both"
    if halves:
        carries = "value" if halves == ["-valueonly"] else "gradient"
    activation: Literal["relu", "sigmoid"] = "sigmoid" if "-sigmoid" in ordered else "relu"
    return ModelSpec(name, "registry", family, depth, "-nobn" not in ordered, carries, branch, activation)


def _check_depth(name: str, depth: int) -> None:
    if depth in BOTTLENECK_DEPTHS:
        raise ConfigError(
            f"{name}: depth {depth} needs bottleneck blocks, which the plain and residual models do not have",
            tip=f"torchvision:resnet{depth} is the model of torchvision",
        )
    if depth not in IMAGENET_DEPTHS and (depth < 8 or depth % 6 != 2):
        raise ConfigError(
            f"{name}: there is no model of depth {depth}; expected 18 or 34 (ImageNet stem), or 6n+2 such as "
            f"{', '.join(map(str, CIFAR_DEPTHS))} (CIFAR family)"
        )


# --- data sets ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataSpec:
    """The parts of a data SPEC."""

    spec: str
    kind: Literal["patterns", "folder", "csv", "torchvision"]
    path: Path | None = None
    name: str = ""


def parse_data(spec: str) -> DataSpec:
    """Parse a data SPEC.

    Args:
        spec: ``patterns``, ``folder:PATH``, ``csv:FILE`` or the name of a torchvision set.

    Returns:
        The parts.

    Raises:
        ConfigError: The SPEC has none of these forms.
    """
    kind, _, rest = spec.partition(":")
    if spec == "patterns":
        return DataSpec(spec, "patterns", name="patterns")
    if kind in ("folder", "csv") and rest:
        path = Path(rest).expanduser()
        return DataSpec(spec, "folder" if kind == "folder" else "csv", path, path.stem)
    if spec and (Path(spec).is_dir() or Path(spec).is_file()):
        kind = "folder" if Path(spec).is_dir() else "csv"
        raise ConfigError(
            f"unknown data {spec!r}; expected folder:PATH for a folder, csv:FILE for a table",
            tip=f"--data {kind}:{spec}",
        )
    lowered = spec.lower().replace("-", "")
    if lowered in TORCHVISION_SETS:
        return DataSpec(lowered, "torchvision", name=lowered)
    raise ConfigError(
        f"unknown data {spec!r}; expected patterns, folder:PATH, csv:FILE, or one of {', '.join(TORCHVISION_SETS)}",
        tip="--data csv:photos/train.csv reads a table with the columns filename,label",
    )


# --- schedules ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes over epochs."""

    kind: Literal["constant", "step", "cosine"]
    step_size: int = 0
    gamma: float = 1.0


def parse_schedule(text: str) -> Schedule:
    """Parse a schedule.

    Args:
        text: ``constant``, ``cosine`` or ``step:SIZE,GAMMA`` (every SIZE epochs the rate is multiplied by GAMMA).

    Returns:
        The schedule.

    Raises:
        ConfigError: The text has none of these forms.
    """
    if text == "constant":
        return Schedule("constant")
    if text == "cosine":
        return Schedule("cosine")
    if match := re.fullmatch(r"step:(\d+),([0-9.eE+-]+)", text):
        try:
            size, gamma = int(match[1]), float(match[2])
        except ValueError:
            size, gamma = 0, 0.0
        if size >= 1 and 0 < gamma < math.inf:
            return Schedule("step", size, gamma)
    raise ConfigError(f"schedule {text!r} is not known; expected constant, cosine or step:SIZE,GAMMA (step:5,0.1)")


# --- lists and spans ----------------------------------------------------------------------------------------


def parse_names(text: str) -> tuple[str, ...]:
    """Parse a list such as ``flip,crop``; ``none`` is the empty list."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    return () if names == ["none"] else tuple(names)


def parse_every(text: str) -> int | str:
    """Parse an interval: a whole number of steps, or ``auto``; ``RunConfig`` checks it."""
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def parse_span(text: str) -> tuple[int | None, int | None]:
    """Parse a span of optimizer steps.

    Args:
        text: ``100:200``, ``100:``, ``:200`` or ``:``; both ends are included.

    Returns:
        First and last step; None is the beginning, or the end.

    Raises:
        ConfigError: The text is no span.
    """
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if match is None:
        raise ConfigError(f"steps {text!r}: expected FIRST:LAST, for example 100:200, 100: or :200")
    first, last = (int(part) if part else None for part in match.groups())
    if first is not None and last is not None and last < first:
        raise ConfigError(f"steps {text!r}: the last step is before the first")
    return first, last


def say_span(span: tuple[int | None, int | None]) -> list[str]:
    """Return the part of a file name for a span; none for the whole run."""
    first, last = span
    return [] if first is None and last is None else [f"steps-{first or 0}-{'end' if last is None else last}"]


MOST_SEEDS = 10_000
DIGITS = 18
"""Digits of a seed: it is a whole number of 64 bits."""


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse a list of seeds.

    Args:
        text: Numbers and ranges such as ``0,1,2`` or ``0-4``.

    Returns:
        The seeds.

    Returns:
        The seeds, in the order given.

    Raises:
        ConfigError: The text is no list of whole numbers, a seed is repeated, or there are more than 10,000.
    """
    seeds: list[int] = []
    for part in text.split(","):
        if match := re.fullmatch(r"\s*(\d{1,18})\s*-\s*(\d{1,18})\s*", part):
            seeds.extend(range(int(match[1]), min(int(match[2]), int(match[1]) + MOST_SEEDS) + 1))
        elif part.strip().isascii() and part.strip().isdigit() and len(part.strip()) <= DIGITS:
            seeds.append(int(part))
        else:
            raise ConfigError(f"seeds {text!r}: expected whole numbers such as 0,1,2 or 0-4, got {part!r}")
        if len(seeds) > MOST_SEEDS:
            raise ConfigError(f"seeds {text!r}: expected at most {MOST_SEEDS:,} seeds")
    if len(set(seeds)) != len(seeds) or not seeds:
        raise ConfigError(f"seeds {text!r}: each seed once, and at least one")
    return tuple(seeds)


def check_figure_path(path: Path, endings: tuple[str, ...] = FIGURE_ENDINGS) -> None:
    """Check that the ending of a file is a known format.

    Args:
        path: The file.
        endings: The known endings.

    Raises:
        ConfigError: The ending is none of these.
    """
    if path.suffix.lower() not in endings:
        raise ConfigError(f"{path}: expected a file ending in {', '.join(endings)}, got {path.suffix or 'no ending'}")
