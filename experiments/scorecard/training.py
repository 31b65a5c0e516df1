"""What a subject of the score card is, and how one is trained while gradlens records it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tasks import Batch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

import gradlens
from gradlens.metrics import DEFAULT_METRICS

STEPS = 300
METRICS = (*DEFAULT_METRICS, "nonfinite_count", "zero_fraction", "activation_rms", "grad_coherence")
"""The same for all subjects, so that none has information about what to look for."""


def cross_entropy(out: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross entropy; of sequences, over all places."""
    return functional.cross_entropy(out.flatten(0, -2), target.flatten())


@dataclass
class Training:
    """A training that is ready to begin.

    Args:
        model: The model.
        optimizer: Of its parameters.
        batch: Step to inputs and targets.
        activation: The name of the activation function, for all subjects alike stored with the run.
        loss: Of output and target.
        clip: The largest norm of all gradients; None for no clipping.
        schedule: Stepped after each step.
        zero_grad: Whether gradients are cleared before each backward pass.
        before: Steps that are trained before recording begins.
    """

    model: nn.Module
    optimizer: Optimizer
    batch: Batch
    activation: str
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    clip: float | None = None
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    zero_grad: bool = True
    before: int = 0

    def step(self, step: int) -> dict[str, float]:
        """Make a step and return its scalars."""
        x, y = self.batch(step)
        if self.zero_grad:
            self.optimizer.zero_grad()
        out = self.model(x)
        loss = self.loss(out, y)
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        scalars = {"loss": float(loss.detach())}
        if not y.is_floating_point():
            scalars["accuracy"] = float((out.detach().argmax(dim=-1) == y).float().mean())
        return scalars


@dataclass(frozen=True)
class Subject:
    """A training, and beforehand what is true of it.

    Args:
        name: Its name.
        make: Seed to training.
        kinds: Kinds that are right answers; empty for a healthy training.
        first: Layers any of which is right as the first one; empty where no layer is where the fault lies.
        twin: The healthy training that differs by the fault only; "" for a healthy training.
        why: What is wrong and why these are the right answers, in a sentence.
    """

    name: str
    make: Callable[[int], Training]
    kinds: frozenset[str] = frozenset()
    first: frozenset[str] = frozenset()
    twin: str = ""
    why: str = ""

    @property
    def faulty(self) -> bool:
        """Whether it has a fault."""
        return bool(self.kinds)


@dataclass
class Book:
    """Subjects by name, in the order in which they were written."""

    subjects: dict[str, Subject] = field(default_factory=dict)

    def healthy(self, name: str, why: str) -> Callable[[Callable[[int], Training]], Callable[[int], Training]]:
        """Register a healthy training."""

        def enter(make: Callable[[int], Training]) -> Callable[[int], Training]:
            self.subjects[name] = Subject(name, make, why=why)
            return make

        return enter

    def fault(
        self, name: str, *, kinds: str, twin: str, why: str, first: str = ""
    ) -> Callable[[Callable[[int], Training]], Callable[[int], Training]]:
        """Register a fault; kinds and first layers are written with spaces between them."""

        def enter(make: Callable[[int], Training]) -> Callable[[int], Training]:
            self.subjects[name] = Subject(name, make, frozenset(kinds.split()), frozenset(first.split()), twin, why)
            return make

        return enter


def train(subject: Subject, seed: int, path: Path, steps: int = STEPS) -> None:
    """Train a subject and record it; the file has its name only when it is whole."""
    torch.manual_seed(seed)
    training = subject.make(seed)
    for step in range(training.before):
        training.step(step)
    part = path.with_suffix(".part.h5")
    info = {"model": subject.name, "seed": seed, "config": {"activation": training.activation}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NaN and Inf, and of layers without a gradient: they are what is looked for
        with gradlens.record(
            training.model, part, optimizer=training.optimizer, metrics=METRICS, info=info, overwrite=True,
            on_error="raise",
        ) as recorder:  # fmt: skip
            for step in range(training.before, training.before + steps):
                recorder.log(**training.step(step))
    part.replace(path)
