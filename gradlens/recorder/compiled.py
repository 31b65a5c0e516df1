"""What is special where ``torch.compile`` is at work."""

from __future__ import annotations

import sys

import torch


@torch.compiler.assume_constant_result  # type: ignore[no-untyped-call,untyped-decorator]
def must_stay_whole() -> bool:
    """Say whether code is being traced that must not break up (``fullgraph=True``); called while it is traced.

    A hook would break it, and torch would raise an error into the training.
    """
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        tracer = InstructionTranslator.current_tx()
        while tracer is not None:
            if getattr(tracer, "one_graph", False) or getattr(tracer, "error_on_graph_break", False):
                return True
            tracer = getattr(tracer, "parent", None)
    except (ImportError, AttributeError):  # another version of torch: as if breaks were allowed
        pass
    return False


def in_compiled_backward() -> bool:
    """Say whether compiled autograd runs the backward pass; it never calls what is left for the end of the pass."""
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    return bool(getattr(module, "in_compiled_autograd_region", False))
