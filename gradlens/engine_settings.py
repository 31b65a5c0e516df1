"""The table ``[engine]`` of an experiment: where and how its runs are carried out.

::

    [engine]
    name = "slurm"
    time = "4:00:00"
    gpus = 1

    [engine.slurm]              # further options of sbatch
    account = "lab"
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradlens.errors import ConfigError
from gradlens.specs import ENGINES

TIME = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)")
"""Days, hours, minutes and seconds of a time limit."""
TEXTS = ("partition",)
NUMBERS: dict[str, tuple[float, bool]] = {
    "at_once": (1, True), "retries": (0, True), "cores": (1, True), "gpus": (0, False), "memory_gb": (0.1, False),
}  # fmt: skip
"""Key to its least value, and whether it is a whole number."""
KEYS = ("name", *NUMBERS, "time", *TEXTS, "slurm")
OURS = {
    "array": "engine.at_once is the number of runs at the same time",
    "cpus-per-task": "engine.cores is the number of cores",
    "error": "gradlens reads the output of the jobs",
    "gpus": "engine.gpus is the number of GPUs of a run",
    "job-name": "the jobs of an experiment are found by their names",
    "mem": "engine.memory_gb is the memory of a run",
    "nodes": "a run is one task on one node",
    "ntasks": "a run is one task on one node",
    "open-mode": "gradlens reads the output of the jobs",
    "output": "gradlens reads the output of the jobs",
    "partition": "engine.partition is the partition",
    "signal": "runs close their files some time before the time limit",
    "time": "engine.time is the time limit",
}
"""Option of sbatch that ``[engine.slurm]`` cannot set, to what sets it or the reason."""


@dataclass(frozen=True)
class EngineSettings:
    """Where and how the runs of an experiment are carried out.

    Args:
        name: The engine: local, slurm or ray.
        at_once: Runs at the same time; None leaves it to the engine.
        retries: How often a run that failed is started again, where it stopped.
        cores: Cores of a run; None means an equal share of this machine's (local), or one.
        gpus: GPUs of a run; below 1 a share of one (local, ray). None means one if there is any (local), or none.
        memory_gb: Memory of a run (slurm, ray).
        minutes: Time limit of a job (slurm); a run that needs longer continues in the next job.
        partition: The partition of the cluster (slurm); "" means its default.
        slurm: Further options of ``sbatch``, by their long names.
    """

    name: str = "local"
    at_once: int | None = None
    retries: int = 1
    cores: int | None = None
    gpus: float | None = None
    memory_gb: float | None = None
    minutes: int | None = None
    partition: str = ""
    slurm: Mapping[str, Any] = field(default_factory=dict)


def read_engine_settings(path: Path, table: object) -> EngineSettings:
    """Read the table ``[engine]``.

    Args:
        path: The experiment's file, for messages.
        table: The table.

    Returns:
        The settings.

    Raises:
        ConfigError: A key is unknown, or a value is not allowed.
    """
    return _Reader(path).settings(table)


class _Reader:
    """Checks the values of the table; an error names the file and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def refuse(self, key: str, expected: str, value: object) -> ConfigError:
        return ConfigError(f"{self.path}: {key} must be {expected}, got {value!r}")

    def settings(self, table: object) -> EngineSettings:
        if not isinstance(table, dict):
            raise self.refuse("engine", "a table [engine]", table)
        found = {"minutes" if key == "time" else key: self.value(key, value) for key, value in table.items()}
        return EngineSettings(**found)

    def value(self, key: str, value: Any) -> Any:
        if key in NUMBERS:
            return self.number(f"engine.{key}", value, *NUMBERS[key])
        if key in TEXTS:
            return self.text(f"engine.{key}", value)
        if key == "name":
            if value not in ENGINES:
                raise self.refuse("engine.name", f"one of {', '.join(ENGINES)}", value)
            return value
        if key == "time":
            return self.minutes("engine.time", value)
        if key == "slurm":
            return self.sbatch_options(value)
        like = difflib.get_close_matches(key, KEYS, 1)
        raise ConfigError(
            f"{self.path}: engine.{key} is not known; expected one of {', '.join(KEYS)}",
            tip=f"did you mean engine.{like[0]}?" if like else "options of sbatch go into the table [engine.slurm]",
        )

    def text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise self.refuse(key, "a text of one line", value)
        return value.strip()

    def number(self, key: str, value: Any, least: float, whole: bool) -> float:
        if type(value) not in ((int,) if whole else (int, float)) or not least <= value < math.inf:
            raise self.refuse(key, f"a {'whole ' if whole else ''}number of at least {least:g}", value)
        if key == "engine.gpus" and value > 1 and value != int(value):
            raise self.refuse(key, "a whole number, or a share below 1", value)
        return value  # type: ignore[no-any-return]

    def minutes(self, key: str, value: Any) -> int:
        match = TIME.fullmatch(value) if isinstance(value, str) else None
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
        found = value if type(value) is int else (days * 24 + hours) * 60 + minutes + (seconds > 0)
        if found < 1:
            raise self.refuse(key, 'a time such as "4:00:00" or "2-00:00:00", or a whole number of minutes', value)
        return found

    def sbatch_options(self, table: object) -> Mapping[str, Any]:
        if not isinstance(table, dict):
            raise self.refuse("engine.slurm", "a table [engine.slurm]", table)
        for key, value in table.items():
            name = key.replace("_", "-")
            if name in OURS:
                raise ConfigError(f"{self.path}: engine.slurm.{key} cannot be set: {OURS[name]}")
            if not re.fullmatch(r"[a-z][a-z-]*", name):
                raise self.refuse(f"engine.slurm.{key}", 'a long option of sbatch, such as account = "lab"', value)
            if type(value) not in (int, bool):
                self.text(f"engine.slurm.{key}", value)
        return dict(table)
