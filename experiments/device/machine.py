"""What the script runs on."""

from __future__ import annotations

import platform
import shutil
import subprocess

import torch

from experiments.device.checks import NO_CUDA, NOT_MEASURED, Found, Part
from experiments.overhead.machine import processor_name
from gradlens.provenance import commit, versions


def measure(part: Part) -> None:
    """Describe the machine."""
    part.add(
        versions=versions(),
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda or "",
        commit=commit() or "",
        system=f"{platform.system()} {platform.machine()}",
        processor=processor_name(),
        gpu=_gpu() if part.on_cuda else f"{NOT_MEASURED}: {NO_CUDA}",
    )


def _gpu() -> Found:
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "count": torch.cuda.device_count(),
        "memory_bytes": found.total_memory,
        "multiprocessors": found.multi_processor_count,
        "capability": f"{found.major}.{found.minor}",
        "driver": _driver(),
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str:
    """Return the driver's version from nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return "unknown: no nvidia-smi"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else f"unknown: exit code {done.returncode}"
