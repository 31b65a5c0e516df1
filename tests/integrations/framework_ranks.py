"""Two processes that train a model as a framework does, wrapped and bare; see test_ranks.py.

Both are forked from one that has imported all they need.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from gradlens.integrations.framework_recording import FrameworkRecording
from tests.integrations.reference import Reference
from tests.processes import run_all
from tests.recorder.small import data, mlp

GIVEN = ("wrapped", "bare")


def train(given: str, rank: int) -> None:
    """Train for three steps; rank 0 writes the norms that it read by itself."""
    net = mlp()
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    reference = Reference(net, [optimizer])
    recording = FrameworkRecording(f"{given}.h5")
    recording.begin(model if given == "wrapped" else net, optimizer)
    for step in range(3):
        x, y = data(2 * step + rank)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        recording.log(loss=loss)
    recording.log_epoch(1, {})
    recording.end()
    if rank == 0:
        Path(f"{given}.json").write_text(json.dumps(reference.rows))


def work(rank: int) -> None:
    """Train both ways, as one of two processes."""
    warnings.simplefilter("error")
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo")
    for given in GIVEN:
        train(given, rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    codes = run_all(Path(), 2, work)
    sys.exit(any(codes) and "\n".join(path.read_text() for path in Path().glob("rank*.txt")))
