"""Whether the numbers are right: float32, autocast, GradScaler, optimizers, and rows that nobody waits for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from experiments.device.checks import FAIL, PASS, Found, Part, judge
from experiments.device.models import (
    CONV,
    EMBEDDING,
    ENCODER,
    HUGE,
    LARGE,
    LSTM,
    MLP,
    SPARSE,
    TINY,
    ZEROS,
    Case,
)
from experiments.device.training import (
    FEW_STEPS,
    MakeOptimizer,
    Recorded,
    Rows,
    Setup,
    compare,
    rows_apart,
    train,
    unless_bare_fails,
)
from experiments.device.truth import largest_error

EXACT = 1e-6
"""Bound against norms of the very same gradients, in float64: what the recorder promises."""
CLOSE = 1e-4
"""Bound against a float64 copy: what float32 arithmetic, without TF32, may differ by in the gradients themselves."""
SCALE = 2.0**12
"""Small enough that no step but the spoiled one overflows."""

SPOILED = 2
"""The step whose inputs hold an infinity."""

QUICK = (MLP, CONV, ENCODER, TINY, ZEROS)
CASES = (MLP, CONV, LARGE, ENCODER, LSTM, EMBEDDING, SPARSE, TINY, HUGE, ZEROS)
OPTIMIZERS = {
    "Adam, fused": functools.partial(torch.optim.Adam, fused=True),
    "Adam, foreach": functools.partial(torch.optim.Adam, foreach=True),
    "AdamW, fused": functools.partial(torch.optim.AdamW, fused=True),
    "SGD, fused": functools.partial(torch.optim.SGD, momentum=0.9, fused=True),
    "SGD, foreach": functools.partial(torch.optim.SGD, momentum=0.9, foreach=True),
}
ADAM_RATE = 0.1
"""Of the rate of SGD."""


def measure(part: Part) -> None:
    """Make all checks of values."""
    compute_precisely(part)
    for name, setup in setups(part).items():
        part.check(name, functools.partial(unless_bare_fails, setup, functools.partial(check, setup)), needs=4)
    for case in (MLP,) if part.quick else (MLP, CONV):
        name = f"rows that nobody waits for: {case.name}"
        part.check(name, functools.partial(check_unwatched, make_setup(part, case)), needs=4)


def setups(part: Part) -> dict[str, Setup]:
    """Return all trainings whose rows are compared with truth, by name; few of them for a quick run."""
    make = functools.partial(make_setup, part)
    found = {f"float32: {case.name}": make(case, reference=True) for case in (QUICK if part.quick else CASES)}
    for dtype in (torch.bfloat16, torch.float16):
        for case in (CONV,) if part.quick else (MLP, CONV, ENCODER, LSTM):
            found[f"autocast {str(dtype).removeprefix('torch.')}: {case.name}"] = make(case, dtype=dtype)
    found |= scaled(make, part.device)
    for name, optimizer in OPTIMIZERS.items():
        if not part.quick or name == "Adam, fused":
            found[f"optimizer: {name}"] = make(MLP, make_optimizer=at_rate(optimizer), reference=True)
    return found


def make_setup(part: Part, case: Case, **options: Any) -> Setup:
    """Return a training on the part's device, short for a quick run."""
    few = {"steps": FEW_STEPS, "looked_at": tuple(range(FEW_STEPS - 1))} if part.quick else {}
    return Setup(case, part.device, **few, **options)


def compute_precisely(part: Part) -> None:
    """Let float32 be computed in float32, not TF32, and a convolution give the same result twice."""
    if part.on_cuda:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True


def scaled(make: Callable[..., Setup], device: str) -> dict[str, Setup]:
    """Return trainings with a GradScaler, in which the step ``SPOILED`` is skipped."""

    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler(device, init_scale=SCALE, growth_interval=10_000)

    fused = at_rate(functools.partial(torch.optim.SGD, momentum=0.9, fused=True))
    make = functools.partial(make, dtype=torch.float16, scaler=scaler, spoiled=SPOILED)
    return {
        "GradScaler: float16": make(MLP),
        "GradScaler: float16, unscaled and clipped": make(CONV, unscale=True, clip=0.1),
        "GradScaler: float16, fused optimizer": make(MLP, make_optimizer=fused),
    }


def at_rate(optimizer: functools.partial) -> MakeOptimizer:
    """Return what makes an optimizer at a learning rate that suits it."""
    factor = ADAM_RATE if "Adam" in optimizer.func.__name__ else 1.0
    return lambda parameters, rate: optimizer(parameters, lr=rate * factor)


def check(setup: Setup) -> Found:
    """Train, and compare the rows with truth in every way that the training offers."""
    recorded = train(setup)
    assert recorded.rows is not None
    skipped = _check_skipped(setup, recorded, recorded.rows) if setup.spoiled is not None else {}
    found = judge(_exact_errors(setup, recorded, recorded.rows), EXACT, **skipped, said=recorded.said)
    if setup.reference:
        close = judge(compare(recorded.rows, recorded.references), CLOSE)
        found |= {"float64_bound": CLOSE, "float64_errors": close["errors"]}
        found["status"] = found["status"] if close["status"] == PASS else FAIL
    if not skipped.get("skipped_right", True):
        found["status"] = FAIL
    return found


def _exact_errors(setup: Setup, recorded: Recorded, rows: Rows) -> dict[str, float]:
    """Return the errors against the norms of the same gradients, and those of the logged losses."""
    errors = compare(rows, {step: truth for step, truth in recorded.exact.items() if step != setup.spoiled})
    logged = rows.scalars["loss"]
    if len(logged) != len(recorded.losses):
        return errors | {"logged loss": float("inf")}
    finite = [step for step in range(len(logged)) if step != setup.spoiled]
    return errors | {"logged loss": largest_error(logged[finite], np.array(recorded.losses)[finite])}


def _check_skipped(setup: Setup, recorded: Recorded, rows: Rows) -> Found:
    """See whether the row of the skipped step says so, and holds the entries that were not finite."""
    row = rows.row(setup.spoiled or 0)
    said = [step for step, value in zip(rows.steps, rows.scalars["skipped"], strict=True) if value == 1]
    entries = float(np.nansum(rows.metrics["nonfinite_count"][row])) if row is not None else 0.0
    right = recorded.skipped == said == [setup.spoiled] and entries > 0
    return {"skipped_right": right, "skipped": recorded.skipped, "recorded_as_skipped": said, "nonfinite": entries}


def check_unwatched(setup: Setup) -> Found:
    """Compare the rows of a training that nothing but the recorder looks at with those of one that was looked at.

    To look at gradients waits for the device. Rows that are wrong only while the device lags behind show here.
    """
    looked_at = train(setup)
    alone = train(replace(setup, spy=False, looked_at=()))
    assert alone.rows is not None
    assert looked_at.rows is not None
    return judge(rows_apart(alone.rows, looked_at.rows), CLOSE, rows=len(alone.rows.steps))
