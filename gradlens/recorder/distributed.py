"""Record a model that several processes train together: one file, and one small collective for each row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from gradlens.errors import GradlensError, GradlensWarning, RecorderError
from gradlens.recorder.norms import HostNorms
from gradlens.recorder.ratios import BRANCH_NORM, PATH_PRODUCT, SHORTCUT_NORM, addends, adds

T = TypeVar("T")
OF_ACTIVATIONS = {"activation_grad_norm": 1, SHORTCUT_NORM: 1, BRANCH_NORM: 1, PATH_PRODUCT: 2}
"""Addends that are measured on a rank's own loss, and the power of the gradient in them."""


class Ranks:
    """The processes that train one model.

    Rank 0 reads parameters that are equal on all ranks. Each rank reads its part of sharded parameters, and the
    gradients of outputs for its part of the batch. The common loss is the mean of the ranks' losses, so activation
    gradients are divided by the number of ranks.

    Args:
        group: The process group; None is the default one.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.first = 0 if group is None else dist.get_global_rank(group, 0)
        """Rank 0 of the group, in the default group."""
        self.rank = dist.get_rank(group)
        self.world = dist.get_world_size(group)
        self._device = torch.device("cuda") if "nccl" in str(dist.get_backend(group)) else torch.device("cpu")

    def reads(self, parameter: nn.Parameter) -> bool:
        """Return whether this rank reads a parameter, or its part of it."""
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is None:
            return self.rank == 0
        place = mesh.get_coordinate()
        copies = [i for i, placement in enumerate(parameter.placements) if placement.is_replicate()]  # type: ignore[attr-defined]
        return place is not None and all(place[i] == 0 for i in copies)

    def combine(
        self, metrics: Sequence[str], columns: Mapping[str, HostNorms], n_layers: int, extra: HostNorms
    ) -> tuple[dict[str, HostNorms], HostNorms]:
        """Combine one row over all ranks; every rank must call this.

        Args:
            metrics: All metrics of the run, the same on all ranks, including a rank with an error.
            columns: Addend to this rank's values (L,).
            n_layers: L.
            extra: (n,) numbers that are summed over ranks.

        Returns:
            Addend to (L,) over all ranks, and the sums (n,) of ``extra``.
        """
        names = addends(metrics)
        packed = np.zeros((len(names), 2, n_layers))
        for (values, there), name in zip(packed, names, strict=True):
            column = columns.get(name)
            if column is None:
                continue
            there[:] = ~np.isnan(column)
            values[:] = np.where(np.isnan(column), 0, column)
            if name in OF_ACTIVATIONS:
                values /= self.world ** OF_ACTIVATIONS[name]
            if not adds(name):
                np.square(values, out=values)
        sums = torch.from_numpy(np.concatenate([packed.ravel(), extra])).to(self._device)
        dist.all_reduce(sums, group=self.group)
        total = sums.cpu().numpy()
        packed = total[: packed.size].reshape(packed.shape)
        found: dict[str, HostNorms] = {}
        for (values, there), name in zip(packed, names, strict=True):
            value = values if adds(name) else np.sqrt(values)
            if there.any() or name in columns:
                found[name] = np.where(there > 0, np.where(np.isnan(value), np.inf, value), np.nan)
        return found, total[packed.size :]


def find_on_first_rank(ranks: Ranks | None, find: Callable[[], T]) -> T:
    """Return what rank 0 finds, on all ranks; every rank must call this.

    Args:
        ranks: The processes; None is a single one.
        find: Called on rank 0.

    Raises:
        GradlensError: Finding failed on rank 0.
    """
    if ranks is None:
        return find()
    found: list[Any] = [None, None]
    if ranks.rank == 0:
        try:
            found[0] = find()
        except GradlensError as error:
            found[1] = error
    dist.broadcast_object_list(found, src=ranks.first, group=ranks.group)
    if found[1] is not None:
        raise found[1]
    return cast("T", found[0])


def bare_rank() -> str:
    """Return "process 2 of 4" in processes that train together; "" in a process on its own, and in the first."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0:
        return ""
    return f"process {dist.get_rank() + 1} of {dist.get_world_size()}"


def find_ranks(model: nn.Module) -> Ranks | None:
    """Return the ranks that train a model together with DistributedDataParallel or ``fully_shard``; else None.

    Raises:
        RecorderError: The model is wrapped in FullyShardedDataParallel, whose flat parameters belong to no layer.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise RecorderError(
                "FullyShardedDataParallel flattens the parameters of many layers into one, so no layer has a gradient",
                tip="use torch.distributed.fsdp.fully_shard, which keeps the parameters of each layer",
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return Ranks(module.process_group)
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        return Ranks()
    if dist.get_world_size() > 1:
        warnings.warn(
            f"gradlens: this is one of {dist.get_world_size()} processes, and the model is not wrapped for distributed "
            "training, so each process records its own model; if they train one model together, pass the "
            "DistributedDataParallel model itself",
            GradlensWarning,
            stacklevel=4,
        )
    return None
