"""Several processes of which one goes its own way: what each of them is told (run as a module)."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradlens
from tests.processes import run_all

WORLD, STEPS, FAULT, PATIENCE_S = 3, 6, 2, 2.0
TASKS = ("right", "bypassed", "other-rate", "skips", "leaves", "alone", "join", "join-none")


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def train(task: str, path: Path, rank: int) -> dict[str, Any]:
    """Train with a fault from step ``FAULT`` on: of rank 1, or of all ranks where the model inside is called."""
    model = DistributedDataParallel(build(rank))  # begins with the weights of rank 0
    mine = rank == 1
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(rank)
    made = 0
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            if task.startswith("join"):
                stack.enter_context(model.join())
            try:
                if task != "alone" or rank == 0:
                    recorder = stack.enter_context(gradlens.record(model, path, optimizer=optimizer))
            except gradlens.GradlensError as error:
                warnings.warn(f"{type(error).__name__}: {error}", gradlens.GradlensWarning, stacklevel=1)
            for step in range(0 if task == "join-none" and mine else STEPS):
                faulty = step >= FAULT
                optimizer.zero_grad()
                for part in range(2):
                    called = model.module if task == "bypassed" and faulty else model
                    with contextlib.nullcontext() if part else model.no_sync():
                        called(torch.randn(5, 6, generator=generator)).square().mean().backward()
                if task == "other-rate" and faulty and mine:
                    optimizer.param_groups[0]["lr"] = 0.2
                if task == "leaves" and faulty and mine:
                    recorder.close()
                if not (task == "skips" and step == FAULT and mine):
                    optimizer.step()
                made += 1
    said = [str(one.message) for one in warned if issubclass(one.category, gradlens.GradlensWarning)]
    dist.barrier()
    return {"steps": made, "said": said, "seconds": time.monotonic() - started}


def work(folder: Path, tasks: list[str], rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD)
    found = {task: train(task, folder / f"{task}.h5", rank) for task in tasks}
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    for name in ("gradlens.recorder.recorder", "gradlens.storage", "torch._dynamo"):  # here once for all processes
        importlib.import_module(name)
    os.environ["GRADLENS_RANK_TIMEOUT"] = str(PATIENCE_S)
    here = Path(sys.argv[1])
    codes = run_all(here, WORLD, functools.partial(work, here, sys.argv[2:]))
    sys.exit(0 if codes == [0] * WORLD else "".join((here / f"rank{i}.txt").read_text() for i in range(WORLD)))
