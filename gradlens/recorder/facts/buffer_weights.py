"""Weights that are a buffer, so that nothing trains them."""

from __future__ import annotations

from torch import nn

from gradlens.recorder.facts.loss.graph_reading import MODEL, MOST_FACTS, Facts
from gradlens.recorder.layers import clean_name
from gradlens.recorder.registered_parameters import registered_parameters

WEIGHTS = {"weight", "weights", "kernel", "w"}
"""Names that tell of weights."""


def find_weights_in_buffers(model: nn.Module) -> list[Facts]:
    """Find modules that train only vectors, and have a buffer of two or more dimensions with a name of weights.

    Args:
        model: The model.

    Returns:
        Their facts, at most ``MOST_FACTS``; a frozen batch norm and a fixed filter are not among them.
    """
    found = []
    for name, module in model.named_modules():
        own = [parameter for parameter in registered_parameters(module).values() if parameter.requires_grad]
        if own and all(parameter.ndim < 2 for parameter in own):
            buffers = [(key, value) for key, value in module.named_buffers(recurse=False) if key.lower() in WEIGHTS]
            found += [
                {"layer": clean_name(name) or MODEL, "name": key, "shape": list(value.shape)}
                for key, value in buffers
                if value.ndim > 1 and value.is_floating_point()
            ]
    return found[:MOST_FACTS]
