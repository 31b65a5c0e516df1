"""Find outputs that grow in a loss, because what they are compared with or multiplied by has another shape.

Exact: read from the sizes in the graph. A dimension that the program added itself (``unsqueeze``, ``x[:, None]``) is
meant to grow.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gradlens.recorder.graph_reading import Facts, Shape, children, op_of, saved_factor, shape_of
from gradlens.recorder.policy_gradients import log_probability


def broadcast_output(node: Any, op: str, losses: Collection[str]) -> list[Facts]:
    """Describe outputs that are compared with targets of another shape.

    Args:
        node: A comparison in the loss, with one side that has a graph.
        op: Its name.
        losses: Names of the losses that expand what they get beforehand.

    Returns:
        One fact, or none: ``op``, ``output`` and ``result`` (shapes), for N outputs that are compared with N targets in
        a table, and for one number per example that a loss compares with several.
    """
    child, index = children(node)[0]
    result = shape_of(node)
    if op in losses:
        result = shape_of(child, index)
        if op_of(child) != "Expand" or not children(child):
            return []
        child, index = children(child)[0]
    output = shape_of(child, index)
    if op_of(child) == "Unsqueeze" or not (_is_table(output, result) or (op in losses and _is_single(output, result))):
        return []
    return [{"op": op, "output": list(output), "result": list(result)}]


def broadcast_product(node: Any, op: str) -> list[Facts]:
    """Describe log-probabilities of N actions that are multiplied by weights of another shape, to N x N.

    Args:
        node: An operation of the loss.
        op: Its name.

    Returns:
        One fact, or none: ``op``, ``output``, ``result`` and ``weights`` (shapes).
    """
    below = children(node)
    if op != "Mul" or len(below) != 1:
        return []
    output, result = shape_of(*below[0]), shape_of(node)
    factor = saved_factor(node)
    if factor is None or not _is_table(output, result) or op_of(below[0][0]) == "Unsqueeze":
        return []
    if log_probability(below[0][0]) is None:
        return []
    return [{"op": op, "output": list(output), "result": list(result), "weights": list(factor.shape)}]


def _is_table(output: Shape, result: Shape) -> bool:
    """Return whether N numbers became N x N."""
    sizes = [size for size in output if size > 1]
    return len(sizes) == 1 and [size for size in result if size > 1] == 2 * sizes


def _is_single(output: Shape, result: Shape) -> bool:
    """Return whether one number for each of several examples became several."""
    return len(output) == len(result) > 1 and 1 < output[0] == result[0] and set(output[1:]) == {1} != set(result[1:])
