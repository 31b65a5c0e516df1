"""Record a model that several processes train together: one file, and one small collective for each row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradlens.errors import GradlensError, GradlensWarning, RecorderError
from gradlens.recorder.norms import HostNorms
from gradlens.recorder.ratios import BRANCH_NORM, PATH_PRODUCT, SHORTCUT_NORM, addends, adds
from gradlens.recorder.tensor_layouts import (
    count_batch_parts,
    count_output_parts,
    count_parts,
    is_distributed,
    is_partial,
    largest_mesh,
)

T = TypeVar("T")
OF_ACTIVATIONS = {"activation_grad_norm": 1, SHORTCUT_NORM: 1, BRANCH_NORM: 1, PATH_PRODUCT: 2}
"""Addends that are measured on a rank's own loss, and the power of the gradient in them."""


class Ranks:
    """The processes that train one model.

    Rank 0 reads parameters that are equal on all ranks. Each rank reads its part of sharded parameters, and the
    gradients of outputs for its part of the batch. The common loss is the mean over the parts of the batch, so
    activation gradients are divided by their number. Ranks that share a part of the batch (tensor parallelism) each
    have a shard of a gradient or the same gradient; what is the same is counted once.

    Args:
        ranks: The processes, by their ranks in the default group; None is all of them.
        batch_parts: Among how many ranks the batch is shared; None is all of them.
    """

    def __init__(self, ranks: Sequence[int] | None = None, batch_parts: int | None = None) -> None:
        self.group = _group_of(None if ranks is None or len(ranks) == dist.get_world_size() else tuple(ranks))
        self.first = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        """Rank 0 of the group, in the default group."""
        self.rank = dist.get_rank(self.group)
        self.world = dist.get_world_size(self.group)
        self.batch_parts = self.world if batch_parts is None else batch_parts
        self.partial_outputs: set[int] = set()
        """Layers whose output has a gradient that is a partial sum on each rank."""
        self._output_parts: dict[int, int] = {}
        """Layer to the number of different shards of its output's gradient, for one part of the batch."""
        self._device = torch.device("cuda") if "nccl" in str(dist.get_backend(self.group)) else torch.device("cpu")

    def reads(self, parameter: nn.Parameter) -> bool:
        """Return whether this rank reads a parameter, or its part of it."""
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is None:
            return self.rank == 0
        place = mesh.get_coordinate()
        copies = [i for i, placement in enumerate(parameter.placements) if placement.is_replicate()]  # type: ignore[attr-defined]
        on_first = (
            mesh.size() == self.world or self.first in mesh.mesh.flatten().tolist()
        )  # else a mesh beside it has it
        return on_first and place is not None and all(place[i] == 0 for i in copies)

    def reads_gradient(self, parameter: nn.Parameter) -> bool:
        """Return whether this rank reads the gradient of a parameter, or its part of it (see ``ShardedGradients``)."""
        return self.rank == 0 or is_distributed(parameter)

    # --- gradients of outputs -------------------------------------------------------------------------------

    def note_output(self, layer: int, tensors: Sequence[Tensor]) -> None:
        """Note how the outputs of a layer are sharded; called in the first row."""
        if self.batch_parts < self.world:
            found = [count_output_parts(tensor) for tensor in tensors]
            known = [parts for parts in found if parts is not None]
            if known:
                self._output_parts[layer] = max(known)

    def takes(self, layer: int, grad: Tensor) -> bool:
        """Note how the gradient of an output is sharded.

        Args:
            layer: The layer's index.
            grad: A distributed tensor, or any other.

        Returns:
            Whether it can be counted.
        """
        if not is_distributed(grad):
            return True
        self._output_parts[layer] = count_parts(grad.device_mesh, grad.placements)  # type: ignore[attr-defined]
        if is_partial(grad):
            self.partial_outputs.add(layer)
        return layer not in self.partial_outputs

    def copies(self, n_layers: int) -> HostNorms:
        """Return (L,) how many ranks have the same gradient of a layer's output."""
        each = self.world / self.batch_parts
        parts = np.ones(n_layers)
        for layer, count in self._output_parts.items():
            parts[layer] = count
        return np.maximum(each / parts, 1)

    # --- rows -----------------------------------------------------------------------------------------------

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
                copies = self.copies(n_layers) if name == "activation_grad_norm" else self.world / self.batch_parts
                values /= (self.batch_parts * np.sqrt(copies)) ** OF_ACTIVATIONS[name]
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


def _group_of(ranks: tuple[int, ...] | None) -> Any:
    """Return the group of these ranks; None is the default group."""
    return None if ranks is None else dist.new_group(list(ranks), use_local_synchronization=True)


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
            return Ranks(dist.get_process_group_ranks(module.process_group))
    mesh = largest_mesh(model.parameters())
    if mesh:
        return Ranks(mesh, count_batch_parts(model))
    if dist.get_world_size() > 1:
        warnings.warn(
            f"gradlens: this is one of {dist.get_world_size()} processes, and the model is not wrapped for distributed "
            "training, so each process records its own model; if they train one model together, pass the "
            "DistributedDataParallel model itself",
            GradlensWarning,
            stacklevel=4,
        )
    return None
