"""Probe a module as it is, with a batch that is given, and leave no trace in it.

While the module runs, its state changes: batch norm updates its buffers, the recorder places hooks, gradients are
written. ``untouched`` reads all of it before and restores it after, also when the module fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only

from gradlens.errors import ConfigError, ModelError, RecorderError
from gradlens.probe.losses import Feed
from gradlens.probe.measure import MODULE_TIP, measure_sample
from gradlens.probe.plan import Input, ModulePlan, Probe
from gradlens.recorder.layers import choose_layers
from gradlens.train.rng_state import read_generators, restore_generators

Module = nn.Module
Loss = Callable[[Any], Any]
"""A function of a module's output that returns a scalar tensor."""


def probe_module(module: Module, example_input: Any, loss: Loss | None = None) -> Probe:
    """Measure one backward pass of a module; the module and all random generators are as before afterwards.

    Args:
        module: Any module with parameters.
        example_input: A batch: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        loss: Output to a scalar; None for cross-entropy against labels that are independent of the input.

    Returns:
        The measurements, one sample of weights.

    Raises:
        ConfigError: An argument has another type.
        ModelError: The module has nothing to probe, cannot take the input, or its output is no scores and there is no
            ``loss``.
    """
    started = time.perf_counter()
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"module must be a torch.nn.Module, got a {type(module).__name__}",
            tip="the command gradlens probe takes names of models",
        )
    if loss is not None and not callable(loss):
        raise ConfigError(
            f"loss must be a function of the module's output, got a {type(loss).__name__}",
            tip="loss=lambda output: criterion(output, labels)",
        )
    feed = replace(_make_feed(example_input), loss=loss)
    module = getattr(module, "_orig_mod", module)  # what torch.compile was given: compiled code counts nothing
    _check(module)
    plan = _make_plan(module, feed)
    others = [loss] if isinstance(loss, nn.Module) else []
    with untouched(module, *others) as put_aside, torch.inference_mode(mode=False):  # enables gradients, too

        def lone(output: Any) -> Any:
            """Return the loss, and put the gradients of all that it uses aside."""
            assert loss is not None
            found = loss(output)
            put_aside(_leaves(found))
            return found

        feed = replace(feed, args=_copy(feed.args), kwargs=_copy(feed.kwargs), loss=loss and lone)
        return Probe(plan, (measure_sample(plan, module, feed, -1, started),))


def _make_feed(example: Any) -> Feed:
    if isinstance(example, Tensor):
        example = (example,)
    if not isinstance(example, tuple | Mapping) or not all(isinstance(key, str) for key in _keys(example)):
        raise ConfigError(
            f"example_input must be a tensor, a tuple of positional arguments or a dict of keyword arguments, "
            f"got a {type(example).__name__}",
            tip="(inputs,) is a tuple of one argument, whatever that is",
        )
    feed = Feed((), dict(example)) if isinstance(example, Mapping) else Feed(tuple(example))
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves((feed.args, feed.kwargs))):
        raise ConfigError(f"example_input holds no tensor: {type(example).__name__} of {len(example)}", tip=MODULE_TIP)
    return feed


def _keys(example: Any) -> list[Any]:
    return list(example) if isinstance(example, Mapping) else []


def _check(module: nn.Module) -> None:
    """Raise an error for a module that has nothing to probe, or no values yet."""
    name = type(module).__name__
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise ModelError(
            f"{name} is TorchScript, whose layers take no hooks", tip="give the module before it was compiled"
        )
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if lazy := [where for where, tensor in tensors if is_lazy(tensor)]:
        raise ModelError(
            f"{name} is not initialised: {lazy[0]} has no shape yet",
            tip="call module(example_input) once; that initialises lazy layers",
        )
    if meta := [where for where, tensor in tensors if tensor.is_meta]:
        raise ModelError(
            f"{name} has no values: {meta[0]} is on the meta device",
            tip='module.to_empty(device="cpu"), then initialise',
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        frozen = any(True for _ in module.parameters())
        raise ModelError(
            f"{name} has no parameters{' that want a gradient' if frozen else ''}: nothing to probe",
            tip="module.requires_grad_()" if frozen else "give the module that owns the layers",
        )
    try:
        choose_layers(module)
    except RecorderError as error:
        raise ModelError(
            f"{name} has no layer with a weight, norm layers aside: nothing to probe",
            tip="give the whole model",
        ) from error


def _make_plan(module: nn.Module, feed: Feed) -> ModulePlan:
    named = feed.kwargs or {str(i): value for i, value in enumerate(feed.args)}
    shown = {key: [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)] for key, value in named.items()}
    parts = [f"{key} {_say(leaf)}" if feed.kwargs else _say(leaf) for key, leaves in shown.items() for leaf in leaves]
    first = next(leaf for leaves in shown.values() for leaf in leaves)
    form = Input(tuple(first.shape[1:]), tokens=not first.is_floating_point())
    batch = len(first) if first.dim() else 1
    name = type(module).__name__
    return ModulePlan(name, form, batch_size=batch, given=", ".join(parts), training=module.training)


def _leaves(loss: Any) -> list[Tensor]:
    """Return the tensors into which the backward pass of a loss would write gradients."""
    nodes = [loss.grad_fn] if isinstance(loss, Tensor) else []
    seen, found = set(), []
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        if type(node).__name__ == "AccumulateGrad":
            found.append(node.variable)  # type: ignore[attr-defined]
    return found


def _say(tensor: Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"


def _copy(inputs: Any) -> Any:
    """Return inputs that a module may change in place, and whose gradients are nobody else's."""
    return tree_map_only(Tensor, lambda t: t.detach().clone().requires_grad_(t.requires_grad), inputs)


@contextmanager
def untouched(*models: nn.Module) -> Iterator[Callable[[Iterable[Tensor]], None]]:
    """Restore modules and all random generators at the end, also after an error.

    Restored are parameters, buffers, ``.grad``, and the attributes of every module: hooks, modes, children, counters.
    ``.grad`` is None inside.

    Args:
        models: The modules.

    Yields:
        A function that puts the gradients of other tensors aside, too.
    """
    modules = {id(module): module for model in models for module in model.modules()}.values()
    own = [vars(module) for module in modules]
    kept = [(one, dict(one)) for one in own]
    kept += [(one, dict(one)) for attributes in own for one in attributes.values() if isinstance(one, dict)]
    tensors = {id(tensor): tensor for model in models for tensor in [*model.parameters(), *model.buffers()]}.values()
    values = [(tensor, tensor.detach().clone(), _version(tensor)) for tensor in tensors]
    grads: dict[int, tuple[Tensor, Tensor | None]] = {}

    def put_aside(leaves: Iterable[Tensor]) -> None:
        for leaf in leaves:
            if leaf.is_leaf and id(leaf) not in grads:
                grads[id(leaf)] = leaf, leaf.grad
                leaf.grad = None

    generators = read_generators()
    try:
        put_aside(tensors)
        yield put_aside
    finally:
        for one, content in kept:
            one.clear()
            one.update(content)
        with torch.no_grad():
            for tensor, value, version in values:
                if _version(tensor) != version or not torch.equal(tensor, value):  # a graph that is pending may need it
                    tensor.copy_(value)
        for leaf, grad in grads.values():
            leaf.grad = grad
        restore_generators(generators)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
