"""Read scores of attention that nothing scales, and outputs of which a loss takes the average over the batch only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gradlens.recorder.facts.layer_inputs import MOST_ELEMENTS
from gradlens.recorder.facts.loss.graph_reading import (
    MODEL_KEY,
    VIEWS,
    Facts,
    children,
    has_label,
    labels_of,
    op_of,
    saved,
    shape_of,
    through_views,
)

PRODUCTS = {"Bmm", "Mm"}
MASKS = {"Add", "MaskedFill", "Where"}
SCALES = {"Mul", "Div"}
LEAST_WIDTH, LEAST_KEYS = 16, 4
"""Fewer numbers per product give no large scores, and fewer weights no sharp choice; no outside source."""
LEAST_EXAMPLES = 4
COMPARISONS = {
    "Sub", "Rsub", "MseLoss", "SmoothL1Loss", "HuberLoss", "LogSoftmax", "BinaryCrossEntropy",
    "BinaryCrossEntropyWithLogits",
}  # fmt: skip


@torch.no_grad()
def unscaled_scores(nodes: Sequence[Any]) -> list[Facts]:
    """Describe softmaxes over products of two outputs of layers, which nothing multiplies or divides.

    Args:
        nodes: All nodes of the graph.

    Returns:
        Facts with ``layer`` (the module that made one factor, or None), ``width`` (numbers per product), ``keys`` (over
        how many the softmax runs) and ``largest`` (the mean of the largest weights, unread); at most two.
    """
    found: list[Facts] = []
    for node in nodes:
        product = _product_under(node) if op_of(node) == "Softmax" and len(found) < 2 else None
        weights = saved(node, "result") if product is not None else None
        shape = shape_of(node)
        if product is None or weights is None or weights.numel() > MOST_ELEMENTS or shape[-1] < LEAST_KEYS:
            continue
        factors = [through_views(child) for child, _ in children(product)]
        width = shape_of(children(product)[0][0])[-1]
        if len(factors) != 2 or width < LEAST_WIDTH or any(op_of(made) in SCALES for made, _ in factors):
            continue
        names = [name for _, labels in factors for name in labels[:1]]
        largest = weights.max(-1).values.float().mean()
        found.append({"layer": names[0] if names else None, "width": width, "keys": shape[-1], "largest": largest})
    return found


def _product_under(node: Any) -> Any:
    """Return the product of matrices that a softmax gets, with nothing but views and masks between, or None."""
    for _ in range(8):
        below = [child for child, _ in children(node)]
        if not below:
            return None
        node = below[0]
        if op_of(node) in PRODUCTS:
            return node if len(children(node)) == 2 else None
        if op_of(node) not in VIEWS | MASKS or labels_of(node):
            return None
    return None


def read_scores(taken: Facts) -> list[tuple[str, Facts]]:
    """Return a softmax over scores with the mean of its largest weights; this waits for an accelerator.

    Args:
        taken: What ``unscaled_scores`` returned.
    """
    return [("unscaled_scores", taken | {"largest": round(float(taken["largest"]), 2)})]


def averaged_batch(nodes: Sequence[Any]) -> list[Facts]:
    """Describe what the model returned and the loss takes only the average over the first dimension of.

    Args:
        nodes: All nodes of the graph, inputs first.

    Returns:
        One fact with ``shape`` (of the output) and ``result`` (of the average), or none.
    """
    for node in nodes:
        below = children(node)
        if op_of(node) != "Mean" or node is nodes[-1] or len(below) != 1:
            continue
        shape, result = shape_of(*below[0]), shape_of(node)
        dims = getattr(node, "_saved_dim", None)
        over_first = dims is None or 0 in [int(dim) % (1 << 64) % max(len(shape), 1) for dim in dims]
        is_output = any(has_label(each, MODEL_KEY) for each in (below[0][0], through_views(below[0][0])[0]))
        if over_first and is_output and shape and shape[0] >= LEAST_EXAMPLES and _is_compared(node, nodes):
            return [{"shape": list(shape), "result": list(result)}]
    return []


def _is_compared(node: Any, nodes: Sequence[Any]) -> bool:
    """Return whether a difference or a loss takes it, with nothing but views between."""
    reached = {node}
    for each in nodes:
        if any(child in reached for child, _ in children(each)):
            if op_of(each) in COMPARISONS:
                return True
            if op_of(each) in VIEWS:
                reached.add(each)
    return False
