"""Seed, read and restore the random generators of a training: those of torch, Python and numpy."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from gradlens.data import mix_seed

Generators = dict[str, Any]
"""Name to state. It contains only tensors, numbers and tuples, so a checkpoint can be loaded without executing it."""


def seed_generators(seed: int) -> None:
    """Seed torch's generators, Python's and numpy's global one."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(mix_seed(seed))  # noqa: NPY002 - a user's model may use the global generator


def read_generators() -> Generators:
    """Return the states of this process's generators: torch on the CPU and all GPUs, Python, numpy."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "cpu": torch.get_rng_state(),
        "gpus": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
    }


def restore_generators(state: Generators) -> None:
    """Restore the states that ``read_generators`` returned; missing ones are left as they are."""
    torch.set_rng_state(state["cpu"])
    if state["gpus"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["gpus"])
    if "python" in state:
        random.setstate(state["python"])
    if "numpy" in state:
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
