"""What happens where a CUDA graph is captured and replayed: a replay runs no line of Python, and so no hook.

Expected, written before anything was measured: the recorder either records right rows, or leaves them out and says so
in a warning or a note. Rows with wrong numbers, rows that are missing without a word, and a capture that works without
the recorder and fails with it without an error of gradlens are failures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import gradlens
from experiments.device.checks import FAIL, NOT_MEASURED, PASS, Found, Part, last_line, where
from experiments.device.models import MLP
from experiments.device.training import Recorded, Rows, Setup, Trainer, recording
from experiments.device.truth import METRICS
from experiments.device.values import CLOSE, compute_precisely

WARM, REPLAYS = 4, 6

Act = Callable[[Trainer], None]


def measure(part: Part) -> None:
    """Make all checks of graphs; what comes first is the least likely to leave the GPU unusable."""
    compute_precisely(part)
    checks = {
        "make_graphed_callables before the recorder": (_make_graphed, _train_plainly),
        "make_graphed_callables within the recorder": (_nothing, _train_graphed),
        "a whole step captured, then replayed": (_nothing, _train_captured),
    }
    for name, (prepare, act) in checks.items():
        part.check(f"graphs: {name}", functools.partial(check, part.device, prepare, act), needs=6, cuda=True)


def check(device: str, prepare: Act, act: Act) -> Found:
    """Train with a graph, bare and recorded, and judge what was recorded by the same training without a graph.

    Args:
        device: "cuda".
        prepare: Is called before the recorder is made.
        act: Trains all steps.
    """
    try:
        _run(device, prepare, act, recorded=False)
    except Exception as error:
        return {"status": NOT_MEASURED, "reason": f"fails without the recorder too: {last_line(error)}"}
    truth = _run(device, _nothing, _train_plainly, recorded=True)
    assert truth.rows is not None
    try:
        recorded = _run(device, prepare, act, recorded=True)
    except gradlens.GradlensError as error:
        return {"status": PASS, "outcome": "refused", "reason": last_line(error)}
    except Exception as error:
        reason = f"works without the recorder, and fails with it: {last_line(error)}"
        return {"status": FAIL, "outcome": "training broken", "reason": reason, "where": where(error, frames=8)}
    return judge_rows(recorded, truth.rows)


def _run(device: str, prepare: Act, act: Act, *, recorded: bool) -> Recorded:
    trainer = Trainer(Setup(MLP, device))
    prepare(trainer)
    if not recorded:
        act(trainer)
        torch.cuda.synchronize()
        return Recorded()
    with recording(trainer, {}) as (_, found):
        act(trainer)
        torch.cuda.synchronize()
    return found


def _batch(trainer: Trainer, step: int) -> Tensor:
    return trainer.inputs(step).to(trainer.setup.device)


def _nothing(trainer: Trainer) -> None:
    """Prepare nothing."""


def _train_plainly(trainer: Trainer) -> None:
    for step in range(WARM + REPLAYS):
        trainer.step(_batch(trainer, step))


def _make_graphed(trainer: Trainer) -> None:
    """Replace the model's forward and backward pass by graphs; loss and optimizer stay as they are."""
    trainer.called = torch.cuda.make_graphed_callables(trainer.model, (_batch(trainer, 0),))


def _train_graphed(trainer: Trainer) -> None:
    _make_graphed(trainer)
    _train_plainly(trainer)


def _train_captured(trainer: Trainer) -> None:
    """Capture forward pass, backward pass and the optimizer's step in one graph, as torch's notes on graphs do."""
    inputs, current, side = _batch(trainer, 0), torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for step in range(WARM):
            inputs.copy_(_batch(trainer, step))
            trainer.step(inputs)
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        trainer.step(inputs)
    for step in range(WARM, WARM + REPLAYS):
        inputs.copy_(_batch(trainer, step))
        graph.replay()


def judge_rows(recorded: Recorded, truth: Rows) -> Found:
    """Judge rows of a training with a graph.

    Args:
        recorded: What was recorded.
        truth: The rows of the same training without a graph.
    """
    wrong, missing = _count_errors(recorded.rows, truth)
    rows = [] if recorded.rows is None else recorded.rows.steps
    found: Found = {"rows": rows, "trained": truth.steps, "wrong": wrong, "missing": missing, "said": recorded.said}
    if any(wrong.values()):
        outcome = f"wrong, {'said' if recorded.said else 'silently'}"
        return {"status": FAIL, "outcome": outcome, **found}
    if any(missing.values()):
        said = bool(recorded.said)
        return {"status": PASS if said else FAIL, "outcome": f"missing, {'said' if said else 'silently'}", **found}
    return {"status": PASS, "outcome": "right", **found}


def _count_errors(rows: Rows | None, truth: Rows) -> tuple[dict[str, int], dict[str, int]]:
    """Count, for each metric, the numbers that are wrong, and those that are missing although truth has them."""
    wrong, missing = dict.fromkeys(METRICS, 0), dict.fromkeys(METRICS, 0)
    for metric in METRICS:
        for place, step in enumerate(truth.steps):
            expected = truth.metrics[metric][place]
            row = None if rows is None else rows.row(step)
            known = rows is not None and row is not None and metric in rows.metrics and rows.layers == truth.layers
            found = rows.metrics[metric][row] if known and rows is not None else np.full(len(expected), np.nan)
            absent = np.isnan(found) & ~np.isnan(expected)
            missing[metric] += int(absent.sum())
            with np.errstate(invalid="ignore"):
                near = np.isclose(found, expected, rtol=CLOSE, atol=0, equal_nan=True)
            wrong[metric] += int((~near & ~absent).sum())
    return wrong, missing
