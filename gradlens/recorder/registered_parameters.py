"""The parameters that a module owns itself, whatever its class says of ``parameters``."""

from __future__ import annotations

from torch import nn


def registered_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are registered in a module, by their own names.

    ``module.parameters(recurse=False)`` fails where a class has its own ``parameters()`` without that argument.

    Args:
        module: The module.
    """
    return {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
