"""Whether the ranks still have the same weights, where they should: a few numbers in the collective of each row.

Parameters that are whole on every rank must stay equal: DistributedDataParallel gives all ranks the same gradient.
After each recorded step, every rank projects a sample of each layer's weights on fixed random signs. The difference of
two projections is about the norm of the difference of the samples. The sample moves on in every row, so that all
elements are compared in time. Only parameters are compared: buffers (statistics of batch norm) differ by design.

Each rank r adds p, p^2, r p and the squared norm of its sample, where p is its projection; from the sums rank 0 knows
how far the ranks are apart, and, if a single one differs, which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlens.recorder.layers import own_parameters
from gradlens.recorder.norms import HostNorms, local_part
from gradlens.recorder.ranks.tensor_layouts import is_distributed, is_whole

SAMPLE = 256
"""Elements of each parameter that are compared in a row."""
APART = 1e-5
"""Relative distance from which ranks are out of sync: about a hundred roundings of float32. The projection itself is
exact to about 1e-7 of the norm. A step by a different gradient changes weights by about 1e-3."""
ROUNDINGS = 4
"""The same distance in roundings, for types that are less precise than float32."""
NUMBERS = 4
LARGE = 1e10
"""Stands for NaN and Inf."""


class RankAgreement:
    """Compares the weights of the ranks.

    Args:
        model: The model, in its wrapper.
        modules: Layer names to modules.
        rank: This rank.
        world: Number of ranks.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module], rank: int, world: int) -> None:
        self._rank, self._world, self._names = rank, world, list(modules)
        self._ignored = _ignored_parameters(model)
        comparable = [] if _differs_by_design(model) else [self._comparable(module) for module in modules.values()]
        comparable = [[p for p in own if p.numel()] for own in comparable]
        kept = {layer: own for layer, own in enumerate(comparable) if own}
        self._layers = list(kept)
        self._parameters = [parameter for own in kept.values() for parameter in own]
        self._layer_of = [place for place, own in enumerate(kept.values()) for _ in own]
        self._signs = np.random.default_rng(0).choice([-1.0, 1.0], SAMPLE)
        self._limits = np.array([max(map(_limit, own)) for own in kept.values()])
        self._facts: dict[str, Any] = {}

    def _comparable(self, module: nn.Module) -> list[nn.Parameter]:
        own = [p for p in own_parameters(module) if not isinstance(p, nn.UninitializedParameter)]
        return [p for p in own if id(p) not in self._ignored and (not is_distributed(p) or is_whole(p))]

    @property
    def size(self) -> int:
        """Numbers that each rank sends in a row."""
        return NUMBERS * len(self._layers)

    @torch.no_grad()
    def measure(self, row: int) -> HostNorms:
        """Return what this rank adds (``size``,).

        Args:
            row: Index of the row, which chooses the sample.
        """
        found = np.zeros((NUMBERS, len(self._layers)))
        if not self._layers:
            return found.ravel()
        samples = [_sample(local_part(parameter), row) for parameter in self._parameters]
        sizes = [len(sample) for sample in samples]
        numbers = torch.cat(samples).cpu().double().numpy()
        numbers = np.nan_to_num(numbers, nan=LARGE, posinf=2 * LARGE, neginf=-2 * LARGE)
        starts = np.cumsum([0, *sizes[:-1]])
        np.add.at(
            found[0],
            self._layer_of,
            np.add.reduceat(numbers * np.concatenate([self._signs[:n] for n in sizes]), starts),
        )
        np.add.at(found[3], self._layer_of, np.add.reduceat(np.square(numbers), starts))
        found[1] = np.square(found[0])
        found[2] = self._rank * found[0]
        self._own = found[0]
        return found.ravel()

    def judge(self, sums: HostNorms, step: int) -> None:
        """Compare the ranks.

        Args:
            sums: (``size``,) the sums over ranks.
            step: The optimizer step after which they were measured.
        """
        if not self._layers:
            return
        total, squares, weighted, norms = sums.reshape(NUMBERS, -1)
        size = np.sqrt(norms / self._world)
        distance = np.sqrt(np.maximum(squares / self._world - np.square(total / self._world), 0))
        relative = np.divide(distance, size, out=np.zeros_like(size), where=size > 0)
        apart = np.flatnonzero(relative > self._limits)
        if not len(apart):
            return
        if not self._facts:
            apart = apart[np.argsort(-relative[apart], kind="stable")]
            worst = int(apart[0])
            self._facts = {
                "step": step,
                "layers": [self._names[self._layers[i]] for i in apart[:20]],
                "count": len(apart),
                "compared": len(self._layers),
                "distance": float(relative[worst]),
                "ranks": self._who(total[worst], squares[worst], weighted[worst], float(self._own[worst])),
                "rows": 0,
            }
        self._facts["rows"] += 1
        self._facts["last_step"] = step
        self._facts["last_distance"] = float(relative.max())

    def _who(self, total: float, squares: float, weighted: float, own: float) -> list[int]:
        """Return the rank that differs from all others; none where several do."""
        world = self._world
        if world == 2:
            return [1]
        off = total - world * own  # the sum of the differences from this rank
        spread = squares - 2 * own * total + world * own * own
        if not math.isclose(off * off, spread, rel_tol=1e-4):
            here = math.isclose(off * off, (world - 1) * spread, rel_tol=1e-4)
            return [self._rank] if here else []
        return [round((weighted - own * world * (world - 1) / 2) / off)]

    def facts(self, world: int, silent: Sequence[int], step: int) -> dict[str, Any]:
        """Return the facts of the ranks.

        Args:
            world: Number of ranks.
            silent: Ranks that did not bring a row in time.
            step: The step of that row.
        """
        found: dict[str, Any] = {"world": world, "compared": len(self._layers)}
        if self._facts:
            found["out_of_sync"] = self._facts
        if silent:
            found["silent"] = {"ranks": list(silent), "step": step}
        return found


def _sample(tensor: Tensor, row: int) -> Tensor:
    """Return at most ``SAMPLE`` elements, evenly spaced, of which others are taken in the next row."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_contiguous():
        tensor = tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    flat = tensor.reshape(-1)
    stride = max(-(-flat.numel() // SAMPLE), 1)
    return flat[row % stride :: stride]


def _limit(parameter: nn.Parameter) -> float:
    """Return the relative distance from which ranks are out of sync."""
    short = parameter.dtype in (torch.float16, torch.bfloat16)
    return max(APART, ROUNDINGS * torch.finfo(parameter.dtype).eps) if short else APART


def _ignored_parameters(model: nn.Module) -> set[int]:
    """Return the ``id`` of the parameters that DistributedDataParallel leaves to the user."""
    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            names = set(getattr(module, "parameters_to_ignore", ()))
            found |= {id(p) for name, p in module.module.named_parameters() if name in names}
    return found


def _differs_by_design(model: nn.Module) -> bool:
    """Return whether ranks keep weights of their own for many steps: ``fully_shard`` or local SGD."""
    for module in model.modules():
        hooks = getattr(module, "_comm_hooks", ())
        local = any("localsgd" in getattr(hook, "__name__", "").lower() for hook, _ in hooks)
        if local or hasattr(module, "_get_fsdp_state"):
            return True
    return False
