"""Find numbers of a softmax that are picked along another dimension than the softmax runs over."""

from __future__ import annotations

from typing import Any

from gradlens.recorder.facts.loss.graph_reading import (
    Facts,
    children,
    dim_of,
    labels_of,
    op_of,
    shape_of,
    through_views,
)

BETWEEN = {"Log", "Clamp", "ClampMin", "Add"}
"""Operations between a softmax and what picks one of its numbers."""


def look_for_picked(node: Any, op: str) -> list[Facts]:
    """Look for one number per row that is picked of a softmax which runs over the rows.

    Args:
        node: An operation between the model and the loss.
        op: Its name.

    Returns:
        One fact, or none.
    """
    below = children(node)
    if op != "Gather" or len(below) != 1:
        return []
    made, names = through_views(below[0][0])
    while op_of(made) in BETWEEN and len(children(made)) == 1:
        made, names = through_views(children(made)[0][0])
    shape = shape_of(made) if op_of(made) in ("Softmax", "LogSoftmax") else ()
    if len(shape) != 2 or min(shape) < 2 or dim_of(node, 2) != 1 or dim_of(made, 2) != 0:
        return []
    names = labels_of(made) or names
    return [{"op": op_of(made), "layer": names[0] if names else None, "shape": list(shape)}]
