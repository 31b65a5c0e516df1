"""Write and read checkpoints, which hold everything that a resumed run needs; written completely or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
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
TRAINED = ("model", "optimizer", "scheduler")
"""What a checkpoint after an epoch also holds."""
KINDS: dict[str, type] = {
    "config": dict,
    "progress": dict,
    "rows": int,
    "steps": int,
    "values": dict,
    "generators": list,
    "recorder": dict,
    **dict.fromkeys(TRAINED, dict),
}
"""The types of what a checkpoint holds."""


def checkpoint_path(run_path: Path) -> Path:
    """Return the file of a run's checkpoint, next to the run file."""
    return run_path.with_suffix(".ckpt")


def empty_state(config: RunConfig) -> State:
    """Return the state of a run without a finished epoch, or without disk space for a full state; it starts again."""
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
    recorder: Mapping[str, Mapping[str, Tensor]],
) -> State:
    """Return everything that a run needs to continue after an epoch.

    Args:
        config: The configuration, compared when the run is resumed.
        model: The model; its weights and buffers are kept.
        optimizer: The optimizer; its state is kept.
        scheduler: The scheduler; its state is kept.
        progress: The progress of the training.
        rows: Number of rows recorded so far.
        steps: Number of optimizer steps so far.
        values: The last epoch's row in the file; it shows whether a file belongs to the checkpoint.
        generators: The random generators of each training process, by rank.
        recorder: What the recorder remembers from earlier rows.
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
        "recorder": {name: dict(state) for name, state in recorder.items()},
    }


def save_checkpoint(path: Path, state: State) -> None:
    """Replace the checkpoint; at any moment, and after a kill, the file holds the new or the previous state completely.

    Args:
        path: The checkpoint's file.
        state: The state that ``empty_state`` or ``full_state`` returned.

    Raises:
        RunFileError: The checkpoint cannot be written; the previous one remains.
    """
    message, tip = f"the checkpoint {_shown(path)} cannot be written", "check free disk space and permissions"
    with (
        write_errors(message, tip=tip, also=RuntimeError),  # torch turns an OSError into a RuntimeError
        whole_file(path) as temporary,
        open(temporary, "wb") as file,
    ):
        torch.save(state, file)


def _shown(path: Path) -> Path:
    """Return a path for messages: relative where it is in the working folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def sync_run_file(path: Path) -> None:
    """Flush the run file to the disk before a checkpoint refers to its rows, so that a power cut cannot lose them.

    Args:
        path: The run file.

    Raises:
        RunFileError: The system could not write the file to the disk.
    """
    if os.name != "posix":  # other systems cannot sync a file that is open for reading
        return
    with write_errors(f"{_shown(path)} cannot be written"), open(path, "rb") as file:
        os.fsync(file.fileno())


def remove_stale(path: Path) -> None:
    """Remove temporary files of this checkpoint whose writers were killed.

    Args:
        path: The checkpoint's file.
    """
    for found in stale_names(path, of_the_dead=True):
        with contextlib.suppress(OSError):
            found.unlink()


def load_checkpoint(path: Path) -> State:
    """Read a checkpoint without executing anything in it.

    Args:
        path: The checkpoint's file.

    Returns:
        The state that ``empty_state`` or ``full_state`` returned.

    Raises:
        RunFileError: The checkpoint cannot be read.
    """
    if not path.is_file():  # a pipe would wait for its writer
        raise _unreadable(path, "it is no plain file")
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        reason = _find_fault(state)
    except Exception as error:
        raise _unreadable(path, type(error).__name__) from error
    if reason:
        raise _unreadable(path, reason)
    return state


def _find_fault(state: Any) -> str:
    """Return what is wrong with the types of what a checkpoint holds; "" if nothing is."""
    if not isinstance(state, dict):
        return f"it holds a {type(state).__name__}"
    missing = [name for name in NEEDED if name not in state]
    if missing:
        return f"it holds no {missing[0]}"
    for name, kind in KINDS.items():
        if name in state and (not isinstance(state[name], kind) or isinstance(state[name], bool)):
            return f"its {name} is of type {type(state[name]).__name__}, {kind.__name__} expected"
    fresh = asdict(Progress())
    for name, value in state["progress"].items():
        kinds = (int,) if isinstance(fresh.get(name), int) else (int, float)
        if name not in fresh or isinstance(value, bool) or not isinstance(value, kinds):
            return f"its progress holds {name} of type {type(value).__name__}"
    if min(state["rows"], state["steps"], state["progress"].get("epoch", 0)) < 0:
        return "it counts less than 0 rows, steps or epochs"
    if not all(isinstance(value, int | float) for value in state.get("values", {}).values()):
        return "its values are no numbers"
    kept = state.get("recorder", {}).values()
    if not all(isinstance(each, dict) and all(map(torch.is_tensor, each.values())) for each in kept):
        return "what it holds of the recorder is no tensor"
    if state["progress"].get("epoch", 0) and (absent := [name for name in TRAINED if name not in state]):
        return f"it holds no {absent[0]}"
    return ""


def _unreadable(path: Path, reason: str) -> RunFileError:
    return RunFileError(f"the checkpoint {path} cannot be read: {reason}", tip="start again with --overwrite")


def restore(state: State, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, rank: int = 0) -> Progress:
    """Restore a checkpoint's state, including the random generators if it holds those of this rank.

    Args:
        state: The checkpoint's state.
        model: The model to restore.
        optimizer: The optimizer to restore.
        scheduler: The scheduler to restore.
        rank: The rank of this process.

    Returns:
        The progress of the training.

    Raises:
        RunFileError: The model differs from that of the checkpoint.
    """
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        generators = _generators(state)
        if rank < len(generators):
            restore_generators(generators[rank])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFileError(
            f"the run cannot be resumed: its checkpoint does not fit the model: {reason}",
            tip="start again with --overwrite",
        ) from error
    return Progress(**state["progress"])


def _generators(state: State) -> Sequence[Generators]:
    """Return the generators by rank; checkpoints of earlier versions hold only those of torch."""
    if "generators" in state:
        found: list[Generators] = state["generators"]
        return found
    pairs = [(state["torch_rng"], state["cuda_rng"]), *state.get("other_rng", [])]
    return [{"cpu": of_cpu, "gpus": of_gpus} for of_cpu, of_gpus in pairs]
