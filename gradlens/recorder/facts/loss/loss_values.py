"""The number that is added to a loss and has no graph: what is left of the loss's value without its other terms.

Only losses whose terms can all be computed from what torch keeps of them are looked at; nothing is run again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradlens.recorder.facts.loss.bare_terms import has_bare_term
from gradlens.recorder.facts.loss.graph_reading import VIEWS, children, op_of, saved, shape_of
from gradlens.recorder.facts.loss.signed_terms import SIGNS

REDUCED = {0: "none", 1: "mean", 2: "sum"}
MOST_TERMS = 32


@torch.no_grad()
def bare_number(root: Any, value: Tensor) -> tuple[Tensor, Tensor] | None:
    """Compute what is added to the terms of a loss that have a graph.

    Args:
        root: The loss's node.
        value: The loss, of one element.

    Returns:
        That number and the sum of the other terms, unread; None where nothing is added or not every term is known.
    """
    if shape_of(root) != () or value.dtype not in (torch.float32, torch.float64) or not has_bare_term(root):
        return None
    total, stack, count = torch.zeros_like(value.detach()), [(root, torch.ones_like(value.detach()))], 0
    while stack:
        node, factor = stack.pop()
        op, below = op_of(node), node.next_functions
        count += 1
        if count > MOST_TERMS:
            return None
        term = _value_of(node, op)
        if term is not None:
            total = total + factor * term
        elif op in SIGNS and shape_of(node) == ():
            if getattr(node, "_saved_alpha", 1) != 1:
                return None
            stack += [(child, factor * sign) for (child, _), sign in zip(below, SIGNS[op], strict=False) if child]
        elif op in ("Mul", "Div") and shape_of(node) == () and len(children(node)) == 1:
            other = saved(node, "other") if op == "Div" else _factor(node)
            if other is None or other.numel() != 1 or (op == "Div" and below[0][0] is None):
                return None
            by = other.to(factor.device, factor.dtype).reshape(())
            stack.append((children(node)[0][0], factor / by if op == "Div" else factor * by))
        elif op in VIEWS | {"Neg"} and len(children(node)) == 1:
            stack.append((children(node)[0][0], -factor if op == "Neg" else factor))
        else:
            return None
    return value.detach().reshape(()) - total.reshape(()), total.reshape(())


def _factor(node: Any) -> Tensor | None:
    found = saved(node, "other")
    return saved(node, "self") if found is None else found


def _value_of(node: Any, op: str) -> Tensor | None:
    """Return the value of a loss of torch's, or of the mean or sum of an error that is written by hand."""
    below = children(node)
    if op in ("Mean", "Sum") and shape_of(node) == () and len(below) == 1:
        error = _error_of(below[0][0])
        return None if error is None else error.mean() if op == "Mean" else error.sum()
    outputs, targets = saved(node, "self"), saved(node, "target")
    reduction = REDUCED.get(getattr(node, "_saved_reduction", -1), "none")
    if outputs is None or targets is None or reduction == "none" or outputs.dtype not in (torch.float32, torch.float64):
        return None
    weight: Tensor | None = saved(node, "weight")
    if op == "MseLoss":
        return functional.mse_loss(outputs, targets, reduction=reduction)
    if op == "SmoothL1Loss":
        return functional.smooth_l1_loss(outputs, targets, reduction=reduction, beta=node._saved_beta)
    if op == "HuberLoss":
        return functional.huber_loss(outputs, targets, reduction=reduction, delta=node._saved_delta)
    if op in ("NllLoss", "NllLoss2D") and not _has_weights(weight):
        ignored = int(node._saved_ignore_index)
        ignored -= (1 << 64) if ignored >= 1 << 63 else 0  # a negative number is stored without its sign
        return functional.nll_loss(outputs, targets, reduction=reduction, ignore_index=ignored)
    if op == "BinaryCrossEntropyWithLogits" and not _has_weights(weight, saved(node, "pos_weight")):
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction=reduction)
    if op == "BinaryCrossEntropy" and not _has_weights(weight):
        return functional.binary_cross_entropy(outputs, targets, reduction=reduction)
    return None


def _has_weights(*found: Tensor | None) -> bool:
    return any(each is not None for each in found)


def _error_of(node: Any) -> Tensor | None:
    """Return the squares or absolute values of a difference."""
    op, difference = op_of(node), saved(node, "self")
    if difference is None or len(children(node)) != 1 or difference.dtype not in (torch.float32, torch.float64):
        return None
    if op == "Abs":
        return difference.abs()
    exponent = getattr(node, "_saved_exponent", None)
    return difference**exponent if op == "Pow" and isinstance(exponent, int | float) else None
