"""Find outputs that grow in a loss, because what they are compared with or multiplied by has another shape.

Exact: read from the sizes in the graph. A dimension that the program added itself (``unsqueeze``, ``x[:, None]``) is
meant to grow.
"""

from __future__ import annotations

from typing import Any

from gradlens.recorder.facts.loss.graph_reading import Facts, Shape, children, labels_of, op_of, saved_factor, shape_of
from gradlens.recorder.facts.loss.loss_operations import LOSSES
from gradlens.recorder.facts.loss.policy_gradients import log_probability


def broadcast(node: Any, op: str) -> list[Facts]:
    """Describe outputs that grow in an operation.

    Args:
        node: A comparison, or a product, in the loss.
        op: Its name.

    Returns:
        One fact, or none: ``op``, ``output`` and ``result`` (shapes), for N outputs that are compared with N targets in
        a table, and for one number per example that a loss compares with several; also ``weights`` (a shape) for
        log-probabilities of N actions that are multiplied by weights of another shape, to N x N.
    """
    below = children(node)
    if len(below) != 1 or (labels_of(node) and op not in LOSSES):
        return []
    return _product(node, op) if op == "Mul" else _comparison(node, op)


def _comparison(node: Any, op: str) -> list[Facts]:
    child, index = children(node)[0]
    result = shape_of(node)
    if op in LOSSES:  # they expand their arguments beforehand
        result = shape_of(child, index)
        if op_of(child) != "Expand" or not children(child):
            return []
        child, index = children(child)[0]
    output = shape_of(child, index)
    if op_of(child) == "Unsqueeze" or not (_is_table(output, result) or (op in LOSSES and _is_single(output, result))):
        return []
    return [{"op": op, "output": list(output), "result": list(result)}]


def _product(node: Any, op: str) -> list[Facts]:
    child, index = children(node)[0]
    output, result = shape_of(child, index), shape_of(node)
    factor = saved_factor(node)
    if factor is None or not _is_table(output, result) or op_of(child) == "Unsqueeze":
        return []
    if log_probability(child) is None:
        return []
    return [{"op": op, "output": list(output), "result": list(result), "weights": list(factor.shape)}]


def _is_table(output: Shape, result: Shape) -> bool:
    """Return whether N numbers became N x N."""
    sizes = [size for size in output if size > 1]
    return len(sizes) == 1 and [size for size in result if size > 1] == 2 * sizes


def _is_single(output: Shape, result: Shape) -> bool:
    """Return whether one number for each of several examples became several."""
    return len(output) == len(result) > 1 and 1 < output[0] == result[0] and set(output[1:]) == {1} != set(result[1:])
