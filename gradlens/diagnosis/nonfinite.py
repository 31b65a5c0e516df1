"""Non-finite values: the first layer and step, and whether the forward or the backward pass broke."""

from __future__ import annotations

import math

import numpy as np

from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.network import Network
from gradlens.diagnosis.recorded_rows import COUNT, PARAM_GRAD, RMS, Recording
from gradlens.diagnosis.undefined import may_be_empty, may_be_zero, undefined
from gradlens.format import plural
from gradlens.metrics import ACTIVATION_GRAD_NORM

SKIPS = 16
"""A GradScaler starts at 65536 = 2^16 and halves its scale at each skipped step (PyTorch, torch.amp.GradScaler,
init_scale): after more than 16 skips in a row, the scale does not explain them."""
SOURCE = "IEEE 754: arithmetic with NaN stays NaN; one optimizer step carries it into the weights"

MOST_COUNTED = 2.0**63
"""Entries of gradients that no recorder can count."""


def first_broken_row(rec: Recording) -> int | None:
    """Return the first row with a non-finite value, skipped steps left out; None where there is none."""
    rows = [rows[0] for name in (ACTIVATION_GRAD_NORM, PARAM_GRAD, COUNT, RMS) if len(rows := rec.broken_rows(name))]
    loss = rec.scalar("loss")
    rows += list(np.flatnonzero(np.isinf(loss))[:1])
    return int(min(rows)) if rows else None


def nonfinite(rec: Recording, row: int | None) -> list[Finding]:
    """Find the first non-finite row, and whether the forward or the backward pass broke first.

    Confidence: 1, because NaN and Inf are observed and not estimated.

    Args:
        rec: The recording.
        row: The result of ``first_broken_row``.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    if known := undefined(rec):
        return known
    if row is None:
        return _too_many_skips(rec)
    forward, layers, evidence = _direction(rec, row)
    every = sorted(
        {int(r) for name in (ACTIVATION_GRAD_NORM, PARAM_GRAD, COUNT) for r in rec.broken_rows(name)} | {row}
    )
    direction = "forward" if forward else "backward"
    step, more = int(rec.run.steps[row]), "at least " if rec.long else ""
    extent = f"{more}{plural(len(every), 'row')} with NaN or Inf"
    parts = [f"first at step {step}, in the {direction} pass: {evidence}", _counted(rec, row), extent]
    return [
        Finding(
            "nonfinite",
            layers,
            (step, int(rec.run.steps[every[-1]])),
            "; ".join(part for part in parts if part),
            "any NaN or Inf in a step that is not skipped",
            SOURCE,
            _remedy(rec, row, forward, layers),
            1.0,
        )
    ]


def _remedy(rec: Recording, row: int, forward: bool, layers: tuple[str, ...]) -> str:
    """Return what to look at: in the batch of that step first, because most batches before it were well."""
    network, step = Network(rec), int(rec.run.steps[row])
    last = f"If all that is well, lower {network.say_rate()} and clip the gradients."
    if network.clips:
        last = f"If all that is well, lower {network.say_rate()}."
    seen = forward and RMS in rec.run.metrics and bool(_bad_layers(rec, RMS, row))
    loss = rec.scalar("loss")
    if not forward and layers and not (len(loss) and math.isnan(loss[row])):  # a loss of NaN may come from the batch
        look = (
            f"Look at what is done with the output of {quoted(layers[0])}: sqrt, norm, log and division have an "
            "infinite slope at 0, so add a small number inside. A softmax over nothing but -inf is 0 / 0, so mask with "
            "a large finite number. Under autocast, compute all of these in float32."
        )
    elif seen:
        look = f"Look at the input of {quoted(layers[0])} and at what is done with it in its forward pass."
    else:
        first = may_be_empty(rec) or may_be_zero(rec) if forward else ""
        look = first + (
            f"Look at the batch of step {step} first: is NaN or Inf in it (a division by a deviation of 0)? Then at "
            "the loss and at attention: log(0), exp of a large number, 0 / 0 (so is a softmax over nothing but -inf). "
            "Clamp before them, and compute them in float32."
        )
    return f"{look} {last}"


def _direction(rec: Recording, row: int) -> tuple[bool, tuple[str, ...], str]:
    """Return whether the forward pass broke, the affected layers with the origin first, and the evidence."""
    if RMS in rec.run.metrics:
        bad = _bad_layers(rec, RMS, row)
        if len(bad):
            return True, rec.names(bad), f"the output of {quoted(rec.names(bad)[0])} is the first non-finite one"
    gradient = next((n for n in (ACTIVATION_GRAD_NORM, PARAM_GRAD, COUNT) if len(_bad_layers(rec, n, row))), "")
    names = rec.names(_bad_layers(rec, gradient, row)) if gradient else ()
    loss = rec.scalar("loss")
    if len(loss) and not math.isfinite(loss[row]) and (math.isinf(loss[row]) or np.isfinite(loss[:row]).any()):
        return True, names, "the loss itself is not finite"
    if rec.setup.graph.whole("nonfinite_since", -1) == int(rec.run.steps[row]):
        odd = [item.text("layer") for item in rec.setup.entries("inputs") if item.flag("finite_output") is False]
        first = tuple(name for name in odd if name in names)[:1]
        where = f"; the output of {quoted(first[0])} is the first one known to be NaN or infinite" if first else ""
        return True, (*first, *(n for n in names if n not in first)), f"the loss itself is not finite{where}"
    origin = tuple(reversed(names))  # the backward pass begins at the output
    finite = _finite_after(rec, gradient, row) if gradient else ()
    nearest = quoted(origin[0]) if origin else "a layer"
    evidence = f"{nearest} is the layer nearest the loss with a non-finite gradient"
    if finite:
        evidence += f"; the gradient at {quoted(finite[0])}, the next layer, is finite"
    return False, origin, evidence


def _bad_layers(rec: Recording, name: str, row: int) -> list[int]:
    if name not in rec.run.metrics:
        return []
    values = np.asarray(rec.run.metric_rows(name, row, row + 1))[0]
    bad = values > 0 if name == COUNT else np.isinf(values)
    return rec.in_order(np.flatnonzero(bad))


def _finite_after(rec: Recording, name: str, row: int) -> tuple[str, ...]:
    """Return the layers with a finite gradient between the non-finite ones and the loss, input first."""
    values = np.asarray(rec.run.metric_rows(name, row, row + 1))[0]
    last = rec.run.layers[_bad_layers(rec, name, row)[-1]].depth
    after = [i for i in rec.run.main_layers() if rec.run.layers[i].depth > last and np.isfinite(values[i])]
    return rec.names(after)


def _counted(rec: Recording, row: int) -> str:
    if COUNT not in rec.run.metrics:
        return ""
    values = np.asarray(rec.run.metric_rows(COUNT, row, row + 1))[0]
    total = float(np.nansum(values))
    if not 0 < total < MOST_COUNTED:  # a file may say that it counted infinitely many
        return ""
    return f"in that step, {plural(int(total), 'entry', 'entries')} of parameter gradients are NaN or Inf"


def _too_many_skips(rec: Recording) -> list[Finding]:
    """Find consecutive steps that a GradScaler skipped and that its scale does not explain."""
    bounds = np.flatnonzero(np.diff(np.concatenate([[False], rec.skipped, [False]]).astype(np.int8)))
    starts, ends = bounds[::2], bounds[1::2]
    long = np.flatnonzero(ends - starts > SKIPS)
    if not len(long):
        return []
    start, end = int(starts[long[0]]), int(ends[long[0]])
    return [
        Finding(
            "nonfinite",
            (),
            (int(rec.run.steps[start]), int(rec.run.steps[end - 1])),
            f"the GradScaler skipped {end - start} steps in a row: the gradients are not finite at any loss scale",
            f"more than {SKIPS} steps skipped in a row",
            "PyTorch, torch.amp.GradScaler: the scale starts at 65536 = 2^16 and halves at each skipped step",
            "Run some steps without autocast to find the layer, or use bfloat16, which has the range of float32.",
            1.0,
        )
    ]
