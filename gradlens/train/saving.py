"""What a run leaves behind: its checkpoints, and what becomes of the training when they or its rows cannot be written.

With ``on_record_error="stop"`` such an error ends the training. With ``"continue"`` it is said, and the training goes
on. A checkpoint that cannot be written then leaves the one before in its place. And once recording has ended, no
checkpoint is written any more: the last one and the file stay a pair, from which ``--resume`` trains the rest again and
records it, to the bits of a run that was never broken.
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


class Keeper:
    """Writes the checkpoints of one training, and meets the errors of its recorder.

    Args:
        trainer: What is trained; its events go to the trainer's listener.
        path: The run file, from the root of the file system.
        epochs: Those of the checkpoint that is there.
    """

    def __init__(self, trainer: Trainer, path: Path, epochs: int = 0) -> None:
        self._trainer = trainer
        self.path = path
        self._goes_on = trainer.config.on_record_error == "continue"
        self._said = False
        self._saved = epochs
        self.recorder: Recorder | None = None
        """To be set as soon as it is there."""
        self.ended_at: int | None = None
        """The step at which recording ended while training went on; None while it goes on."""

    def meet(self, error: Exception) -> None:
        """End the training for an error of the recorder, or say that it goes on without.

        Raises:
            GradlensError: The user chose to stop.
        """
        step = self.recorder.counts[1] if self.recorder is not None else 0
        if not self._goes_on:
            if isinstance(error, GradlensError):
                raise error
            raise RecorderError(
                f"recording ended at step {step}: {line(error)}",
                tip="--on-record-error continue goes on without it",
            ) from error
        if self.ended_at is None:
            self.ended_at = step
            reason = error.message if isinstance(error, GradlensError) else line(error)
            text = f"recording ended at step {step}: {reason}; training goes on without it"
            self._trainer.listener(Note(text, warning=True))

    def before_record(self) -> None:
        """Say in a checkpoint, before the first epoch's row is in the file, that there is no finished epoch yet."""
        trainer = self._trainer

        def save() -> None:
            if trainer.world.first and not self._recording_ended:
                self._save(empty_state(trainer.config))

        if trainer.progress.epoch == 0:
            trainer.world.together(save)

    def after_epoch(self, values: Mapping[str, float]) -> None:
        """Write the checkpoint of an epoch whose row is in the file.

        Args:
            values: The row.
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
            if not self._goes_on:
                raise
            if epoch == 1:  # perhaps there is room for a few numbers, by which the file is known again
                with contextlib.suppress(RunFileError):
                    few = {**empty_state(self._trainer.config), "values": state["values"]}
                    save_checkpoint(checkpoint_path(self.path), few)
            if not self._said:
                where = f"after epoch {self._saved}" if self._saved else "from the start"
                text = f"{error.message}; training goes on, and after a kill --resume would begin {where}"
                self._trainer.listener(Note(text, warning=True))
            self._said = True
        else:
            self._saved, self._said = epoch, False
