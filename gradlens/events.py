"""The events of a training; the listener (a progress bar, a log) decides how to show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gradlens.config import RunConfig
from gradlens.run import FloatArray, Status


@dataclass(frozen=True)
class Note:
    """A message for the user: something that was found, decided or refused."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Started:
    """The training starts or is resumed."""

    config: RunConfig
    path: str
    device: str
    train_images: int
    val_images: int
    classes: tuple[str, ...]
    steps_per_epoch: int
    first_epoch: int
    """1 for a new run."""


@dataclass(frozen=True)
class StepDone:
    """An optimizer step is done."""

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
    """An epoch is trained and validated."""

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
    """The training has ended and the file is closed."""

    status: Status
    path: str
    epochs: int
    seconds: float
    reason: str = ""
    recorded_until: int | None = None
    """The step at which recording ended if the training continued without it; otherwise None."""


Event = Note | Started | StepDone | EpochDone | NonFinite | Ended
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Ignore an event: the listener that does nothing."""
