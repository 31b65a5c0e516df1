"""Probe a model before training: record one backward pass for each of several samples of its weights."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from gradlens.config import make_config
from gradlens.data import load_data, make_batches
from gradlens.errors import GradlensError, ModelError
from gradlens.format import say_error
from gradlens.metrics import (
    ACTIVATION_GRAD_NORM,
    ACTIVATION_RMS,
    NONFINITE_COUNT,
    PARAM_GRAD_NORM,
    PARAM_NORM,
    ZERO_FRACTION,
)
from gradlens.models import Init, build_model
from gradlens.probe.histograms import Counting, count_entries
from gradlens.probe.inputs import Batch, first_input, make_noise, suitable_input
from gradlens.probe.losses import Feed, find_loss, find_scores, own_loss
from gradlens.probe.plan import (
    DEFAULT_CLASSES,
    INPUT_TIP,
    Entries,
    Input,
    ModulePlan,
    Probe,
    ProbePlan,
    WeightSample,
    add_up,
)
from gradlens.probe.stacks import describe_stack
from gradlens.recorder import Recorder
from gradlens.recorder.layers import choose_layers, clean_name, own_parameters
from gradlens.run import Run
from gradlens.sinks import ListSink
from gradlens.train.rng_state import read_generators, restore_generators, seed_generators

METRICS = (
    ACTIVATION_GRAD_NORM,
    PARAM_GRAD_NORM,
    PARAM_NORM,
    ACTIVATION_RMS,
    ZERO_FRACTION,
    NONFINITE_COUNT,
)
MODULE_TIP = "example_input is a batch as the module gets it in training, on its device"


def probe(plan: ProbePlan, on_sample: Callable[[int], None] = lambda n: None) -> Probe:
    """Probe a model; nothing is written, and the states of all random generators are restored.

    Args:
        plan: What to probe.
        on_sample: Called with the number of finished samples.

    Returns:
        The measurements of every sample of weights.

    Raises:
        GradlensError: The model cannot be built, or cannot take the input.
    """
    before = read_generators()
    try:
        return _probe(plan, on_sample)
    finally:
        restore_generators(before)


def _probe(plan: ProbePlan, on_sample: Callable[[int], None]) -> Probe:
    samples: list[WeightSample] = []
    batch: Batch | None = None
    for seed in plan.seeds:
        started = time.perf_counter()
        classes = plan.classes or DEFAULT_CLASSES
        if plan.data is not None and batch is None:
            plan, batch, classes = _load(plan)
        seed_generators(seed)
        model = _build(plan, classes, seed)
        if batch is None:
            plan = plan.filled(plan.input or suitable_input(plan, model))
            batch = make_noise(plan, model)
        samples.append(measure_sample(plan, model, Feed((batch[0],), labels=batch[1]), seed, started))
        on_sample(len(samples))
    return Probe(plan, tuple(samples))


def _build(plan: ProbePlan, classes: int, seed: int) -> nn.Module:
    try:
        model = build_model(
            plan.model,
            num_classes=classes,
            seed=seed,
            init=cast(Init, plan.init),
            shortcut="A" if plan.shortcut == "A" else "B",
        )
    except GradlensError:
        raise
    except Exception as error:
        raise ModelError(f"{plan.model} cannot be built: {say_error(error)}") from error
    if not any(parameter.requires_grad for parameter in model.parameters()):
        frozen = any(True for _ in model.parameters())
        raise ModelError(f"{plan.model} has no parameters{' that want a gradient' if frozen else ''}: nothing to probe")
    return model.train()


# --- inputs -----------------------------------------------------------------------------------------------


def _load(plan: ProbePlan) -> tuple[ProbePlan, Batch, int]:
    """Take the first training batch of real data, as ``gradlens run`` would."""
    plan = plan.filled(plan.input or Input((3, 64, 64)))
    assert plan.input is not None
    assert plan.batch_size is not None
    config = make_config(
        plan.model, data=plan.data, image_size=plan.input.shape[-1], batch_size=plan.batch_size, augment=()
    )
    data = load_data(config)
    train, _ = make_batches(
        data.train, data.val, batch_size=plan.batch_size, seed=0, augment=(), side=config.image_size, workers=0
    )
    images, labels = next(iter(train.epoch(1)))
    return plan, (images, labels), len(data.classes)


# --- one sample of weights --------------------------------------------------------------------------------


def measure_sample(plan: ProbePlan, model: nn.Module, feed: Feed, seed: int, started: float) -> WeightSample:
    """Measure one backward pass through a model; its buffers and gradients are changed.

    Args:
        plan: What is probed; input and batch size are filled in.
        model: The model.
        feed: What it is called with.
        seed: The seed of its weights; -1 if it has none.
        started: The time at which the sample began, of ``time.perf_counter``.

    Returns:
        The measurements.

    Raises:
        ModelError: The model cannot take the input, or its output has no loss.
    """
    if any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters()):
        with torch.no_grad():
            _forward(plan, model, feed)  # lazy modules get their shapes in the first pass
    reinitialised, first_loss = _reinitialise_head(plan, model, feed) if feed.loss is None else ("", None)
    layers = choose_layers(model)
    sink, counting = ListSink(), Counting(layers)
    recorder = Recorder(
        model,
        sink,
        metrics=METRICS,
        info={"model": plan.model, "seed": seed, "config": _config(plan, model)},
        on_error="raise",
    )
    with recorder:
        with counting:
            output = _forward(plan, model, feed)
        scores = None if feed.loss else find_scores(output, plan)
        if scores is not None and plan.classes and scores.shape[1] != plan.classes:
            raise ModelError(
                f"{plan.model} gives {scores.shape[1]} scores for {plan.classes} classes",
                tip="a factory with a parameter num_classes gets the number",
            )
        loss = find_loss(scores, feed.labels) if scores is not None else own_loss(feed, output)
        _backward(plan, loss)
        recorder.step(loss=loss.detach())
    names = _names(model)
    graded = {id(p): count_entries(p.grad) for p in model.parameters() if p.grad is not None}
    return WeightSample(
        run=_run(sink, plan, seed),
        loss=float(loss.detach()) if first_loss is None else first_loss,
        scores=0 if scores is None else scores.shape[1],
        spread=math.nan if scores is None else _spread(scores),
        outputs={name: counting.outputs[name] for name in layers if name in counting.outputs},
        parameters=_by_module(model, graded),
        all_parameters=add_up(list(graded.values())),
        units=counting.units,
        broken=tuple(counting.broken),
        unused=tuple(n[0] for p, n in names.values() if p.requires_grad and p.grad is None),
        frozen=tuple(n[0] for p, n in names.values() if not p.requires_grad),
        shared=tuple(tuple(n) for _, n in names.values() if len(n) > 1),
        numel=sum(p.numel() for p, _ in names.values()),
        tensors=len(names),
        seconds=time.perf_counter() - started,
        reinitialised=reinitialised,
    )


def _spread(scores: Tensor) -> float:
    return float(scores.detach().cpu().double().var(1, correction=0).mean().sqrt())  # some devices have no float64


@torch.no_grad()
def _reinitialise_head(plan: ProbePlan, model: nn.Module, feed: Feed) -> tuple[str, float | None]:
    """Initialise an output layer whose weights are all 0 by PyTorch's default, because it blocks every gradient.

    Returns:
        The layer's name and the loss before; or "" and None if there is no such layer.
    """
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linear or bool(linear[-1][1].weight.any()):
        return "", None
    name, head = linear[-1]
    scores = find_scores(_forward(plan, model, feed), plan)
    if scores.shape[1] != head.out_features or not bool((scores == scores[0]).all()):
        return "", None
    nn.init.uniform_(head.weight, -(head.in_features**-0.5), head.in_features**-0.5)
    return clean_name(name), float(find_loss(scores, feed.labels))


def _names(model: nn.Module) -> dict[int, tuple[nn.Parameter, list[str]]]:
    """Return each parameter once, with all of its names."""
    found: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), (parameter, []))[1].append(clean_name(name))
    return found


def _by_module(model: nn.Module, graded: Mapping[int, Entries]) -> dict[str, Entries]:
    found: dict[str, Entries] = {}
    for name, module in model.named_modules():
        parts = [graded[id(p)] for p in own_parameters(module) if id(p) in graded]
        if parts and ".parametrizations" not in f".{name}":
            found[clean_name(name) or "(model)"] = add_up(parts)
    return found


def _run(sink: ListSink, plan: ProbePlan, seed: int) -> Run:
    """Make a run of the row that was recorded, as if read from a file."""
    header = sink.header
    assert header is not None
    info = {"model": header.model, "seed": header.seed, "config": header.config, "notes": list(sink.notes)}
    name = f"{plan.spec.slug}-s{seed}"
    metrics = {key: sink.metric(key) for key in header.metrics}
    scalars = {"loss": np.array([row.scalars.get("loss", np.nan) for row in sink.rows])}
    steps, epochs = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int32)
    return Run(name, Path(name), header.layers, steps, epochs, scalars, metrics, {}, "complete", info)


def _config(plan: ProbePlan, model: nn.Module) -> dict[str, Any]:
    """Return the part of a run's configuration that the theory needs."""
    assert plan.input is not None
    shape = plan.input.shape
    config: dict[str, Any] = {"batch_size": plan.batch_size}
    if not plan.input.tokens and len(shape) == 3 and shape[0] == 3 and shape[1] == shape[2]:
        config["image_size"] = shape[1]
    if plan.spec.source == "registry":
        return config | {"init": plan.init, "shortcut": plan.shortcut}
    return config | describe_stack(model)


# --- forward and backward pass ----------------------------------------------------------------------------


def _forward(plan: ProbePlan, model: nn.Module, feed: Feed) -> Any:
    """Run a model; turn any exception into an error of one line with the place, the input and a tip."""
    try:
        return model(*feed.args, **feed.kwargs)
    except GradlensError:
        raise
    except Exception as error:
        where = _where(model, feed)
        suited = first_input(model)
        tip = INPUT_TIP if suited is None or suited == plan.input else f"--input {suited}? {INPUT_TIP}"
        tip = MODULE_TIP if isinstance(plan, ModulePlan) else tip
        raise ModelError(f"{plan.model} cannot take {plan.say_batch()}: {where}{say_error(error)}", tip=tip) from error


@torch.no_grad()
def _where(model: nn.Module, feed: Feed) -> str:
    """Find the module in which a model fails by a second pass; return its name, kind and input shapes."""
    entered: list[tuple[str, nn.Module, list[Any]]] = []

    def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append((name, module, [*args, *kwargs.values()]))

    handles = []
    for name, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(functools.partial(enter, name), with_kwargs=True),
            module.register_forward_hook(lambda m, args, output: entered.pop() and None),
        ]
    try:
        model(*feed.args, **feed.kwargs)
    except Exception:
        name, module, given = entered[-1] if entered else ("", model, [*feed.args, *feed.kwargs.values()])
        kind = str(module) if next(module.children(), None) is None else type(module).__name__
        got = ", ".join(str(tuple(a.shape)) for a in given if isinstance(a, Tensor))
        return f"at {clean_name(name) or 'the model itself'}, a {kind}, which got {got or 'no tensor'}: "
    finally:
        for handle in handles:
            handle.remove()
    return ""


def _backward(plan: ProbePlan, loss: Tensor) -> None:
    if not loss.requires_grad:
        raise ModelError(
            f"{plan.model}: no gradient leads from its output to a parameter (detach, or no_grad inside?)",
            tip="look for .detach(), .item() and torch.no_grad() between the parameters and the loss",
        )
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except GradlensError:
        raise
    except Exception as error:
        tip = "loss.backward() must work without gradlens, too"
        raise ModelError(f"{plan.model}: its backward pass failed: {say_error(error)}", tip=tip) from error
