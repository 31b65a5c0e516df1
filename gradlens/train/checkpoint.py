"""Keep all that a resumed run needs; written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradlens.atomic import stale_names, whole_file, write_errors
from gradlens.config import RunConfig
from gradlens.errors import RunFileError
from gradlens.train.loop import Progress
from gradlens.train.rng_state import Generators, restore_generators

State = dict[str, Any]
NEEDED = ("config", "progress", "rows", "steps")
"""What every checkpoint holds."""


def checkpoint_path(run_path: Path) -> Path:
    """Return where the checkpoint of a run lies: beside its file."""
    return run_path.with_suffix(".ckpt")


def empty_state(config: RunConfig) -> State:
    """Return the state of a run that has no finished epoch, or no room for its checkpoint: it starts again."""
    return {"config": config.to_dict(), "progress": asdict(Progress()), "rows": 0, "steps": 0}


def full_state(
    *,
    config: RunConfig,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    progress: Progress,
    rows: int,
    steps: int,
    values: Mapping[str, float],
    generators: Sequence[Generators],
) -> State:
    """Return all that a run needs to go on after an epoch.

    Args:
        config: Compared when the run is resumed.
        model: Its weights and buffers.
        optimizer: Its state.
        scheduler: Its state.
        progress: Where the training stands.
        rows: Rows recorded so far.
        steps: Optimizer steps made so far.
        values: The last epoch's row in the file: tells whether a file belongs to the checkpoint.
        generators: The random generators of each process that trains, by rank.
    """
    return {
        "config": config.to_dict(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "progress": asdict(progress),
        "rows": rows,
        "steps": steps,
        "values": {name: float(value) for name, value in values.items()},
        "generators": list(generators),
    }


def save_checkpoint(path: Path, state: State) -> None:
    """Write a state so that at any moment, and after a kill, the file holds this one or the one before, whole.

    Args:
        path: The file.
        state: What ``empty_state`` or ``full_state`` returned.

    Raises:
        RunFileError: It cannot be written; the checkpoint before is still there.
    """
    said, tip = f"the checkpoint {path} cannot be written", "is there room, and may you write there?"
    with (
        write_errors(said, tip=tip, also=RuntimeError),  # torch turns an OSError into one
        whole_file(path) as temporary,
        open(temporary, "wb") as file,
    ):
        torch.save(state, file)


def sync_run_file(path: Path) -> None:
    """Make the run file's rows last through a power cut before a checkpoint counts on them, where the system can.

    Raises:
        RunFileError: The system could not keep them.
    """
    if os.name != "posix":  # there, a file that is open for reading cannot be synced
        return
    with write_errors(f"{path} cannot be written"), open(path, "rb") as file:
        os.fsync(file.fileno())


def remove_stale(path: Path) -> None:
    """Remove what writers of this checkpoint left half written when they were killed.

    Args:
        path: The checkpoint's own.
    """
    for found in stale_names(path, of_the_dead=True):
        with contextlib.suppress(OSError):
            found.unlink()


def load_checkpoint(path: Path) -> State:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        RunFileError: It cannot be read.
    """
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        missing = [name for name in NEEDED if name not in state]
        reason = f"it holds no {missing[0]}" if missing else ""
    except Exception as error:
        raise _unreadable(path, type(error).__name__) from error
    if reason:
        raise _unreadable(path, reason)
    return state


def _unreadable(path: Path, reason: str) -> RunFileError:
    return RunFileError(f"the checkpoint {path} cannot be read: {reason}", tip="start again with --overwrite")


def restore(state: State, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, rank: int = 0) -> Progress:
    """Put a checkpoint's state back, the random generators' included, as far as it holds those of this rank.

    Raises:
        RunFileError: The model is another one now.
    """
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFileError(
            f"the run cannot be resumed: its checkpoint does not fit the model: {reason}",
            tip="start again with --overwrite",
        ) from error
    generators = _generators(state)
    if rank < len(generators):
        restore_generators(generators[rank])
    return Progress(**state["progress"])


def _generators(state: State) -> Sequence[Generators]:
    """Return the generators by rank; a checkpoint of an earlier gradlens holds torch's only."""
    if "generators" in state:
        found: list[Generators] = state["generators"]
        return found
    pairs = [(state["torch_rng"], state["cuda_rng"]), *state.get("other_rng", [])]
    return [{"cpu": of_cpu, "gpus": of_gpus} for of_cpu, of_gpus in pairs]
