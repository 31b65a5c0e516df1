"""What a callback's file is compared with: ``p.grad`` in float64, read by a hook of its own at each step.

It reads when the step is over, because some frameworks run the backward pass inside ``optimizer.step(closure)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from torch.optim import Optimizer

import gradlens

ONLY_OURS = [pytest.mark.filterwarnings("default"), pytest.mark.filterwarnings("error::gradlens.GradlensWarning")]
"""Warnings of other people's packages are theirs."""
TOLERANCE = 1e-6


class Later:
    """A module that is imported when it is used first: collecting the tests must not load every framework.

    Args:
        name: The module.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("__", "pytest_", "_mock")):  # while it collects, pytest asks every object for these
            raise AttributeError(name)
        return getattr(import_module(self._name), name)


def needs(*packages: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a module whose tests need these packages, which take seconds to import."""
    missing = [name for name in packages if find_spec(name) is None]
    return [
        pytest.mark.slow,
        pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
        *ONLY_OURS,
    ]


Norms = dict[str, float]


class Reference:
    """Reads the gradients that optimizers get."""

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.rows: list[Norms] = []
        self._model = model
        self.handles = [optimizer.register_step_post_hook(self._read) for optimizer in optimizers]

    def _read(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        row: Norms = {}
        for name, module in self._model.named_modules():
            own = [p for p in module.parameters(recurse=False) if p.grad is not None and id(p) in held]
            if own:
                row[name] = float(np.sqrt(sum(float((p.grad.detach().double() ** 2).sum()) for p in own)))  # type: ignore[union-attr]
        self.rows.append(row)


def assert_equal(path: Path | str, reference: Reference, rows: Sequence[int] | None = None) -> gradlens.Run:
    """Check that every row of the file is what the optimizer got, and return the run."""
    run = gradlens.read_run(path)
    expected = [reference.rows[i] for i in (range(len(reference.rows)) if rows is None else rows)]
    assert len(run.steps) == len(expected) > 0
    worst = worst_error(run, expected)
    assert worst < TOLERANCE, worst
    return run


def worst_error(run: gradlens.Run, expected: Sequence[Norms]) -> float:
    got = run.metric("param_grad_norm").astype(np.float64)
    wanted = np.array([[row.get(layer.name, np.nan) for layer in run.layers] for row in expected])
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    return float(np.nanmax(np.abs(got - wanted) / np.maximum(wanted, 1e-30)))


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> list[Reference]:
    """Return the references, one for each recording that begins in the test."""
    from gradlens.integrations.framework_recording import FrameworkRecording

    found: list[Reference] = []
    original = FrameworkRecording.begin

    def begin(self: FrameworkRecording, model: nn.Module, optimizer: Any, **more: Any) -> None:
        several = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
        found.append(Reference(model, [getattr(each, "optimizer", each) for each in several]))
        original(self, model, optimizer, **more)

    monkeypatch.setattr(FrameworkRecording, "begin", begin)
    return found
