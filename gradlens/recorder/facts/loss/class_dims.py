"""Follow the dimension that a negative log-likelihood takes for the classes toward the layer that made the output."""

from __future__ import annotations

from math import prod
from typing import Any

from gradlens.recorder.facts.loss.graph_reading import (
    RESHAPES,
    Facts,
    Shape,
    children,
    dim_of,
    labels_of,
    op_of,
    shape_of,
)

SAME = {"Clone", "Alias", "ToCopy"}
"""Operations that leave every dimension where it is."""
FEATURES = {"Addmm": -1, "Mm": -1, "Bmm": -1, "Convolution": 1}
"""Operations of layers, and the dimension of their output that holds the features."""


def wrong_softmax(loss: Any) -> list[Facts]:
    """Describe a log-softmax over another dimension than the one that the loss takes for the classes.

    Args:
        loss: The node of a negative log-likelihood.

    Returns:
        One fact, or none.
    """
    node, dim = _input_of(loss)
    while node is not None and dim is not None and op_of(node) != "LogSoftmax":
        node, dim = _step(node, dim)
    if node is None or dim is None:
        return []
    shape = shape_of(node)
    over = dim_of(node, len(shape))
    if over is None or over == dim or min(shape[dim], shape[over]) < 2:
        return []
    names = labels_of(node)
    layer = names[0] if names else None
    return [{"loss": op_of(loss), "layer": layer, "shape": list(shape), "dim": over, "classes_dim": dim}]


def mixed_classes(loss: Any) -> list[Facts]:
    """Describe a view whose rows, the classes for the loss, are cut out of several rows of a layer's output.

    The layer has as many features as the loss has classes, and in front of the view its features are not the last
    dimension. A view that gives rows of another dimension whole is not described: that may be meant.

    Args:
        loss: The node of a negative log-likelihood.

    Returns:
        One fact, or none.
    """
    node, dim = _input_of(loss)
    while node is not None and dim is not None:
        below, next_dim = _step(node, dim)
        if below is not None and next_dim is None and op_of(node) in RESHAPES and not labels_of(node):
            return _describe(node, below, shape_of(node)[dim])
        node, dim = below, next_dim
    return []


def _describe(view: Any, below: Any, classes: int) -> list[Facts]:
    before, result = shape_of(below), shape_of(view)
    for start in range(len(before) - 1):
        node: Any = below
        dim: int | None = start
        if before[start] != classes or classes < 2:
            continue
        while node is not None and dim is not None and not labels_of(node):
            node, dim = _step(node, dim)
        if node is None or dim is None:
            continue
        shape, made = shape_of(node), node
        while op_of(made) in RESHAPES | SAME and len(children(made)) == 1:
            made = children(made)[0][0]
        if op_of(made) in FEATURES and dim == FEATURES[op_of(made)] % len(shape):
            return [{"layer": labels_of(node)[0], "shape": list(shape), "before": list(before), "result": list(result)}]
    return []


def _input_of(loss: Any) -> tuple[Any, int | None]:
    below = children(loss)
    if len(below) != 1 or len(shape_of(*below[0])) < 2:
        return None, None
    return below[0][0], 1


def _step(node: Any, dim: int) -> tuple[Any, int | None]:
    """Go one operation toward the input; the dimension is None where it does not exist there, or is not known."""
    below = children(node)
    if len(below) != 1:
        return None, None
    child, index = below[0]
    op, shape, before = op_of(node), shape_of(node), shape_of(child, index)
    if op in SAME or op == "LogSoftmax":
        return child, dim
    if op in RESHAPES:
        return child, _same_rows(shape, before, dim)
    if op == "Transpose":
        one, other = (_signed(getattr(node, key)) % len(shape) for key in ("_saved_dim0", "_saved_dim1"))
        return child, {one: other, other: one}.get(dim, dim)
    if op == "Permute":
        return child, _signed(node._saved_dims[dim]) % len(shape)
    return None, None


def _same_rows(shape: Shape, before: Shape, dim: int) -> int | None:
    """Return the dimension of another shape of the same elements that has the same size and stride."""
    stride = prod(shape[dim + 1 :])
    same = (i for i, size in enumerate(before) if size == shape[dim] and prod(before[i + 1 :]) == stride)
    return next(same, None)


def _signed(dim: int) -> int:
    """Return a saved dimension: a negative number is stored without its sign."""
    return int(dim - (1 << 64) if dim >= 1 << 63 else dim)
