"""Find the start of a run: from the beginning, or where an earlier process stopped, however it ended.

A checkpoint is written after the rows of an epoch are in the run file. The file therefore always holds the rows to
which the checkpoint refers. It may hold more: rows of the epoch in progress, or an epoch whose checkpoint was not
finished. These rows are cut off and recorded again. Before the first epoch's row is written, an empty checkpoint is
written, which means that no epoch is finished. A file with an epoch therefore has a checkpoint, at whatever moment its
process was killed.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gradlens.config import RunConfig
from gradlens.errors import ConfigError, GradlensError, RunFileError
from gradlens.events import Listener, Note
from gradlens.format import plural
from gradlens.run import RESUMED, Run
from gradlens.sinks import NullSink, Sink
from gradlens.storage import BackgroundSink, FileSink, Publisher, read_run
from gradlens.train.checkpoint import State, checkpoint_path, load_checkpoint, remove_stale
from gradlens.train.distributed import World

MAY_DIFFER_ON_RESUME = ("workers", "on_record_error")
ANEW = "--overwrite starts again, --out DIR writes elsewhere"


@dataclass
class Start:
    """The start of a run."""

    time: float
    state: State | None = None
    """The checkpoint's state of a run that continues after an epoch."""
    keep_checkpoint: bool = False
    """Whether the existing checkpoint belongs to the run."""
    complete: bool = False
    """Whether the run is complete."""
    resumes: tuple[str, ...] = ()
    """A note for each time that the run was resumed, including this time."""
    sink: Sink = field(default_factory=NullSink)

    @property
    def counts(self) -> tuple[int, int] | None:
        """Recorded rows and finished epochs of a resumed run; else None."""
        return (int(self.state["rows"]), int(self.state["progress"]["epoch"])) if self.state else None


def find_start(
    config: RunConfig,
    path: Path,
    overwrite: bool,
    resume: bool,
    listener: Listener,
    world: World,
    publish: Path | None = None,
) -> Start:
    """Find the start of a run, and open the run file on the first process.

    Args:
        config: What to train and how.
        path: The run file.
        overwrite: Replace an existing run.
        resume: Continue where a run stopped.
        listener: Is called with a note about where the run continues.
        world: The processes that train together.
        publish: A folder to which copies of the run file are sent.

    Returns:
        The start; on the first process with the open sink.

    Raises:
        ConfigError: The run was started with other settings; the message names them.
        RunFileError: The run exists and may not be replaced, or it cannot be resumed.
    """
    start = Start(time.perf_counter())
    world.check(config)
    if resume:
        overwrite = _look_at(config, path, listener, start)
        if start.complete:
            if world.first:
                _tidy(path)
            return start
    if world.first:
        remove_stale(checkpoint_path(path))
        publisher = None if publish is None else Publisher(publish, lambda text: listener(Note(text)), onto=resume)
        sink = FileSink(path, overwrite=overwrite, resume_at=start.counts, publisher=publisher)
        start.sink = BackgroundSink(sink)
    return start


def _tidy(path: Path) -> None:
    """Remove the last checkpoint of a complete run whose process was killed before it removed it."""
    checkpoint = checkpoint_path(path)
    remove_stale(checkpoint)
    with contextlib.suppress(GradlensError):
        state = load_checkpoint(checkpoint)
        run = read_run(path)
        _check_belongs(path, run, checkpoint, state)
        if int(state["progress"]["epoch"]) == len(run.epochs["epoch"]):
            checkpoint.unlink()


def check_starts(path: Path, start: Start, world: World) -> None:
    """Check that all processes see the same checkpoint.

    Args:
        path: The run file.
        start: The start that this process found.
        world: The processes that train together.

    Raises:
        RunFileError: The processes see different checkpoints.
    """
    if len(set(world.gather(start.counts))) > 1:
        raise RunFileError(
            f"{path} cannot be resumed: not all processes see its checkpoint {checkpoint_path(path)}",
            tip="all machines need the same --out folder",
        )


def _look_at(config: RunConfig, path: Path, listener: Listener, start: Start) -> bool:
    """Find where a run continues.

    Returns:
        Whether the existing file is replaced, because the run starts again.

    Raises:
        RunFileError: The run file and the checkpoint do not belong together.
    """
    checkpoint = checkpoint_path(path)
    run = read_run(path) if path.exists() else None
    if run is not None and run.status == "complete":
        listener(Note(f"{path} is complete; nothing to resume"))
        start.complete = True
        return False
    state = load_checkpoint(checkpoint) if checkpoint.exists() else None
    epochs = 0 if run is None else len(run.epochs.get("epoch", ()))
    if state is None and epochs:
        raise RunFileError(f"{path} cannot be resumed: its checkpoint {checkpoint} is missing", tip=ANEW)
    if state is not None:
        _check_settings(config, path, state)
        _check_belongs(path, run, checkpoint, state)
        start.keep_checkpoint = True
    if state is not None and state["progress"]["epoch"]:
        start.state = state
        before = () if run is None else run.info.get("notes", ())
        resumes = dict.fromkeys([*(text for text in before if text.startswith(RESUMED)), f"{RESUMED}{state['steps']}"])
        start.resumes = tuple(resumes)
        listener(Note(f"continuing after epoch {state['progress']['epoch']}"))
        return False
    if run is not None:
        listener(Note(f"{path} has no finished epoch to continue from; it starts again"))
    return run is not None


def _check_settings(config: RunConfig, path: Path, state: State) -> None:
    try:
        theirs = RunConfig.from_dict(state["config"])
    except (TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFileError(f"the settings in the checkpoint of {path} cannot be used: {reason}", tip=ANEW) from error
    differing = [line for line in config.differences(theirs) if line.split(":")[0] not in MAY_DIFFER_ON_RESUME]
    if differing:
        raise ConfigError(
            f"{path} was started with other settings: {'; '.join(differing)}",
            tip="leave these options out to continue with the old settings, or start again with --overwrite",
        )


def _check_belongs(path: Path, run: Run | None, checkpoint: Path, state: State) -> None:
    """Check that the run file is the one that the checkpoint was written for."""
    rows, epochs = int(state["rows"]), int(state["progress"]["epoch"])
    reason = ""
    if run is None:
        reason = "there is no such file" if epochs else ""
    elif not epochs and "values" not in state and len(run.epochs.get("epoch", ())) > 1:
        reason = f"it holds {len(run.epochs['epoch'])} epochs, and the checkpoint was written before the first"
    elif len(run.steps) < rows or len(run.epochs.get("epoch", ())) < epochs:
        held = f"{plural(len(run.steps), 'row')} and {plural(len(run.epochs.get('epoch', ())), 'epoch')}"
        reason = f"it holds {held}, and the checkpoint was written after {rows} and {epochs}"
    elif epochs and (counted := int(np.searchsorted(run.epoch_of_step, epochs))) != rows:
        reason = f"it holds {plural(counted, 'row')} up to epoch {epochs}, and the checkpoint counts {rows}"
    elif rows and int(run.steps[rows - 1]) >= int(state["steps"]):
        reason = f"its row {rows} is of step {run.steps[rows - 1]}, and the checkpoint counts {state['steps']} steps"
    elif len(run.epochs.get("epoch", ())):
        reason = _difference(run, max(epochs, 1), state.get("values", {}))
    if reason:
        raise RunFileError(f"{path} does not belong to its checkpoint {checkpoint}: {reason}", tip=ANEW)


def _difference(run: Run, epoch: int, values: dict[str, float]) -> str:
    """Describe the first difference between an epoch's row in the file and in the checkpoint; "" if there is none."""
    for name, value in values.items():
        value = float(value)
        there = float(run.epochs[name][epoch - 1]) if name in run.epochs else math.nan
        if there != value and not (math.isnan(there) and math.isnan(value)):
            return f"{name} of epoch {epoch} is {there:.9g} there, {value:.9g} in the checkpoint"
    return ""
