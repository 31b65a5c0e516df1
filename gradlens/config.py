"""The settings of a training: recipes, and the checked and serialisable settings of one run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gradlens.errors import ConfigError
from gradlens.metrics import choose_metrics
from gradlens.specs import parse_data, parse_model, parse_schedule

OPTIMIZERS = ("adam", "adamw", "sgd")
AUGMENTATIONS = ("flip", "crop", "rotation", "color")
SPLITS = ("group", "random")
INITS = ("he", "default", "delta-orthogonal", "looks-linear")
SHORTCUTS = ("A", "B")
ON_NONFINITE = ("stop", "continue")
ON_RECORD_ERROR = ("stop", "continue")
LATER = {"freeze": 0.0, "rescale_to": ""}
"""Settings that earlier runs do not have, and what these were trained with."""
SEEDS = 2**63
"""Seeds are below this: a run file holds them in 64 bits."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; every field can be overridden on the command line."""

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
    """Stop after this many epochs without a lower validation loss; 0 never stops."""
    augment: tuple[str, ...]
    """Some of flip, crop, rotation, color; applied to training images only."""
    val_fraction: float
    """Share of the images used for validation if the data has no validation set."""


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
    # The settings of the original study, which names no augmentation.
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
    """The settings of one run: the fields of a recipe, and all others."""

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
    """group keeps copies of an image on one side of the split; random does not."""
    init: str = "he"
    """he, default (PyTorch's own), delta-orthogonal or looks-linear; for plain and residual models only."""
    shortcut: str = "A"
    """A (zero-padded, no parameters) or B (projection where shapes change); for residual models only."""
    freeze: float = 0.0
    """Share of the convolutions and linear layers, counted from the input, that keep their initial weights."""
    rescale_to: str = ""
    """A run without its seed, as seen from the folder of this one, such as ``../residual/resnet34``: each layer's
    gradient is scaled to the size, relative to the last layer's, that it has in that run of the same seed."""
    skip_broken: bool = False
    allow_outside: bool = False
    """Whether a table of images may name files outside of its folder."""
    every: int | str = 1
    """Record every Nth step; or "auto": as often as possible within the budget of overhead."""
    metrics: tuple[str, ...] = ()
    """Metrics to record in addition to the defaults and, in models with residual blocks, the metrics of their paths;
    "all", and "-NAME" to leave one out."""
    device: str = "auto"
    norms: bool = False
    """Whether to record norm layers, too: scaling weights cannot change the gradient at their outputs."""
    amp: bool = False
    """bfloat16 autocast in the forward pass."""
    workers: int = 0
    on_nonfinite: str = "stop"
    on_record_error: str = "stop"
    """Whether to stop or continue the training when its rows or its checkpoint cannot be written."""

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
        choose_metrics(self.metrics)
        for key, low in (("epochs", 1), ("batch_size", 2), ("image_size", 8)):
            _at_least(key, getattr(self, key), low)
        if self.every != "auto" and not (isinstance(self.every, int) and self.every >= 1):
            raise ConfigError(f"every must be a whole number from 1, or auto; got {self.every}")
        if self.seed >= SEEDS:
            raise ConfigError(f"seed must be below 2^63, got {self.seed}")
        for key in ("seed", "patience", "workers", "weight_decay", "lr"):
            _at_least(key, getattr(self, key), 0)
        if not 0 <= self.freeze < 1:
            raise ConfigError(f"freeze must be in [0, 1), got {self.freeze}")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"val_fraction must be between 0 and 1, got {self.val_fraction}")

    @property
    def run_name(self) -> str:
        """The name of the run, and of its file without the ending: ``plain34-s0``."""
        return f"{parse_model(self.model).slug}-s{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types; ``LATER`` only where they are set: earlier runs have none."""
        found = {**asdict(self), "augment": list(self.augment), "metrics": list(self.metrics)}
        return {key: value for key, value in found.items() if key not in LATER or value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Read the result of ``to_dict``; unknown keys are ignored."""
        known = {f.name for f in fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        for key in ("augment", "metrics"):
            kept[key] = tuple(kept.get(key, ()))
        return cls(**kept)

    def differences(self, other: RunConfig) -> list[str]:
        """Return the fields that differ, each with both values."""
        mine, theirs = self.to_dict(), other.to_dict()
        mine, theirs = ({**LATER, **values} for values in (mine, theirs))
        return [f"{key}: {theirs[key]} there, {mine[key]} here" for key in mine if mine[key] != theirs[key]]


def make_config(model: str, recipe: str = "quick", **overrides: Any) -> RunConfig:
    """Return the settings of a recipe with some fields changed.

    Args:
        model: The model's name.
        recipe: One of ``RECIPES``.
        overrides: Fields of ``RunConfig`` to change; None keeps the field.

    Returns:
        The settings of the run.

    Raises:
        ConfigError: A name or a value is not allowed.
    """
    _one_of("recipe", recipe, RECIPES)
    base = RunConfig(model=model, recipe=recipe, **asdict(RECIPES[recipe]))
    return replace(base, **{key: value for key, value in overrides.items() if value is not None})


def _one_of(key: str, value: object, allowed: Iterable[str]) -> None:
    allowed = list(allowed)
    if value not in allowed:
        raise ConfigError(f"{key}: {value!r} is not known; expected one of {', '.join(allowed)}")


def _at_least(key: str, value: float, low: float) -> None:
    if not (value >= low and value < math.inf):
        raise ConfigError(f"{key} must be at least {low}, got {value}")
