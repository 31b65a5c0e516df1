"""How a number is written: for programs as JSON, for people as text; one way for each kind, in every command.

JSON knows no NaN and no infinity: what is not known is ``null``, and what is not finite is ``"inf"`` or ``"-inf"``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Return a value as JSON knows it, with all that is in it.

    Args:
        value: Mappings, sequences, numbers, and scalars and arrays of numpy, in each other; anything else stays.

    Returns:
        The same with None for NaN, "inf" and "-inf" for what is not finite, and lists for arrays.
    """
    if hasattr(value, "tolist"):  # a scalar or an array of numpy, without loading it here
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def to_json(value: Any) -> str:
    """Return a value as JSON text for people and programs; what JSON does not know stands there as text."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False, default=str)


def plural(count: int, noun: str, several: str = "") -> str:
    """Write a count: ``1 row``, ``2,000 rows``.

    Args:
        count: How many.
        noun: What, of one.
        several: What, of several; with an s at the end where it is left out.

    Returns:
        The text.
    """
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def say_magnitude(value: float) -> str:
    """Write a magnitude with three digits, and what is no magnitude as what it is."""
    if math.isnan(value):
        return "-"
    return "not finite" if math.isinf(value) else "0" if value == 0 else f"{value:.2e}"


def say_share(value: float, digits: int = 1) -> str:
    """Write a share in percent: what is none at all is "none", what is little is not 0, what lacks little not all.

    Args:
        value: From 0 to 1; NaN where it is not known.
        digits: Decimals.

    Returns:
        The text.
    """
    if math.isnan(value):
        return "-"
    if value == 0:
        return "none"
    percent, least = 100 * value, 10.0**-digits
    if percent < least:
        return f"< {least:.{digits}f} %"
    return f"{percent:.0f} %" if percent > 100 - least / 2 else f"{percent:.{digits}f} %"


def say_seconds(value: float) -> str:
    """Write a duration."""
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"


def say_signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign."""
    return "-" if math.isnan(value) else f"{value:+.{digits}f}"


def brackets(low: float, high: float, digits: int = 3, *, sign: bool = False) -> str:
    """Write an interval, to stand behind its mean: `` [0.712, 0.750]``; nothing where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    plus = "+" if sign else ""
    return f" [{low:{plus}.{digits}f}, {high:{plus}.{digits}f}]"
