"""Write the checkpoints of a training, and handle errors of checkpoints and recording.

With ``on_record_error="stop"`` such an error ends the training. With ``"continue"`` it is reported, and the training
continues. A checkpoint that cannot be written then leaves the previous one in place. After recording has ended, no
checkpoint is written: the last checkpoint and the run file stay consistent. ``--resume`` trains the rest again from
them and records it; the result is bit-identical to an uninterrupted run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from gradlens.errors import GradlensError, RecorderError, RunFileError
from gradlens.events import Note
from gradlens.recorder import Recorder
from gradlens.recorder.notes import line
from gradlens.train.checkpoint import (
    State,
    checkpoint_path,
    empty_state,
    full_state,
    save_checkpoint,
    sync_run_file,
)
from gradlens.train.distributed import unwrapped
from gradlens.train.loop import Trainer
from gradlens.train.rng_state import read_generators


class CheckpointWriter:
    """Write the checkpoints of one training, and handle the errors of its recorder.

    State: ``ended_at`` is None while rows are recorded. After an error of the recorder it is the step of that error,
    and no checkpoint is written any more.

    Args:
        trainer: The training; notes go to its listener.
        path: The run file, as an absolute path.
        epochs: Number of finished epochs in the existing checkpoint.
    """

    def __init__(self, trainer: Trainer, path: Path, epochs: int = 0) -> None:
        self._trainer = trainer
        self.path = path
        self._continues = trainer.config.on_record_error == "continue"
        self._reported = False
        self._saved = epochs
        self.recorder: Recorder | None = None
        """The recorder of the training; set after it is created."""
        self.ended_at: int | None = None
        """The step at which recording ended while the training continued; None while rows are recorded."""

    def handle(self, error: Exception) -> None:
        """End the training after an error of the recorder, or report that it continues without recording.

        Args:
            error: The recorder's error.

        Raises:
            RecorderError: The training is to end with the recording.
            GradlensError: The user chose to stop.
        """
        step = self.recorder.counts[1] if self.recorder is not None else 0
        if not self._continues:
            if isinstance(error, GradlensError):
                raise error
            raise RecorderError(
                f"recording ended at step {step}: {line(error)}",
                tip="--on-record-error continue trains on without recording",
            ) from error
        if self.ended_at is None:
            self.ended_at = step
            reason = error.message if isinstance(error, GradlensError) else line(error)
            text = f"recording ended at step {step}: {reason}; training continues without recording"
            self._trainer.listener(Note(text, warning=True))

    def before_record(self) -> None:
        """Write an empty checkpoint before the first epoch's row is in the file."""
        trainer = self._trainer

        def save() -> None:
            if trainer.world.first and not self._recording_ended:
                self._save(empty_state(trainer.config))

        if trainer.progress.epoch == 0:
            trainer.world.together(save)

    def after_epoch(self, values: Mapping[str, float]) -> None:
        """Write the checkpoint of an epoch whose row is in the file.

        Args:
            values: The epoch's row.
        """
        trainer, recorder = self._trainer, self.recorder
        assert recorder is not None
        rows, steps = recorder.counts
        generators = trainer.world.gather(read_generators())

        def save() -> None:
            if not trainer.world.first or self._recording_ended:
                return
            state = full_state(
                config=trainer.config,
                model=unwrapped(trainer.model),
                optimizer=trainer.optimizer,
                scheduler=trainer.scheduler,
                progress=trainer.progress,
                rows=rows,
                steps=steps,
                values={name: value for name, value in values.items() if name != "seconds"},
                generators=generators,
                recorder=recorder.state_dict(),
            )
            self._save(state)

        trainer.world.together(save)

    @property
    def _recording_ended(self) -> bool:
        return self.recorder is None or self.recorder.has_failed

    def _save(self, state: State) -> None:
        epoch = int(state["progress"]["epoch"])
        try:
            if epoch:
                sync_run_file(self.path)
            save_checkpoint(checkpoint_path(self.path), state)
        except RunFileError as error:
            if not self._continues:
                raise
            if epoch == 1:  # there may be space for a few numbers that identify the run file
                with contextlib.suppress(RunFileError):
                    few = {**empty_state(self._trainer.config), "values": state["values"]}
                    save_checkpoint(checkpoint_path(self.path), few)
            if not self._reported:
                where = f"after epoch {self._saved}" if self._saved else "from the start"
                text = f"{error.message}; training continues; after a kill --resume would start {where}"
                self._trainer.listener(Note(text, warning=True))
            self._reported = True
        else:
            self._saved, self._reported = epoch, False
