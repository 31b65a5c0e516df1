"""What is special where ``torch.compile`` is at work."""

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
"""Functions whose compiled code was broken up by a hook."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def must_stay_whole() -> bool:
    """Say whether code is being traced that must not break up (``fullgraph=True``); called while it is traced.

    A hook would break it, and torch would raise an error into the training.
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
    except (ImportError, AttributeError):  # another version of torch: as if breaks were allowed
        pass
    return False


def outside_graphs(function: F) -> F:
    """Return a function that is never compiled, wherever it is called from, nor what it calls.

    The recorder's own code runs amid compiled code where that calls ``backward()`` or the optimizer. torch would
    compile it too, and has been seen to get norms wrong.
    """
    disabled: F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return disabled


def forget_broken_code() -> None:
    """Have torch compile anew, at its next call, what hooks broke up; it does not see by itself that they are gone."""
    while _broken:
        _forget(_broken.pop())


def forget_compiled_code(model: nn.Module) -> None:
    """Have torch compile a model anew at its next call; it does not see by itself that hooks were placed."""
    for root in [module for module in model.modules() if is_compiled(module)]:
        wrappers = [vars(root).get(name) for name in ("forward", "_compiled_call_impl")]
        called = {getattr(wrapper, "_torchdynamo_orig_callable", None) for wrapper in wrappers}
        called |= {type(module).forward for module in root.modules()}
        for code in [getattr(function, "__code__", None) for function in called]:
            if code is not None:
                _forget(code)


def is_compiled(module: nn.Module) -> bool:
    """Say whether a module is compiled, in place or by a wrapper."""
    call = getattr(module, "_compiled_call_impl", None)
    in_place = call is not None and not getattr(call, "is_hook", False)  # the place serves for hooks too
    return in_place or type(module).__name__ == "OptimizedModule"


def _forget(code: CodeType) -> None:
    with contextlib.suppress(ImportError):  # another version of torch: its code stays as it is
        from torch._dynamo.eval_frame import remove_from_cache

        remove_from_cache(code)


def in_compiled_backward() -> bool:
    """Say whether compiled autograd runs the backward pass; it never calls what is left for the end of the pass."""
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    return bool(getattr(module, "in_compiled_autograd_region", False))
