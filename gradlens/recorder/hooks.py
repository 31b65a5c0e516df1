"""The hooks: on each layer's forward pass, and from there on the gradient of its output.

The gradient is taken at the node of the graph that made the output, not by a backward hook of the module: those wrap
the output in a view, which in-place activations and ``x += shortcut`` then refuse to change.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradlens.recorder.layers import output_tensors


class Taker(Protocol):
    """What the hooks talk to."""

    armed: bool
    """Whether gradients are taken now."""
    learning: bool
    """Whether the order of the layers, and how often each is called, is still to be learnt."""
    timing: bool
    """Whether the hooks measure what they cost."""
    seconds: float
    """What they cost."""

    def note_forward(self, layer: int, tensors: Sequence[Tensor]) -> None:
        """Learn that a layer ran, and what it put out."""

    def note_grad(self, layer: int, grad: Tensor, *, new_call: bool) -> None:
        """Learn that a gradient came to an output of a layer."""

    def take_grad(self, layer: int, grad: Tensor) -> None:
        """Take the gradient of one output."""

    def note_compiled(self) -> None:
        """Learn that the model runs compiled."""

    def fail(self, error: Exception) -> None:
        """Hear of an error in a hook."""


class LayerHook:
    """The forward hook of one layer.

    A copy or a pickle of the model made meanwhile holds, in its place, a function of the standard library that does
    nothing, so that it can be loaded anywhere.
    """

    __slots__ = ("_layer", "_taker")

    def __init__(self, taker: Taker, layer: int) -> None:
        self._taker, self._layer = taker, layer

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Hang a hook on the output."""
        if torch.compiler.is_compiling():
            self._outside_the_graph(output)
        else:
            self._after_forward(output)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _outside_the_graph(self, output: Any) -> None:
        self._taker.note_compiled()
        self._after_forward(output)

    def _after_forward(self, output: Any) -> None:
        taker = self._taker
        started = time.perf_counter() if taker.timing else 0.0
        try:
            if taker.learning:
                self._learn(output)
            elif taker.armed and torch.is_grad_enabled():
                if type(output) is Tensor and output.grad_fn is not None and output.output_nr == 0:
                    output.grad_fn.register_prehook(self._on_first)
                else:
                    for tensor in output_tensors(output):
                        _hang(tensor, self._on_grad)
        except Exception as error:
            taker.fail(error)
        if taker.timing:
            taker.seconds += time.perf_counter() - started

    def _learn(self, output: Any) -> None:
        tensors = output_tensors(output)
        self._taker.note_forward(self._layer, tensors)
        if self._taker.armed and torch.is_grad_enabled():
            on_grad = functools.partial(self._on_grad_learning, [])
            for tensor in tensors:
                _hang(tensor, on_grad)

    def _on_grad_learning(self, seen: list[bool], grad: Tensor) -> None:
        if self._taker.armed:
            self._taker.note_grad(self._layer, grad, new_call=not seen)
            seen.append(True)
        self._on_grad(grad)

    def _on_first(self, grads: tuple[Tensor | None, ...]) -> None:
        if grads[0] is not None:
            self._on_grad(grads[0])

    def _on_grad(self, grad: Tensor) -> None:
        taker = self._taker
        if not taker.armed:
            return
        started = time.perf_counter() if taker.timing else 0.0
        try:
            taker.take_grad(self._layer, grad)
        except Exception as error:
            taker.fail(error)
        if taker.timing:
            taker.seconds += time.perf_counter() - started

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave nothing of the recorder in a pickle or a copy."""
        return getattr, (contextlib.nullcontext(), "__exit__")


def _hang(tensor: Tensor, on_grad: Callable[[Tensor], None]) -> None:
    if not tensor.requires_grad:
        return
    if tensor.grad_fn is None:  # a leaf, such as a parameter that a module puts out
        tensor.register_hook(on_grad)  # type: ignore[no-untyped-call]
    else:
        tensor.grad_fn.register_prehook(functools.partial(_pick, tensor.output_nr, on_grad))


def _pick(nth: int, on_grad: Callable[[Tensor], None], grads: tuple[Tensor | None, ...]) -> None:
    grad = grads[nth]
    if grad is not None:
        on_grad(grad)


def at_end_of_backward(call: Callable[[], None]) -> bool:
    """Call a function when the backward pass in progress is over, gradients reduced between ranks included.

    Data-parallel wrappers finish their reduction in a callback at that moment; a callback that queues another one comes
    after theirs.

    Returns:
        Whether that is possible here.
    """
    engine = torch.autograd.Variable._execution_engine
    try:
        engine.queue_callback(lambda: engine.queue_callback(call))
    except RuntimeError:
        return False
    return True
