"""Keep all that a resumed run needs; written whole or not at all."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradlens.config import RunConfig
from gradlens.errors import RunFileError
from gradlens.train.loop import Progress


def checkpoint_path(run_path: Path) -> Path:
    """Return where the checkpoint of a run lies: beside its file."""
    return run_path.with_suffix(".ckpt")


def save_checkpoint(
    path: Path,
    *,
    config: RunConfig,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    progress: Progress,
    rows: int,
    steps: int,
) -> None:
    """Write the state after an epoch, atomically.

    Args:
        path: The file.
        config: Compared when the run is resumed.
        model: Its weights and buffers.
        optimizer: Its state.
        scheduler: Its state.
        progress: Where the training stands.
        rows: Rows recorded so far.
        steps: Optimizer steps made so far.
    """
    state: dict[str, Any] = {
        "config": config.to_dict(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "progress": asdict(progress),
        "rows": rows,
        "steps": steps,
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunFileError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        RunFileError: It cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:
        raise RunFileError(
            f"the checkpoint {path} cannot be read: {type(error).__name__}",
            tip="start again with --overwrite",
        ) from error


def restore(state: dict[str, Any], model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler) -> Progress:
    """Put a checkpoint's state back, the random generators' included."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["torch_rng"])
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return Progress(**state["progress"])
