"""One measurement in a process of its own: a comparison of three models, or one model alone for its memory or files.

``measure.py`` starts it; a job comes as JSON in the first argument, and the result goes into the file named second.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from machine import descendants_memory, descendants_seconds, folder_size, peak_memory
from peers import WAYS
from stats import compare
from subjects import SUBJECTS, is_in_place, make_subject
from torch import Tensor
from ways import Way

NAMES = ("bare", "null", "way")
LEAST_ROUNDS = 3
SYNC_STEPS = 30
"""Steps in which synchronisations are counted: long enough to have a row of the metrics that come every 25th."""


class Lane:
    """One model with its way to be watched, and what its steps took.

    Args:
        way: Watches it.
        device: "cpu" or "cuda".
        block: Steps that are timed together.
    """

    def __init__(self, way: Way, device: str, block: int) -> None:
        self.way = way
        self.steps = 0
        self.losses: list[Tensor | float] = []
        self.seconds: list[float] = []
        self.thread_seconds: list[float] = []
        self._cuda = device == "cuda"
        self._block = block

    def step(self) -> None:
        """Make one training step."""
        trained, way = self.way.trained, self.way
        loss = trained.compute_loss()
        trained.optimizer.zero_grad()
        loss.backward()
        way.after_backward()
        trained.optimizer.step()
        value = loss.detach() if self._cuda else loss.item()
        way.after_step(value)
        self.losses = [value]
        self.steps += 1

    def time_block(self) -> None:
        """Make some steps and keep what one took on average."""
        self.way.resume()
        if self._cuda:
            torch.cuda.synchronize()
        began, thread_began = time.perf_counter(), time.thread_time()
        with no_waiting(self._cuda and self.way.never_waits):
            for _ in range(self._block):
                self.step()
        if self._cuda:
            torch.cuda.synchronize()
        self.thread_seconds.append((time.thread_time() - thread_began) / self._block)
        self.seconds.append((time.perf_counter() - began) / self._block)

    def forget_times(self) -> None:
        """Discard the measurements of the warm-up."""
        self.seconds.clear()
        self.thread_seconds.clear()

    @property
    def last_loss(self) -> float:
        """The loss of the last step."""
        return float(self.losses[-1])


@contextmanager
def no_waiting(on: bool) -> Iterator[None]:
    """Let everything that waits for the accelerator fail."""
    if not on:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def count_synchronisations(lane: Lane) -> float:
    """Return how often a step waits for the accelerator, on average of some steps."""
    lane.way.resume()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(SYNC_STEPS):
                lane.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught) / SYNC_STEPS


def make_lane(
    job: dict[str, Any], way: type[Way], folder: Path, *, out_of_place: bool = False, small: bool = False
) -> Lane:
    """Build a model and begin to watch it."""
    trained = make_subject(job["subject"], job["device"], out_of_place=out_of_place, small=small)
    watched = way(trained, folder)
    watched.begin()
    return Lane(watched, job["device"], job["block"])


def orders(seed: int = 0) -> Iterator[tuple[int, int, int]]:
    """Draw the order of the three in each round.

    Random, so that it does not keep step with rows that come every tenth or 25th step; and no model is twice in a row,
    which would find its own weights still in the processor's cache.
    """
    draw, last = random.Random(seed), -1
    while True:
        order = draw.sample(range(3), 3)
        if order[0] != last:
            last = order[-1]
            yield tuple(order)


def run_rounds(lanes: list[Lane], job: dict[str, Any]) -> tuple[float, float]:
    """Train in turn until there are enough rounds or the time is up.

    Returns:
        Seconds of processor time outside this thread: in other threads, and in other processes.
    """
    order = orders()
    for _ in range(job["warmup"]):
        for k in next(order):
            lanes[k].time_block()
    for lane in lanes:
        lane.forget_times()
    gc.collect()
    gc.freeze()
    began, children = time.perf_counter(), descendants_seconds()
    process, thread = time.process_time(), time.thread_time()
    rounds = 0
    while rounds < job["steps"] and (rounds < LEAST_ROUNDS or time.perf_counter() - began < job["seconds"]):
        for k in next(order):
            lanes[k].time_block()
        rounds += 1
    threads = time.process_time() - process - (time.thread_time() - thread)
    return max(threads, 0.0), descendants_seconds() - children


def are_equal(bare: float, null: float, watched: float) -> bool | None:
    """Return whether watching left the training as it was; None where two bare ones differ already, as on some GPUs."""
    return watched == bare if null == bare else None


def measure_pair(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train a bare model, another bare one and a watched one in turn."""
    way = WAYS[job["way"]]
    out_of_place = way.out_of_place and is_in_place(make_subject(job["subject"], job["device"]).model)
    classes = (Way, Way, way)
    lanes = [make_lane(job, one, folder, out_of_place=out_of_place) for one in classes]
    in_threads, in_processes = run_rounds(lanes, job)
    bare, null, watched = lanes
    result: dict[str, Any] = {
        "rounds": len(bare.seconds),
        "bare_ms": 1000 * sorted(bare.seconds)[len(bare.seconds) // 2],
        "ratio": compare(watched.seconds, bare.seconds),
        "null": compare(null.seconds, bare.seconds),
        "equal_losses": are_equal(bare.last_loss, null.last_loss, watched.last_loss),
        "own_account": watched.way.own_account(),
        "row_share": watched.way.row_share(),
        "out_of_place": out_of_place,
    }
    if job["device"] == "cpu" and job["threads"] == 1:  # else the processor time of the step itself is in other threads
        steps = len(watched.seconds)
        result["elsewhere_ms"] = {"threads": 1000 * in_threads / steps, "processes": 1000 * in_processes / steps}
        own = sum(bare.thread_seconds)
        result["processor_ratio"] = (sum(watched.thread_seconds) + in_threads + in_processes) / own
        result["processor_null"] = sum(null.thread_seconds) / own
    if job["device"] == "cuda":
        result["synchronisations"] = count_synchronisations(watched)
    for lane in lanes:
        lane.way.end()
    return result | {"bytes": folder_size(folder), "steps": watched.steps}


def measure_solo(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train one model and look at the memory of the process."""
    lane = make_lane(job, WAYS[job["way"]], folder, out_of_place=job["out_of_place"])
    for _ in range(min(SUBJECTS[job["subject"]].solo_steps, 10 * job["steps"])):
        lane.step()
    result: dict[str, Any] = {"peak_memory": peak_memory(), "processes_memory": descendants_memory()}
    if job["device"] == "cuda":
        torch.cuda.synchronize()
        result["cuda_memory"] = torch.cuda.max_memory_allocated()
    lane.way.end()
    return result | {"peak_memory": peak_memory()}


def measure_bytes(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write files of two lengths; what is in them does not depend on the batch, so it is a small one."""
    way = WAYS[job["way"]].at_every_step()
    sizes = []
    for steps in way.bytes_steps:
        inner = folder / str(steps)
        inner.mkdir()
        lane = make_lane(job, way, inner, small=True)
        for _ in range(steps):
            lane.step()
        lane.way.end()
        sizes.append(folder_size(inner))
    short, long = way.bytes_steps
    per_step = (sizes[1] - sizes[0]) / (long - short)
    return {"per_step": per_step, "once": max(sizes[0] - per_step * short, 0.0)}


def main() -> None:
    """Run the measurement."""
    job, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    warnings.filterwarnings("ignore", message=".*backward hook is firing.*")
    torch.set_num_threads(job["threads"])
    measure = {"pair": measure_pair, "solo": measure_solo, "bytes": measure_bytes}[job["kind"]]
    try:
        if not WAYS[job["way"]].is_installed():
            result: dict[str, Any] = {"missing": WAYS[job["way"]].package}
        else:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                result = measure(job, Path(folder))
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
