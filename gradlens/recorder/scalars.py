"""Scalars that a user logs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gradlens.errors import RecorderError

Scalar = float | Tensor


def to_numbers(values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return each value as a number, with "/" in its name replaced by "."; see ``to_number``."""
    return {name.replace("/", "."): to_number(name, value) for name, value in values.items()}


def to_number(name: str, value: Scalar) -> Scalar:
    """Return a value as a number, without waiting for a device.

    Args:
        name: The name that an error shows.
        value: A number, or a tensor of one element.

    Returns:
        A float; or a copy on the same device, for a tensor that is not on the CPU.

    Raises:
        RecorderError: The value is not a single number.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_cpu and not value.is_meta:
        return value.detach().clone()  # its owner may change it before it is fetched
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise RecorderError(f"{name} must be one number, got {shown}", tip="log its mean or its sum") from None
