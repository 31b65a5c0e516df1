"""The hooks on the forward pass of each layer, which attach a hook to the gradient of its output.

The gradient is read by a tensor hook on the output, not by a backward hook of the module: the latter wraps the output
in a view, which in-place activations and ``x += shortcut`` cannot change.

In a short training step, Python code is the main cost, of hooks too. The first recorded row uses hooks that also
collect facts about the layers (``LearningHook``). Later rows use ``LayerHook``, which is as fast as possible:

- It is called from the attribute in which ``nn.Module`` looks for a compiled version of itself
  (``_compiled_call_impl``), because any forward hook makes ``nn.Module._call_impl`` 8 microseconds slower.
  ``nn.Module`` leaves the attribute out of copies and pickles. Where the attribute is in use, or may be copied (data
  parallelism over several GPUs), a forward hook is used instead. A copy of all attributes (as ``higher`` makes it) has
  it nevertheless: it runs itself, as if there were no hook.
- The tensor hook of an output that is not large is the ``append`` of a list, which autograd calls without any Python
  code. The dictionary of hooks is registered as ``Tensor.register_hook`` does it, but without a handle.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from gradlens.recorder.hooks.compiled import must_stay_whole, outside_graphs
from gradlens.recorder.layers import Learned, output_tensors, own_parameters
from gradlens.recorder.output_gradients import KEPT, OutputGradients

is_tracing = torch._C._get_tracing_state
"""Returns None unless ``torch.jit.trace`` runs the model: nothing is added to its graph then."""

KEY = "gradlens"
PLACE = "_compiled_call_impl"
"""Attribute of a module that torch calls instead of its usual call; torch stores a compiled call there."""


class _Hooks(dict[Any, Any]):
    """The value of ``Tensor._backward_hooks``, to which others may add hooks; faster to make than an OrderedDict."""

    __slots__ = ("__weakref__",)


OnError = Callable[[Exception], None]


class ForwardHook:
    """A forward hook of one layer.

    In a copy or a pickle of the model, a function of the standard library that does nothing replaces the hook, so the
    copy can be loaded without gradlens.
    """

    def __init__(self, layer: int, outputs: OutputGradients, on_error: OnError) -> None:
        self._layer, self._outputs, self._on_error = layer, outputs, on_error

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Attach a hook to the output; ``torch.compile`` may trace this."""
        if is_tracing() is not None:
            return
        compiled = torch.compiler.is_compiling()
        if not (compiled and must_stay_whole()):
            self._outside_the_graph(module, output, compiled)

    @outside_graphs
    def _outside_the_graph(self, module: nn.Module, output: Any, compiled: bool) -> None:
        self.after_forward(module, output, compiled=compiled)

    def after_forward(self, module: nn.Module, output: Any, *, compiled: bool = False) -> None:
        """Attach a hook to the output; never traced."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        """Return a function that does nothing, so that a pickle or a copy holds nothing of the recorder."""
        return getattr, (contextlib.nullcontext(), "__exit__")

    def _attach(self, tensor: Tensor, on_grad: Callable[[Tensor], None]) -> None:
        if not tensor.requires_grad:
            return
        node = tensor.grad_fn
        if node is None:
            self._outputs.attach_to_leaf(tensor, on_grad)
        elif tensor._backward_hooks is not None:
            tensor.register_hook(on_grad)  # type: ignore[no-untyped-call]
        else:
            tensor._backward_hooks = _Hooks({KEY: on_grad})
            node._register_hook_dict(tensor)


class LayerHook(ForwardHook):
    """The hook of one layer in all recorded rows except the first.

    Args:
        layer: Its index.
        outputs: Receives the gradients.
        on_error: Called with an error.
        on_base: Whether the outputs are views that are changed in place, so that their base has the gradient.
        on_left_over: Called if gradients of an earlier backward pass are left.
        on_pass: Called when a gradient arrives, before it is taken; None for most layers, which are quicker without.
    """

    def __init__(
        self,
        layer: int,
        outputs: OutputGradients,
        on_error: OnError,
        *,
        on_base: bool,
        on_left_over: Callable[[], None],
        on_pass: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(layer, outputs, on_error)
        self._on_pass = on_pass
        self._kept = outputs.kept[layer]
        self._on_base = on_base
        self._on_left_over = on_left_over

    def after_forward(self, module: nn.Module, output: Any, *, compiled: bool = False) -> None:
        """Attach a hook to the output."""
        try:
            tensors = output_tensors(output)
            if any(map(is_transformed, tensors)):
                return
            if self._kept:
                self._on_left_over()
            for tensor in tensors:
                self._attach(_base(tensor) if self._on_base else tensor, self._take)
        except Exception as error:
            self._on_error(error)

    def around(self, module: nn.Module) -> Callable[..., Any]:
        """Return the module's call followed by this hook; the usual case has its own short code."""
        call: Callable[..., Any] = module._call_impl
        kept, most, fail = self._kept, -1 if self._on_base or self._on_pass else KEPT, self._on_error
        transformed, frame = torch._C._functorch.is_functorch_wrapped_tensor, sys._getframe
        hooks = {KEY: kept.append}

        def hooked(*args: Any, **kwargs: Any) -> Any:
            if is_tracing() is not None:
                return call(*args, **kwargs)
            caller: Any = None if is_compiling() else frame(1).f_locals.get("self")
            if caller is not module and is_copy(caller):
                return caller._call_impl(*args, **kwargs)
            output = call(*args, **kwargs)
            if type(output) is Tensor and output.numel() <= most and not kept and output._backward_hooks is None:
                node = output.grad_fn
                if node is not None and not transformed(output):
                    try:
                        output._backward_hooks = _Hooks(hooks)
                        node._register_hook_dict(output)
                    except Exception as error:
                        fail(error)
                    return output
            self.after_forward(module, output)
            return output

        def is_copy(caller: Any) -> bool:
            """Return whether another module got all attributes of this one, as in meta-learning libraries."""
            return isinstance(caller, nn.Module) and vars(caller).get(PLACE) is hooked

        hooked.is_hook = True  # type: ignore[attr-defined]
        return hooked

    @outside_graphs
    def _take(self, grad: Tensor) -> None:
        try:
            if self._on_pass is not None:
                self._on_pass()
            self._outputs.take(self._layer, grad)
        except Exception as error:
            self._on_error(error)


class LearningHook(ForwardHook):
    """The hook of one layer in the first recorded row, and in every row of a compiled model.

    Args:
        layer: Its index.
        outputs: Receives the gradients.
        on_error: Called with an error.
        module: The layer.
        learned: Receives the facts about the layer.
        on_pass: Called when a gradient arrives, during the backward pass.
    """

    def __init__(
        self,
        layer: int,
        outputs: OutputGradients,
        on_error: OnError,
        *,
        module: nn.Module,
        learned: Learned,
        on_pass: Callable[[], None],
    ) -> None:
        super().__init__(layer, outputs, on_error)
        self._module, self._learned, self._on_pass = module, learned, on_pass

    def after_forward(self, module: nn.Module, output: Any, *, compiled: bool = False) -> None:
        """Collect facts about the call, and attach a hook to the output."""
        try:
            self._learned.compiled |= compiled
            tensors = output_tensors(output)
            if any(map(is_transformed, tensors)):
                return
            takes = self._outputs.armed and torch.is_grad_enabled()
            if self._learned.open:
                self._learned.note_forward(self._layer, tensors, counts=takes)
                self._learned.replicated |= module is not self._module
            if takes:
                self._attach_all(module, tensors)
        except Exception as error:
            self._on_error(error)

    def _attach_all(self, module: nn.Module, tensors: list[Tensor]) -> None:
        seen: list[bool] = []
        bases = [tensor._base for tensor in tensors if tensor._base is not None and is_made_by(tensor, module)]
        if self._learned.open:
            self._learned.graph.note_call(self._layer, [*tensors, *bases])
        for tensor in tensors:
            self._attach(tensor, functools.partial(self._take, seen))
        for base in bases:
            self._attach(base, functools.partial(self._take_of_base, seen))

    @outside_graphs
    def _take(self, seen: list[bool], grad: Tensor) -> None:
        if not self._outputs.armed:
            return
        try:
            self._on_pass()
            if self._learned.open:
                self._learned.note_grad(self._layer, grad, new_call=not seen)
            seen.append(True)
            self._outputs.take(self._layer, grad)
        except Exception as error:
            self._on_error(error)

    @outside_graphs
    def _take_of_base(self, seen: list[bool], grad: Tensor) -> None:
        """Take the gradient of the base, if the layer's output is a view of it and had no gradient itself."""
        if not seen:
            self._learned.on_base.add(self._layer)
            self._take(seen, grad)


def is_transformed(output: Any) -> bool:
    """Return whether an output has no numbers to read: in function transforms, or on the meta device."""
    if not isinstance(output, Tensor):
        return False
    return output.is_meta or bool(torch._C._functorch.is_functorch_wrapped_tensor(output))


def _base(tensor: Tensor) -> Tensor:
    base: Tensor | None = tensor._base
    return tensor if base is None else base


def is_made_by(tensor: Tensor, module: nn.Module) -> bool:
    """Return whether a tensor is a view of the complete output of an operation on the module's parameters.

    An example is a linear layer with inputs of three dimensions: its output is a view of the product of two matrices.
    Attention ends with such a product, too, with the parameters of a module inside it.
    """
    base = _base(tensor)
    if base.grad_fn is None or base.numel() != tensor.numel():
        return False
    own = {id(parameter) for parameter in (*own_parameters(module), *module.parameters())}
    nodes = [node for node, _ in base.grad_fn.next_functions if node is not None]
    nodes += [below for node in nodes for below, _ in node.next_functions if below is not None]
    return any(id(getattr(node, "variable", None)) in own for node in nodes)
