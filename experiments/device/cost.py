"""What recording costs: training steps with the recorder and without, in turn, in one process.

Four models with equal weights and data are trained: bare, bare again (the null), recorded at every step, and recorded
at every tenth. In each round every model makes a block of ``BLOCK`` steps, in an order drawn anew. A block is timed by
CUDA events from its first kernel to its last; within it the host may run ahead of the GPU, as in a real loop. What is
compared are the times of one round. Peak memory is measured apart, with one model at a time.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from experiments.device.checks import MEASURED, NO_CUDA, NOT_MEASURED, Found, Part
from experiments.device.models import SUBJECTS, Subject
from experiments.overhead.stats import compare

BLOCK = 10
"""Steps that are timed together: as many as lie between two rows at ``every=10``."""
WARM_BLOCKS = 3
LEAST_ROUNDS, MOST_ROUNDS = 5, 60
QUICK_BLOCK, QUICK_ROUNDS = 1, 2
MEMORY_STEPS = 27
"""So that the metrics that come in every 25th row come twice."""
MEMORY_SECONDS = 12.0
"""Kept free for the measurement of memory."""
WAYS: dict[str, dict[str, Any] | None] = {"bare": None, "null": None, "every=1": {}, "every=10": {"every": 10}}


def measure(part: Part, name: str) -> None:
    """Measure time and memory of one subject."""
    subject = SUBJECTS[name]
    part.add(subject=subject.title if not part.quick else f"small {subject.name}")
    part.check(f"time: {name}", functools.partial(time_steps, part, subject), needs=4 if part.quick else 20)
    part.check(f"peak memory: {name}", functools.partial(compare_memory, part, subject), needs=8, cuda=True)


# --- models in training ----------------------------------------------------------------------------------


class Lane:
    """A model in training, recorded or not, and what its blocks took.

    Args:
        subject: What is trained.
        part: Where, and whether small.
        batch: Size of the batch.
        folder: Where the run file goes.
        options: Of ``gradlens.record``; None: not recorded.
    """

    def __init__(self, subject: Subject, part: Part, batch: int, folder: Path, options: dict[str, Any] | None) -> None:
        self.model: nn.Module = subject.make(part.device, part.quick)
        self._inputs, self._targets = (tensor.to(part.device) for tensor in subject.data(batch, part.quick))
        self.optimizer = subject.optimizer(self.model)
        self._autocast = subject.autocast
        self._device = part.device
        self.steps = QUICK_BLOCK if part.quick else BLOCK
        self.seconds: list[float] = []
        self.host_seconds: list[float] = []
        self.loss: Tensor | None = None
        self._stack = ExitStack()
        self._recorder = None
        if options is not None:
            recorder = gradlens.record(
                self.model, folder / "run.h5", optimizer=self.optimizer, on_error="raise", overwrite=True, **options
            )
            self._recorder = self._stack.enter_context(recorder)

    def step(self) -> None:
        """Make one training step."""
        context = torch.autocast(self._device, torch.bfloat16) if self._autocast else nullcontext()
        with context:
            logits = self.model(self._inputs)
            loss = functional.cross_entropy(logits.flatten(0, -2), self._targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = loss.detach()
        if self._recorder is not None:
            self._recorder.log(loss=self.loss)

    def time_block(self) -> None:
        """Make a block of steps, and keep what one took on average."""
        timer = _time_on_gpu if self._device == "cuda" else _time_on_host
        seconds, host = timer(self._block)
        self.seconds.append(seconds / self.steps)
        self.host_seconds.append(host / self.steps)

    def _block(self) -> None:
        for _ in range(self.steps):
            self.step()

    def forget_times(self) -> None:
        """Discard the measurements of the warm-up."""
        self.seconds.clear()
        self.host_seconds.clear()

    def close(self) -> None:
        """End the recording."""
        self._stack.close()


def _time_on_gpu(act: Callable[[], None]) -> tuple[float, float]:
    """Return seconds by CUDA events, and the host's seconds until everything was launched."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    began = time.perf_counter()
    begin.record()
    act()
    end.record()
    host = time.perf_counter() - began
    end.synchronize()
    return begin.elapsed_time(end) / 1000, host


def _time_on_host(act: Callable[[], None]) -> tuple[float, float]:
    began = time.perf_counter()
    act()
    seconds = time.perf_counter() - began
    return seconds, seconds


# --- time ------------------------------------------------------------------------------------------------


def time_steps(part: Part, subject: Subject) -> Found:
    """Time the steps of all models, with the largest batch of which all fit."""
    for batch in (2,) if part.quick else subject.batches:
        _free_memory(part.device)
        with contextlib.suppress(torch.OutOfMemoryError), tempfile.TemporaryDirectory() as folder:
            return _time_lanes(part, subject, batch, Path(folder))
    return {"status": NOT_MEASURED, "reason": f"no batch of {subject.batches} fits into the GPU's memory"}


def _time_lanes(part: Part, subject: Subject, batch: int, folder: Path) -> Found:
    with _lanes(part, subject, batch, folder) as lanes:
        rounds = _run_rounds(part, list(lanes.values()))
        bare = lanes["bare"]
        found: Found = {"status": MEASURED, "batch": batch, "block": bare.steps, "rounds": rounds}
        found["timed_by"] = "CUDA events" if part.on_cuda else f"the host's clock; by events {NOT_MEASURED}: {NO_CUDA}"
        found["bare_ms"] = 1000 * statistics.median(bare.seconds)
        for name, lane in lanes.items():
            if lane is not bare:
                found[name] = compare(lane.seconds, bare.seconds)
                found[name]["host"] = compare(lane.host_seconds, bare.host_seconds)
        found["equal_losses"] = _equal_losses({name: float(lane.loss) for name, lane in lanes.items()})
        found["parameters"] = sum(p.numel() for p in bare.model.parameters())
    return found


def _equal_losses(losses: dict[str, float]) -> dict[str, bool] | str:
    """Return whether recording left the training as it was, to the last bit."""
    bare, null = losses.pop("bare"), losses.pop("null")
    if bare != null:
        return "unknown: two bare models differ already"
    return {name: loss == bare for name, loss in losses.items()}


@contextmanager
def _lanes(part: Part, subject: Subject, batch: int, folder: Path) -> Iterator[dict[str, Lane]]:
    """Build all models, and close the recorders in the end."""
    lanes: dict[str, Lane] = {}
    try:
        for name, options in WAYS.items():
            inner = folder / name
            inner.mkdir()
            lanes[name] = Lane(subject, part, batch, inner, options)
        yield lanes
    finally:
        for lane in lanes.values():
            lane.close()
        lanes.clear()


def _run_rounds(part: Part, lanes: list[Lane]) -> int:
    """Train in turn until there are enough rounds or the time is up; return their number."""
    draw, last, rounds = random.Random(0), -1, 0 if part.quick else -WARM_BLOCKS
    least, most, spare = (
        (QUICK_ROUNDS, QUICK_ROUNDS, 0.0) if part.quick else (LEAST_ROUNDS, MOST_ROUNDS, MEMORY_SECONDS)
    )
    while rounds < most and (rounds < least or part.left > spare):
        if rounds == 0:
            _settle(lanes)
        order = draw.sample(range(len(lanes)), len(lanes))
        if order[0] == last:  # no model twice in a row: it would find its weights in the cache
            order.reverse()
        last = order[-1]
        for k in order:
            lanes[k].time_block()
        rounds += 1
    return rounds


def _settle(lanes: list[Lane]) -> None:
    """End the warm-up: forget its times, and collect garbage before the rounds and not within them."""
    for lane in lanes:
        lane.forget_times()
    gc.collect()


# --- memory ----------------------------------------------------------------------------------------------


def compare_memory(part: Part, subject: Subject) -> Found:
    """Measure the peak of what torch allocates, with one model alone: bare, and recorded at every step."""
    batch = next((c["batch"] for c in part.found["checks"] if "batch" in c), subject.batches[-1])
    peaks = {}
    for name in ("bare", "every=1"):
        with tempfile.TemporaryDirectory() as folder:
            peaks[name] = _peak(part, subject, batch, Path(folder), WAYS[name])
    bare, recorded = peaks.values()
    return {"status": MEASURED, "batch": batch, "bytes": peaks, "extra": recorded - bare, "ratio": recorded / bare}


def _peak(part: Part, subject: Subject, batch: int, folder: Path, options: dict[str, Any] | None) -> int:
    _free_memory(part.device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    lane = Lane(subject, part, batch, folder, options)
    for _ in range(MEMORY_STEPS):
        lane.step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    lane.close()
    return peak


def _free_memory(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
