"""Whether rows are right where work runs on several CUDA streams.

Each training is compared with the same one on the default stream. Nothing waits for the GPU before all steps are done,
and the GPU is kept waiting on the other stream, so that a row which is read too early, or from memory that was given
away, is likely to be wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from experiments.device.checks import Found, Part, judge
from experiments.device.models import CONV, MLP, Case, TwoStreams
from experiments.device.training import STEPS, Recorded, Setup, Trainer, compare, recording, rows_apart, train
from experiments.device.values import CLOSE, compute_precisely

BUSY_CYCLES = 500_000
"""A fraction of a millisecond."""
BRANCHES = Case("two branches", lambda: TwoStreams(BUSY_CYCLES), (8, 16))


Step = Callable[[Trainer, Tensor, torch.cuda.Stream, Any], None]
"""Makes a training step and logs its loss; gets the model, the batch, a stream and the recorder."""


def measure(part: Part) -> None:
    """Make all checks of streams."""
    compute_precisely(part)
    checks: dict[str, Callable[[str], Found]] = {
        "a branch on a stream of its own": check_branches,
        "all on another stream": functools.partial(check_alone, _all_there),
        "forward pass on another stream, backward pass on the default one": functools.partial(check_alone, _forward),
        "all on another stream, closed on the default one without a wait": functools.partial(
            check_alone, _all_there, wait=False
        ),
        "two models on two streams": check_two_models,
    }
    for name, act in checks.items():
        part.check(f"streams: {name}", functools.partial(act, part.device), needs=4, cuda=True)


def check_branches(device: str) -> Found:
    """Compare with the float64 copy, which knows no streams, and a training without looks with one that has them."""
    recorded = train(Setup(BRANCHES, device, reference=True))
    alone = _train_on(BRANCHES, _here, device)
    assert recorded.rows is not None
    assert alone.rows is not None
    errors = {f"{name}, float64 copy": e for name, e in compare(recorded.rows, recorded.references).items()}
    return judge(errors | rows_apart(alone.rows, recorded.rows), CLOSE, said=alone.said)


def check_alone(step: Step, device: str, *, wait: bool = True) -> Found:
    """Compare a model that is trained with another stream with the same on the default stream.

    Args:
        step: Makes a training step.
        device: "cuda".
        wait: Whether the host waits for the GPU before the recorder is closed.
    """
    found: dict[str, float] = {}
    for case in (MLP, CONV):
        there, here = _train_on(case, step, device, wait=wait), _train_on(case, _here, device)
        found |= _apart(case, there, here)
    return judge(found, CLOSE)


def _apart(case: Case, recorded: Recorded, other: Recorded) -> dict[str, float]:
    if recorded.rows is None or other.rows is None:
        return {f"rows, {case.name}": float("inf")}
    return {f"{name}, {case.name}": error for name, error in rows_apart(recorded.rows, other.rows).items()}


def _train_on(case: Case, step: Step, device: str, *, wait: bool = True) -> Recorded:
    """Train a case, step by step, without a wait in between."""
    trainer, stream = Trainer(Setup(case, device)), torch.cuda.Stream()
    batches = [trainer.inputs(number).to(device) for number in range(STEPS)]
    torch.cuda.synchronize()
    with recording(trainer, {}) as (recorder, recorded):
        for x in batches:
            step(trainer, x, stream, recorder)
        if wait:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return recorded


def _here(trainer: Trainer, x: Tensor, stream: torch.cuda.Stream, recorder: Any) -> None:
    recorder.log(loss=trainer.step(x))


def _all_there(trainer: Trainer, x: Tensor, stream: torch.cuda.Stream, recorder: Any) -> None:
    with torch.cuda.stream(stream):
        torch.cuda._sleep(BUSY_CYCLES)
        recorder.log(loss=trainer.step(x))


def _forward(trainer: Trainer, x: Tensor, stream: torch.cuda.Stream, recorder: Any) -> None:
    """Make the forward pass on the stream, and the rest on the default one, as torch's notes on streams allow."""
    current = torch.cuda.current_stream()
    trainer.optimizer.zero_grad()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(BUSY_CYCLES)
        loss = trainer.setup.case.loss(trainer.called(x))
    current.wait_stream(stream)
    loss.record_stream(current)
    loss.backward()
    trainer.update()
    recorder.log(loss=loss.detach())


def check_two_models(device: str) -> Found:
    """Train two models in turn, each on a stream of its own, and compare with each alone."""
    cases = (MLP, CONV)
    trainers = [Trainer(Setup(case, device)) for case in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    batches = [[trainer.inputs(step).to(device) for step in range(STEPS)] for trainer in trainers]
    torch.cuda.synchronize()
    with ExitStack() as stack:
        recorders = [stack.enter_context(recording(trainer, {})) for trainer in trainers]
        for step in range(STEPS):
            for trainer, stream, mine, (recorder, _) in zip(trainers, streams, batches, recorders, strict=True):
                _all_there(trainer, mine[step], stream, recorder)
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    for case, (_, recorded) in zip(cases, recorders, strict=True):
        found |= _apart(case, recorded, _train_on(case, _here, device))
    return judge(found, CLOSE)
