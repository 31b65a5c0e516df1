"""The engine that an experiment asks for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gradlens.engine_settings import EngineSettings
from gradlens.engines.jobs import count_cores
from gradlens.engines.protocol import Engine


def make_engine(settings: EngineSettings, folder: Path, runs: int) -> Engine:
    """Return an engine.

    Args:
        settings: Which one, and what a run needs.
        folder: The folder of the experiment's runs.
        runs: The number of runs to be started.

    Returns:
        The engine, which has started nothing yet.

    Raises:
        ConfigError: This machine does not have what the engine needs, or no cluster can be reached.
        MissingLibraryError: A library that the engine needs is not installed.
    """
    if settings.name == "slurm":
        from gradlens.engines.slurm import SlurmEngine

        return SlurmEngine(folder, settings.at_once, _sbatch_options(settings))
    if settings.name == "ray":
        from gradlens.engines.ray import RayEngine

        return RayEngine(folder, settings.at_once, settings.cores, settings.gpus, settings.memory_gb)
    from gradlens.engines.local import LocalEngine

    at_once = settings.at_once or max(count_cores() // (settings.cores or 1), 1)
    return LocalEngine(min(at_once, max(runs, 1)), settings.cores, settings.gpus)


def _sbatch_options(settings: EngineSettings) -> dict[str, Any]:
    """Return what sbatch gets, by submitit's names."""
    found = {
        "time": settings.minutes,
        "partition": settings.partition or None,
        "cpus_per_task": settings.cores,
        "mem": None if settings.memory_gb is None else f"{round(settings.memory_gb * 1024)}M",
        "gpus_per_node": None if settings.gpus is None else math.ceil(settings.gpus),
    }
    return {**{key: value for key, value in found.items() if value}, "additional_parameters": dict(settings.slurm)}
