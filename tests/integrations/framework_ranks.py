"""One of two processes that train a model as a framework does; see test_ranks.py."""

from __future__ import annotations

import json
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn

from gradlens.integrations.framework_recording import FrameworkRecording
from tests.integrations.reference import Reference
from tests.recorder.small import data, mlp


def main(wrapped: bool) -> None:
    """Train for three steps; rank 0 writes the norms that it read by itself."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    net = mlp()
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    reference = Reference(net, [optimizer])
    recording = FrameworkRecording("a.h5")
    recording.begin(model if wrapped else net, optimizer)
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
        with open("norms.json", "w") as file:
            json.dump(reference.rows, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(sys.argv[1] == "wrapped")
