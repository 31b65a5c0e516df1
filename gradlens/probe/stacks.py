"""Whether a model is a uniform stack, for which there is a theory."""

from __future__ import annotations

import itertools

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def describe_stack(model: nn.Module) -> dict[str, str]:
    """Describe a uniform ``Sequential`` stack for the theory.

    Args:
        model: Any model.

    Returns:
        ``activation`` and ``norm`` of a ``Sequential`` whose layers are all followed by the same modules; else nothing.
    """
    leaves = _leaves(model)
    leaves = [m for m in leaves if not isinstance(m, nn.Flatten | nn.Identity)]
    at = [i for i, m in enumerate(leaves) if isinstance(m, nn.Linear | nn.Conv2d)]
    if len(at) < 3 or at[0] != 0 or at[-1] != len(leaves) - 1:
        return {}
    after = [leaves[i + 1 : j] for i, j in itertools.pairwise(at)]
    if isinstance(leaves[at[-2]], nn.Conv2d):
        after[-1] = [m for m in after[-1] if not isinstance(m, nn.AdaptiveAvgPool2d)]
    norm = bool(after[0]) and isinstance(after[0][0], _BatchNorm)
    relu = bool(after[0]) and isinstance(after[0][-1], nn.ReLU)
    expected = [_BatchNorm] * norm + [nn.ReLU] * relu
    for found in after:
        if len(found) != len(expected) or not all(map(isinstance, found, expected)):
            return {}
    return {"activation": "relu" if relu else "linear", "norm": "batch" if norm else "none"}


def _leaves(module: nn.Module) -> list[nn.Module]:
    """Return the modules in nested ``Sequential`` containers, in order."""
    if type(module) is nn.Sequential:
        return [leaf for child in module for leaf in _leaves(child)]
    return [module]
