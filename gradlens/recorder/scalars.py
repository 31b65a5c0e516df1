"""Scalars that a user logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from gradlens.errors import RecorderError

Scalar = float | Tensor
LONGEST_NAME = 255
"""Characters of a name."""
MOST_NAMES = 2_000
"""Names of values in one recording: each is a column with a place in every row, and no reader takes twice as many."""
MOST_SHOWN = 10
"""Errors of one call that are shown."""
RESERVED = ("step", "epoch_of_step", "(shrunk)")
"""Names that rows of the file have already, or that the recorder uses itself."""


def to_numbers(
    values: Mapping[str, Scalar], logged: set[str], reserved: tuple[str, ...] = RESERVED
) -> tuple[dict[str, Scalar], RecorderError | None]:
    """Return each value as a number, with "/" in its name replaced by ".".

    Args:
        values: Name to value; see ``to_number``.
        logged: The names that were logged before; new ones are added.
        reserved: Names that are not allowed.

    Returns:
        The numbers, and one error about all values that cannot be logged; None if all can.
    """
    numbers: dict[str, Scalar] = {}
    wrong: list[RecorderError] = []
    for given, value in values.items():
        try:
            name, number = _stored_name(given, reserved), to_number(given, value)
            if name not in logged:
                _check_room(name, logged)
                logged.add(name)
            numbers[name] = number
        except RecorderError as error:
            wrong.append(error)
    if len(wrong) < 2:
        return numbers, wrong[0] if wrong else None
    said = "; ".join(error.message for error in wrong[:MOST_SHOWN])
    more = f"; and {len(wrong) - MOST_SHOWN} more" if len(wrong) > MOST_SHOWN else ""
    return numbers, RecorderError(said + more, tip=wrong[0].tip)


def is_name(name: str, reserved: tuple[str, ...] = RESERVED) -> bool:
    """Return whether a name is allowed, "/" included."""
    try:
        _stored_name(name, reserved)
    except RecorderError:
        return False
    return True


def _check_room(name: str, logged: set[str]) -> None:
    if len(logged) >= MOST_NAMES:
        raise RecorderError(
            f"{name} is one name too many: a run holds {MOST_NAMES:,} names of values",
            tip="log a value under the same name in every step; the file has the number of the step anyway",
        )


def _stored_name(given: str, reserved: tuple[str, ...]) -> str:
    """Return the name in the file.

    Raises:
        RecorderError: The name cannot be one in the file.
    """
    name = given.replace("/", ".") if isinstance(given, str) else ""
    if name.strip(" .") and name.isprintable() and len(name) <= LONGEST_NAME and name not in reserved:
        return name
    shown = ascii(given) if len(str(given)) <= LONGEST_NAME else f"a text of {len(given)} characters"
    what = "is a name that rows have already" if name in reserved else "is no name for a value"
    raise RecorderError(
        f"{shown} {what}", tip=f"names are printable text of at most {LONGEST_NAME} characters, not only dots"
    )


def to_number(name: str, value: Scalar) -> Scalar:
    """Return a value as a number, without waiting for a device.

    Args:
        name: The name that an error shows.
        value: A number, or a tensor or array of one element.

    Returns:
        A float; or a copy on the same device, for a tensor that is not on the CPU.

    Raises:
        RecorderError: The value is not a single real number.
    """
    number: Any = value
    if isinstance(value, Tensor):
        number = None
        if value.numel() == 1 and not value.is_complex() and not value.is_meta:
            if not value.is_cpu:
                return value.detach().clone()  # its owner may change it before it is fetched
            number = value.detach()
    elif isinstance(number, np.ndarray):
        number = number.item() if number.size == 1 else None
    found = None if isinstance(number, str | bytes | bytearray | complex | np.complexfloating) else _as_float(number)
    if found is None:
        raise RecorderError(f"{name} must be one number, got {_shown(value)}", tip="log its mean or its sum")
    return found


def _as_float(number: Any) -> float | None:
    """Return it as a float; None if it is no number, whatever error says so."""
    try:
        return float(number)
    except Exception:
        return None


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {'complex ' if value.is_complex() else ''}tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= LONGEST_NAME else f"a {type(value).__name__}"
