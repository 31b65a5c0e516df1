"""What a loss keeps of its targets, and what outputs are multiplied by before a loss compares them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlens.recorder.facts.layer_inputs import MOST_ELEMENTS, thinned
from gradlens.recorder.facts.loss.graph_reading import (
    Facts,
    children,
    labels_of,
    op_of,
    saved,
    saved_factor,
    shape_of,
    through_views,
)
from gradlens.recorder.facts.loss.loss_operations import LOSSES


def take_targets(node: Any, op: str, factors: Tensor | None = None) -> list[Facts]:
    """Copy the targets that a loss has saved, unread, where no hook on saved tensors would have to run."""
    values = saved(node, "target")
    if values is None or values.is_complex():
        return []
    ignored = getattr(node, "_saved_ignore_index", None)  # a class that the loss leaves out
    factors = saved(node, "weight") if factors is None and not op.startswith("Nll") else factors
    fact = {"op": op, "count": values.numel(), "values": thinned(values).clone(), "ignored": ignored}
    fact |= {"along": _apart_along(values)} if values.dim() == 3 and values.is_floating_point() else {}
    if factors is None or factors.numel() == 1:
        return [fact]
    if factors.numel() != values.numel():
        try:
            factors = factors.expand(values.shape)
        except RuntimeError:  # it is not known which of them count
            return []
    return [fact | {"factors": thinned(factors).clone()}]


@torch.no_grad()
def _apart_along(values: Tensor) -> Tensor:
    """Return how far (B, T, F) targets are from their mean over T, as a share of their size, unread."""
    part = values[: max(MOST_ELEMENTS // max(values[0].numel(), 1), 1)].float()
    return ((part - part.mean(1, keepdim=True)).square().mean() / part.square().mean()).sqrt()


def factors_of_losses(node: Any, op: str) -> dict[Any, Tensor]:
    """Return losses of single elements that something multiplies or chooses, each with its factors (0: left out)."""
    if op not in ("Mul", "Where", "MaskedFill", "MaskedSelect", "Index"):
        return {}
    made = [through_views(child)[0] for child, _ in children(node)]
    losses = [under for under in made if op_of(under) in LOSSES and getattr(under, "_saved_reduction", -1) == 0]
    if len(losses) != 1:
        return {}
    if op == "Mul":
        factors = saved_factor(node)
    elif op == "MaskedFill":
        filled = saved(node, "mask")
        factors = None if filled is None else ~filled
    else:
        factors = saved(node, "condition" if op == "Where" else "mask")
    if factors is None:
        factors = torch.empty(0)  # not known, so that nothing is known of the targets that count
    return {losses[0]: factors}


def take_mask(node: Any, loss: str | None) -> list[Facts]:
    """Copy what outputs are multiplied by before a loss compares them, unread: the only trace of dropout on a CPU."""
    for values in (saved(node, "other"), saved(node, "self")):
        if values is not None and values.is_floating_point() and values.shape == shape_of(node) != ():
            names = labels_of(node)
            return [{"layer": names[0] if names else None, "loss": loss, "values": thinned(values).clone()}]
    return []


def describe_mask(layer: str | None, loss: str | None, values: Tensor) -> Facts | None:
    """Return what outputs are multiplied by, where that is 0 or one number above 1; this waits for an accelerator.

    Args:
        layer: The module that multiplied them, or None.
        loss: The loss that compares them, or None.
        values: (n,) copies of evenly spaced factors.

    Returns:
        Its facts; None where it is no such mask.
    """
    factors = values.float().cpu().numpy()
    kept = factors[factors != 0]
    if not len(kept) or len(kept) == len(factors) or not (kept == kept[0]).all() or not kept[0] > 1:
        return None
    return {"layer": layer, "loss": loss, "factor": float(kept[0]), "zeros": float(1 - len(kept) / len(factors))}


def describe_targets(
    op: str,
    count: int,
    values: Tensor,
    ignored: int | None = None,
    factors: Tensor | None = None,
    along: Tensor | None = None,
) -> Facts | None:
    """Return what the targets of a loss are; this waits for an accelerator.

    Args:
        op: The operation that makes the loss.
        count: The number of targets.
        values: (n,) copies of evenly spaced ones.
        ignored: The class that the loss leaves out, or None.
        factors: (n,) what their losses are multiplied by, or None; 0 leaves them out.
        along: How far targets of three dimensions are from their mean over the second one, or None.

    Returns:
        Their facts; None where the loss leaves out all of them: classes are negative then, or the one that is ignored.
    """
    fact: Facts = {"op": op, "count": count, "distinct": None, "common": None}
    numbers = (values.float() if values.is_floating_point() else values).cpu().numpy()
    if factors is not None:
        numbers = numbers[factors.cpu().numpy() != 0]
        if not len(numbers):
            return None
    if not values.is_floating_point():
        if ignored is not None and ignored >= 0 and (left_out := float((numbers == ignored).mean())):
            fact |= {"ignored": int(ignored), "left_out": left_out}
        numbers = numbers[(numbers >= 0) & (numbers != ignored)]
        found, counts = np.unique(numbers, return_counts=True)
        if not len(counts):
            return None
        fact |= {"distinct": len(counts), "common": float(counts.max() / counts.sum())}
        fact["commonest"] = int(found[counts.argmax()])
    wide = numbers.astype(np.float64)
    fact |= {} if along is None else {"along": float(along)}
    return fact | {
        "least": float(wide.min()),
        "largest": float(wide.max()),
        "mean": float(wide.mean()),
        "rms": float(np.sqrt(np.square(wide).mean())),
    }


def read_targets(taken: Facts) -> list[tuple[str, Facts]]:
    """Describe the targets that were taken; this waits for an accelerator.

    Args:
        taken: What ``take_targets`` returned.

    Returns:
        The fact and its kind; nothing where the loss leaves out all targets.
    """
    described = describe_targets(**taken)
    return [] if described is None else [("targets", described)]
