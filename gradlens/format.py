"""The format of numbers: JSON for programs, text for people; the same in all commands.

JSON has no NaN and no infinity: NaN is written as ``null``, and infinities as ``"inf"`` and ``"-inf"``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Convert a value to the types of JSON.

    Args:
        value: A number, a NumPy scalar or array, or mappings and sequences of these; other values are returned as they
            are.

    Returns:
        The value with None for NaN, "inf" and "-inf" for infinities, and lists for arrays.
    """
    if hasattr(value, "tolist"):  # a NumPy scalar or array; NumPy need not be imported for this
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def to_json(value: Any) -> str:
    """Return a value as indented JSON; values that JSON has no type for are written as text."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False, default=str)


def plural(count: int, noun: str, several: str = "") -> str:
    """Format a count with its noun: ``1 row``, ``2,000 rows``.

    Args:
        count: The number.
        noun: The noun in the singular.
        several: The plural; "" means the singular with an s.

    Returns:
        The text.
    """
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def say_magnitude(value: float) -> str:
    """Format a magnitude with three digits: ``1.23e-04``, ``0``, ``not finite``, or ``-`` for NaN."""
    if math.isnan(value):
        return "-"
    return "not finite" if math.isinf(value) else "0" if value == 0 else f"{value:.2e}"


def say_share(value: float, digits: int = 1) -> str:
    """Format a share in percent; only 0 is "none", and a small share is not rounded to 0.

    Args:
        value: The share, 0 to 1; NaN is not known.
        digits: Decimals.

    Returns:
        The text, such as ``12.3 %``, ``< 0.1 %``, ``none`` or ``-``.
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
    """Format a duration given in seconds: ``75 s``, ``2.5 min``, ``1.5 h``."""
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"


def say_signed(value: float, digits: int = 2) -> str:
    """Format a number with its sign; NaN is ``-``."""
    return "-" if math.isnan(value) else f"{value:+.{digits}f}"


def brackets(low: float, high: float, digits: int = 3, *, sign: bool = False) -> str:
    """Format an interval that follows its mean: `` [0.712, 0.750]``.

    Args:
        low: The lower end.
        high: The upper end.
        digits: Decimals.
        sign: Whether to write the sign of positive numbers.

    Returns:
        The text, which begins with a blank; "" if an end is not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    plus = "+" if sign else ""
    return f" [{low:{plus}.{digits}f}, {high:{plus}.{digits}f}]"
