"""Train with several processes, as torchrun starts them.

The batch size of the configuration is that of the whole batch; each process takes a part of every batch. The loss is
weighted: averaged over the processes, the gradient is that of the mean over the whole batch, even for unequal parts.
The number of steps per epoch and the order and augmentation of the images are therefore those of a single process;
without batch norm, so are the gradients.

As usual with DistributedDataParallel, batch norm normalises the part of each process separately, and the running
statistics are those of rank 0. ``SyncBatchNorm`` would normalise the whole batch, but it works only on GPUs, and the
same run would then mean different things on different machines.
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
"""Purpose number of the random stream for the global generators of ranks above 0; see ``gradlens.data.loaders``."""


@dataclass(frozen=True)
class _Fault:
    """An error of one process, in a form that can be sent to the others."""

    rank: int
    kind: str
    message: str
    tip: str | None

    @classmethod
    def of(cls, error: Exception, rank: int) -> _Fault:
        """Describe an error of this process."""
        if isinstance(error, GradlensError):
            return cls(rank, type(error).__name__, error.message, error.tip)
        return cls(rank, "GradlensError", f"{type(error).__name__}: {error}", None)

    def as_error(self) -> GradlensError:
        """Return the description as an error that can be raised in this process."""
        kind = getattr(gradlens.errors, self.kind, GradlensError)
        found: GradlensError = kind(f"process {self.rank}: {self.message}", tip=self.tip)
        return found


class World:
    """The processes that train together; usually one.

    Args:
        launch: The rank of this process and the number of processes.
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
        """Whether this process writes files and reports events."""
        return self.rank == 0

    def device_name(self, name: str) -> str:
        """Return the name of this process's own device.

        Args:
            name: The device that the user gave.

        Raises:
            ConfigError: There are fewer devices than processes.
        """
        return own_device(name, self._launch)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank; every process must call this."""
        if not self.shared:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def together(self, act: Callable[[], Result]) -> Result:
        """Call a function on every process, and fail on all of them if it fails on one.

        Args:
            act: The function.

        Returns:
            The result of this process.

        Raises:
            Exception: The error of this process; or a GradlensError that names the process with the error.
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
        """Call a function on rank 0 first and then on the others, which use what rank 0 created, such as a download."""
        found = self.together(lambda: act() if self.first else None)
        if not self.shared:
            assert found is not None
            return found
        later = self.together(lambda: None if self.first else act())
        result = found if self.first else later
        assert result is not None
        return result

    def add(self, *numbers: float) -> tuple[float, ...]:
        """Return the sum of each number over all processes; every process must call this."""
        if not self.shared:
            return numbers
        sums = torch.tensor(numbers, dtype=torch.float64, device=self._communication_device)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    @property
    def _communication_device(self) -> torch.device:
        return torch.device("cuda" if "nccl" in str(dist.get_backend()) else "cpu")

    def check(self, config: RunConfig) -> None:
        """Check that the batch is large enough for all processes.

        Raises:
            ConfigError: A process would get fewer than two images.
        """
        if self.shared and config.batch_size < 2 * self.size:
            raise ConfigError(
                f"batch_size {config.batch_size} is shared by {self.size} processes: expected at least "
                f"{2 * self.size}, two images for each",
                tip="a larger --batch-size, or fewer processes",
            )

    def seed(self, seed: int) -> None:
        """Seed the global generators so that every rank uses different random numbers (dropout)."""
        if not self.first:
            seed_generators(mix_seed(seed, RANK_SEED, self.rank))

    def wrap(self, net: nn.Module, config: RunConfig) -> nn.Module:
        """Return the model to train: the model itself, or its DistributedDataParallel for several processes.

        All parameters of models in the registry get gradients; for other models, unused parameters are searched for.
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
        """Return facts about the processes for the run's configuration; nothing for a single process."""
        if not self.shared:
            return {}
        found: dict[str, Any] = {"processes": self.size}
        if has_batch_norm(net):
            found["batch_norm"] = "each process normalises its own part of a batch; running statistics of rank 0"
        return found


def has_batch_norm(net: nn.Module) -> bool:
    """Return whether a model contains batch norm."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model without the wrapper that ``World.wrap`` added."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def own_device(name: str, launch: Launch) -> str:
    """Return the name of one process's own device.

    Args:
        name: The device that the user gave.
        launch: The process.

    Raises:
        ConfigError: The device cannot be shared, or there are fewer GPUs than processes.
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
    """Join the other processes that torchrun started, if any; a nested call joins the same processes.

    Args:
        device: The device that the user gave; it selects the communication backend.

    Yields:
        The processes that train together.

    Raises:
        ConfigError: The device cannot be shared, or there are fewer GPUs than processes.
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
