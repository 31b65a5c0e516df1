"""Find where a recording goes on in a run file that is there already, for ``record(resume=True)``."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from gradlens.errors import ConfigError, GradlensError, RunFileError
from gradlens.recorder.layers import LayerChoice, choose_layers
from gradlens.recorder.notes import listed
from gradlens.run import RESUMED
from gradlens.storage import read_run


@dataclass(frozen=True)
class Continuation:
    """The rows and epochs of the file that are kept, and the index of the next optimizer step."""

    step: int
    rows: int
    epochs: int
    notes: tuple[str, ...]
    """The notes of the file, and one about this continuation."""
    model: str
    seed: int
    config: Mapping[str, Any]

    def info(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what is stored with the run: what is given now, and what the file has besides.

        Args:
            given: The argument ``info`` of ``record``.
        """
        given = dict(given or {})
        config = {**self.config, **given.pop("config", {})}
        seed = None if self.seed < 0 else self.seed
        return {"model": self.model, "seed": seed, **given, "config": config}


def find_continuation(
    path: str | os.PathLike[str], layers: Collection[str], first_step: int | None
) -> Continuation | None:
    """Return where the recording goes on; None if there is no file, so that a new run begins.

    Rows from ``first_step`` on are recorded again, so they are not kept: training may go on from a checkpoint that is
    older than the last row.

    Args:
        path: The run file; its writer may have been killed.
        layers: Names of the model's layers.
        first_step: Index of the next optimizer step; None is the step after the last row.

    Raises:
        RunFileError: The run was recorded with other layers, or the file cannot be read.
        ConfigError: No row would be kept.
    """
    if not Path(path).exists():
        return None
    run = read_run(path)
    stored = {layer.name for layer in run.layers}
    if stored != set(layers):
        names = sorted(stored ^ set(layers))
        where = f"only in the file: {listed(sorted(stored - set(layers)))}" if stored - set(layers) else ""
        there = f"only in the model: {listed(sorted(set(layers) - stored))}" if set(layers) - stored else ""
        raise RunFileError(
            f"{path} cannot be resumed: {len(names)} of its layers differ from the model's; "
            f"{'; '.join(filter(None, (where, there)))}",
            tip="give the model and layers= that the run began with, or another name for a new run",
        )
    count = len(run.steps)
    after = int(run.steps[-1]) + 1 if count else 0
    step = after if first_step is None else first_step
    rows = int(np.searchsorted(run.steps, step))
    if count and not rows:
        raise ConfigError(
            f"first_step={step} leaves none of the {count} rows of {path}, which begin at step {run.steps[0]}",
            tip="overwrite=True replaces the run, another name begins a new one",
        )
    epochs = len(run.epochs.get("epoch", ()))
    if rows < count:
        epochs = min(epochs, int(run.epoch_of_step[rows]))
    return Continuation(
        step, rows, epochs, (*run.info.get("notes", ()), f"{RESUMED}{step}"), run.model, run.seed, run.config
    )


def tip_of_existing(path: str | os.PathLike[str], model: nn.Module, layers: LayerChoice, others: str | None) -> str:
    """Return what to do where a run of this name is there; to append to it only if it is a run of this model.

    Args:
        path: The run file.
        model: The model to be recorded.
        layers: Which of its layers.
        others: The tip about what is always possible.

    Returns:
        The tip.
    """
    try:
        find_continuation(path, choose_layers(model, layers), None)
    except GradlensError:
        return others or ""
    return f"resume=True (--resume) appends to it, as where record() is called in each epoch; {others}"
