"""Special cases of ``torch.compile``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeVar

import torch
from torch import nn

F = TypeVar("F", bound=Callable[..., Any])

_broken: set[CodeType] = set()
"""Functions whose compiled code has a graph break because of a hook."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def must_stay_whole() -> bool:
    """Return whether the code being traced must not have graph breaks (``fullgraph=True``).

    A hook would break the graph, and torch would raise an error in the training.
    """
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        tracer: Any = InstructionTranslator.current_tx()
        frames = [tracer]
        while getattr(frames[-1], "parent", None) is not None:
            frames.append(frames[-1].parent)
        if any(getattr(each, "one_graph", False) or getattr(each, "error_on_graph_break", False) for each in frames):
            return True
        _broken.update(each.f_code for each in frames)
    except (ImportError, AttributeError):  # another version of torch: assume that breaks are allowed
        pass
    return False


def outside_graphs(function: F) -> F:
    """Return a function that is never compiled, together with the functions that it calls.

    Compiled code that calls ``backward()`` or the optimizer also calls the recorder. torch would compile the recorder's
    code too, which has been observed to give wrong norms.
    """
    disabled: F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return disabled


def forget_broken_code() -> None:
    """Make torch recompile functions that hooks have broken up; it does not notice that the hooks were removed."""
    while _broken:
        _forget(_broken.pop())


def forget_compiled_code(model: nn.Module) -> None:
    """Make torch recompile a model at its next call; it does not notice that hooks were placed."""
    for root in [module for module in model.modules() if is_compiled(module)]:
        wrappers = [vars(root).get(name) for name in ("forward", "_compiled_call_impl")]
        called = {getattr(wrapper, "_torchdynamo_orig_callable", None) for wrapper in wrappers}
        called |= {type(module).forward for module in root.modules()}
        for code in [getattr(function, "__code__", None) for function in called]:
            if code is not None:
                _forget(code)


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module is compiled, in place or by a wrapper."""
    call = getattr(module, "_compiled_call_impl", None)
    in_place = call is not None and not getattr(call, "is_hook", False)  # the recorder uses this attribute too
    return in_place or type(module).__name__ == "OptimizedModule"


def _forget(code: CodeType) -> None:
    with contextlib.suppress(ImportError):  # another version of torch: the code is not recompiled
        from torch._dynamo.eval_frame import remove_from_cache

        remove_from_cache(code)


def has_compiled() -> bool:
    """Return whether ``torch.compile`` has compiled anything in this process, so that hooks may have been left out."""
    module = sys.modules.get("torch._dynamo.utils")
    return module is not None and bool(module.counters["frames"])


def in_compiled_backward() -> bool:
    """Return whether compiled autograd runs the backward pass; it never calls callbacks queued for its end."""
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    return bool(getattr(module, "in_compiled_autograd_region", False))
