"""Layers whose parameters never receive a gradient, except those with requires_grad off."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from gradlens.diagnosis.findings import Finding, say_layers
from gradlens.diagnosis.recorded_rows import (
    LEAST_VALUES,
    PARAM_GRAD,
    UPDATE,
    Recording,
)
from gradlens.format import plural
from gradlens.metrics import ACTIVATION_GRAD_NORM


def _never(rec: Recording, name: str) -> NDArray[np.bool_]:
    """Return which layers have no value of a gradient metric in any row, finite or not, (L,)."""
    known = rec.series(name).known.copy()
    rows = rec.broken_rows(name)
    if len(rows):
        known |= rec.broken(name, int(rows[0]), int(rows[0]) + 1)[0]
    return np.logical_not(known)


def wants_no_gradient(rec: Recording) -> NDArray[np.int64]:
    """Return the layers that ran with requires_grad off.

    Their weights do not change, and either the gradient w.r.t. their output is known, or they belong to the first
    layers without any gradient, as when the first layers of a pretrained model are frozen.

    Args:
        rec: The recording.

    Returns:
        Indices of the layers.
    """
    if not (rec.has(PARAM_GRAD) and rec.has(ACTIVATION_GRAD_NORM) and rec.has(UPDATE)):
        return np.empty(0, dtype=np.int64)
    never, silent = _never(rec, PARAM_GRAD), _never(rec, ACTIVATION_GRAD_NORM)
    updates = rec.series(UPDATE)
    unchanged = updates.by_layers(lambda values: (values == 0).any(axis=0)) & ~updates.positive
    kept = never & unchanged & ~silent
    for i in rec.run.main_layers():
        layer = rec.run.layers[i]
        if not (never[i] and unchanged[i] and layer.out_numel > 0 and layer.calls > 0):
            break
        kept[i] = True
    return np.flatnonzero(kept)


def without_gradient(rec: Recording) -> NDArray[np.int64]:
    """Return the layers whose parameters never receive a gradient, without those with requires_grad off.

    Args:
        rec: The recording.

    Returns:
        Indices of the layers.
    """
    name = PARAM_GRAD if rec.has(PARAM_GRAD) else rec.gradient
    if not name:
        return np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.flatnonzero(_never(rec, name) & _may_have(rec, name)), wants_no_gradient(rec))


def _may_have(rec: Recording, name: str) -> NDArray[np.bool_]:
    """Return which layers can have a gradient of this metric, (L,): all but those without parameters."""
    owns = np.array([layer.param_numel > 0 for layer in rec.run.layers], dtype=bool)
    return owns if name == PARAM_GRAD and owns.any() else np.ones(len(owns), dtype=bool)


def unused(rec: Recording, explained: Collection[str] = ()) -> list[Finding]:
    """Find layers whose parameters never receive a gradient while others do.

    Confidence: (n + 1) / (n + 2) for n rows without a gradient, by Laplace's rule of succession.

    Args:
        rec: The recording.
        explained: Names of layers that another finding or a note explains; they are left out.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    found = without_gradient(rec)
    layers = np.array([i for i in found if rec.run.layers[i].name not in explained], dtype=np.int64)
    name = PARAM_GRAD if rec.has(PARAM_GRAD) else rec.gradient
    if not len(layers) or len(found) == _may_have(rec, name).sum() or rec.n_rows < LEAST_VALUES:
        return []
    uncalled = [i for i in layers if rec.run.layers[i].out_numel == 0]
    never_called = f" ({len(uncalled)} of them never called)" if uncalled else ""
    return [
        Finding(
            "unused",
            rec.names(rec.in_order(layers)),
            (int(rec.run.steps[0]), rec.last_step),
            f"{name} is missing in all {rec.n_rows:,} rows at {plural(len(layers), 'layer')}{never_called}, while "
            "other layers have it",
            "no gradient in any row",
            "exact: autograd leaves .grad at None where no path leads from the loss to a parameter",
            f"Use the output of {say_layers(rec.names(rec.in_order(layers)))} in the loss (look for detach and for "
            "branches that never run), or remove what is not used.",
            (rec.n_rows + 1) / (rec.n_rows + 2),
        )
    ]
