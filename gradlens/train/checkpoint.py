"""Keep all that a resumed run needs; written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradlens.config import RunConfig
from gradlens.errors import RunFileError
from gradlens.train.loop import Progress

Generators = tuple[Tensor, list[Tensor]]


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
    generators: Sequence[Generators],
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
        generators: The random generators of each process that trains, by rank.
    """
    state: dict[str, Any] = {
        "config": config.to_dict(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "progress": asdict(progress),
        "rows": rows,
        "steps": steps,
        "torch_rng": generators[0][0],
        "cuda_rng": generators[0][1],
        "other_rng": list(generators[1:]),
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


def restore(
    state: dict[str, Any], model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, rank: int = 0
) -> Progress:
    """Put a checkpoint's state back, the random generators' included, as far as it holds those of this rank."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    generators = [(state["torch_rng"], state["cuda_rng"]), *state.get("other_rng", [])]
    if rank < len(generators):
        of_cpu, of_gpus = generators[rank]
        torch.set_rng_state(of_cpu)
        if of_gpus and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(of_gpus)
    return Progress(**state["progress"])


def read_generators() -> Generators:
    """Return the state of this process's random generators: the CPU's, and those of all GPUs."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
