"""One training by several processes, as torchrun starts them.

The batch of the configuration is the whole batch. Each process takes its part of every batch, and the loss is weighted
so that the gradient which the optimizers get, averaged over the processes, is that of the mean over the whole batch,
also where the parts are not equal. So steps per epoch, order and augmentation of the images, and without batch norm the
gradients too, are those of one process. Batch norm normalises the part of each process by itself, and the running
statistics that are kept are those of rank 0: as usual with DistributedDataParallel. ``SyncBatchNorm`` would normalise
the whole batch, but works on GPUs only, and the same run would then mean different things on different machines.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradlens.errors
from gradlens.config import RunConfig
from gradlens.data import mix_seed
from gradlens.errors import ConfigError, GradlensError
from gradlens.launch import Launch, read_launch
from gradlens.specs import parse_model
from gradlens.train.rng_state import seed_generators

Result = TypeVar("Result")

RANK_SEED = 3
"""What a random stream is for: the global generator of the ranks after the first. See ``gradlens.data.loaders``."""


@dataclass(frozen=True)
class _Fault:
    """An error of one process, as the others are told of it."""

    rank: int
    kind: str
    message: str
    tip: str | None

    @classmethod
    def of(cls, error: Exception, rank: int) -> _Fault:
        """Describe an error."""
        if isinstance(error, GradlensError):
            return cls(rank, type(error).__name__, error.message, error.tip)
        return cls(rank, "GradlensError", f"{type(error).__name__}: {error}", None)

    def as_error(self) -> GradlensError:
        """Return it as an error of this process."""
        kind = getattr(gradlens.errors, self.kind, GradlensError)
        found: GradlensError = kind(f"process {self.rank}: {self.message}", tip=self.tip)
        return found


class World:
    """The processes that train together; usually one.

    Args:
        launch: This process among them.
    """

    def __init__(self, launch: Launch | None = None) -> None:
        launch = launch or Launch()
        self.rank, self.size = launch.rank, launch.world_size
        self._launch = launch

    @property
    def shared(self) -> bool:
        """Whether there is more than one process."""
        return self.size > 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def device_name(self, name: str) -> str:
        """Return the name of this process's own device.

        Args:
            name: As the user gave it.

        Raises:
            ConfigError: There is not one for each process.
        """
        return own_device(name, self._launch)

    def gather(self, value: Any) -> list[Any]:
        """Return what each process has, by rank; all of them must call it."""
        if not self.shared:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def together(self, act: Callable[[], Result]) -> Result:
        """Do something that may fail on any process, and fail on all of them if it does on one.

        Args:
            act: Is called on each process.

        Returns:
            What it returned here.

        Raises:
            Exception: What went wrong here; or where it happened elsewhere, a GradlensError that says where.
        """
        if not self.shared:
            return act()
        results: list[Result] = []
        error: Exception | None = None
        try:
            results.append(act())
        except Exception as failure:
            error = failure
        faults = [fault for fault in self.gather(error and _Fault.of(error, self.rank)) if fault is not None]
        if error is not None:
            raise error
        if faults:
            raise faults[0].as_error()
        return results[0]

    def in_turn(self, act: Callable[[], Result]) -> Result:
        """Do something on rank 0 first, and then on the others, which find what it left: a download."""
        found = self.together(lambda: act() if self.first else None)
        if not self.shared:
            assert found is not None
            return found
        later = self.together(lambda: None if self.first else act())
        result = found if self.first else later
        assert result is not None
        return result

    def add(self, *numbers: float) -> tuple[float, ...]:
        """Add numbers up over all processes, each at its place; all of them must call it."""
        if not self.shared:
            return numbers
        sums = torch.tensor(numbers, dtype=torch.float64, device=self._meeting_place)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    @property
    def _meeting_place(self) -> torch.device:
        return torch.device("cuda" if "nccl" in str(dist.get_backend()) else "cpu")

    def check(self, config: RunConfig) -> None:
        """Refuse batches that are too small to be shared.

        Raises:
            ConfigError: They are.
        """
        if self.shared and config.batch_size < 2 * self.size:
            raise ConfigError(
                f"batch_size {config.batch_size} is shared by {self.size} processes: expected at least "
                f"{2 * self.size}, two images for each",
                tip="a larger --batch-size, or fewer processes",
            )

    def seed(self, seed: int) -> None:
        """Seed the global generators: each rank draws numbers of its own (dropout)."""
        if not self.first:
            seed_generators(mix_seed(seed, RANK_SEED, self.rank))

    def wrap(self, net: nn.Module, config: RunConfig) -> nn.Module:
        """Return the model to be trained: the net itself, or where there are several processes, wrapped.

        In a net of the registry each parameter gets a gradient; of any other net that is not known.
        """
        if not self.shared:
            return net
        on_gpu = next(net.parameters()).is_cuda
        return DistributedDataParallel(
            net,
            device_ids=[torch.cuda.current_device()] if on_gpu else None,
            find_unused_parameters=parse_model(config.model).source != "registry",
        )

    def describe(self, net: nn.Module) -> dict[str, Any]:
        """Return what a reader of the run should know of the processes; nothing where there is one."""
        if not self.shared:
            return {}
        found: dict[str, Any] = {"processes": self.size}
        if has_batch_norm(net):
            found["batch_norm"] = "each process normalises its own part of a batch; running statistics of rank 0"
        return found


def has_batch_norm(net: nn.Module) -> bool:
    """Say whether a net holds batch norm."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the net without what ``World.wrap`` put around it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def own_device(name: str, launch: Launch) -> str:
    """Return the name of one process's own device.

    Args:
        name: As the user gave it.
        launch: The process.

    Raises:
        ConfigError: There is not one for each process.
    """
    if launch.world_size == 1 or name == "cpu":
        return name
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if name not in ("auto", "cuda"):
        raise ConfigError(
            f"device {name!r} cannot be shared by {launch.world_size} processes; expected auto, cpu or cuda",
            tip="--device cuda gives each process a GPU of its own",
        )
    count = torch.cuda.device_count()
    if count < launch.local_world_size:
        raise ConfigError(
            f"{launch.local_world_size} processes need a GPU each, and there are {count}",
            tip=f"--nproc-per-node {max(count, 1)}, or --device cpu",
        )
    return f"cuda:{launch.local_rank}"


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the other processes that torchrun started, if it did; within, a second call joins the same ones.

    Args:
        device: Name of the device, as the user gave it; it decides how the processes speak to each other.

    Raises:
        ConfigError: There is not one for each process.
    """
    launch = read_launch(os.environ)
    if launch.world_size == 1:
        yield World()
        return
    if dist.is_initialized():
        yield World(launch)
        return
    own = own_device(device, launch)
    if own.startswith("cuda"):
        torch.cuda.set_device(torch.device(own))
        dist.init_process_group("nccl", device_id=torch.device(own))
    else:
        dist.init_process_group("gloo")
    try:
        yield World(launch)
    finally:
        dist.destroy_process_group()
