"""Ultralytics: ``GradlensCallback().add_to(model)`` before ``model.train(...)``.

It uses Ultralytics' interface of callbacks (functions that get the trainer) and imports nothing of the package.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gradlens.integrations.framework_recording import FrameworkRecording, guarded

EVENTS = ("on_train_start", "on_train_batch_end", "on_fit_epoch_end", "on_train_end")


class GradlensCallback:
    """Records a training of Ultralytics.

    The file has a row per optimizer step with the loss, and a row per epoch with what the validation measured; the
    losses of the validation are ``val_box_loss`` and so on, and their sum is ``val_loss``.

    Args:
        path: The run file; by default ``runs/MODEL-sSEED.h5``.
        tracker: See ``gradlens.integrations.trackers``.
        options: Arguments of ``gradlens.record``, such as ``every`` and ``metrics``.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, tracker: Any = None, **options: Any) -> None:
        self.recording = FrameworkRecording(path, options, tracker)
        self.recording.close_with(self)

    def add_to(self, model: Any) -> GradlensCallback:
        """Register the callback at a model, or at a trainer.

        Args:
            model: What has ``add_callback``, such as ``YOLO(...)``.

        Returns:
            The callback itself.
        """
        for event in EVENTS:
            model.add_callback(event, getattr(self, event))
        return self

    @guarded
    def on_train_start(self, trainer: Any) -> None:
        """Start to record."""
        args = vars(trainer.args)
        start = int(getattr(trainer, "start_epoch", 0))
        self.recording.begin(
            trainer.model,
            trainer.optimizer,
            scaler=getattr(trainer, "scaler", None),
            seed=args.get("seed"),
            config=args,
            resumed=start > 0,
            name=Path(str(args["model"])).stem if args.get("model") else None,
        )

    @guarded
    def on_train_batch_end(self, trainer: Any) -> None:
        """Add the loss."""
        self.recording.log(loss=trainer.loss.sum())

    @guarded
    def on_fit_epoch_end(self, trainer: Any) -> None:
        """Add the epoch, after its validation."""
        measured = {name.removeprefix("metrics/"): value for name, value in trainer.metrics.items()}
        losses = {name.replace("/", "_"): value for name, value in measured.items() if name.startswith("val/")}
        others = {f"val_{name}": value for name, value in measured.items() if "/" not in name}
        total = {"val_loss": sum(losses.values())} if losses else {}
        self.recording.log_epoch(int(trainer.epoch) + 1, {**losses, **others, **total})

    @guarded
    def on_train_end(self, trainer: Any) -> None:
        """Close the file."""
        self.recording.end()
