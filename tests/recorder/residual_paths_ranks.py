"""Two processes that train a residual model together, each on half of every batch: ``python -m ... FOLDER``."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import gradlens
from gradlens.metrics import METRICS, METRICS_OF_PATHS
from gradlens.models import build_model
from tests.processes import free_port, run_all
from tests.recorder.case import rand

WORLD, STEPS = 2, 3
NETS = ("resnet8-nobn", "resnet8-valueonly-nobn")


def batch(step: int) -> tuple[Tensor, Tensor]:
    return rand(8, 3, 16, 16, seed=step), torch.arange(8) % 3


def train(model: nn.Module, path: Path, rank: int = 0, world: int = 1) -> None:
    for name in METRICS_OF_PATHS:
        METRICS[name] = replace(METRICS[name], every=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with gradlens.record(model, path, optimizer=optimizer, metrics=METRICS_OF_PATHS, on_error="raise"):
        for step in range(STEPS):
            x, y = (part[rank::world] for part in batch(step))
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()


def join(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    for name in NETS:
        train(DistributedDataParallel(build_model(name, num_classes=3)), folder / f"{name}.h5", rank, WORLD)
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    here = Path(sys.argv[1])
    codes = run_all(here, WORLD, lambda rank: join(here, rank))
    sys.exit(0 if codes == [0] * WORLD else "".join((here / f"rank{rank}.txt").read_text() for rank in range(WORLD)))
