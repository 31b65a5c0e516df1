"""The outputs of layers: their size, and the zeros after the activation function that follows.

Outputs are measured at once in the forward pass, because an in-place activation changes them. A call counts only if a
gradient reaches its output in a backward pass of the loss. So evaluations and passes without a graph never count, and
with a checkpoint only the forward pass that the gradient goes through counts.

The activation function that follows a layer is found in two ways. Either a module (``ACTIVATIONS``) is called with the
unchanged output of the layer, or with the output of a norm layer that follows it. Or the input of a recorded layer was
made by a function (``FUNCTIONS``, in the graph) whose own input is the layer's output, possibly after norm layers. In
other cases it is unknown: an addition in between, or a functional activation whose output no recorded layer reads.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradlens.metrics import ACTIVATION_RMS, GRAD_COHERENCE, METRICS_OF_PATHS, ZERO_FRACTION
from gradlens.recorder.hooks.compiled import outside_graphs
from gradlens.recorder.hooks.layer_hooks import OnError, is_made_by, is_tracing, is_transformed
from gradlens.recorder.layers import is_norm, output_tensors, takes_hooks
from gradlens.recorder.measured_row import Part
from gradlens.recorder.measurer import Context, Measurer
from gradlens.recorder.measurers.coherence import Coherence, Numbers, PassHalves, Use
from gradlens.recorder.measurers.residual_paths import Measured, PathGradients, Paths
from gradlens.recorder.norms import exact_norm, norm, plain
from gradlens.recorder.ratios import ACTIVATED, NOISE, OUTPUT_NORM, OUTPUT_NUMEL, PATH_PRODUCT, SIGNAL, ZEROS

METRICS_OF_LAYERS = (ACTIVATION_RMS, ZERO_FRACTION, GRAD_COHERENCE)
METRICS_OF_CALLS = (*METRICS_OF_LAYERS, *METRICS_OF_PATHS)
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid),
)
FUNCTIONS = frozenset(
    f"{name}Backward0"
    for name in (
        *("Relu", "LeakyRelu", "Elu", "Gelu", "Silu", "Mish", "Hardtanh", "Hardswish", "Hardsigmoid", "Threshold"),
        *("Sigmoid", "Tanh", "Softplus", "Softshrink", "Hardshrink"),
    )
)
"""Operations in the graph that are activation functions."""
THROUGH = frozenset(
    f"{name}Backward0"
    for name in (
        *("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeLayerNorm", "NativeGroupNorm"),
        *("FusedRmsNorm", "ToCopy"),
    )
)
"""Operations that may lie between a layer and its activation function: norms, and casts of autocast."""
MOST_THROUGH = 4


@dataclass(eq=False)
class Call:
    """One call of a layer.

    Args:
        layer: Its index.
    """

    layer: int
    norms: list[float | Tensor] = field(default_factory=list)
    """Norms of its output tensors."""
    numel: int = 0
    zeros: list[float | Tensor] = field(default_factory=list)
    activated: int = 0
    """Number of elements among which zeros were counted."""


@dataclass
class TakenPass:
    """What one backward pass brought: calls that it reached, halves of weight gradients, addends of blocks."""

    calls: list[Call]
    halves: PassHalves
    paths: list[Measured]

    def only(self, mask: NDArray[np.bool_] | None) -> TakenPass:
        """Return what it brought of some layers.

        Args:
            mask: (L,) whether a layer is one of them; None for all.
        """
        if mask is None:
            return self
        halves = self.halves
        kept = PassHalves(
            {layer: both for layer, both in halves.halves.items() if mask[layer]},
            {layer for layer in halves.unknown if mask[layer]},
            halves.counts,
            halves.clear,
        )
        calls = [call for call in self.calls if mask[call.layer]]
        return TakenPass(calls, kept, [path for path in self.paths if mask[path.layer]])


class CallHook:
    """A forward hook that only reads; it does nothing in compiled code, without a graph, or in function transforms.

    Args:
        act: Called with module, input and output.
        on_error: Called with an error.
        whole: Whether ``act`` gets all arguments, as a tuple and a dictionary, in place of the input.
    """

    def __init__(self, act: Callable[[nn.Module, Any, Any], None], on_error: OnError, *, whole: bool = False) -> None:
        self._act, self._on_error, self._whole = act, on_error, whole

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Read the call; ``torch.compile`` may trace this."""
        if not torch.compiler.is_compiling() and is_tracing() is None:
            self._call(module, args, kwargs, output)

    def _call(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        given = (args, kwargs) if self._whole else args[0] if args else kwargs.get("input")
        try:
            if not is_transformed(output):
                self._act(module, given, output)
        except Exception as error:
            self._on_error(error)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return a function that does nothing, so that a pickle or a copy holds nothing of the recorder."""
        return getattr, (contextlib.nullcontext(), "__exit__")


class CallWatch(Measurer):
    """Watches calls of layers in rows with a metric that needs it; in other rows it has no hook.

    Args:
        context: What is measured; norm layers and activation functions are watched too, compiled layers are not.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._model, self._modules, self._learned = context.model, context.modules, context.learned
        self._on_error, self._on_pass = context.on_error, context.on_pass
        self._due: frozenset[str] = frozenset()
        self._handles: list[Any] = []
        self._leaves: dict[int, Any] = {}
        self._expected = [1.0] * len(self._modules)
        self._coherence = Coherence()
        self._paths = Paths(self._model, self._modules)
        self.clear()

    # --- hooks --------------------------------------------------------------------------------------------

    def begin_step(self, due: Sequence[str], row: int) -> None:
        """Place the hooks that these metrics need, and remove others."""
        now = frozenset() if self._learned.compiled else frozenset(METRICS_OF_CALLS).intersection(due)
        if now != self._due or bool(now) != bool(self._handles):
            self.remove_hooks()
            self._due = now
            if now:
                self._place()

    def remove_hooks(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _place(self) -> None:
        for layer, module in enumerate(self._modules.values() if self._due.intersection(METRICS_OF_LAYERS) else ()):
            self._hook(module, functools.partial(self._see_layer, layer))
        for layer, block, convolution in self._paths.blocks if self._due.intersection(METRICS_OF_PATHS) else ():
            self._hook(convolution, functools.partial(self._paths.see_convolution, layer))
            self._hook(block, functools.partial(self._paths.see_block, layer, self._see_path))
        if ZERO_FRACTION in self._due:
            for module in self._model.modules():
                if is_norm(module):
                    self._hook(module, self._see_norm)
                elif isinstance(module, ACTIVATIONS):
                    self._hook(module, self._see_activation)

    def _hook(self, module: nn.Module, act: Callable[[nn.Module, Any, Any], None]) -> None:
        if takes_hooks(module):
            self._handles.append(module.register_forward_hook(CallHook(act, self._on_error), with_kwargs=True))

    # --- the step -----------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Reset the step in progress."""
        self._running: list[Call] = []
        self._counted: dict[Call, None] = {}
        self._coherence.clear()
        self._paths.clear()
        self.end_pass()
        for handle in self._leaves.values():
            handle.remove()
        self._leaves.clear()

    def end_pass(self) -> None:
        """Forget which calls made which tensors, after a backward pass of the loss."""
        self._tensors: dict[int, tuple[weakref.ref[Tensor], int, list[Call]]] = {}
        self._nodes: dict[Any, list[Call]] = {}
        self._seen_nodes: set[Any] = set()
        self._paths.forget_tensors()

    @property
    def pending(self) -> bool:
        """Whether the backward pass in progress reached calls that are watched."""
        halves = self._coherence.running
        return bool(self._running or halves.halves or halves.unknown or self._paths.running)

    def take_pass(self) -> TakenPass:
        """Return what the backward pass in progress brought, and reset it."""
        calls, self._running = self._running, []
        return TakenPass(calls, self._coherence.take_pass(), self._paths.take_pass())

    def add_pass(self, taken: TakenPass, layers: NDArray[np.bool_] | None) -> None:
        """Add what a pass brought to the step."""
        taken = taken.only(layers)
        self._counted.update(dict.fromkeys(taken.calls))
        self._coherence.add_pass(taken.halves)
        self._paths.add_pass(taken.paths)

    def parts(self, scale: Tensor | float | None) -> dict[str, list[Part]]:
        """Return addend to what was measured in the step."""
        if not self._due:
            return {}
        found: dict[str, Numbers] = {OUTPUT_NORM: [], OUTPUT_NUMEL: [], ZEROS: [], ACTIVATED: []}
        for call in self._counted:
            found[OUTPUT_NORM] += [(call.layer, value) for value in call.norms]
            found[OUTPUT_NUMEL] += [(call.layer, call.numel)] if call.norms else []
            found[ZEROS] += [(call.layer, value) for value in call.zeros]
            found[ACTIVATED] += [(call.layer, call.activated)] if call.zeros else []
        found |= self._coherence.numbers() | self._paths.numbers()
        square = None if scale is None else scale * scale
        scales = {SIGNAL: square, NOISE: square, PATH_PRODUCT: square, **dict.fromkeys(METRICS_OF_PATHS, scale)}
        return {name: _as_parts(numbers, scales.get(name)) for name, numbers in found.items()}

    # --- the forward pass ---------------------------------------------------------------------------------

    def _see_layer(self, layer: int, module: nn.Module, x: Any, output: Any) -> None:
        tensors = [tensor for tensor in output_tensors(output) if not is_transformed(tensor)]
        if ZERO_FRACTION in self._due and isinstance(x, Tensor):
            self._see_function(x)
        if not any(tensor.requires_grad for tensor in tensors):
            return
        if GRAD_COHERENCE in self._due:
            node = self._coherence.find_node(module, x, output)
            if node is not None:
                node.register_prehook(functools.partial(self._split, Use(layer, module, x, x._version)))
        if not self._due.intersection((ACTIVATION_RMS, ZERO_FRACTION)):
            return
        call = Call(layer)
        if ACTIVATION_RMS in self._due:
            call.norms = [self._measure(layer, tensor) for tensor in tensors]
            call.numel = sum(plain(tensor).numel() for tensor in tensors)
        if ZERO_FRACTION in self._due and isinstance(output, Tensor):
            self._trace(output, [call])
        self._attach(call, module, tensors)

    def _measure(self, layer: int, tensor: Tensor) -> float | Tensor:
        if not tensor.is_cpu:
            return exact_norm(tensor)
        found = self._expected[layer] = norm(tensor, self._expected[layer])
        return found

    def _attach(self, call: Call, module: nn.Module, tensors: list[Tensor]) -> None:
        """Attach hooks that mark a call when a backward pass reaches its output."""
        confirm = functools.partial(self._confirm, call)
        for tensor in tensors:
            if not tensor.requires_grad:
                continue
            if tensor.grad_fn is None:
                if id(tensor) not in self._leaves:
                    self._leaves[id(tensor)] = tensor.register_hook(confirm)  # type: ignore[no-untyped-call]
                continue
            tensor.grad_fn.register_prehook(confirm)
            if tensor._base is not None and is_made_by(tensor, module):
                tensor._base.grad_fn.register_prehook(confirm)  # type: ignore[union-attr]

    def _trace(self, tensor: Tensor, calls: list[Call]) -> None:
        """Remember which calls made a tensor."""
        known = self._calls_of(tensor)
        known = [*known, *calls]
        self._tensors[id(tensor)] = weakref.ref(tensor), tensor._version, known
        if tensor.grad_fn is not None:
            self._nodes[tensor.grad_fn] = known

    def _calls_of(self, tensor: Any, *, changed: int = 0) -> list[Call]:
        """Return the calls that made a tensor, if it has had exactly ``changed`` in-place changes since."""
        known = self._tensors.get(id(tensor))
        if known is None:
            return []
        reference, version, calls = known
        unchanged = tensor._version == version + changed
        return calls if unchanged and reference() is tensor else []

    def _see_norm(self, module: nn.Module, x: Any, output: Any) -> None:
        calls = self._calls_of(x)
        if calls and isinstance(output, Tensor):
            self._trace(output, calls)

    def _see_activation(self, module: nn.Module, x: Any, output: Any) -> None:
        calls = self._calls_of(x, changed=int(x is output))
        if isinstance(output, Tensor) and output.grad_fn is not None:
            self._seen_nodes.add(output.grad_fn)
        if calls and isinstance(output, Tensor):
            _count_zeros(output, calls)

    def _see_function(self, x: Tensor) -> None:
        """Count zeros in a layer's input if an activation function made it from another layer's output."""
        node: Any = x.grad_fn
        if node is None or node in self._seen_nodes or node.name() not in FUNCTIONS:
            return
        self._seen_nodes.add(node)
        below = node.next_functions[0][0]
        for _ in range(MOST_THROUGH):
            if below in self._nodes:
                _count_zeros(x, self._nodes[below])
                return
            if below is None or below.name() not in THROUGH:
                return
            below = below.next_functions[0][0]

    # --- the backward pass --------------------------------------------------------------------------------

    @outside_graphs
    def _confirm(self, call: Call, grads: Any) -> None:
        try:
            self._on_pass()
            self._running.append(call)
        except Exception as error:
            self._on_error(error)

    @outside_graphs
    @torch.no_grad()
    def _split(self, use: Use, grads: Any) -> None:
        try:
            self._on_pass()
            self._coherence.take(use, grads[0])
        except Exception as error:
            self._on_error(error)

    @outside_graphs
    @torch.no_grad()
    def _see_path(self, sums: PathGradients, path: int, i: int, grad_inputs: Any, grad_outputs: Any) -> None:
        try:
            self._on_pass()
            self._paths.take(sums, path, grad_inputs[i])
        except Exception as error:
            self._on_error(error)


def _count_zeros(tensor: Tensor, calls: list[Call]) -> None:
    numbers = plain(tensor)
    if tensor.is_complex():
        numbers = numbers.abs().amax(-1)
    zeros = numbers.numel() - torch.count_nonzero(numbers)
    value: float | Tensor = float(zeros.numpy()) if zeros.is_cpu else zeros.double()
    for call in calls:
        call.zeros.append(value)
        call.activated += numbers.numel()


def _as_parts(numbers: Numbers, scale: Tensor | float | None) -> list[Part]:
    """Return values as parts of a row: one part for numbers on the host, and one for each device."""
    found: list[Part] = []
    here = [(layer, value) for layer, value in numbers if not isinstance(value, Tensor)]
    if here:
        layers, values = zip(*here, strict=True)
        found.append(Part(np.array(layers), np.array(values, dtype=np.float64), None, scale))
    there: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for layer, value in numbers:
        if isinstance(value, Tensor):
            there.setdefault(value.device, []).append((layer, value))
    for each in there.values():
        indices, tensors = zip(*each, strict=True)
        stacked = torch.stack(list(tensors))
        found.append(Part(np.array(indices), stacked.numpy() if stacked.is_cpu else stacked, None, scale))
    return found


MEASURER = CallWatch
