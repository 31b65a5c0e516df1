"""Sharded trainings, and their truth: the same model in float64 in one process, read by autograd (run as a module)."""

from __future__ import annotations

import functools
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from tests.processes import run_all

WORDS, LENGTH, WIDTH, CLASSES, BATCH, STEPS = 11, 8, 8, 6, 8, 3
LOOPED = {"interleaved": "ScheduleInterleaved1F1B", "zerobubble": "ScheduleInterleavedZeroBubble"}
"""Schedules with two of four stages on each rank."""
PIPELINES = {"gpipe": "ScheduleGPipe", "1f1b": "Schedule1F1B", **LOOPED}
SHARDED_PIPELINES = ("pipeline+fsdp", "pipeline+columns")
"""Two stages, each on two ranks."""
TRUE = ("activation_grad_norm", "param_grad_norm", "param_norm", "update_ratio", "activation_rms")


class Block(nn.Module):
    """A residual block of a transformer without attention: norm, up, activation, down."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.act = nn.Tanh()
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class Model(nn.Module):
    """Embedding, two blocks, norm, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Front(nn.Module):
    """The first stage of a pipeline; names are those of the model."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embed, self.blocks = model.embed, nn.ModuleDict({"0": model.blocks[0]})

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks["0"](self.embed(x))


class Back(nn.Module):
    """The second stage."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.blocks, self.norm, self.head = nn.ModuleDict({"1": model.blocks[1]}), model.norm, model.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks["1"](x)))


class Quarter(nn.Module):
    """One of four stages; names are those of the model."""

    def __init__(self, model: Model, number: int) -> None:
        super().__init__()
        if number == 0:
            self.embed = model.embed
        elif number == 3:
            self.norm, self.head = model.norm, model.head
        else:
            self.blocks = nn.ModuleDict({str(number - 1): model.blocks[number - 1]})

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "blocks"):
            return next(iter(self.blocks.values()))(x)
        return self.embed(x) if hasattr(self, "embed") else self.head(self.norm(x))


def build() -> Model:
    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randint(0, WORDS, (BATCH, LENGTH), generator=generator)
    return x, torch.randint(0, CLASSES, (BATCH, LENGTH), generator=generator)


def loss_of(logits: Any, y: Tensor) -> Tensor:
    if hasattr(logits, "full_tensor"):
        logits = logits.full_tensor()
    return functional.cross_entropy(logits.flatten(0, 1), y.flatten())


def choose(name: str, module: nn.Module) -> bool:
    """Take layers, norm layers and activation functions."""
    return not list(module.children())


OPTIONS: dict[str, Any] = {"metrics": TRUE, "every": dict.fromkeys(TRUE, 1), "layers": choose}


def truth() -> dict[str, dict[str, list[float]]]:
    """Return the norms (metric, layer, row) of the whole model in float64."""
    model = build().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in TRUE}
    layers = {name: module for name, module in model.named_modules() if choose(name, module)}

    def add(metric: str, name: str, value: Tensor) -> None:
        found[metric].setdefault(name, []).append(float(value))

    def see(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        add("activation_rms", name, output.detach().square().mean().sqrt())
        output.register_hook(lambda grad: add("activation_grad_norm", name, grad.norm()))

    for name, module in layers.items():
        module.register_forward_hook(functools.partial(see, name))
    for step in range(STEPS):
        x, y = data(step)
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        own = {name: list(module.parameters()) for name, module in layers.items() if list(module.parameters())}
        norms = {name: norm_of(mine) for name, mine in own.items()}
        before = {name: [p.detach().clone() for p in mine] for name, mine in own.items()}
        for name, mine in own.items():
            add("param_norm", name, norms[name])
            add("param_grad_norm", name, norm_of([p.grad for p in mine]))
        optimizer.step()
        for name, mine in own.items():
            changes = [p.detach() - old for p, old in zip(mine, before[name], strict=True)]
            add("update_ratio", name, norm_of(changes) / norms[name])
    return found


def norm_of(tensors: list[Any]) -> Tensor:
    return torch.stack([tensor.detach().norm() for tensor in tensors]).norm()


# --- ways to shard ----------------------------------------------------------------------------------------------


def mesh_of(*sizes: int, names: tuple[str, ...] = ("tp",)) -> Any:
    from torch.distributed.device_mesh import init_device_mesh  # these cost three seconds

    return init_device_mesh("cpu", sizes, mesh_dim_names=names)


def parallelize(model: Model, mesh: Any, way: str) -> None:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    plan: dict[str, Any] = {}
    if way == "columns":  # the embedding, the norm layers and the head are whole on every rank
        for i in range(2):
            plan |= {f"blocks.{i}.up": ColwiseParallel(), f"blocks.{i}.down": RowwiseParallel()}
    elif way == "sequence":  # the residual stream is sharded along the sequence
        plan["embed"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
        for i in range(2):
            plan |= {
                f"blocks.{i}.norm": SequenceParallel(),
                f"blocks.{i}.up": PrepareModuleInput(
                    input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),), use_local_output=False
                ),
                f"blocks.{i}.down": RowwiseParallel(output_layouts=Shard(1)),
            }
        plan |= {
            "norm": SequenceParallel(),
            "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        }
    elif way == "tensors":  # outputs stay distributed tensors
        plan["embed"] = RowwiseParallel(input_layouts=Replicate(), use_local_output=False)
        for i in range(2):
            plan |= {
                f"blocks.{i}.norm": SequenceParallel(sequence_dim=1, use_local_output=False),
                f"blocks.{i}.up": ColwiseParallel(use_local_output=False),
                f"blocks.{i}.down": RowwiseParallel(use_local_output=False),
            }
        plan |= {"norm": SequenceParallel(use_local_output=False), "head": ColwiseParallel(use_local_output=False)}
    parallelize_module(model, mesh, plan)
    if way == "sequence":
        for i in range(2):
            parallelize_module(model, mesh, {f"blocks.{i}.up": ColwiseParallel()})


def wrap(way: str, model: Model, world: int) -> tuple[nn.Module, int, int]:
    """Return the model, and which part of how many parts of the batch this rank gets."""
    kind, _, plan = way.rpartition("+")
    if not kind:
        parallelize(model, mesh_of(world), plan)
        return model, 0, 1
    from torch.distributed.fsdp import fully_shard

    mesh = mesh_of(world // 2, 2, names=("dp", "tp"))
    parallelize(model, mesh["tp"], plan)
    for block in model.blocks:
        fully_shard(block, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    return model, mesh["dp"].get_local_rank(), world // 2


def train_stage(way: str, path: Path, rank: int) -> list[str]:
    """Train one stage of a pipeline of two, or two of four, and record them into a file of their own."""
    from torch.distributed import pipelining

    whole = build()
    model: nn.Module = (Front, Back)[rank](whole)
    stages: Any = pipelining.PipelineStage(model, rank, 2, torch.device("cpu"))
    if way in LOOPED:
        model = nn.ModuleDict({f"stage{i}": Quarter(whole, i) for i in (rank, rank + 2)})
        stages = [pipelining.PipelineStage(model[f"stage{i}"], i, 4, torch.device("cpu")) for i in (rank, rank + 2)]
    schedule = getattr(pipelining, PIPELINES[way])(stages, n_microbatches=4, loss_fn=loss_of)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with gradlens.record(model, path, optimizer=optimizer, on_error="raise", **OPTIONS):
            for step in range(STEPS):
                x, y = data(step)
                optimizer.zero_grad()
                schedule.step(x) if rank == 0 else schedule.step(target=y)
                optimizer.step()
    return [str(one.message) for one in warned if issubclass(one.category, gradlens.GradlensWarning)]


def train_sharded_stage(way: str, path: Path) -> list[str]:
    """Train one stage of a pipeline of two that is itself sharded over two ranks."""
    from torch.distributed import pipelining
    from torch.distributed.fsdp import fully_shard

    mesh = mesh_of(2, 2, names=("pipeline", "within"))
    stage, place = mesh["pipeline"].get_local_rank(), mesh["within"].get_local_rank()
    whole = build()
    if way == "pipeline+columns":
        parallelize(whole, mesh["within"], "columns")
    model = (Front, Back)[stage](whole)
    part, parts = (0, 1) if way == "pipeline+columns" else (place, 2)
    if parts == 2:
        fully_shard(model, mesh=mesh["within"])
    group = mesh["pipeline"].get_group()
    schedule = pipelining.ScheduleGPipe(
        pipelining.PipelineStage(model, stage, 2, torch.device("cpu"), group=group), n_microbatches=2, loss_fn=loss_of
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with gradlens.record(model, path, optimizer=optimizer, on_error="raise", **OPTIONS):
            for step in range(STEPS):
                x, y = (each[part::parts] for each in data(step))
                optimizer.zero_grad()
                schedule.step(x) if stage == 0 else schedule.step(target=y)
                optimizer.step()
    return [str(one.message) for one in warned if issubclass(one.category, gradlens.GradlensWarning)]


def refused(path: Path) -> list[str]:
    """Return what is said where DistributedDataParallel gets a part of a mesh whose other part is sharded."""
    mesh = mesh_of(2, 2, names=("dp", "tp"))
    model = build()
    parallelize(model, mesh["tp"], "columns")
    model = nn.parallel.DistributedDataParallel(model, device_mesh=mesh["dp"])
    try:
        gradlens.record(model, path, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    except gradlens.GradlensError as error:
        return [error.message, error.tip]
    return []


def train(way: str, path: Path, world: int) -> list[str]:
    if way in PIPELINES:
        return train_stage(way, path, dist.get_rank())
    if way in SHARDED_PIPELINES:
        return train_sharded_stage(way, path)
    if way == "ddp+columns":
        return refused(path)
    model, part, parts = wrap(way, build(), world)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with gradlens.record(model, path, optimizer=optimizer, on_error="raise", **OPTIONS) as recorder:
            for step in range(STEPS):
                x, y = (each[part::parts] for each in data(step))
                optimizer.zero_grad()
                loss = loss_of(model(x), y)
                loss.backward()
                optimizer.step()
                recorder.log(loss=loss)
    return [str(one.message) for one in warned if issubclass(one.category, gradlens.GradlensWarning)]


def work(folder: Path, world: int, tasks: list[str], do: Callable[[str, Path, int], Any], rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    found = {task: do(task, folder / f"of-rank-{rank}" / f"{task}.h5", world) for task in tasks}
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    parts = [f"torch.distributed.{name}" for name in ("fsdp", "pipelining", "tensor.parallel")]
    for name in ("gradlens.recorder.recorder", "gradlens.storage", "torch._dynamo", *parts):
        importlib.import_module(name)  # these cost seconds: here once for all processes
    here, ranks = Path(sys.argv[1]), int(sys.argv[2])
    codes = run_all(here, ranks, functools.partial(work, here, ranks, sys.argv[3:], train))
    sys.exit(0 if codes == [0] * ranks else "".join((here / f"rank{i}.txt").read_text() for i in range(ranks)))
