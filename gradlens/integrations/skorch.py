"""skorch: ``NeuralNetClassifier(..., callbacks=[GradlensCallback()])``; the class works, too."""

from __future__ import annotations

import os
from typing import Any

from skorch.callbacks import Callback

from gradlens.integrations.framework_recording import FrameworkRecording, guarded, renamed


class GradlensCallback(Callback):  # type: ignore[misc]
    """Records the training of a skorch network.

    The file has a row per optimizer step with its loss, and a row per epoch with what the history holds: train_loss,
    val_loss (skorch's valid_loss), val_accuracy. ``fit`` begins a new run, ``partial_fit`` goes on with the same.

    Args:
        path: The run file; by default ``runs/MODULE.h5``.
        tracker: See ``gradlens.integrations.trackers``.
        options: Arguments of ``gradlens.record``, such as ``every`` and ``metrics``.
    """

    recording_: FrameworkRecording

    def __init__(self, path: str | os.PathLike[str] | None = None, *, tracker: Any = None, **options: Any) -> None:
        self.path, self.tracker = path, tracker
        self.__dict__ |= options  # parameters of a scikit-learn estimator, which clones it by them
        self.options_ = options

    def initialize(self) -> GradlensCallback:
        """Make the recording; ``fit`` calls this."""
        if hasattr(self, "recording_"):
            self.recording_.break_off()
        self.recording_ = FrameworkRecording(self.path, self.options_, self.tracker)
        self.recording_.close_with(self)
        return self

    @property
    def recording(self) -> FrameworkRecording:
        """The recording of the last ``fit``."""
        return self.recording_

    @guarded
    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **more: Any) -> None:
        """Start to record."""
        config = {name: getattr(net, name) for name in ("lr", "batch_size", "max_epochs")}
        self.recording.begin(net.module_, net.optimizer_, config=config)

    @guarded
    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **more: Any) -> None:
        """Add the loss of a step."""
        if training:
            self.recording.log(loss=net.history[-1]["batches"][-1]["train_loss"])

    @guarded
    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **more: Any) -> None:
        """Add the epoch."""
        epoch = net.history[-1]
        train = {"train_loss": epoch["train_loss"]} if "train_loss" in epoch else {}
        self.recording.log_epoch(epoch["epoch"], {**renamed(epoch, "valid_"), **train})

    @guarded
    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **more: Any) -> None:
        """Close the file."""
        self.recording.end()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file out of copies."""
        return {name: value for name, value in self.__dict__.items() if name != "recording_"}
