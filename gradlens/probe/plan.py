"""Data classes of a probe: what to probe, and what was measured.

A probe is one backward pass of a model at initialisation, for each of several samples of its weights. Shapes: M main
layers, L layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gradlens.config import INITS, SHORTCUTS
from gradlens.errors import ConfigError
from gradlens.format import plural
from gradlens.run import Run
from gradlens.specs import ModelSpec, parse_data, parse_model

FP16_NORMAL, FP16_LOST, BF16_NORMAL = -14, -25, -126
"""Powers of two. The smallest normal number of float16 is 2^-14 = 6.1e-5. Numbers below 2^-25, half of the smallest
float16 number 2^-24 = 6.0e-8, round to 0. The smallest normal number of bfloat16 and float32 is 2^-126 = 1.2e-38.
Source: IEEE 754-2019, sec. 3.3; bfloat16 has float32's exponent."""
FP16_TOP = 15
"""Power of two below float16's largest number, 65504 > 2^15."""
BIAS, BROKEN = 127, 255
"""Bias of float32's exponents, and the exponent of NaN and infinity (IEEE 754-2019, sec. 3.4)."""
DEFAULT_CLASSES = 10
SMALL, SMALL_BATCH, LARGE_BATCH = 50_000, 32, 4
"""Largest number of elements of a small input; batch sizes for small and for large inputs."""
DEFAULT_SEEDS = (0, 1, 2)
NORMS = ("batch", "none")
INPUT_TIP = "--input CxHxW for images, LENGTH for vectors, long:LENGTH or long:LENGTH:VOCABULARY for tokens"


# --- what was asked for -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """The form of one example.

    Args:
        shape: Its shape, without the batch.
        tokens: Whether the input is whole numbers instead of normal noise.
        vocabulary: Tokens are below this number; 0 takes the size of the model's first embedding.
    """

    shape: tuple[int, ...]
    tokens: bool = False
    vocabulary: int = 0

    @property
    def numel(self) -> int:
        """The number of elements of an example."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        """Return the form in the notation of ``--input``."""
        text = "x".join(map(str, self.shape))
        return text if not self.tokens else f"long:{text}" + (f":{self.vocabulary}" if self.vocabulary else "")


def parse_input(text: str) -> Input:
    """Read an input's form: ``3x224x224``, ``784``, ``long:32`` (tokens) or ``long:32:50257`` (with a vocabulary).

    Args:
        text: The value of ``--input``.

    Returns:
        The form of one example.

    Raises:
        ConfigError: The text has another form, or a size is 0 or too large.
    """
    match = re.fullmatch(r"(?:(long):)?(\d+(?:x\d+)*)(?::(\d+))?", text.strip().lower())
    if match is None or (match[3] and not match[1]):
        raise ConfigError(f"--input {text!r}: expected sizes such as 3x224x224, 784 or long:32", tip=INPUT_TIP)
    shape = tuple(int(part) for part in match[2].split("x"))
    vocabulary = int(match[3]) if match[3] else 0
    if 0 in shape or (match[3] and vocabulary < 2):
        raise ConfigError(f"--input {text!r}: every size must be at least 1, and a vocabulary 2")
    if math.prod(shape) > 10**9:
        raise ConfigError(f"--input {text!r}: an example of {math.prod(shape):.1e} numbers is too large")
    return Input(shape, bool(match[1]), vocabulary)


@dataclass(frozen=True)
class ProbePlan:
    """What to probe.

    Args:
        model: The model's name, as for ``gradlens run``.
        input: The form of the input; None chooses one that suits the model.
        classes: The number of outputs; None for 10, the classes of the data, or the outputs of a factory's model.
        batch_size: Examples in the batch; None for 32, or 4 for large inputs.
        seeds: One seed per sample of weights.
        init: Initialisation of plain and residual models.
        shortcut: Shortcut option of residual models.
        data: A SPEC as for ``gradlens run``; None for noise.
    """

    model: str
    input: Input | None = None
    classes: int | None = None
    batch_size: int | None = None
    seeds: tuple[int, ...] = DEFAULT_SEEDS
    init: str = "he"
    shortcut: str = "A"
    data: str | None = None

    def __post_init__(self) -> None:
        parse_model(self.model)
        for key, value, least in (("classes", self.classes, 1), ("batch-size", self.batch_size, 2)):
            if value is not None and value < least:
                raise ConfigError(f"--{key} must be at least {least}, got {value}")
        if self.data is not None:
            parse_data(self.data)
            given = self.input
            if given and (given.tokens or len(given.shape) != 3 or given.shape[0] != 3 or len({*given.shape[1:]}) > 1):
                raise ConfigError(f"--data gives square colour images: --input 3xSxS, not {given}")

    @property
    def spec(self) -> ModelSpec:
        """The parsed name of the model."""
        return parse_model(self.model)

    def say_batch(self) -> str:
        """Describe the batch, for errors."""
        return f"a batch of {self.batch_size} inputs of {self.input}"

    def say_samples(self) -> str:
        """Describe the batch and the samples of weights."""
        fed = f"of {self.data}" if self.data else "of random tokens" if self.input and self.input.tokens else "of noise"
        samples = plural(len(self.seeds), "sample of weights", "samples of weights")
        return f"{self.batch_size} x {self.input} {fed}, {samples}, seeds {','.join(map(str, self.seeds))}"

    def filled(self, form: Input) -> ProbePlan:
        """Return the plan with this form of input and a suitable batch size."""
        batch = self.batch_size or (SMALL_BATCH if form.numel <= SMALL else LARGE_BATCH)
        return replace(self, input=form, batch_size=batch)


@dataclass(frozen=True)
class ModulePlan(ProbePlan):
    """A module that is probed as it is, with a batch that was given; there are no seeds.

    Args:
        given: Shapes and types of the batch.
        training: Whether the module is in training mode.
    """

    seeds: tuple[int, ...] = (-1,)
    given: str = ""
    training: bool = True

    def __post_init__(self) -> None:
        """Check nothing: the name is that of a class."""

    @property
    def spec(self) -> ModelSpec:
        """The name, from no registry."""
        return ModelSpec(self.model, "module")

    def say_batch(self) -> str:
        """Describe the batch, for errors."""
        return f"example_input, {self.given}"

    def say_samples(self) -> str:
        """Describe the batch and the mode."""
        return f"{self.given}; the weights as they are, in {'training' if self.training else 'eval'} mode"


def make_plans(
    model: str,
    *,
    depths: Sequence[int] = (),
    norms: Sequence[str] = (),
    inits: Sequence[str] = (),
    shortcuts: Sequence[str] = (),
    base: ProbePlan,
) -> list[ProbePlan]:
    """Return a plan for each combination of the listed values.

    Args:
        model: A model's name; or ``plain`` or ``resnet``, with depths.
        depths: Numbers of weighted layers, only for ``plain`` and ``resnet``.
        norms: Values out of "batch" and "none".
        inits: Values out of "he" and "default".
        shortcuts: Values out of "A" and "B".
        base: The plan that holds all other values.

    Raises:
        ConfigError: An option does not suit the model, or there is no such model.
    """
    for key, values, known in (("norm", norms, NORMS), ("init", inits, INITS), ("shortcut", shortcuts, SHORTCUTS)):
        for value in values:
            if value not in known:
                raise ConfigError(f"--{key} {value!r} is not known; expected some of {', '.join(known)}")
    family = model if model in ("plain", "resnet") else ""
    if family and not depths:
        raise ConfigError(
            f"{model} alone names no model", tip=f"gradlens probe {model} --depths 18,34,56, or {model}34"
        )
    if not family and depths:
        raise ConfigError(
            f"--depths goes with plain and resnet, not with {model}", tip="gradlens probe plain --depths 18"
        )
    spec = None if family else parse_model(model)
    if spec is not None and spec.source != "registry" and (norms or inits or shortcuts):
        raise ConfigError(f"--norm, --init and --shortcut are for plain and residual networks, not for {model}")
    if shortcuts and (family or (spec.family if spec else "")) != "resnet":
        raise ConfigError(f"{model} has no shortcuts: --shortcut is for residual networks")
    names = _names(model, family, spec, depths, norms)
    return [
        replace(base, model=name, init=init, shortcut=shortcut)
        for name in names
        for init in inits or ("he",)
        for shortcut in shortcuts or ("A",)
    ]


def _names(model: str, family: str, spec: ModelSpec | None, depths: Sequence[int], norms: Sequence[str]) -> list[str]:
    suffix = {"batch": "", "none": "-nobn"}
    if family:
        return [f"{family}{depth}{suffix[norm]}" for depth in depths for norm in norms or ("batch",)]
    if spec is None or spec.source != "registry" or not norms:
        return [model]
    if not spec.norm and "batch" in norms:
        raise ConfigError(f"{model} has no batch norm: --norm batch contradicts its name")
    return [f"{model.removesuffix('-nobn')}{suffix[norm]}" for norm in norms]


def parse_list(text: str | None, option: str) -> tuple[str, ...]:
    """Split a list such as ``he,default``.

    Args:
        text: The option's value; None if it was not given.
        option: The option's name, for the error.

    Returns:
        The parts; none for None.

    Raises:
        ConfigError: A part is empty or repeated.
    """
    if text is None:
        return ()
    parts = tuple(part.strip() for part in text.split(","))
    if "" in parts or len(set(parts)) != len(parts):
        raise ConfigError(f"{option} {text!r}: expected values with commas between them, each once")
    return parts


def parse_depths(text: str | None) -> tuple[int, ...]:
    """Read depths such as ``18,34,56``.

    Returns:
        The depths, in the order given.

    Raises:
        ConfigError: A part is not a whole number.
    """
    parts = parse_list(text, "--depths")
    if wrong := [part for part in parts if not part.isdecimal()]:
        raise ConfigError(f"--depths {text!r}: expected whole numbers such as 18,34,56, got {wrong[0]!r}")
    return tuple(int(part) for part in parts)


# --- what was found ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entries:
    """Histogram of the sizes of a gradient's entries.

    Args:
        zeros: Number of entries that are exactly 0.
        exponents: (256,) number of other entries for each float32 exponent: 0 below 2^-126, e in 1 to 254 from
            2^(e - 127) to twice that, 255 NaN or infinite.
    """

    zeros: int = 0
    exponents: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, dtype=np.int64))

    def __add__(self, other: Entries) -> Entries:
        """Return the sum of two histograms."""
        return Entries(self.zeros + other.zeros, self.exponents + other.exponents)

    @property
    def total(self) -> int:
        """Number of all entries."""
        return self.zeros + int(self.exponents.sum())

    @property
    def nonfinite(self) -> int:
        """Number of NaN and infinite entries."""
        return int(self.exponents[BROKEN])

    @property
    def known(self) -> int:
        """Number of entries that are finite and not 0."""
        return int(self.exponents[:BROKEN].sum())

    def below(self, power: int) -> int:
        """Return the number of nonzero entries smaller than 2^power, for a power of at least -126."""
        return int(self.exponents[: max(power + BIAS, 0)].sum()) if power < 128 else self.known

    def share_below(self, power: int) -> float:
        """Return the share of these entries among the finite nonzero entries; NaN if there are none."""
        return self.below(power) / self.known if self.known else math.nan

    @property
    def largest(self) -> int | None:
        """The power of two just above the largest finite entry; None if all are 0."""
        found = np.flatnonzero(self.exponents[:BROKEN])
        return int(found[-1]) - BIAS + 1 if len(found) else None


def add_up(parts: Sequence[Entries]) -> Entries:
    """Return the sum of several histograms."""
    return sum(parts, Entries())


@dataclass(frozen=True)
class WeightSample:
    """A model with weights sampled from one seed, and one backward pass through it.

    Args:
        run: What the recorder measured, one row.
        loss: Mean cross-entropy against labels that are independent of the input, in nats; or the user's own loss.
        scores: Number of classes with a score; 1 for a single logit; 0 with a loss of the user's own.
        spread: Standard deviation of an example's scores over the classes, root mean square over examples; NaN without
            scores.
        outputs: Layer to the entries of dLoss/d(output).
        parameters: Layer (norm layers too) to the entries of dLoss/d(parameters).
        all_parameters: The entries of all parameters; shared parameters count once.
        units: Layer to (dead, all) channels after its activation function. A dead channel is 0 for every example and
            position.
        broken: Layers whose output holds NaN or infinity, in order of execution.
        unused: Parameters that no gradient reaches.
        frozen: Parameters with ``requires_grad=False``.
        shared: Groups of names of one parameter.
        numel: Elements of all parameters; shared parameters count once.
        tensors: Number of parameters; shared parameters count once.
        seconds: Duration.
        reinitialised: Name of an output layer whose weights were all 0; "" if there is none. Such a layer passes no
            gradient in the first step, so everything except the loss is measured with PyTorch's default weights in it.
    """

    run: Run
    loss: float
    scores: int
    spread: float
    outputs: Mapping[str, Entries]
    parameters: Mapping[str, Entries]
    all_parameters: Entries
    units: Mapping[str, tuple[int, int]]
    broken: tuple[str, ...]
    unused: tuple[str, ...]
    frozen: tuple[str, ...]
    shared: tuple[tuple[str, ...], ...]
    numel: int
    tensors: int
    seconds: float
    reinitialised: str = ""

    @property
    def expected_loss(self) -> float:
        """The loss of a model that gives all classes equal scores: ln(classes); ln(2) for a single logit; else NaN."""
        return math.log(max(self.scores, 2)) if self.scores else math.nan


@dataclass(frozen=True)
class Probe:
    """The measurements of a model at initialisation.

    Args:
        plan: What was probed; input and batch size are filled in.
        samples: One sample of weights per seed.
    """

    plan: ProbePlan
    samples: tuple[WeightSample, ...]

    @property
    def seconds(self) -> float:
        """Duration of all samples."""
        return sum(sample.seconds for sample in self.samples)
