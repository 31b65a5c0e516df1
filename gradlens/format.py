"""The format of numbers: JSON for programs, text for people; the same in all commands.

JSON has no NaN and no infinity: NaN is written as ``null``, and infinities as ``"inf"`` and ``"-inf"``.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of characters that are not shown but do something: controls, marks of direction, line ends."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The beginnings of a cell that a spreadsheet computes; the last four are the full-width forms of the first."""
ABSOLUTE = re.compile(r"(?<![\w.~/\\-])(?:~?/|[A-Za-z]:\\)(?:[^\s/\\'\",;]+[/\\])+[^\s/\\'\",;]*")
"""An absolute path of two names or more."""
MOST_PLAIN = 1e5
"""From here on a number with decimals is written with an exponent."""
MOST_FILE_NAME = 120
"""Characters of the name of a file that is made of names of runs."""


def visible(text: str) -> str:
    r"""Return a text whose characters all are shown: the one way of a run's names to the eye.

    Control characters, escape sequences, marks of writing direction and bytes that are no text are shown as escapes,
    such as ``\x1b``, so that a name can neither move the cursor nor reorder a line. So are line breaks.

    Args:
        text: A name, a note, a path: whatever a stranger chose.

    Returns:
        The text; the same one where nothing in it is hidden.
    """
    if text.isprintable():
        return text
    return "".join(char.encode("unicode_escape").decode() if _is_hidden(char) else char for char in text)


def _is_hidden(char: str) -> bool:
    code = ord(char)
    return unicodedata.category(char) in HIDDEN or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF


def without_folders(text: str) -> str:
    """Return a text without the folders of absolute paths, which tell about a machine: ``/home/me/runs/a.h5`` is
    ``a.h5``.

    Args:
        text: A path, a command, or a setting such as ``folder:/data/food``.
    """
    return ABSOLUTE.sub(lambda path: re.split(r"[/\\\\]", path[0].rstrip("/\\"))[-1] or path[0], text)


def safe_cell(value: Any) -> Any:
    """Return a cell of a table that no spreadsheet takes for a formula: such a text gets a leading apostrophe."""
    if isinstance(value, str) and len(value) > 1 and value.startswith(FORMULA):
        return f"'{value}"
    return value


def file_name(text: str) -> str:
    """Return a text as a part of a file's name: no separators, nothing hidden, not too long for a file system."""
    shown = visible(text).translate(dict.fromkeys(map(ord, '/\\:*?"<>|'), "-")).lstrip(".")
    while len(shown.encode()) > MOST_FILE_NAME:
        shown = shown[: max(MOST_FILE_NAME // 4, len(shown) * MOST_FILE_NAME // len(shown.encode()))]
        if len(shown) <= MOST_FILE_NAME // 4:
            break
    return shown or "run"


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
    """Return a value as indented JSON; values that JSON has no type for are written as text.

    What is hidden in a text, such as the name of a file, is escaped as JSON does it: a reader gets it back as it was.
    """
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(json.dumps(char)[1:-1] if char != "\n" and _is_hidden(char) else char for char in text)


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


def say_error(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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


def say_decimals(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """Format a number with a fixed number of decimals; where they would all be zero, or the number is long, with an
    exponent: ``0.731``, ``4.71e-04``, ``1.20e+06``.

    Args:
        value: The number.
        digits: Decimals.
        sign: Whether to write the sign of a positive number.

    Returns:
        The text.
    """
    plus = "+" if sign else ""
    if value != 0 and (abs(value) < 0.5 * 10.0**-digits or abs(value) >= MOST_PLAIN):
        return f"{value:{plus}.2e}"
    return f"{value:{plus}.{digits}f}"


def say_signed(value: float, digits: int = 2) -> str:
    """Format a number with its sign; NaN is ``-``, and what rounds to 0 has a plus."""
    return "-" if math.isnan(value) else f"{round(value, digits) + 0.0:+.{digits}f}"


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
