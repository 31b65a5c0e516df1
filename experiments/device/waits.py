"""Whether the recorder lets the host wait for the GPU.

What is expected, written before anything was measured, is in ``EXPECTED``. There are two ways to see a wait:

- ``torch.cuda.set_sync_debug_mode("error")`` raises an error where torch waits. It does not know all waits: not
  those for an event, nor those of the driver when memory is allocated.
- The GPU is kept busy for a while, and a training step is launched behind that. A step that waits for anything does
  not return before the GPU is free, whatever it waits for. Such steps have few kernels, so that the queue of launches
  does not fill.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from experiments.device.checks import FAIL, MEASURED, NOT_MEASURED, PASS, Found, Part, last_line, where
from experiments.device.models import CONV, EMBEDDING, ENCODER, LARGE, LSTM, MLP, SPARSE
from experiments.device.training import STEPS, Setup, Trainer, recording

EXPECTED = {
    "training steps, of any row, between looks": "no wait: norms stay on the GPU, and a row is fetched by one "
    "non-blocking copy to pinned memory and an event, which the writing thread waits for",
    "steps with a look at the facts (the first five, then at twice the distance each time)": "waits when the "
    "optimizer has stepped, and in the first three before the backward pass (docs/facts.md). An error there only ends "
    "the facts, so the checks below do not show it",
    "recorder.log": "no wait: a tensor is cloned and fetched with its row",
    "recorder.log_epoch and close": "may wait: when they return, everything so far is in the file",
    "sparse gradients": "may wait: torch coalesces them, and asks the GPU how many entries there are",
}
MESSAGE = "synchronizing"
BUSY_SECONDS = 0.4
FIRST = 70
"""The first step that is timed, after the first row: more than the writing thread gathers before it wakes, so that
pinned memory has been freed, and is used again."""
BARE = "bare"
KINDS = {0: "first row", FIRST: "ordinary row", FIRST + 1: "ordinary row", 75: "row with the metrics of weights"}
"""Step to the kind of its row."""


def measure(part: Part) -> None:
    """Make all checks of waits."""
    part.add(expected=EXPECTED)
    for name, setup in setups(part.device).items():
        part.check(f"no wait: {name}", functools.partial(check_steps, setup), needs=3, cuda=True)
    for name, act in ENDS.items():
        part.check(f"wait, allowed: {name}", functools.partial(check_end, part.device, act), needs=3, cuda=True)
    part.check("steps behind a busy GPU", functools.partial(check_behind, part.device), needs=12, cuda=True)


def setups(device: str) -> dict[str, Setup]:
    """Return trainings whose steps should not wait."""
    fused = functools.partial(torch.optim.SGD, momentum=0.9, fused=True)
    scaled: dict[str, Any] = {"dtype": torch.float16, "scaler": lambda: torch.amp.GradScaler(device)}
    every_metric = {"metrics": all_metrics()}
    return {
        "MLP, default metrics": Setup(MLP, device),
        "MLP, all metrics": Setup(MLP, device, record=every_metric),
        "convolutions, all metrics": Setup(CONV, device, record=every_metric),
        "convolutions with large outputs": Setup(LARGE, device),
        "transformer encoder layer": Setup(ENCODER, device),
        "LSTM": Setup(LSTM, device),
        "embedding": Setup(EMBEDDING, device),
        "embedding, sparse gradient": Setup(SPARSE, device, lambda own, rate: torch.optim.SGD(own, rate)),
        "bfloat16 autocast": Setup(CONV, device, dtype=torch.bfloat16),
        "clipped": Setup(MLP, device, clip=0.1),
        "every=3": Setup(MLP, device, record={"every": 3}),
        "GradScaler, fused optimizer": Setup(MLP, device, lambda own, rate: fused(own, lr=rate), **scaled),
    }


def all_metrics() -> tuple[str, ...]:
    """Return every metric that the recorder knows."""
    from gradlens.metrics import METRICS

    return tuple(METRICS)


def check_steps(setup: Setup) -> Found:
    """Train bare and recorded while every wait that torch knows is an error; each kind of row is among the steps."""
    trainer = Trainer(setup)
    batches = [trainer.inputs(step).to(setup.device) for step in range(STEPS)]
    _train(Trainer(setup), batches[:2], None)  # the first step may wait for libraries to load
    bare = first_wait(functools.partial(_train, Trainer(setup), batches, None))
    if bare is not None:
        return {"status": NOT_MEASURED, "reason": "training waits without the recorder too", "first_wait": bare}
    with recording(trainer, setup.record) as (recorder, recorded):
        found = first_wait(functools.partial(_train, trainer, batches, recorder))
        torch.cuda.synchronize()
    rows = len(recorded.rows.steps) if recorded.rows is not None else 0
    if found is not None:
        allowed = setup.case is SPARSE  # see EXPECTED
        return {"status": MEASURED if allowed else FAIL, "first_wait": found}
    return {"status": PASS, "steps": STEPS, "rows": rows, "said": recorded.said}


def _train(trainer: Trainer, batches: list[torch.Tensor], recorder: Any) -> None:
    for x in batches:
        loss = trainer.step(x)
        if recorder is not None:
            recorder.log(loss=loss)


def first_wait(act: Callable[[], None]) -> Found | None:
    """Return the lines of Python in which torch waited first, or None.

    Raises:
        Exception: Whatever else went wrong.
    """
    torch.cuda.synchronize()
    try:
        with no_waiting():
            act()
    except RuntimeError as error:
        if MESSAGE not in str(error):
            raise
        return {"reason": last_line(error), "where": where(error, frames=8)}
    return None


@contextmanager
def no_waiting() -> Iterator[None]:
    """Let every wait that torch knows be an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


ENDS: dict[str, Callable[[Any], None]] = {
    "log_epoch": lambda recorder: recorder.log_epoch(epoch=1),
    "close": lambda recorder: recorder.close(),
}


def check_end(device: str, act: Callable[[Any], None]) -> Found:
    """See whether a call that may wait does so in a way that torch knows, and whether all rows are there after it."""
    trainer = Trainer(Setup(MLP, device))
    with recording(trainer, {}) as (recorder, recorded):
        for step in range(3):
            recorder.log(loss=trainer.step(trainer.inputs(step).to(device)))
        found = first_wait(functools.partial(act, recorder))
    rows = len(recorded.rows.steps) if recorded.rows is not None else 0
    return {"status": PASS if rows == 3 else FAIL, "first_wait": found, "rows": rows}


# --- behind a busy GPU -----------------------------------------------------------------------------------


def check_behind(device: str) -> Found:
    """Launch steps behind a busy GPU, and see whether they return before it is free; the same behind an idle one."""
    setup, cycles = Setup(MLP, device), cycles_for(BUSY_SECONDS)
    host_seconds(setup, 0, recorded=True)  # loads every kernel, which may wait
    idle = host_seconds(setup, 0, recorded=False) | host_seconds(setup, 0, recorded=True)
    busy = host_seconds(setup, cycles, recorded=False) | host_seconds(setup, cycles, recorded=True)
    waited = [name for name in busy if busy[name] - idle[name] > BUSY_SECONDS / 2]
    status = NOT_MEASURED if BARE in waited else FAIL if waited else PASS
    reason = {NOT_MEASURED: "a step waits without the recorder too", FAIL: f"waited: {', '.join(waited)}"}
    return {
        "status": status,
        "reason": reason.get(status, ""),
        "busy_s": BUSY_SECONDS,
        "idle": idle,
        "behind": busy,
    } | _pinned()


def _pinned() -> Found:
    """Return what torch says about the pinned memory that it has allocated, where this version of torch does."""
    tell = getattr(torch.cuda, "host_memory_stats", None)
    return {"pinned_memory": dict(tell())} if tell is not None else {}


def cycles_for(seconds: float) -> int:
    """Return how many cycles keep the GPU busy for so long."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    trial = 50_000_000
    torch.cuda._sleep(1000)
    begin.record()
    torch.cuda._sleep(trial)
    end.record()
    end.synchronize()
    return round(trial * seconds / (begin.elapsed_time(end) / 1000))


def host_seconds(setup: Setup, cycles: int, *, recorded: bool) -> dict[str, float]:
    """Return the host's longest time for each kind of step, launched behind a GPU that is busy for so many cycles."""
    trainer, longest = Trainer(setup), dict[str, float]()
    batches = [trainer.inputs(step).to(setup.device) for step in range(max(KINDS) + 1)]
    context = recording(trainer, {}) if recorded else nullcontext((None, None))
    with context as (recorder, _):
        for step, x in enumerate(batches):
            launch = functools.partial(_train, trainer, [x], recorder)
            kind = KINDS.get(step) if recorded else BARE if step > FIRST else None
            seconds = _time_launch(launch, cycles if kind else 0)
            if kind:
                longest[kind] = max(longest.get(kind, 0.0), seconds)
    return longest


def _time_launch(launch: Callable[[], None], cycles: int) -> float:
    torch.cuda.synchronize()
    if cycles:
        torch.cuda._sleep(cycles)
    began = time.perf_counter()
    launch()
    seconds = time.perf_counter() - began
    torch.cuda.synchronize()
    return seconds
