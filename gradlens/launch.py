"""The rank of this process among those that train together, from the environment variables of torchrun."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gradlens.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """The rank of this process and the number of processes; a single process by default."""

    rank: int = 0
    local_rank: int = 0
    """Rank among the processes on this machine."""
    world_size: int = 1
    local_world_size: int = 1


LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Return the rank of this process; that of a single process if torchrun did not start it.

    Args:
        environment: ``os.environ``.

    Returns:
        The rank and the number of processes.

    Raises:
        ConfigError: A variable is no whole number.
    """
    if any(name not in environment for name in LAUNCH_VARIABLES):
        return Launch()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    texts = dict(zip(names, (environment.get(name, "") for name in names), strict=True))
    texts["LOCAL_RANK"] = texts["LOCAL_RANK"] or texts["RANK"]
    texts["LOCAL_WORLD_SIZE"] = texts["LOCAL_WORLD_SIZE"] or texts["WORLD_SIZE"]
    for name, text in texts.items():
        if not text.isdecimal():
            raise ConfigError(f"environment variable {name} must be a whole number, got {text!r}")
    launch = Launch(*(int(texts[name]) for name in names))
    return launch if launch.world_size > 1 else Launch()
