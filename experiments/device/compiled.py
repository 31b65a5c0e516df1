"""Whether rows are right where the model runs in code that torch.compile made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.device.checks import FAIL, SKIPPED, Found, Part, judge
from experiments.device.models import CONV
from experiments.device.training import Setup, compare, train, unless_bare_fails
from experiments.device.values import CLOSE, compute_precisely

WAYS: dict[str, dict[str, Any]] = {"default": {}, 'mode="reduce-overhead"': {"mode": "reduce-overhead"}}
STEPS, LOOKED_AT = 8, (0, 1, 2, 6, 7)
SECONDS = 40.0
"""Without so much time none is begun: to compile takes most of it."""


def measure(part: Part) -> None:
    """Make all checks of compiled code."""
    compute_precisely(part)
    for name, options in WAYS.items():
        if part.quick:
            act: Callable[[], Found] = _too_slow
        else:
            act = functools.partial(check, part.device, options)
        part.check(f"torch.compile: {name}", act, needs=1 if part.quick else SECONDS)


def _too_slow() -> Found:
    return {"status": SKIPPED, "reason": "--quick"}


def check(device: str, options: dict[str, Any]) -> Found:
    """Train a model that is compiled before the recorder is made and first called within it."""

    def compiled(model: nn.Module) -> nn.Module:
        return torch.compile(model, **options)

    torch.compiler.reset()
    setup = Setup(CONV, device, steps=STEPS, looked_at=LOOKED_AT, reference=True, spy=False, wrap=compiled)
    return unless_bare_fails(setup, functools.partial(judge_compiled, setup))


def judge_compiled(setup: Setup) -> Found:
    """Train, and compare with a float64 copy that is not compiled."""
    recorded = train(setup)
    assert recorded.rows is not None
    errors = compare(recorded.rows, recorded.references)
    missing = [name for name in errors if np.isnan(recorded.rows.metrics[name]).all()]
    found = judge({name: error for name, error in errors.items() if name not in missing}, CLOSE, said=recorded.said)
    outcome = "right" if not missing else f"missing, {'said' if recorded.said else 'silently'}"
    silent = bool(missing) and not recorded.said
    return found | {"outcome": outcome, "missing": missing, "status": FAIL if silent else found["status"]}
