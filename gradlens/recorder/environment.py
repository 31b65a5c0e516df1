"""The environment of a run: versions, commit and device."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch
from torch import nn

from gradlens.provenance import commit, versions


def describe_environment(model: nn.Module) -> dict[str, Any]:
    """Return versions, commit and device of a model; nothing in it identifies the user."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        **versions(),
        "commit": commit(),
        "platform": platform.system(),
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
    }
