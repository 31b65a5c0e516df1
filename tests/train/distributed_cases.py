"""Trainings of several processes, for test_distributed.py; run as a module."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradlens.config import make_config
from gradlens.data import patterns
from gradlens.events import Event, Note, Started, StepDone, ignore
from gradlens.train import joined, train_run
from tests.processes import free_port, run_all

HERE = __name__ if __name__ != "__main__" else "tests.train.distributed_cases"
TINY: dict[str, Any] = {"image_size": 16, "batch_size": 12, "epochs": 3}


class Dropped(nn.Module):
    """Draws from the global random generator at each training step, and has a layer that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 16 * 16, 5))
        self.idle = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Poison(nn.Module):
    """Gives NaN from the third training step on: on rank 1, or where there are no ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 5)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        bad = self.calls >= 3 and os.environ.get("RANK", "1") == "1"
        return self.layer(x.flatten(1)) * (float("nan") if bad else 1.0)


def broken() -> nn.Module:
    if os.environ.get("RANK") == "1":
        raise OSError("not here")
    return Dropped()


class Interrupt:
    """Interrupt one process after a number of steps of rank 0, as Ctrl-C does."""

    def __init__(self, after: int, process: int) -> None:
        self.left, self.process = after, process

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.left -= 1
            if self.left == 0:
                os.kill(self.process, signal.SIGINT)


def few(train: int) -> None:
    patterns.TRAIN_IMAGES, patterns.VAL_IMAGES = train, 21


def attempt(folder: Path, name: str, model: str, listener: Callable[[Event], None] = ignore, **options: Any) -> dict:
    """Train, and return how it ended."""
    said: list[Event] = []

    def listen(event: Event) -> None:
        said.append(event)
        listener(event)

    flags = {flag: options.pop(flag, False) for flag in ("resume", "overwrite")}
    found: dict[str, Any] = {"status": "", "raised": ""}
    try:
        config = make_config(model, **{**TINY, **options})
        found["status"] = train_run(config, folder / f"{name}.h5", listener=listen, **flags)
    except (Exception, KeyboardInterrupt) as error:
        found["raised"] = f"{type(error).__name__}: {error}"
    started = sum(isinstance(event, Started) for event in said)
    return {**found, "started": started, "notes": [event.text for event in said if isinstance(event, Note)]}


AUGMENTED: dict[str, Any] = {"model": "resnet8", "augment": ("flip", "crop"), "schedule": "step:2,0.5"}


def do_all(folder: Path, rank: int) -> dict[str, Any]:
    """Train again and again, with the same processes."""
    found: dict[str, Any] = {}

    def keep(name: str, **options: Any) -> None:
        found[name] = attempt(folder, options.pop("path", name), **options)

    few(38)  # 12 + 12 + 12 + 2 to a step
    keep("short", model="plain8-nobn", optimizer="sgd", lr=0.01)
    keep("exists", path="short", model="plain8-nobn")
    keep("small", model="plain8", batch_size=3)
    keep("whole", **AUGMENTED)
    keep("same", **AUGMENTED)
    keep("stopped", path="resumed", **AUGMENTED, listener=Interrupt(6, os.getpid()))
    keep("resumed", **AUGMENTED, resume=True)
    keep("again", path="resumed", **AUGMENTED, resume=True)
    keep("dropout-whole", model=f"{HERE}:Dropped")
    keep("dropout-stopped", path="dropout", model=f"{HERE}:Dropped", listener=Interrupt(6, os.getpid()))
    keep("dropout", model=f"{HERE}:Dropped", resume=True)
    keep("poison", model=f"{HERE}:Poison")
    keep("broken", model=f"{HERE}:broken")
    return found


def work(folder: Path, rank: int, world: int, port: int) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}})
    with joined("cpu"):
        found = do_all(folder, rank)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


def main(folder: Path, world: int) -> None:
    port = free_port()
    codes = run_all(folder, world, lambda rank: work(folder, rank, world, port))
    sys.exit("\n".join((folder / f"rank{rank}.txt").read_text() for rank in range(world)) if any(codes) else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
