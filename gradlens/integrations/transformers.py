"""Hugging Face Trainer and its subclasses: ``Trainer(..., callbacks=[GradlensCallback()])``; the class works, too."""

from __future__ import annotations

import math
import os
from typing import Any

from transformers import TrainerCallback

from gradlens.integrations.framework_recording import FrameworkRecording, guarded, renamed

NO_SCALARS = ("epoch", "learning_rate", "total_flos", "num_input_tokens_seen")
"""What the Trainer logs and the recorder knows by itself, or that tells nothing about the step."""
SPEEDS = ("_runtime", "_per_second", "_time")


class GradlensCallback(TrainerCallback):  # type: ignore[misc]
    """Records a training of the Hugging Face Trainer.

    The file has a row per optimizer step. What the Trainer logs (its loss is a mean over ``logging_steps``) is in the
    row of the step where it was logged; evaluations are scalars of their step and columns of the table of epochs. A
    training that is resumed from a checkpoint appends to its run.

    Args:
        path: The run file; by default ``runs/MODEL-sSEED.h5``.
        tracker: See ``gradlens.integrations.trackers``.
        options: Arguments of ``gradlens.record``, such as ``every`` and ``metrics``.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, tracker: Any = None, **options: Any) -> None:
        self.recording = FrameworkRecording(path, options, tracker)
        self.recording.close_with(self)
        self._epoch: int | None = None
        """The epoch that has ended, and whose row waits for an evaluation."""
        self._values: dict[str, Any] = {}

    @guarded
    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        """Start to record."""
        step = int(state.global_step)
        self._epoch, self._values = None, {}
        self.recording.begin(
            model, more.get("optimizer"), seed=args.seed, config=args.to_dict(), step=step, resumed=step > 0
        )

    @guarded
    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        """Add what the Trainer logs, without the summary at the end."""
        logs = logs or {}
        if not any(name.startswith(("eval_", "train_runtime")) for name in logs):
            self.recording.log({name: value for name, value in logs.items() if name not in NO_SCALARS})

    @guarded
    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **more: Any) -> None:
        """Add an evaluation to its step, and keep it for the row of its epoch."""
        measured = {k: v for k, v in renamed(metrics or {}, "eval_").items() if not k.endswith(SPEEDS)}
        self.recording.log(measured)
        self._values |= measured

    @guarded
    def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Write the row of the epoch before."""
        self._write_epoch()

    @guarded
    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Note that an epoch has ended; its evaluation may follow."""
        self._epoch = max(1, math.ceil(round(state.epoch or 0, 6)))

    @guarded
    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Close the file."""
        self._write_epoch()
        self.recording.end()

    def _write_epoch(self) -> None:
        if self._epoch is not None:
            self.recording.log_epoch(self._epoch, self._values)
        self._epoch, self._values = None, {}
