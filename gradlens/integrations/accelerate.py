"""Accelerate: ``Accelerator(log_with=GradlensTracker())``, then ``init_trackers`` after ``prepare``, as always."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

from accelerate.tracking import GeneralTracker

from gradlens.errors import RecorderError
from gradlens.integrations.framework_recording import FrameworkRecording, guarded, renamed

SEVERAL = "accelerator.prepare was given several models, and a run is of one"


class GradlensTracker(GeneralTracker):  # type: ignore[misc]
    """Records the models and optimizers that ``accelerator.prepare`` was given, from ``init_trackers`` on.

    ``accelerator.log`` adds numbers to the step, or, with a new whole "epoch" among them, to the table of epochs.
    ``accelerator.end_training`` closes the file.

    Args:
        path: The run file; by default ``runs/MODEL.h5``.
        tracker: See ``gradlens.integrations.trackers``.
        options: Arguments of ``gradlens.record``, such as ``every`` and ``metrics``.
    """

    name = "gradlens"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, path: str | os.PathLike[str] | None = None, *, tracker: Any = None, **options: Any) -> None:
        super().__init__()
        self.recording = FrameworkRecording(path, options, tracker)
        self.recording.close_with(self)
        self._epoch = -1

    @property
    def tracker(self) -> Any:
        """The recorder."""
        return self.recording.recorder

    @guarded
    def start(self) -> None:
        """Start to record; ``init_trackers`` calls this."""
        accelerator, config = _find_accelerator()
        self._epoch = -1
        if accelerator is None or not (accelerator._models and accelerator._optimizers):
            error = RecorderError(
                "accelerator.prepare has not been given a model and an optimizer yet",
                tip="call accelerator.init_trackers after accelerator.prepare",
            )
            self.recording.fail(error)
            return
        if len(accelerator._models) > 1:
            self.recording.fail(RecorderError(SEVERAL, tip="use gradlens.record for each of them"))
            return
        seed = config.get("seed")
        self.recording.begin(
            accelerator._models[0],
            list(accelerator._optimizers),
            seed=seed if isinstance(seed, int) else None,
            config=config,
        )

    @guarded
    def log(self, values: Mapping[str, Any], step: int | None = None, **more: Any) -> None:
        """Add numbers to the step and, if they have an "epoch" that is new, to the table of epochs."""
        others = {name: value for name, value in values.items() if name not in ("epoch", "step")}
        self.recording.log(others)
        epoch = values.get("epoch")
        if isinstance(epoch, int) and epoch > self._epoch:
            self._epoch = epoch
            self.recording.log_epoch(epoch, {**others, **renamed(others, "eval_")})

    @guarded
    def finish(self) -> None:
        """Close the file."""
        self.recording.end()


def _find_accelerator() -> tuple[Any, Mapping[str, Any]]:
    """Return the accelerator whose ``init_trackers`` is running, and its configuration: trackers are given neither."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "init_trackers":
        frame = frame.f_back
    found = {} if frame is None else frame.f_locals
    return found.get("self"), found.get("config") or {}
