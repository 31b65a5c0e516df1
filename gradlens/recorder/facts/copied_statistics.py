"""Batch norms of a copy (a teacher, a target) whose running statistics stay, while those of the original move."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradlens.recorder.facts.loss.graph_reading import MOST_FACTS, Facts
from gradlens.recorder.layers import clean_name

MOST_NORMS = 256
"""Most batch norms that are followed."""


class CopiedStatistics:
    """Compares the running statistics of batch norms with those at the start.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = [(clean_name(name), module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        self._norms = {name: module for name, module in norms[:MOST_NORMS] if module.running_mean is not None}
        self._first = {name: _mean_of(module).clone() for name, module in self._norms.items()}
        self._evaluated: set[str] = set()

    def note_call(self, name: str, module: nn.Module) -> None:
        """Note that a module ran.

        Args:
            name: Its name.
            module: It.
        """
        if name in self._norms and not module.training:
            self._evaluated.add(name)

    def describe(self, copy: str, of: str) -> Facts:
        """Return the batch norms of a copy that run in eval mode with statistics that stay as they were.

        Args:
            copy: The name of the copy.
            of: The name of the original.

        Returns:
            ``stale``, where there are such: ``layers``, and how far off the first of them is. This waits for an
            accelerator.
        """
        pairs = [(name, f"{of}{name.removeprefix(copy)}") for name in self._norms if name.startswith(f"{copy}.")]
        pairs = [(mine, other) for mine, other in pairs if mine in self._evaluated and other in self._norms]
        stale = [(mine, other) for mine, other in pairs if not self._has_moved(mine) and self._has_moved(other)]
        if not stale or len(stale) < len(pairs):
            return {}
        mine, other = (self._norms[name] for name in stale[0])
        variance = _variance_of(other)
        distance = ((_mean_of(mine) - _mean_of(other)) / (variance + other.eps).sqrt()).square().mean().sqrt()
        ratio = ((_variance_of(mine) + other.eps) / (variance + other.eps)).median()
        fact = {"mean_distance": float(distance), "variance_ratio": float(ratio)}
        return {"stale": {"layers": [name for name, _ in stale][:MOST_FACTS], "layer": stale[0][0], **fact}}

    def _has_moved(self, name: str) -> bool:
        now, then = _mean_of(self._norms[name]), self._first[name]
        return now.shape != then.shape or not torch.equal(now.to(then.device), then)


def _mean_of(module: _BatchNorm) -> Tensor:
    assert module.running_mean is not None
    return module.running_mean.detach()


def _variance_of(module: _BatchNorm) -> Tensor:
    assert module.running_var is not None
    return module.running_var.detach()
