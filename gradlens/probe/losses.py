"""The loss of a probe: cross-entropy of the scores that a model gives, or the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradlens.errors import GradlensError, ModelError
from gradlens.format import say_error
from gradlens.probe.plan import ModulePlan, ProbePlan
from gradlens.train.loop import find_output

LOSS_TIP = "give loss=, a function of the output: loss=lambda output: criterion(output, labels)"


@dataclass(frozen=True)
class Feed:
    """What a model is called with, and what is made of its output.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        labels: Labels where the data has any.
        loss: A loss of the user's own, output to scalar; None for cross-entropy.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    labels: Tensor | None = None
    loss: Callable[[Any], Any] | None = None


def find_scores(output: Any, plan: ProbePlan) -> Tensor:
    """Return a model's scores as (N, C), one row per example, token or position.

    Args:
        output: The model's output: scores (B, C); (B, T, C) of a language model; (B, C, H, W) of a segmentation model;
            or (B,), one logit each.
        plan: Names the model in the error.

    Raises:
        ModelError: The output has another form.
    """
    found = find_output(output)
    if isinstance(found, Tensor) and found.is_floating_point() and found.numel():
        if found.dim() == 1:
            return found[:, None]
        if found.dim() in (2, 3):
            return found.reshape(-1, found.shape[-1])
        if found.dim() >= 4:
            return found.movedim(1, -1).reshape(-1, found.shape[1])
    shown = f"a {found.dtype} tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    raise ModelError(
        f"{plan.model} gave {shown}; expected scores: (batch, classes), (batch, length, classes), or (batch, classes, "
        "height, width)",
        tip=LOSS_TIP
        if isinstance(plan, ModulePlan)
        else "a factory can wrap the model so that its output is the scores",
    )


def find_loss(scores: Tensor, labels: Tensor | None) -> Tensor:
    """Return the mean cross-entropy.

    Args:
        scores: (N, C).
        labels: (N,); None for labels that run through all classes and are independent of the input.
    """
    count, classes = scores.shape
    if labels is None or len(labels) != count:
        labels = torch.arange(count, device=scores.device) % max(classes, 2)
    if classes == 1:
        return functional.binary_cross_entropy_with_logits(scores[:, 0], labels.to(scores.dtype))
    return functional.cross_entropy(scores.float() if scores.dtype != torch.float64 else scores, labels)


def own_loss(feed: Feed, output: Any) -> Tensor:
    """Return the user's own loss of an output.

    Args:
        feed: Its ``loss`` is called.
        output: The model's output.

    Raises:
        GradlensError: The function raised it.
        ModelError: The function fails otherwise, or does not return one real number as a tensor.
    """
    assert feed.loss is not None
    try:
        loss = feed.loss(output)
    except GradlensError:
        raise
    except Exception as error:
        raise ModelError(f"loss failed on the module's output: {say_error(error)}", tip=LOSS_TIP) from error
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point():
        return loss.reshape(())
    got = f"a {loss.dtype} tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    raise ModelError(f"loss must return a tensor of one real number, got {got}", tip="take .mean() or .sum() of it")
