"""The first gradient that is not finite: where, when, and from which side it came."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.profile import ACTIVATION_GRAD
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.recorded_rows import COUNT, PARAM_GRAD, RMS, Recording

SKIPS = 16
"""A GradScaler begins at 65536 = 2^16 and halves at each step that it skips (PyTorch, torch.amp.GradScaler,
init_scale): after so many in a row the scale itself is no explanation."""
SOURCE = "IEEE 754: what is not finite stays so; one step of the optimizer carries it into every weight"
REMEDY = {
    "forward": "Look at the first layer named, and at its input: lower the learning rate, check the data for NaN and "
    "the loss for log(0) or 0 / 0.",
    "backward": "Look at the operation behind the first layer named (sqrt, norm, log or a division at 0 has an "
    "infinite slope), lower the learning rate, and clip.",
}


def first_broken_row(rec: Recording) -> int | None:
    """Return the first row with anything that is not finite, skipped steps left out; None where there is none."""
    rows = [rows[0] for name in (ACTIVATION_GRAD, PARAM_GRAD, COUNT, RMS) if len(rows := rec.broken_rows(name))]
    loss = rec.scalar("loss")
    rows += list(np.flatnonzero(np.isinf(loss))[:1])
    return int(min(rows)) if rows else None


def nonfinite(rec: Recording, row: int | None) -> list[Finding]:
    """Find the first row that is not finite, and whether the forward or the backward pass broke first.

    Confidence: 1, for NaN and Inf are seen and not estimated.

    Args:
        rec: What was recorded.
        row: As ``first_broken_row`` says.
    """
    if row is None:
        return _too_many_skips(rec)
    forward, layers, said = _direction(rec, row)
    every = sorted({int(r) for name in (ACTIVATION_GRAD, PARAM_GRAD, COUNT) for r in rec.broken_rows(name)} | {row})
    direction = "forward" if forward else "backward"
    step, more = int(rec.run.steps[row]), "more than " if rec.long else ""
    parts = [f"first at step {step}, in the {direction} pass: {said}", _counted(rec, row), f"{more}{len(every)} row(s)"]
    return [
        Finding(
            "nonfinite",
            layers,
            (step, int(rec.run.steps[every[-1]])),
            "; ".join(part for part in parts if part),
            "any NaN or Inf in a step that the optimizer makes",
            SOURCE,
            REMEDY[direction],
            1.0,
        )
    ]


def _direction(rec: Recording, row: int) -> tuple[bool, tuple[str, ...], str]:
    """Return whether the forward pass broke, the layers beginning with the first, and what shows it."""
    if RMS in rec.run.metrics:
        bad = _bad_layers(rec, RMS, row)
        if len(bad):
            return True, rec.names(bad), f"the output of {quoted(rec.names(bad)[0])} is the first that is not finite"
    gradient = next((n for n in (ACTIVATION_GRAD, PARAM_GRAD, COUNT) if len(_bad_layers(rec, n, row))), "")
    names = rec.names(_bad_layers(rec, gradient, row)) if gradient else ()
    loss = rec.scalar("loss")
    if len(loss) and not math.isfinite(loss[row]) and (math.isinf(loss[row]) or np.isfinite(loss[:row]).any()):
        return True, names, "the loss itself is not finite"
    origin = tuple(reversed(names))  # the gradient comes from the output
    healthy = _finite_behind(rec, gradient, row) if gradient else ()
    said = f"{quoted(origin[0]) if origin else 'a layer'} is the nearest to the loss whose gradient is not finite"
    return False, origin, f"{said}, {quoted(healthy[0])} behind it is still finite" if healthy else said


def _bad_layers(rec: Recording, name: str, row: int) -> list[int]:
    if name not in rec.run.metrics:
        return []
    values = np.asarray(rec.run.metric_rows(name, row, row + 1))[0]
    bad = values > 0 if name == COUNT else np.isinf(values)
    return rec.in_order(np.flatnonzero(bad))


def _finite_behind(rec: Recording, name: str, row: int) -> tuple[str, ...]:
    """Return the layers between the one that is not finite and the loss, nearest to it first."""
    values = np.asarray(rec.run.metric_rows(name, row, row + 1))[0]
    last = rec.run.layers[_bad_layers(rec, name, row)[-1]].depth
    behind = [i for i in rec.run.main_layers() if rec.run.layers[i].depth > last and np.isfinite(values[i])]
    return rec.names(behind)


def _counted(rec: Recording, row: int) -> str:
    if COUNT not in rec.run.metrics:
        return ""
    values = np.asarray(rec.run.metric_rows(COUNT, row, row + 1))[0]
    total = float(np.nansum(values))
    return f"{total:.0f} entries of parameter gradients are NaN or Inf there" if total else ""


def _too_many_skips(rec: Recording) -> list[Finding]:
    """Find a stretch of steps that a GradScaler skipped which its scale does not explain."""
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
            f"the GradScaler skipped {end - start} steps in a row: gradients are not finite at any scale",
            f"more than {SKIPS} steps skipped in a row",
            "PyTorch, torch.amp.GradScaler: it begins at 65536 = 2^16 and halves at each step skipped",
            "Run some steps without autocast to find the layer, or use bfloat16, which has the range of float32.",
            1.0,
        )
    ]
