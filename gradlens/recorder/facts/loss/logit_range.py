"""How far logits can lie apart: those of cosine similarities or of a tanh, times a number, lie in a fixed range."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gradlens.recorder.facts.loss.graph_reading import VIEWS, Facts, Shape, children, labels_of, op_of, saved, shape_of

PRODUCTS = {"Mm", "Bmm"}
NORMS = {"LinalgVectorNorm", "Norm", "Sqrt"}
BELOW_NORMS = VIEWS | {"ClampMin", "Clamp", "Maximum", "Add"}
"""What may lie between a norm and the division by it: ``normalize`` has a lower bound, others add a small number."""
ENDS = {"Tanh": "tanh"}
KEEPS = {"Cat", "MaskedFill", "Index", "IndexSelect", "MaskedSelect", "Gather"}
"""Operations that choose or join logits; masked ones have a share of 0."""
MOST_STEPS = 16


def logit_range(loss: Any) -> list[Facts]:
    """Describe logits of a cross entropy that lie within a fixed range, whatever the weights are.

    Args:
        loss: The node of a negative log-likelihood.

    Returns:
        One fact, or none: ``of`` ("cosine similarities" or "tanh"), ``limit`` (they lie within minus and plus that, but
        for masked ones), ``layer`` (the module that made them, or None), ``shape``.
    """
    node = _only_child(loss)
    while node is not None and op_of(node) in VIEWS:
        node = _only_child(node)
    if node is None or op_of(node) != "LogSoftmax":
        return []
    found = _find_limit(_only_child(node), MOST_STEPS)
    return [{**found, "shape": list(shape_of(node))}] if found else []


def _find_limit(node: Any, steps: int) -> Facts | None:
    """Return what a tensor is made of and the largest size that its elements can have, if there is one."""
    if node is None or not steps:
        return None
    op, below, names = op_of(node), children(node), labels_of(node)
    if op in ENDS or is_cosine(node, op):
        return {"of": ENDS.get(op, "cosine similarities"), "limit": 1.0, "layer": names[0] if names else None}
    if op not in (*VIEWS, *KEEPS, "Mul", "Div") or not below or (len(below) > 1 and op != "Cat"):
        return None
    parts = [_find_limit(child, steps - 1) for child, _ in below]
    known = [part for part in parts if part]
    if len(known) < len(parts):
        return None
    widest = max(known, key=lambda part: float(part["limit"]))
    layer = names[0] if names else widest["layer"]
    if op not in ("Mul", "Div"):
        return {**widest, "layer": layer}
    factor = number_in(node)
    limit = widest["limit"] * (factor if op == "Mul" else 1 / factor) if factor else 0.0
    return {**widest, "layer": layer, "limit": limit} if limit else None


def _only_child(node: Any) -> Any:
    below = children(node)
    return below[0][0] if len(below) == 1 else None


def number_in(node: Any) -> float | None:
    """Return the size of the Python number that a tensor is multiplied with or divided by; None for a tensor.

    Args:
        node: The multiplication or division.
    """
    value = saved(node, "other")
    return abs(float(value)) if value is not None and value.dim() == 0 and value.device.type == "cpu" else None


def is_cosine(node: Any, op: str) -> bool:
    """Return whether something is the product of vectors of length 1: of two matrices, or summed up by hand.

    Args:
        node: The node that made it.
        op: The operation.
    """
    below = [child for child, _ in children(node)]
    if op == "Sum" and len(below) == 1 and op_of(below[0]) == "Mul":
        below = [child for child, _ in children(below[0])]
    elif op not in PRODUCTS:
        return False
    if len(below) != 2:
        return False
    size = shape_of(below[0])[-1:]
    second = _is_normalised(below[1], size) or (op in PRODUCTS and _has_normalised_columns(below[1], size))
    return second and _is_normalised(below[0], size)


def _is_normalised(node: Any, size: Shape) -> bool:
    """Return whether vectors of that size are divided by their norm: the same node is above both."""
    node = _under(node, VIEWS)
    below = [child for child, _ in children(node)]
    if op_of(node) != "Div" or len(below) != 2:
        return False
    value, norm = _under(below[0], VIEWS), _under(below[1], BELOW_NORMS)
    shape = shape_of(node)
    if op_of(norm) not in NORMS or shape[-1:] != size or shape_of(norm)[: len(shape) - 1] != shape[:-1]:
        return False
    return _is_above(norm, value)


def _has_normalised_columns(node: Any, size: Shape) -> bool:
    """Return whether the columns of a matrix, which a product of matrices contracts, are divided by their norm."""
    below, shape = [child for child, _ in children(node)], shape_of(node)
    if op_of(node) != "Div" or len(below) != 2 or shape[-2:-1] != size:
        return False
    norm = _under(below[1], BELOW_NORMS)
    is_per_column = shape_of(below[1])[-2:] in ((1, shape[-1]), shape[-2:]) and shape_of(norm)[-2:] != shape[-2:]
    return is_per_column and op_of(norm) in NORMS and _is_above(norm, _under(below[0], VIEWS))


def _is_above(norm: Any, value: Any) -> bool:
    """Return whether a norm is that of a tensor."""
    under = [_under(child, VIEWS) for child, _ in children(norm)]
    while len(under) == 1 and op_of(under[0]) in ("Sum", "Pow", "Mul") and under[0] is not value:
        under = [_under(child, VIEWS) for child, _ in children(under[0])]
    return any(child is value for child in under)


def _under(node: Any, passed: Collection[str]) -> Any:
    """Follow operations of some kinds toward the input."""
    while op_of(node) in passed and len(children(node)) == 1:
        node = children(node)[0][0]
    return node
