"""What a stranger's run file says in words, as the view wing gets it: with every character shown.

Packing, recovering and resuming keep all texts as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from gradlens.format import visible
from gradlens.run import Layer

MOST_TEXT = 1_000_000
"""Characters of a text among the settings that are kept."""
MOST_VALUES = 50_000
"""Values of the settings that are kept."""
MOST_DEPTH = 64
LEFT_OUT = "left out"


def shown_names(names: Iterable[str]) -> dict[str, str]:
    """Map names to how they are shown.

    Args:
        names: The names of columns.

    Returns:
        Name to how it is shown.

    Raises:
        ValueError: Two are shown alike.
    """
    shown = {name: visible(name) for name in names}
    if len(set(shown.values())) < len(shown):
        raise ValueError("two of its columns have the same name but for hidden characters")
    return shown


def visible_layers(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return layers whose names are shown."""
    if all(layer.name.isprintable() and layer.kind.isprintable() for layer in layers):
        return layers
    return tuple(
        replace(layer, name=visible(layer.name), kind=visible(layer.kind), tags=tuple(map(visible, layer.tags)))
        for layer in layers
    )


def visible_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings whose texts are shown; texts that are too long are cut, and too many settings left out.

    Raises:
        ValueError: They lie too deep inside each other.
    """
    count = 0

    def shown(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"its settings lie more than {MOST_DEPTH} deep inside each other")
        if isinstance(value, str):
            rest = len(value) - MOST_TEXT
            return visible(value) if rest <= 0 else f"{visible(value[:MOST_TEXT])} ... ({rest:,} more characters)"
        if count > MOST_VALUES:
            return LEFT_OUT
        if isinstance(value, Mapping):
            kept = list(value.items())[: max(MOST_VALUES - count, 1)]
            return {shown(str(name), depth): shown(part, depth + 1) for name, part in kept}
        if isinstance(value, list):
            return [shown(part, depth + 1) for part in value[: max(MOST_VALUES - count, 1)]]
        return value

    return {shown(str(name), 0): shown(value, 1) for name, value in settings.items() if count <= MOST_VALUES}
