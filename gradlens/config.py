"""What the user asked for, checked at the door and serialisable; knows names without importing torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from gradlens.errors import ConfigError
from gradlens.metrics import get_metric
from gradlens.specs import ModelSpec as ModelSpec
from gradlens.specs import model_names as model_names
from gradlens.specs import parse_model as parse_model

OPTIMIZERS = ("adam", "adamw", "sgd")
AUGMENTATIONS = ("flip", "crop", "rotation", "color")
SPLITS = ("group", "random")
INITS = ("he", "default")
SHORTCUTS = ("A", "B")
ON_NONFINITE = ("stop", "continue")
ON_RECORD_ERROR = ("stop", "continue")
FIGURE_ENDINGS = (".png", ".svg", ".pdf")
FILM_ENDINGS = (".gif", ".mp4")
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

Split = Literal["group", "random"]


# --- data -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataSpec:
    """A data set's name, taken apart."""

    spec: str
    kind: Literal["patterns", "folder", "csv", "torchvision"]
    path: Path | None = None
    name: str = ""


def parse_data(spec: str) -> DataSpec:
    """Take a data SPEC apart.

    Args:
        spec: ``patterns``, ``folder:PATH``, ``csv:FILE`` or the name of a torchvision set.

    Raises:
        ConfigError: It fits none of these.
    """
    kind, _, rest = spec.partition(":")
    if spec == "patterns":
        return DataSpec(spec, "patterns", name="patterns")
    if kind in ("folder", "csv") and rest:
        path = Path(rest).expanduser()
        return DataSpec(spec, "folder" if kind == "folder" else "csv", path, path.stem)
    lowered = spec.lower().replace("-", "")
    if lowered in TORCHVISION_SETS:
        return DataSpec(lowered, "torchvision", name=lowered)
    raise ConfigError(
        f"unknown data {spec!r}; expected patterns, folder:PATH, csv:FILE, or one of {', '.join(TORCHVISION_SETS)}",
        tip="--data csv:photos/train.csv reads a table with the columns filename,label",
    )


# --- schedules --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes, epoch by epoch."""

    kind: Literal["constant", "step", "cosine"]
    step_size: int = 0
    gamma: float = 1.0


def parse_schedule(text: str) -> Schedule:
    """Take a schedule apart.

    Args:
        text: ``constant``, ``cosine`` or ``step:SIZE,GAMMA`` (every SIZE epochs the rate is multiplied by GAMMA).

    Raises:
        ConfigError: It fits none of these.
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


# --- recipes and runs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How a net is trained; every field can be overridden on the command line."""

    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images per optimizer step."""
    image_size: int
    """Side in pixels; images are scaled so that the shorter side fits, then cropped to the centre."""
    lr: float
    """Learning rate at the start."""
    optimizer: str
    """adam, adamw or sgd (momentum 0.9)."""
    weight_decay: float
    """As the optimizer understands it: L2 for adam and sgd, decoupled for adamw."""
    label_smoothing: float
    """Share of the target spread over all classes, in training and validation loss alike."""
    schedule: str
    """constant, cosine or step:SIZE,GAMMA, by epochs."""
    patience: int
    """Stop after so many epochs without a lower validation loss; 0 never stops."""
    augment: tuple[str, ...]
    """Of flip, crop, rotation, color; applied to training images only."""
    val_fraction: float
    """Share of the images held out where the data has no validation set of its own."""


RECIPES: dict[str, Recipe] = {
    # About a minute on two cores with the embedded data.
    "quick": Recipe(
        epochs=8,
        batch_size=32,
        image_size=48,
        lr=6e-4,
        optimizer="adam",
        weight_decay=1e-4,
        label_smoothing=0.05,
        schedule="constant",
        patience=0,
        augment=("flip",),
        val_fraction=0.2,
    ),
    # The report's own, which names no augmentation.
    "report": Recipe(
        epochs=30,
        batch_size=32,
        image_size=224,
        lr=6e-4,
        optimizer="adam",
        weight_decay=1e-4,
        label_smoothing=0.05,
        schedule="step:5,0.1",
        patience=10,
        augment=(),
        val_fraction=0.2,
    ),
}


@dataclass(frozen=True)
class RunConfig:
    """One run as asked for: a recipe's fields and all the rest."""

    model: str
    data: str = "patterns"
    recipe: str = "quick"
    seed: int = 0
    """Seeds the weights, the split, the order of the images and their augmentation."""
    epochs: int = RECIPES["quick"].epochs
    batch_size: int = RECIPES["quick"].batch_size
    image_size: int = RECIPES["quick"].image_size
    lr: float = RECIPES["quick"].lr
    optimizer: str = RECIPES["quick"].optimizer
    weight_decay: float = RECIPES["quick"].weight_decay
    label_smoothing: float = RECIPES["quick"].label_smoothing
    schedule: str = RECIPES["quick"].schedule
    patience: int = RECIPES["quick"].patience
    augment: tuple[str, ...] = RECIPES["quick"].augment
    val_fraction: float = RECIPES["quick"].val_fraction
    split: str = "group"
    """group keeps copies of a picture on one side; random does not."""
    init: str = "he"
    """he, or default (PyTorch's own); of the plain and residual nets only."""
    shortcut: str = "A"
    """A (zero-padded, no parameters) or B (projection where shapes change); of the residual nets only."""
    skip_broken: bool = False
    every: int | str = 1
    """Record every so many steps; or "auto": as often as recording keeps to its budget."""
    metrics: tuple[str, ...] = ()
    """Recorded beside the defaults and, of nets with residual blocks, the metrics of their paths."""
    device: str = "auto"
    amp: bool = False
    """bfloat16 autocast in the forward pass."""
    workers: int = 0
    on_nonfinite: str = "stop"
    on_record_error: str = "stop"
    """What becomes of the training where its rows or its checkpoint cannot be written."""

    def __post_init__(self) -> None:
        parse_model(self.model)
        parse_data(self.data)
        parse_schedule(self.schedule)
        _one_of("recipe", self.recipe, RECIPES)
        for key, allowed in (
            ("optimizer", OPTIMIZERS),
            ("split", SPLITS),
            ("init", INITS),
            ("shortcut", SHORTCUTS),
            ("on_nonfinite", ON_NONFINITE),
            ("on_record_error", ON_RECORD_ERROR),
        ):
            _one_of(key, getattr(self, key), allowed)
        for name in self.augment:
            _one_of("augment", name, AUGMENTATIONS)
        for name in self.metrics:
            get_metric(name)
        for key, low in (("epochs", 1), ("batch_size", 2), ("image_size", 8)):
            _at_least(key, getattr(self, key), low)
        if self.every != "auto" and not (isinstance(self.every, int) and self.every >= 1):
            raise ConfigError(f"every must be a whole number from 1, or auto; got {self.every}")
        for key in ("seed", "patience", "workers", "weight_decay", "lr"):
            _at_least(key, getattr(self, key), 0)
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"val_fraction must be between 0 and 1, got {self.val_fraction}")

    @property
    def run_name(self) -> str:
        """The run's name, and its file's without the ending: ``plain34-s0``."""
        return f"{parse_model(self.model).slug}-s{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        return {**asdict(self), "augment": list(self.augment), "metrics": list(self.metrics)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Read what ``to_dict`` wrote; keys that are no field are passed over."""
        known = {f.name for f in fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        for key in ("augment", "metrics"):
            kept[key] = tuple(kept.get(key, ()))
        return cls(**kept)

    def differences(self, other: RunConfig) -> list[str]:
        """Name the fields that differ, each with both values."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [f"{key}: {theirs[key]} there, {mine[key]} here" for key in mine if mine[key] != theirs[key]]


def make_config(model: str, recipe: str = "quick", **overrides: Any) -> RunConfig:
    """Take a recipe and change the fields that were given.

    Args:
        model: The model's name.
        recipe: One of ``RECIPES``.
        overrides: Fields of ``RunConfig``; None means not given.

    Raises:
        ConfigError: A name or a value is not allowed.
    """
    _one_of("recipe", recipe, RECIPES)
    base = RunConfig(model=model, recipe=recipe, **asdict(RECIPES[recipe]))
    return replace(base, **{key: value for key, value in overrides.items() if value is not None})


def parse_names(text: str) -> tuple[str, ...]:
    """Split a list such as ``flip,crop``; ``none`` is the empty one."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    return () if names == ["none"] else tuple(names)


def parse_every(text: str) -> int | str:
    """Read a rhythm: a whole number, or ``auto``; ``RunConfig`` checks it."""
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def parse_span(text: str) -> tuple[int | None, int | None]:
    """Read a span of optimizer steps, both ends included: ``100:200``, ``100:``, ``:200`` or ``:``.

    Raises:
        ConfigError: It is none.
    """
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if match is None:
        raise ConfigError(f"steps {text!r}: expected FIRST:LAST, for example 100:200, 100: or :200")
    first, last = (int(part) if part else None for part in match.groups())
    if first is not None and last is not None and last < first:
        raise ConfigError(f"steps {text!r}: the last step is before the first")
    return first, last


def say_span(span: tuple[int | None, int | None]) -> list[str]:
    """Return what stands for a span in a file's name, if it is not the whole run."""
    first, last = span
    return [] if first is None and last is None else [f"steps-{first or 0}-{'end' if last is None else last}"]


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds such as ``0,1,2`` or ``0-4``.

    Raises:
        ConfigError: It is not a list of whole numbers without repeats.
    """
    seeds: list[int] = []
    for part in text.split(","):
        if match := re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", part):
            seeds.extend(range(int(match[1]), int(match[2]) + 1))
        elif part.strip().isdigit():
            seeds.append(int(part))
        else:
            raise ConfigError(f"seeds {text!r}: expected whole numbers such as 0,1,2 or 0-4, got {part!r}")
    if len(set(seeds)) != len(seeds) or not seeds:
        raise ConfigError(f"seeds {text!r}: each seed once, and at least one")
    return tuple(seeds)


@dataclass(frozen=True)
class Launch:
    """This process among those that train together, as torchrun says it in the environment."""

    rank: int = 0
    local_rank: int = 0
    """Among the processes on this machine."""
    world_size: int = 1
    local_world_size: int = 1


LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Return this process's place; that of a single one where torchrun did not start it.

    Args:
        environment: ``os.environ``.

    Raises:
        ConfigError: What stands there are no numbers.
    """
    if any(name not in environment for name in LAUNCH_VARIABLES):
        return Launch()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    texts = dict(zip(names, (environment.get(name, "") for name in names), strict=True))
    texts["LOCAL_RANK"] = texts["LOCAL_RANK"] or texts["RANK"]
    texts["LOCAL_WORLD_SIZE"] = texts["LOCAL_WORLD_SIZE"] or texts["WORLD_SIZE"]
    for name, text in texts.items():
        if not text.isdecimal():
            raise ConfigError(f"environment variable {name} must be a whole number, got {text!r}")
    launch = Launch(*(int(texts[name]) for name in names))
    return launch if launch.world_size > 1 else Launch()


def check_figure_path(path: Path, endings: tuple[str, ...] = FIGURE_ENDINGS) -> None:
    """Raise a ConfigError unless the file's ending names a format of pictures, or of films."""
    if path.suffix.lower() not in endings:
        raise ConfigError(f"{path}: expected a file ending in {', '.join(endings)}, got {path.suffix or 'no ending'}")


def _one_of(key: str, value: object, allowed: Iterable[str]) -> None:
    allowed = list(allowed)
    if value not in allowed:
        raise ConfigError(f"{key}: {value!r} is not known; expected one of {', '.join(allowed)}")


def _at_least(key: str, value: float, low: float) -> None:
    if not (value >= low and value < math.inf):
        raise ConfigError(f"{key} must be at least {low}, got {value}")
