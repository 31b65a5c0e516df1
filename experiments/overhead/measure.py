"""Step time with the recorder over step time without it.

Two equal ResNet-34 (batch 32, 64 px, Adam) train in one process, step by step in turn, so that the machine's drift hits
both alike. One is recorded with the default metrics into a file; a third, bare one is the null comparison.

    python experiments/overhead/measure.py --pairs 60
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.nn import functional

import gradlens
from gradlens.models import build_model
from gradlens.provenance import versions


def make_step(images: torch.Tensor, labels: torch.Tensor, stack: ExitStack, path: Path | None) -> Callable[[], float]:
    """Return a function that makes one training step and returns its seconds."""
    model = build_model("resnet34", num_classes=5, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), 6e-4, weight_decay=1e-4)
    recorder = None if path is None else stack.enter_context(gradlens.record(model, path, optimizer=optimizer))

    def step() -> float:
        started = time.perf_counter()
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
        if recorder is not None:
            recorder.log(loss=value)
        return time.perf_counter() - started

    return step


def quartiles(values: list[float]) -> str:
    """Write the median with its quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Measure and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=60)
    pairs = parser.parse_args().pairs
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 64, 64, generator=generator)
    labels = torch.randint(0, 5, (32,), generator=generator)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        names = ("bare", "null", "recorded")
        paths = (None, None, Path(folder) / "run.h5")
        steps = {name: make_step(images, labels, stack, path) for name, path in zip(names, paths, strict=True)}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for i in range(pairs + 5):
            order = names if i % 2 else names[::-1]
            for name in order:
                taken = steps[name]()
                if i >= 5:
                    seconds[name].append(taken)
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print(f"{torch.get_num_threads()} threads, {pairs} triples; step time in ms, median (quartiles)")
    for name in names:
        print(f"  {name:9s}{quartiles([1000 * s for s in seconds[name]])}")
    for name in ("null", "recorded"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["bare"], strict=True)]
        mean = sum(seconds[name]) / sum(seconds["bare"])
        print(f"{name} over bare: {quartiles(ratios)}, of the sums {mean:.3f}")


if __name__ == "__main__":
    main()
