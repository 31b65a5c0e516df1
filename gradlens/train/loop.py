"""The training loop; it reports events instead of printing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradlens.config import RunConfig
from gradlens.data import IGNORED, Batches
from gradlens.errors import ModelError
from gradlens.events import EpochDone, Listener, NonFinite, StepDone
from gradlens.format import plural
from gradlens.metrics import ACTIVATION_GRAD_NORM
from gradlens.recorder import Recorder
from gradlens.run import FloatArray
from gradlens.train.distributed import World


@dataclass
class Progress:
    """The progress of a training; with weights and optimizer, everything that a resumed run needs."""

    epoch: int = 0
    """Number of finished epochs."""
    best_val_loss: float = math.inf
    epochs_without_better: int = 0
    seconds: float = 0.0

    def note_validation(self, val_loss: float) -> None:
        """Update the best validation loss and the number of epochs since then."""
        if val_loss < self.best_val_loss:
            self.best_val_loss, self.epochs_without_better = val_loss, 0
        else:
            self.epochs_without_better += 1


@dataclass
class Mean:
    """Loss and accuracy so far, over images."""

    loss: float = 0.0
    correct: float = 0.0
    count: float = 0

    def add(self, loss: float, correct: float, count: float) -> None:
        """Add one batch: its mean loss, its number of correct predictions, its number of images."""
        self.loss += loss * count
        self.correct += correct
        self.count += count

    @property
    def values(self) -> tuple[float, float]:
        """Mean loss and accuracy."""
        if self.count == 0:
            return math.nan, math.nan
        return self.loss / self.count, self.correct / self.count


class StoppedError(Exception):
    """Raised when a non-finite loss stops the training, as the user chose."""


@dataclass
class Trainer:
    """One training: model, data, settings and listener.

    Args:
        config: The settings of the training.
        model: The model, on its device.
        optimizer: The optimizer of the model's parameters.
        scheduler: The learning-rate schedule, stepped once per epoch.
        train_batches: Training batches, shuffled.
        val_batches: Validation batches, in order.
        world: The processes that train together; the batches are the part of this process.
        device: The device of the model.
        listener: Is called with the events.
        before_record: Is called at the end of an epoch, before its row is recorded.
        after_epoch: Is called with an epoch's row after it is recorded; writes the checkpoint.
        interrupted: Returns whether the user asked to stop; called between steps.
        progress: The progress of the training.
    """

    config: RunConfig
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    train_batches: Batches
    val_batches: Batches
    device: torch.device
    listener: Listener
    before_record: Callable[[], None]
    after_epoch: Callable[[Mapping[str, float]], None]
    interrupted: Callable[[], bool]
    progress: Progress = field(default_factory=Progress)
    world: World = field(default_factory=World)

    def train(self, recorder: Recorder) -> str:
        """Train until all epochs are finished or the patience is exhausted.

        Returns:
            The reason of an early end, or "".

        Raises:
            StoppedError: A loss was not finite and the user chose to stop in this case.
            KeyboardInterrupt: The user asked to stop.
        """
        while self.progress.epoch < self.config.epochs and not self._out_of_patience():
            started = time.perf_counter()
            epoch = self.progress.epoch + 1
            lr = float(self.optimizer.param_groups[0]["lr"])

            train_loss, train_accuracy = self._train_epoch(epoch, recorder)
            val_loss, val_accuracy = self._validate()
            self.scheduler.step()

            seconds = time.perf_counter() - started
            values = {
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "lr": lr,
                "seconds": seconds,
            }
            self.before_record()
            recorder.log_epoch(epoch=epoch, **values)
            self.progress.epoch = epoch
            self.progress.seconds += seconds
            self.progress.note_validation(val_loss)
            self.after_epoch(values)
            self.listener(EpochDone(epoch, values))
        return (
            f"no lower validation loss for {plural(self.config.patience, 'epoch')}" if self._out_of_patience() else ""
        )

    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.progress.epochs_without_better

    def _train_epoch(self, epoch: int, recorder: Recorder) -> tuple[float, float]:
        self.model.train()
        mean = Mean()
        for step, batch in enumerate(self.train_batches.epoch(epoch), start=1):
            images, labels = (part.to(self.device, non_blocking=True) for part in batch)
            with self._autocast():
                logits = find_logits(self.model(images))
                loss = self._loss(logits, labels, self.train_batches.size(step - 1))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

            value, asked = self._add_up(mean, loss, logits, labels)
            recorder.log(loss=value)
            self.listener(StepDone(epoch, step, *mean.values, main_profile(recorder)))
            if not math.isfinite(value):
                self._handle_nonfinite(epoch, value, recorder)
            self._stop_if(asked)
        return mean.values

    def _handle_nonfinite(self, epoch: int, loss: float, recorder: Recorder) -> None:
        stops = self.config.on_nonfinite == "stop"
        step = recorder.counts[1] - 1
        self.listener(NonFinite(epoch, step, loss, stops))
        if stops:
            raise StoppedError(f"the loss was {loss} at step {step} (epoch {epoch})")

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        self.model.eval()
        mean = Mean()
        for step, batch in enumerate(self.val_batches.epoch(0)):
            images, labels = (part.to(self.device, non_blocking=True) for part in batch)
            with self._autocast():
                logits = find_logits(self.model(images))
                loss = self._loss(logits, labels, self.val_batches.size(step))
            self._stop_if(self._add_up(mean, loss, logits, labels)[1])
        return mean.values

    def _loss(self, logits: Tensor, labels: Tensor, count: int) -> Tensor:
        """Return the mean loss; for several processes, weighted so that their average is the mean over the batch."""
        smoothing = self.config.label_smoothing
        if not self.world.shared:
            return functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        total = functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="sum")
        return total * (self.world.size / count)

    def _add_up(self, mean: Mean, loss: Tensor, logits: Tensor, labels: Tensor) -> tuple[float, bool]:
        """Add a batch to the mean over images.

        Returns:
            The loss of the whole batch, and, for several processes, whether the user asked any of them to stop.
        """
        count = float((labels != IGNORED).sum()) if self.world.shared else len(labels)
        correct = float((logits.argmax(1) == labels).sum())
        asked = float(self.interrupted()) if self.world.shared else 0.0
        total, correct, count, asked = self.world.add(loss.item(), correct, count, asked)
        value = total / self.world.size
        mean.add(value, correct, count)
        return value, asked > 0

    def _stop_if(self, asked: bool) -> None:
        """Stop if the user asked for it; several processes stop at the same step."""
        if asked if self.world.shared else self.interrupted():
            raise KeyboardInterrupt

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp)


def find_logits(output: Any) -> Tensor:
    """Return the class scores of a model's output: the tensor, or the first of several (GoogLeNet).

    Args:
        output: The model's output.

    Returns:
        (B, classes).

    Raises:
        ModelError: The output contains no (B, classes) tensor.
    """
    output = find_output(output)
    if isinstance(output, Tensor) and output.dim() == 2:
        return output
    shown = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise ModelError(f"the model gave {shown}; expected class scores of shape (batch, classes)")


def find_output(output: Any) -> Any:
    """Return the relevant part of a model's output: its "logits" or "out", or the first of several."""
    if isinstance(output, Tensor):
        return output
    for key in ("logits", "out"):
        if hasattr(output, key):
            output = getattr(output, key)
        elif isinstance(output, dict) and key in output:
            output = output[key]
    return output[0] if isinstance(output, list | tuple) and output else output


def main_profile(recorder: Recorder) -> FloatArray | None:
    """Return the newest gradient norms of the layers on the main path, input first, (L,); None if there are none."""
    row = recorder.last_row
    if row is None or ACTIVATION_GRAD_NORM not in row.metrics:
        return None
    main = [layer.role == "main" for layer in recorder.layers]
    return np.asarray(row.metrics[ACTIVATION_GRAD_NORM])[main]
