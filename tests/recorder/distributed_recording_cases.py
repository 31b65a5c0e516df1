"""Trainings that one process and several ones do alike, and what each of several processes does (run as a module)."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import gradlens
from gradlens.errors import RunFileError
from gradlens.recorder import parameters
from gradlens.recorder.hooks import layer_hooks
from gradlens.recorder.measured_row import MeasuredRow
from gradlens.recorder.measurers import weights
from gradlens.recorder.ranks.distributed import Ranks
from gradlens.storage import FileSink
from tests.processes import PATIENCE, run_all
from tests.recorder.case import KNOWN_METRICS

BATCH, CLASSES, STEPS = 24, 5, 6


class Net(nn.Module):
    """Convolutions, a layer that is called twice, in-place activations; no layer mixes the images of a batch."""

    def __init__(self, *, norm: bool, unused: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1: nn.Module = nn.GroupNorm(2, 8) if norm else nn.Identity()
        self.stage = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.unused = nn.Linear(3, 3) if unused else None
        self.norm2: nn.Module = nn.LayerNorm(8 * 16) if norm else nn.Identity()
        self.twice = nn.Linear(8 * 16, 8 * 16)
        self.head = nn.Linear(8 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        x = functional.max_pool2d(self.stage(x), 2)
        x = self.norm2(x.flatten(1))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return self.head(x)


@dataclass(frozen=True)
class Case:
    """How a model is trained."""

    optimizer: str = "sgd"
    norm: bool = True
    unused: bool = False
    parts: int = 1
    """Backward passes for each step."""
    clip: int = -1
    """First step whose gradients are clipped; -1 for none."""
    scaler: bool = False
    """With a GradScaler, and a step that it skips."""
    first_skipped: int = 2
    every: Any = 1
    steps: int = STEPS
    log_on_first: bool = False
    """Only rank 0 calls ``recorder.log`` and ``log_epoch``."""


CASES: dict[str, Case] = {
    "sgd": Case(),
    "adam": Case("adam", steps=26),
    "bare": Case(norm=False),
    "unused": Case(unused=True),
    "parts": Case(parts=3),
    "clip": Case(clip=0),
    "clip-late": Case(clip=4, steps=7),
    "clip-later": Case(clip=4, steps=20),
    "clip-parts": Case("adam", parts=2, clip=0),
    "scaler": Case(scaler=True),
    "scaler-first": Case(scaler=True, first_skipped=0, log_on_first=True),
    "scaler-last": Case(scaler=True, first_skipped=STEPS - 1, log_on_first=True),
    "every": Case(every=4, steps=10, log_on_first=True),
    "auto": Case("adam", every="auto", steps=20),
    "zero": Case("zero"),
}

FAILING = Case("adam", steps=8)


def build(case: Case) -> Net:
    torch.manual_seed(0)
    return Net(norm=case.norm, unused=case.unused)


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 3, 8, 8, generator=generator)
    return x, torch.randint(0, CLASSES, (BATCH,), generator=generator)


def make_optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    if case.optimizer == "zero" and dist.is_initialized():
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=1e-3, eps=1e-4)
    if case.optimizer in ("adam", "zero"):
        return torch.optim.Adam(model.parameters(), 1e-3, eps=1e-4)
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


@contextlib.contextmanager
def without_reduction(model: nn.Module) -> Iterator[None]:
    """Keep gradients local, as in all but the last of several backward passes."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    elif hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)
    else:
        yield


Pass = Callable[[], contextlib.AbstractContextManager[object]]


def train(
    case: Case,
    model: nn.Module,
    recorder: gradlens.Recorder | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    rank: int = 0,
    world: int = 1,
    on_step: Callable[[int], None] = lambda step: None,
    in_pass: Pass = contextlib.nullcontext,
) -> None:
    """Train on this rank's images of each batch; the loss is the mean over all of them."""
    logs = recorder is not None and (rank == 0 or not case.log_on_first)
    for step in range(case.steps):
        on_step(step)
        x, y = (part[rank::world] for part in data(step))
        optimizer.zero_grad()
        for part in range(case.parts):
            last = part == case.parts - 1
            with contextlib.nullcontext() if last else without_reduction(model), in_pass():
                logits = model(x[part :: case.parts])
                loss = functional.cross_entropy(logits, y[part :: case.parts]) / case.parts
                if scaler is not None and step == case.first_skipped:
                    loss = loss * float("inf")
                (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            scaler.unscale_(optimizer)
        if 0 <= case.clip <= step:
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if recorder is not None and logs:
            recorder.log(loss=loss)
            if step % 5 == 4:
                recorder.log_epoch(epoch=step // 5 + 1)


def make_scaler(case: Case) -> torch.amp.GradScaler | None:
    return torch.amp.GradScaler("cpu", init_scale=1024.0) if case.scaler else None


def run(case: Case, model: nn.Module, path: Path, rank: int = 0, world: int = 1, **options: Any) -> gradlens.Recorder:
    """Train and record."""
    optimizer, scaler = make_optimizer(case, model), make_scaler(case)
    record: dict[str, Any] = {"metrics": (*KNOWN_METRICS, "zero_fraction"), "every": case.every, "scaler": scaler}
    record |= {name: options.pop(name) for name in ("on_error", "every") if name in options}
    with gradlens.record(model, path, optimizer=optimizer, info={"model": "net"}, **record) as recorder:
        train(case, model, recorder, optimizer, scaler, rank, world, **options)
    return recorder


# --- what each of several processes does ----------------------------------------------------------------------


def wrap(kind: str, model: nn.Module, *, unused: bool) -> nn.Module:
    if kind == "static":
        return DistributedDataParallel(model, static_graph=True)
    if kind == "view":
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    if kind == "ddp":
        return DistributedDataParallel(model, find_unused_parameters=unused)
    from torch.distributed.device_mesh import init_device_mesh  # these cost three seconds
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for child in (model.conv1, model.stage, model.twice):
        fully_shard(child, mesh=mesh)
    return fully_shard(model, mesh=mesh)


ADD_UP = Ranks._add_up


class Collectives(TorchDispatchMode):
    """Counts collectives of whatever kind, and those within forward and backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.in_passes = 0
        self.passing = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "c10d" in func.namespace:
            self.count += 1
            self.in_passes += self.passing
        return func(*args, **(kwargs or {}))

    def add(self, ranks: Ranks, numbers: Any) -> Any:
        """Count a collective of the recorder, whose group torch does not know."""
        self.count += 1
        self.in_passes += self.passing
        return ADD_UP(ranks, numbers)

    @contextlib.contextmanager
    def in_pass(self) -> Iterator[None]:
        self.passing = True
        yield
        self.passing = False


def count_collectives(kind: str, case: Case, path: Path, rank: int, world: int) -> dict[str, Any]:
    """Return how many collectives a training needs without and with the recorder."""
    found: dict[str, Any] = {}
    for name in ("without", "with"):
        model = wrap(kind, build(case), unused=case.unused)
        with Collectives() as counter, mock.patch.object(Ranks, "_add_up", lambda *args: counter.add(*args)):
            if name == "with":
                recorder = run(case, model, path, rank, world, in_pass=counter.in_pass)
                found["rows"] = recorder.counts[0]
            else:
                optimizer = make_optimizer(case, model)
                train(case, model, None, optimizer, make_scaler(case), rank, world, in_pass=counter.in_pass)
        found[name] = counter.count, counter.in_passes
    return found


class Broken:
    """An error in recording on one rank, from one step on."""

    def __init__(self, where: str, here: bool) -> None:
        self.where, self.here = where, here
        self.at = 0 if where == "weights" else 3
        self.undo: Callable[[], None] = lambda: None

    def __call__(self, step: int) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError("no space left")

        if step == self.at and self.here:
            owner, name = {
                "hook": (layer_hooks, "_Hooks"),
                "read": (parameters.ParameterGradients, "read"),
                "weights": (weights.Weights, "before_step"),
                "columns": (MeasuredRow, "columns"),
                "sink": (FileSink, "write_row"),
                "epoch": (FileSink, "write_epoch"),
            }[self.where]
            usual = getattr(owner, name)
            setattr(owner, name, fail)
            self.undo = lambda: setattr(owner, name, usual)


def handle_error(kind: str, where: str, on_error: str, broken_rank: int, path: Path, rank: int, world: int) -> dict:
    """Return how a training with an error in recording on one rank ended here."""
    model = wrap(kind, build(FAILING), unused=False)
    broken = Broken(where, rank == broken_rank)
    made: list[int] = []
    found: dict[str, Any] = {"raised": ""}

    def on_step(step: int) -> None:
        made.append(step)
        broken(step)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            run(FAILING, model, path, rank, world, on_step=on_step, on_error=on_error)
        except Exception as error:
            found["raised"] = f"{type(error).__name__}: {error}"
        finally:
            broken.undo()
    said = [str(one.message) for one in warned if issubclass(one.category, gradlens.GradlensWarning)]
    hooked = any("_compiled_call_impl" in module.__dict__ for module in model.modules())
    return {**found, "steps": len(made), "said": said, "hooked": hooked}


def do_all(tasks: list[str], folder: Path, rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for task in tasks:
        path = folder / f"of-rank-{rank}" / f"{task}.h5"
        kind, what, *more = task.split("-")
        if what == "count":
            found[task] = count_collectives(kind, CASES["-".join(more)], path, rank, world)
        elif what == "error":
            where, on_error, broken_rank = more
            found[task] = handle_error(kind, where, on_error, int(broken_rank), path, rank, world)
        elif what == "die":
            run(
                CASES["adam"],
                wrap(kind, build(CASES["adam"]), unused=False),
                path,
                rank,
                world,
                on_step=Death(rank, more, folder / "of-rank-0" / path.name),
            )
        else:
            case = CASES["-".join([what, *more])]
            found[task] = run(case, wrap(kind, build(case), unused=case.unused), path, rank, world).counts
    return found


class Death:
    """Kills one rank in the midst of a training, when what was recorded so far is in the file."""

    def __init__(self, rank: int, dying: list[str], path: Path) -> None:
        self.dies, self.path = rank == int(dying[0]), path

    def __call__(self, step: int) -> None:
        if step == 12 and self.dies:
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end and self._rows() < 11:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

    def _rows(self) -> int:
        with contextlib.suppress(RunFileError):
            return len(gradlens.read_run(self.path).steps)
        return 0


def work(folder: Path, world: int, tasks: list[str], rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    found = do_all(tasks, folder, rank, world)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def main(folder: Path, world: int, tasks: list[str]) -> None:
    """Do all tasks in one group of processes; those in which one is killed each in a group of its own."""
    deadly = [task for task in tasks if "-die-" in task]
    rest = [task for task in tasks if task not in deadly]
    groups = [(folder, rest)] if rest else []
    for here, mine in [*groups, *((folder / task, [task]) for task in deadly)]:
        codes = run_all(here, world, functools.partial(work, here, world, mine))
        (here / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
