"""Calls that are observed for a few steps: of modules, ``torch.autograd.backward`` and the clipping of gradients.

``Tensor.backward`` and ``clip_grad_norm_`` call these functions by their names in torch's modules, so that a wrapper in
that place sees every call. A wrapper that was wrapped by somebody else meanwhile stays, and then only passes calls on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.callback import callback_handler
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import clip_grad

from gradlens.recorder.hooks.compiled import outside_graphs


class GlobalForwardHook:
    """A forward hook on all modules, while it is placed.

    What is placed on a module itself, copies and pickles of the model would hold. Compiled code must know nothing of
    the hook: torch would compile it once more when the hook is removed. So the hook is withdrawn for good when torch
    begins to compile anything, or when a compiled module is called, which warns of such hooks.

    Args:
        hook: Called with module, arguments and output.
    """

    def __init__(self, hook: Callable[[nn.Module, Any, Any], None]) -> None:
        self._hook = hook
        self._handle: Any = None
        self._withdrawn = False
        self._compiled_call = ObservedCall(
            torch.nn.modules.module, "_has_any_global_hook", lambda arguments: self._withdraw(), lambda: None
        )

    def put(self) -> None:
        """Place the hook, if it is not placed."""
        if self._handle is None and not self._withdrawn:
            self._compiled_call.put()
            callback_handler.register_start_callback(self._withdraw)
            self._handle = register_module_forward_hook(self._hook)

    def remove(self) -> None:
        """Remove the hook."""
        self._compiled_call.remove()
        if self._withdraw in callback_handler.start_callbacks:
            callback_handler.remove_start_callback(self._withdraw)
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _withdraw(self, *_: Any) -> None:
        self._withdrawn = True
        if self._handle is not None:
            self._handle.remove()  # not the callback: torch is going through the list of callbacks


MARK = "_gradlens_call"
"""Attribute of a wrapper that names its call; a wrapper around it that somebody else made may have copied it."""
CLIP = "_clip_grads_with_norm_"
"""The part of ``clip_grad_norm_`` that scales the gradients, in newer versions of torch."""


class ObservedCall:
    """A function of a module, with another function called before it and one after it, while it is placed.

    Args:
        module: The module.
        name: The function's name there.
        before: Called with its arguments by name.
        after: Called when it has returned, or failed.
    """

    def __init__(
        self, module: Any, name: str, before: Callable[[dict[str, Any]], None], after: Callable[[], None]
    ) -> None:
        self._module, self._name, self._before, self._after = module, name, before, after
        self._wrapper: Callable[..., Any] | None = None
        self._original: Callable[..., Any] | None = None
        self._is_on = False

    def put(self) -> None:
        """Place the wrapper."""
        self._is_on = True
        found = getattr(self._module, self._name, None)
        if found is None or self._wrapper is not None:  # still there, inside a wrapper that somebody else placed
            return
        found = self._original = _without_ended(found)
        signature = inspect.signature(found)

        @functools.wraps(found)
        def observed(*args: Any, **kwargs: Any) -> Any:
            if not self._is_on:
                return found(*args, **kwargs)
            self._before(dict(signature.bind(*args, **kwargs).arguments))
            try:
                return found(*args, **kwargs)
            finally:
                self._after()

        self._wrapper = outside_graphs(observed)
        self._wrapper.__dict__[MARK] = self
        setattr(self._module, self._name, self._wrapper)

    def remove(self) -> None:
        """Put the function back."""
        self._is_on = False
        if self._wrapper is not None and getattr(self._module, self._name, None) is self._wrapper:
            setattr(self._module, self._name, _without_ended(self._original))
            self._wrapper = None

    def leave(self, found: Any) -> Any:
        """Return the function inside this call's wrapper, if that is what was found and the call has ended; else None.

        Args:
            found: A function.
        """
        if self._is_on or found is not self._wrapper:
            return None
        self._wrapper = None
        return self._original


def _without_ended(found: Any) -> Any:
    """Return a function without the wrappers on top of it of calls that have ended: of recordings not ended in turn."""
    while isinstance(call := getattr(found, MARK, None), ObservedCall):
        inner = call.leave(found)
        if inner is None:
            break
        found = inner
    return found


def observe_backward(
    before: Callable[[Sequence[Tensor], Sequence[Any]], None], after: Callable[[], None]
) -> ObservedCall:
    """Observe backward passes.

    Args:
        before: Called with the tensors that the pass begins at, and the nodes of the graph where it begins at edges
            (``torch.autograd.graph.GradientEdge``), as in a pipeline that has released the outputs of its stage.
        after: Called at the end of the pass.

    Returns:
        The observed call, to be placed.
    """

    def begin(arguments: dict[str, Any]) -> None:
        tensors = arguments.get("tensors", ())
        listed = (tensors,) if isinstance(tensors, Tensor) or hasattr(tensors, "node") else tensors
        edges = [each.node for each in listed if hasattr(each, "node")]
        before([tensor for tensor in listed if isinstance(tensor, Tensor)], edges)

    return ObservedCall(torch.autograd, "backward", begin, after)


def observe_gradients(before: Callable[[Sequence[Tensor], Sequence[Tensor]], None]) -> ObservedCall:
    """Observe calls of ``torch.autograd.grad`` whose result has no graph.

    Args:
        before: Called with what is differentiated, and with respect to what.

    Returns:
        The observed call, to be placed.
    """

    def begin(arguments: dict[str, Any]) -> None:
        if not arguments.get("create_graph"):
            before(_listed(arguments.get("outputs")), _listed(arguments.get("inputs")))

    return ObservedCall(torch.autograd, "grad", begin, lambda: None)


def _listed(tensors: Any) -> list[Tensor]:
    listed = (tensors,) if isinstance(tensors, Tensor) else tensors
    return [tensor for tensor in listed or () if isinstance(tensor, Tensor)]


def observe_clipping(before: Callable[[list[Tensor], float, Tensor], None]) -> ObservedCall:
    """Observe calls of ``clip_grad_norm_``.

    Args:
        before: Called with the parameters, the largest norm allowed, and the norm found.

    Returns:
        The observed call, to be placed.
    """

    def begin(arguments: dict[str, Any]) -> None:
        parameters = arguments["parameters"]
        listed = [parameters] if isinstance(parameters, Tensor) else parameters
        before(
            list(listed) if isinstance(listed, list | tuple) else [],
            float(arguments["max_norm"]),
            arguments["total_norm"],
        )

    return ObservedCall(clip_grad, CLIP, begin, lambda: None)
