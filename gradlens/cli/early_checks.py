"""Checks of names and files that need no import: a mistake is reported before torch is loaded."""

from __future__ import annotations

import difflib
import importlib.util
import re
from pathlib import Path

from gradlens.errors import DataError, ModelError
from gradlens.specs import parse_data, parse_model

MOST_NAMES, MOST_NEAR = 12, 3


def check_model(name: str) -> None:
    """Check that a model can exist: its file, its package, its name among those of torchvision.

    Args:
        name: As in ``gradlens run``.

    Raises:
        ConfigError: The name has none of the known forms.
        ModelError: There is no such file, package, or model of torchvision.
    """
    spec = parse_model(name)
    if spec.source == "file" and not Path(spec.location).is_file():
        raise ModelError(f"{spec.location}: there is no such file")
    if spec.source == "torchvision":
        known = torchvision_models()
        if known and spec.location not in known:
            near = difflib.get_close_matches(spec.location, known, MOST_NEAR)
            some = ", ".join(near or sorted(known)[:MOST_NAMES])
            raise ModelError(f"torchvision has no model {spec.location!r}; expected {some}, ...")


def check_data(text: str) -> None:
    """Check that the data of a SPEC can exist: its folder or its file.

    Args:
        text: As in ``--data``.

    Raises:
        ConfigError: The SPEC has none of the known forms.
        DataError: There is no such folder or file.
    """
    spec = parse_data(text)
    if spec.kind == "folder" and spec.path is not None and not spec.path.is_dir():
        raise DataError(f"{spec.path}: there is no such folder", tip="--data folder:PATH with one folder per class")
    if spec.kind == "csv" and spec.path is not None and not spec.path.is_file():
        raise DataError(f"{spec.path}: there is no such file", tip="--data csv:FILE with the columns filename,label")


def torchvision_models() -> set[str]:
    """Return the names of torchvision's models as its files register them; none where they cannot be found."""
    package = importlib.util.find_spec("torchvision")
    places = list(package.submodule_search_locations or ()) if package is not None else []
    found: set[str] = set()
    for file in [path for place in places for path in Path(place, "models").rglob("*.py")]:
        text = file.read_text(encoding="utf-8", errors="replace")
        pattern = r'@register_model\((?:name="([^"]+)")?\)\s+(?:@[^\n]*(?:\n[^@d][^\n]*)*\n)*def (\w+)'
        found |= {name or function for name, function in re.findall(pattern, text)}
    return found
