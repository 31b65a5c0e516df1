"""Views that keep the order in memory where dimensions are to be swapped."""

from __future__ import annotations

from typing import Any

from gradlens.recorder.facts.loss.graph_reading import (
    Facts,
    children,
    labels_of,
    shape_of,
    through_views,
)
from gradlens.recorder.facts.loss.odd_operations import Place


def reordered(node: Any, op: str) -> list[Facts]:
    """Describe a view that gives the same sizes in another order, as a transposition would.

    Args:
        node: A view between the model and the loss.
        op: Its name.

    Returns:
        One fact, or none: ``layer`` (or None), ``shape``, ``result``.
    """
    if labels_of(node):
        return []
    result, found = shape_of(node), []
    for child, index in children(node):
        shape = shape_of(child, index)
        sizes, others = ([size for size in each if size > 1] for each in (shape, result))
        if sizes != others and sorted(sizes) == sorted(others):
            names = through_views(child)[1]
            found.append({"layer": names[0] if names else None, "shape": list(shape), "result": list(result)})
    return found


def rows_of_the_second(place: Place) -> list[Facts]:
    """Describe a view of a module's output (D, B, H) as (B, D * H): its rows hold parts of different examples."""
    below = [(shape_of(child, index), through_views(child)[1]) for child, index in children(place.node)]
    result = shape_of(place.node)
    return [
        {"layer": names[0], "shape": list(shape), "result": list(result)}
        for shape, names in below
        if names and len(shape) == 3 and shape[0] != shape[1] and min(shape[:2]) > 1
        if result == (shape[1], shape[0] * shape[2])
    ]
