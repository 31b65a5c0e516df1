"""L2 norms that are right to 1e-6 at any size of tensor and at any size of number.

``tensor.norm()`` in float32 accumulates naively (relative error 8e-4 at 17 million elements) and squares
underflow (1,000 elements of 1e-25 have norm 0) and overflow. Here a zero means zero.

On the CPU the numbers come out in numpy, and a cheap float32 pass is repeated in float64 where its result is
suspicious. On other devices nothing waits for the result: it stays there, accumulated in float64.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HostNorms = NDArray[np.float64]

# The worst case, constant data, is off by 4e-7 in blocks of 1,024 and by 2e-6 in blocks of 4,096 (measured).
BLOCK = 1024
SMALL = 1 << 14
"""Elements up to which tensors of one shape are stacked and reduced together: a copy costs less than a dispatch."""
# Between these, no square that matters under- or overflowed in float32: elements whose squares underflow are
# below 1e-19, and 1e8 of them together are below 1e-15.
SAFE = (1e-9, 1e15)
# The same for float64.
SAFE64 = (1e-140, 1e140)
CHUNK = 1 << 14


def exact_norm(tensor: Tensor) -> Tensor:
    """Return the L2 norm, accumulated in float64, without waiting for the device.

    Sparse tensors are coalesced first: repeated indices add up, as the optimizer sees them.

    Args:
        tensor: Any shape, dtype and layout.

    Returns:
        A 0-d float64 tensor on the same device; exactly 0 only where every element is 0 (or there are none).
    """
    norm: Tensor = torch.linalg.vector_norm(plain(tensor), dtype=_widest(tensor.device))
    return norm


def plain(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor, dense and real: of a sharded one the local part, of a sparse one the values."""
    if type(tensor) is not Tensor:
        tensor = local_part(tensor)
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor; any other tensor as it is."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if callable(to_local) else tensor


def norm(tensor: Tensor) -> float:
    """Return the L2 norm of a tensor on the CPU; NaN or inf where it holds such."""
    tensor = plain(tensor)
    if tensor.dtype == torch.float32:
        found = _fast(tensor)
        if SAFE[0] < found < SAFE[1]:
            return found
    return _slow(tensor)


def _fast(tensor: Tensor) -> float:
    """Sum float32 blocks of 1,024 in float32, and the blocks in float64."""
    flat = _flatten(tensor)
    whole = flat.numel() // BLOCK * BLOCK
    if whole == 0:
        return float(torch.linalg.vector_norm(flat).numpy())
    norms = torch.linalg.vector_norm(flat[:whole].view(-1, BLOCK), dim=1).numpy()
    squares = float(np.square(norms, dtype=np.float64).sum())
    if whole < flat.numel():
        squares += float(torch.linalg.vector_norm(flat[whole:]).numpy()) ** 2
    return float(np.sqrt(squares))


def _slow(tensor: Tensor) -> float:
    """Sum in float64, chunk by chunk; scale first where even its squares would leave the range."""
    flat = _flatten(tensor)
    with np.errstate(over="ignore", invalid="ignore"):
        parts = [torch.linalg.vector_norm(chunk.double()).numpy() for chunk in torch.split(flat, CHUNK)]
        found = float(np.sqrt(np.square(np.array(parts, dtype=np.float64)).sum()))
    if SAFE64[0] < found < SAFE64[1] or not flat.numel() or tensor.dtype != torch.float64:
        return found
    largest = float(flat.abs().max().numpy())
    if largest == 0 or not np.isfinite(largest):
        return largest
    return largest * float(torch.linalg.vector_norm(flat / largest).numpy())


def _flatten(tensor: Tensor) -> Tensor:
    """Return the elements as (N,), in any order, without a copy where they lie densely in memory."""
    if not tensor.is_contiguous() and tensor.dim() > 1:
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        tensor = tensor.permute(order)
    return tensor.reshape(-1)


class Reducer:
    """Takes the norms of many tensors at once, list-wise where they are small.

    Which tensors can be stacked is found out once per list and kept under a key; a list that has changed is found out
    by its own failure to be stacked.
    """

    def __init__(self) -> None:
        self._plans: dict[Hashable, tuple[list[list[int]], list[int]]] = {}

    def norms(self, tensors: Sequence[Tensor], key: Hashable) -> HostNorms:
        """Return the norms (N,) of N tensors on the CPU.

        Args:
            tensors: N tensors.
            key: The same for lists that are expected to have the same shapes.
        """
        plan = self._plans.get(key)
        if plan is None or len(plan[1]) + sum(map(len, plan[0])) != len(tensors):
            plan = self._plan(tensors, key)
        found = np.empty(len(tensors))
        for group in plan[0]:
            if not self._reduce_group([tensors[i] for i in group], group, found):
                del self._plans[key]
                return self.norms(tensors, key)
        for i in plan[1]:
            found[i] = norm(tensors[i])
        return found

    def _plan(self, tensors: Sequence[Tensor], key: Hashable) -> tuple[list[list[int]], list[int]]:
        groups: dict[Any, list[int]] = {}
        alone: list[int] = []
        for i, tensor in enumerate(tensors):
            if _stackable(tensor):
                groups.setdefault(tensor.shape, []).append(i)
            else:
                alone.append(i)
        alone += [group[0] for group in groups.values() if len(group) == 1]
        if len(self._plans) > 64:
            self._plans.clear()
        plan = [group for group in groups.values() if len(group) > 1], alone
        self._plans[key] = plan
        return plan

    def _reduce_group(self, tensors: list[Tensor], group: list[int], found: HostNorms) -> bool:
        """Write the norms of tensors of one shape; False where they have not one shape any more."""
        try:
            stacked = torch.stack(tensors)
        except (RuntimeError, NotImplementedError):
            return False
        if stacked.dtype != torch.float32 or stacked.layout != torch.strided or type(stacked) is not Tensor:
            return False
        rows = stacked.view(len(tensors), -1)
        whole = rows.shape[1] // BLOCK * BLOCK
        if rows.shape[1] <= BLOCK:
            norms = torch.linalg.vector_norm(rows, dim=1).numpy().astype(np.float64)
        else:
            blocks = torch.linalg.vector_norm(torch.unflatten(rows[:, :whole], 1, (-1, BLOCK)), dim=2).numpy()
            squares = np.square(blocks, dtype=np.float64).sum(axis=1)
            if whole < rows.shape[1]:
                squares += np.square(torch.linalg.vector_norm(rows[:, whole:], dim=1).numpy(), dtype=np.float64)
            norms = np.sqrt(squares)
        found[group] = norms
        for j in np.flatnonzero(~((norms > SAFE[0]) & (norms < SAFE[1]))):
            found[group[j]] = _slow(rows[j])
        return True


def device_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norms (N,) of N tensors on one device, in float64, without waiting for it."""
    parts = [plain(tensor) for tensor in tensors]
    dtype = _widest(parts[0].device)
    return torch.stack(list(torch._foreach_norm(parts, 2, dtype=dtype)))


def count_nonfinite(tensor: Tensor) -> Tensor:
    """Return the number of NaN and Inf entries, 0-d on the tensor's device."""
    return torch.isfinite(plain(tensor)).logical_not().sum()


def _stackable(tensor: Tensor) -> bool:
    return (
        tensor.dtype == torch.float32
        and tensor.layout == torch.strided
        and 0 < tensor.numel() <= SMALL
        and type(tensor) in (Tensor, torch.nn.Parameter)
    )


def _widest(device: torch.device) -> torch.dtype:
    """Return the widest float that a device has; Apple's has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


Numbers = HostNorms | Tensor
"""Norms (N,) in float64: in numpy, or still on a device."""


def list_norms(tensors: Sequence[Tensor], reducer: Reducer, key: Hashable) -> Numbers:
    """Return the norms of tensors anywhere: in numpy for the CPU's, on the device where all lie on one.

    Tensors on several devices are fetched, which waits for them.
    """
    devices = {tensor.device for tensor in tensors}
    if all(device.type == "cpu" for device in devices):
        return reducer.norms(tensors, key)
    if len(devices) == 1:
        return device_norms(tensors)
    return np.array([norm(t) if t.is_cpu else float(exact_norm(t)) for t in tensors])
