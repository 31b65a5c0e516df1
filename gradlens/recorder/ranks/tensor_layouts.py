"""How distributed tensors (DTensor) lie on the ranks, so that each number is counted once.

=============  =======================================================================================================
A rank holds   What a norm over all ranks is made of
=============  =======================================================================================================
a shard        the squared norms of all shards
a copy         the squared norms of all copies, divided by their number
a partial sum  parameters: the numbers themselves, which are added up in the collective of the row; outputs: nothing,
               since this would take another collective: the layer is NaN, with a note
=============  =======================================================================================================

The modules of ``torch.distributed.tensor`` take seconds to import, so tensors are recognised by their attributes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlens.metrics import NONFINITE_COUNT, PARAM_GRAD_NORM
from gradlens.recorder.norms import HostNorms, Numbers, local_part, plain

MOST_NODES = 500
"""Operations in the graph of an output among which the nearest distributed tensor is looked for."""
MOST_SUMMED = 1 << 18
"""Elements of parameters that may be added up in the collective of a row (2 MiB)."""


def is_distributed(tensor: Any) -> bool:
    """Return whether a tensor is a DTensor."""
    return getattr(tensor, "device_mesh", None) is not None and hasattr(tensor, "placements")


def is_partial(tensor: Any) -> bool:
    """Return whether each rank of some dimension of the mesh holds an addend of the tensor."""
    return any(placement.is_partial() for placement in getattr(tensor, "placements", ()))


def count_parts(mesh: Any, placements: Sequence[Any]) -> int:
    """Return into how many different parts a tensor is divided."""
    sharded = [i for i, each in enumerate(placements) if not (each.is_replicate() or each.is_partial())]
    return math.prod(int(mesh.size(i)) for i in sharded)


def count_output_parts(tensor: Tensor) -> int | None:
    """Return into how many different parts a layer's output is divided.

    A local tensor that was made from a distributed one is recognised by the nearest ones in its graph.

    Returns:
        The number; None where no distributed tensor is in the graph.
    """
    if is_distributed(tensor):
        return count_parts(tensor.device_mesh, tensor.placements)  # type: ignore[attr-defined]
    found: int | None = None
    seen: set[Any] = set()
    waiting: deque[Any] = deque([tensor.grad_fn])
    while waiting and len(seen) < MOST_NODES:
        node = waiting.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        spec = getattr(node, "dtensor_spec", None)
        if spec is None:
            waiting += [below for below, _ in node.next_functions]
        else:
            placements = getattr(node, "grad_placements", None) or spec.placements
            found = max(found or 1, count_parts(spec.mesh, placements))
    return found


def count_batch_parts(model: nn.Module) -> int:
    """Return among how many ranks ``fully_shard`` shares the batch; 1 for a model without it."""
    found = 1
    for module in model.modules():
        find_state = getattr(module, "_get_fsdp_state", None)
        if not callable(find_state):
            continue
        state = find_state()
        single = getattr(state, "_fsdp_param_group", None)
        groups = getattr(state, "_fsdp_param_groups", [single] if single is not None else [])
        found = max([found, *(int(group.mesh_info.mesh.size()) for group in groups)])
    return found


def largest_mesh(parameters: Iterable[nn.Parameter]) -> list[int]:
    """Return the ranks, in the default group, of the largest mesh on which parameters lie; none without a mesh."""
    meshes: list[Any] = [p.device_mesh for p in parameters if is_distributed(p)]  # type: ignore[attr-defined]
    largest = max(meshes, key=lambda mesh: int(mesh.size()), default=None)
    return [] if largest is None else [int(rank) for rank in largest.mesh.flatten().tolist()]


class ShardedGradients:
    """Makes of each rank's gradients of parameters what is added up over the ranks.

    Parameters that are whole on every rank may have a gradient that is a partial sum (a norm layer between sequences
    that are sharded). Each rank sends its part of those gradients themselves.

    Args:
        own: (L,) the parameters of each layer.
        world: Number of ranks.
    """

    def __init__(self, own: Sequence[Sequence[nn.Parameter]], world: int) -> None:
        self._world = world
        self._factors: dict[tuple[float, ...], Tensor] = {}
        self._slots: dict[int, slice] = {}
        self._layers: list[tuple[int, slice]] = []
        self.left_out: set[int] = set()
        """Layers with a gradient that is a partial sum and is not added up, because it is too large."""
        self._layers_of: dict[int, list[int]] = {}
        self.size = 0
        """Numbers that each rank sends for the gradients that are added up."""
        whole = {id(p): p for mine in own for p in mine if is_distributed(p) and is_whole(p)}
        if sum(p.numel() + 1 for p in whole.values()) <= MOST_SUMMED:
            for key, parameter in whole.items():
                self._slots[key] = slice(self.size, self.size + 1 + parameter.numel())
                self.size += 1 + parameter.numel()
        for layer, mine in enumerate(own):
            for parameter in mine:
                self._layers_of.setdefault(id(parameter), []).append(layer)
                if id(parameter) in self._slots:
                    self._layers.append((layer, self._slots[id(parameter)]))

    def weigh(
        self, values: Numbers, parameters: Sequence[nn.Parameter], grads: Sequence[Tensor], power: int
    ) -> Numbers:
        """Return the values (n,) divided by the number of ranks that have the same; 0 for those that are added up.

        Args:
            values: (n,) norms (power 2) or numbers (power 1) of this rank's parts of gradients.
            parameters: (n,) the parameters.
            grads: (n,) their gradients.
            power: The power in which values are summed over ranks.
        """
        factors = tuple(self._weight(p, grad) ** (1 / power) for p, grad in zip(parameters, grads, strict=True))
        if all(factor == 1 for factor in factors):
            return values
        if isinstance(values, np.ndarray):
            return np.where(np.array(factors) == 0, 0, values * np.array(factors))
        if factors not in self._factors:
            self._factors[factors] = torch.tensor(factors, dtype=values.dtype, device=values.device)
        there = self._factors[factors]
        return torch.where(there == 0, 0, values * there)

    def _weight(self, parameter: nn.Parameter, grad: Tensor) -> float:
        if not is_distributed(grad):
            return 1.0
        if self._is_added(parameter, grad):
            return 0.0
        if is_partial(grad):
            self.left_out.update(self._layers_of.get(id(parameter), ()))
            return 0.0
        return count_parts(grad.device_mesh, grad.placements) / self._world  # type: ignore[attr-defined]

    def _is_added(self, parameter: nn.Parameter, grad: Tensor) -> bool:
        return id(parameter) in self._slots and local_part(grad).shape == parameter.shape

    def pack(self, parameters: Sequence[nn.Parameter], grads: Sequence[Tensor]) -> Tensor | None:
        """Return this rank's part (``size``,) of the gradients that are added up, in float64 if the device has that."""
        mine = [(self._slots[id(p)], g) for p, g in zip(parameters, grads, strict=True) if self._is_added(p, g)]
        if not mine:
            return None
        kind = torch.float32 if mine[0][1].device.type == "mps" else torch.float64
        packed = torch.zeros(self.size, dtype=kind, device=mine[0][1].device)
        for place, grad in mine:
            packed[place.start] = 1
            packed[place.start + 1 : place.stop] = self._share(grad)
        return packed

    def _share(self, grad: Tensor) -> Tensor:
        """Return what this rank adds to a gradient."""
        numbers = plain(local_part(grad)).reshape(-1).double()
        ranks = self._world
        for i, placement in enumerate(getattr(grad, "placements", ())):
            if placement.is_partial() and getattr(placement, "reduce_op", "sum") == "sum":
                ranks //= int(grad.device_mesh.size(i))  # type: ignore[attr-defined]
        return numbers / ranks

    def add(self, columns: dict[str, HostNorms], total: HostNorms) -> None:
        """Add the gradients that were added up over ranks to the columns of a row.

        Args:
            columns: Metric to (L,); changed in place.
            total: (``size``,) the sums over ranks.
        """
        norms, counts = columns.get(PARAM_GRAD_NORM), columns.get(NONFINITE_COUNT)
        for layer, place in self._layers:
            if not total[place.start]:
                continue
            numbers = total[place.start + 1 : place.stop]
            finite = np.isfinite(numbers)
            if norms is not None:
                found = float(np.linalg.norm(numbers)) if finite.all() else math.inf
                norms[layer] = np.hypot(np.nan_to_num(norms[layer], posinf=math.inf), found)
            if counts is not None:
                counts[layer] = np.nan_to_num(counts[layer]) + np.count_nonzero(~finite)
        for layer in self.left_out:
            if norms is not None:
                norms[layer] = math.nan


def is_whole(parameter: Any) -> bool:
    """Return whether every rank holds all of a distributed parameter."""
    return all(placement.is_replicate() for placement in parameter.placements)
