"""Compare what common ways of watching gradients hold with what the optimizer received.

    python experiments/beside/measure.py -o experiments/beside/results.json

Four questions, the same small training for each way: is the number that of the optimizer's step (four micro-batches,
then clipping); what becomes of a backward pass that is discarded; of one NaN; and of the steps before a kill. A way
whose package is missing is left out. ``README.md`` in this folder has the results.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import gradlens

NAME, STEPS, KILL_STEP, PAUSE_S = "0.weight", 6, 300, 0.01
NAN_STEP = STEPS - 1
Values = list[tuple[int, float]]


def build() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """Return a small network and its optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def loss_of(model: nn.Module, step: int, part: int = 0, nan: bool = False) -> Tensor:
    """Return the loss of a batch; with ``nan`` the gradient of a single weight is NaN, and the loss is not."""
    random = torch.Generator().manual_seed(100 * step + part)
    x, y = torch.randn(16, 8, generator=random), torch.randint(0, 2, (16,), generator=random)
    loss = nn.functional.cross_entropy(model(x), y)
    return loss + (dict(model.named_parameters())[NAME][0, 0] * 0).sqrt() if nan else loss


class Way:
    """A way to watch one weight's gradient; ``values`` are what it holds afterwards: step and number."""

    title: ClassVar[str]
    package: ClassVar[str] = ""
    statistic: ClassVar[str] = "norm"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        self.model, self.optimizer, self.folder, self.step, self.found = model, optimizer, folder, 0, Values()

    def start(self) -> None:
        """Place hooks, open files."""

    def after_backward(self) -> None:
        """Do what is usually written after ``loss.backward()``."""

    def after_step(self) -> None:
        """Do what is usually written after ``optimizer.step()``."""

    def end(self) -> None:
        """Close files."""

    def values(self) -> Values:
        """Return the numbers that are kept."""
        return self.found

    @staticmethod
    def rows_left(folder: Path) -> int:
        """Return how many steps can be read from the folder after a kill."""
        return 0


class Gradlens(Way):
    """gradlens.record with its defaults."""

    title = "gradlens"

    def start(self) -> None:
        self.recorder = gradlens.record(
            self.model, self.folder / "run.h5", optimizer=self.optimizer, metrics="nonfinite_count"
        ).start()

    def end(self) -> None:
        self.recorder.close()

    def values(self) -> Values:
        run = gradlens.read_run(self.folder / "run.h5")
        return list(zip(run.steps.tolist(), run.metric("param_grad_norm")[:, 0].tolist(), strict=True))

    @staticmethod
    def rows_left(folder: Path) -> int:
        return len(gradlens.read_run(folder / "run.h5").steps)


class ByHand(Way):
    """The norm of each p.grad after loss.backward(), kept in a list."""

    title = "`p.grad.norm()` after `backward()`"

    def after_backward(self) -> None:
        norms = {name: p.grad.norm().item() for name, p in self.model.named_parameters() if p.grad is not None}
        self.found.append((self.step, norms[NAME]))


class TensorBoard(Way):
    """add_histogram of each p.grad after loss.backward()."""

    title, package = "TensorBoard `add_histogram`", "tensorboard"

    def start(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder))

    def after_backward(self) -> None:
        for name, parameter in self.model.named_parameters():
            self.writer.add_histogram(name, parameter.grad, self.step)

    def end(self) -> None:
        self.writer.close()

    @staticmethod
    def events(folder: Path) -> list[Any]:
        """Return the histograms of the weight in the folder's files."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        read = EventAccumulator(str(folder), size_guidance={"histograms": 0})
        read.Reload()
        return read.Histograms(NAME) if NAME in read.Tags()["histograms"] else []

    def values(self) -> Values:
        return [(e.step, math.sqrt(e.histogram_value.sum_squares)) for e in self.events(self.folder)]

    @staticmethod
    def rows_left(folder: Path) -> int:
        return len(TensorBoard.events(folder))


class Wandb(Way):
    """wandb.watch at every step, offline; the numbers are taken where it makes its histograms."""

    title, package, statistic = "`wandb.watch`", "wandb", "largest"

    def start(self) -> None:
        import wandb
        from wandb.integration.torch import wandb_torch

        self.run = wandb.init(dir=str(self.folder), mode="offline", settings=wandb.Settings(silent=True))
        self.kept = kept = []
        histogram = wandb.Histogram

        def keep(*args: Any, **options: Any) -> Any:
            kept.append(float(max(map(abs, options["np_histogram"][1]))))
            return histogram(*args, **options)

        wandb_torch.wandb.Histogram = keep
        self.restore = lambda: setattr(wandb_torch.wandb, "Histogram", histogram)
        hook = wandb_torch.TorchHistory.log_tensor_stats

        def only_the_weight(history: Any, tensor: Tensor, name: str) -> None:
            before = len(kept)
            hook(history, tensor, name)
            if name.endswith(NAME):
                self.found += [(self.step, value) for value in kept[before:]]

        wandb_torch.TorchHistory.log_tensor_stats = only_the_weight
        self.unhook = lambda: setattr(wandb_torch.TorchHistory, "log_tensor_stats", hook)
        self.run.watch(self.model, log="gradients", log_freq=1)

    def after_step(self) -> None:
        self.run.log({"step": self.step})

    def end(self) -> None:
        self.restore()
        self.unhook()
        self.run.finish()

    @staticmethod
    def rows_left(folder: Path) -> int:
        from wandb.proto.wandb_internal_pb2 import Record

        (file,) = folder.rglob("*.wandb")
        kinds = [Record.FromString(data).WhichOneof("record_type") for data in read_log(file.read_bytes())]
        return kinds.count("history")


def read_log(data: bytes, head: int = 7, block: int = 1 << 15) -> list[bytes]:
    """Return the whole records of a file in LevelDB's log format: checksum, length, type and bytes of each part."""
    found, parts, at = list[bytes](), b"", head
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if at > len(data) or kind == 0:
            break
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(parts)
            parts = b""
    return found


def truths(model: nn.Module, optimizer: torch.optim.Optimizer, kept: list[dict[str, float]]) -> None:
    """Keep what the optimizer receives at each of its steps."""

    def look(*_: Any) -> None:
        gradient = dict(model.named_parameters())[NAME].grad.double()
        both = math.hypot(gradient.norm().item(), dict(model.named_parameters())["0.bias"].grad.double().norm().item())
        kept.append({"norm": gradient.norm().item(), "largest": gradient.abs().max().item(), "layer": both})

    optimizer.register_step_pre_hook(look)


def train(way: Way, *, parts: int = 1, clip: bool = False, inner: bool = False, nan: bool = False) -> None:
    """Train a few steps as the question wants it."""
    for way.step in range(STEPS):
        if inner:
            loss_of(
                way.model, way.step, part=50
            ).backward()  # an adversarial example is made; its gradients are dropped
            way.optimizer.zero_grad()
        for part in range(parts):
            (loss_of(way.model, way.step, part, nan and way.step == NAN_STEP) / parts).backward()
            way.after_backward()
        if clip:
            nn.utils.clip_grad_norm_(way.model.parameters(), 0.1)
        way.optimizer.step()
        way.optimizer.zero_grad()
        way.after_step()


def ask(kind: type[Way], **question: bool | int) -> dict[str, Any]:
    """Return how many numbers a way holds for a step, and how far the last one is from what the optimizer received."""
    model, optimizer = build()
    kept: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        way = kind(model, optimizer, Path(folder))
        way.start()
        truths(model, optimizer, kept)
        try:
            train(way, **question)
        except Exception as error:
            return {"raises": f"{type(error).__name__}: {error}"}
        way.end()
        values = way.values()
    statistic = "layer" if kind is Gradlens else kind.statistic
    errors = []
    for step, truth in enumerate(kept):
        own = [value for at, value in values if at == step]
        errors.append(abs(own[-1] / truth[statistic] - 1) if own else math.nan)
    if question.get("nan"):
        return {"at_nan": [repr(value) for step, value in values if step == NAN_STEP]}
    return {"per_step": len(values) / STEPS, "largest_error": max(errors)}


def rows_after_kill(kind: type[Way]) -> dict[str, int]:
    """Return how many steps can be read after a process was killed."""
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen([sys.executable, __file__, "--child", kind.__name__, folder], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()
        return {"steps": KILL_STEP, "rows": kind.rows_left(Path(folder))}


def child(kind: type[Way], folder: Path) -> None:
    """Train until killed: the steps, then a line, then nothing more."""
    model, optimizer = build()
    way = kind(model, optimizer, folder)
    way.start()
    for way.step in range(KILL_STEP):
        loss_of(model, way.step).backward()
        way.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        way.after_step()
        time.sleep(PAUSE_S)
    os.write(1, b"done\n")
    time.sleep(600)


WAYS: tuple[type[Way], ...] = (Gradlens, ByHand, Wandb, TensorBoard)


def measure() -> dict[str, Any]:
    """Return the answers of every way that is installed."""
    answers = {}
    for kind in WAYS:
        if kind.package and importlib.util.find_spec(kind.package) is None:
            continue
        answers[kind.title] = {
            "moment": ask(kind, parts=4, clip=True),
            "discarded": ask(kind, inner=True),
            "nan": ask(kind, nan=True),
            "kill": rows_after_kill(kind),
        }
        print(kind.title, json.dumps(answers[kind.title], indent=2))
    return answers


def main() -> None:
    """Measure, or be the child that is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="a JSON file for the answers")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child({kind.__name__: kind for kind in WAYS}[arguments.child[0]], Path(arguments.child[1]))
        return
    answers = measure()
    if arguments.output:
        from importlib.metadata import version

        packages = [
            "torch",
            *(kind.package for kind in WAYS if kind.package and importlib.util.find_spec(kind.package)),
        ]
        facts = {"versions": {name: version(name) for name in packages}, "answers": answers}
        arguments.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
