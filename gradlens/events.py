"""What a training says while it runs; whoever listens (a progress bar, a log) decides how to show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gradlens.config import RunConfig
from gradlens.run import FloatArray, Status


@dataclass(frozen=True)
class Note:
    """A sentence for the user: something that was found, decided or refused."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Started:
    """Training begins (or goes on)."""

    config: RunConfig
    path: str
    device: str
    train_images: int
    val_images: int
    classes: tuple[str, ...]
    steps_per_epoch: int
    first_epoch: int
    """1 for a fresh run."""


@dataclass(frozen=True)
class StepDone:
    """One optimizer step was made."""

    epoch: int
    """Counted from 1."""
    step: int
    """Counted from 1 within the epoch."""
    loss: float
    """Mean over the epoch so far."""
    accuracy: float
    """Share over the epoch so far."""
    profile: FloatArray | None
    """(L,) gradient norms of the main layers in the newest recorded row, input first."""


@dataclass(frozen=True)
class EpochDone:
    """One epoch was trained and validated."""

    epoch: int
    values: Mapping[str, float]
    """train_loss, train_accuracy, val_loss, val_accuracy, lr, seconds."""


@dataclass(frozen=True)
class NonFinite:
    """A training loss was NaN or infinite."""

    epoch: int
    step: int
    """Counted from 0 over the run."""
    loss: float
    stops: bool


@dataclass(frozen=True)
class Ended:
    """Training is over and the file is closed."""

    status: Status
    path: str
    epochs: int
    seconds: float
    reason: str = ""
    recorded_until: int | None = None
    """The step at which recording ended though training went on; None where it did not."""


Event = Note | Started | StepDone | EpochDone | NonFinite | Ended
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""
