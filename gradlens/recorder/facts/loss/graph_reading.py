"""How nodes of a graph are read: operations, shapes, what is saved, and the modules that made them.

The edges of the graph and the sizes of its results stay readable after the backward pass, when saved tensors are freed.
No saved tensor is unpacked here, because that could run a checkpointed part of the model once more. Modules are
found by labels that a forward hook leaves on the nodes (``Node.metadata``).
"""

from __future__ import annotations

from collections import defaultdict
from contextvars import ContextVar
from typing import Any

from torch import Tensor

KEY = "gradlens"
"""Key of the labels in a node's metadata."""
MODEL_KEY, MODEL = "gradlens.model", "(model)"
"""Key and label of what the model as a whole returned."""
MOST_NODES = 50_000
"""Larger graphs are not read to their end."""
MOST_FACTS = 16
"""Entries of a kind that are kept."""

Shape = tuple[int, ...]
Facts = dict[str, Any]
Found = defaultdict[str, list[Facts]]
"""Kind of fact, a key of ``graph`` in docs/facts.md, to what was found."""

VIEWS = {
    "View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Transpose", "Permute", "T", "Clone", "Alias",
    "Slice", "Select", "ToCopy", "Expand", "AsStrided", "Unbind", "Split", "SplitWithSizes", "Narrow", "Flatten",
}  # fmt: skip
FLAT = {"Round", "Sign", "Floor", "Ceil", "Trunc", "Bernoulli", "Normal", "Poisson", "Binomial"}
"""Operations whose derivative is 0 everywhere (torch, tools/autograd/derivatives.yaml): they pass no gradient."""
RESHAPES = {"View", "UnsafeView", "ReshapeAlias"}
"""Operations that keep the order of elements in memory, whatever the sizes."""
WEIGHTED = {"Addmm", "Mm", "Convolution"}
"""Operations of layers with weights."""
BATCH_NORMS = {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"}


READER: ContextVar[int] = ContextVar("gradlens_reader", default=0)
"""Number of the recorder that leaves or reads labels; another one may record part of a graph by the same names."""


def _key(key: str) -> str:
    return f"{key}.{READER.get()}"


def label(tensor: Tensor, name: str, key: str = KEY) -> None:
    """Leave a module's name on the node that made its output."""
    if tensor.grad_fn is not None:
        metadata: Any = tensor.grad_fn.metadata
        metadata.setdefault(_key(key), []).append(name)


def op_of(node: Any) -> str:
    """Return an operation's name: "Addmm" of ``AddmmBackward0``."""
    name: str = node.name().rpartition("::")[2]
    return name.rstrip("0123456789").removesuffix("Backward")


def labels_of(node: Any) -> list[str]:
    """Return the names of the modules whose output a node made."""
    return list(node.metadata.get(_key(KEY), ()))


def has_label(node: Any, key: str) -> bool:
    """Return whether a node has a label under another key, such as that of what the model as a whole returned."""
    return _key(key) in node.metadata


def shape_of(node: Any, index: int = 0) -> Shape:
    """Return the shape of a result of a node."""
    return tuple(int(size) for size in node._input_metadata[index].shape)


def children(node: Any) -> list[tuple[Any, int]]:
    """Return the nodes whose results an operation used, each with the number of the result."""
    return [(below, index) for below, index in node.next_functions if below is not None]


def dim_of(node: Any, ndim: int) -> int | None:
    """Return the dimension that a softmax runs over, from 0."""
    dim = getattr(node, "_saved_dim", None)
    if dim is None:
        return None
    dim = dim - (1 << 64) if dim >= 1 << 63 else dim  # a negative number is stored without its sign
    return int(dim) % max(ndim, 1)


def through_views(node: Any) -> tuple[Any, list[str]]:
    """Follow reshaping toward the input; return the operation above it, and all modules that it is the output of."""
    names = labels_of(node)
    while op_of(node) in VIEWS and len(children(node)) == 1 and op_of(children(node)[0][0]) != "AccumulateGrad":
        node = children(node)[0][0]
        names = labels_of(node) or names
    return node, names


def saved(node: Any, name: str) -> Tensor | None:
    """Return a tensor that an operation has saved, where no hook on saved tensors would have to run.

    Args:
        node: The operation's node.
        name: The tensor's name in torch's derivatives, such as "target".
    """
    try:
        found = getattr(node, f"_raw_saved_{name}")
        values = found.data if found.unpack_hook is None else None
    except (AttributeError, RuntimeError):  # another operation, an older torch, or freed by the backward pass
        return None
    return values.detach() if isinstance(values, Tensor) and values.numel() else None


def saved_factor(node: Any) -> Tensor | None:
    """Return what a result with a graph is multiplied with or divided by, as far as it has no graph and was saved.

    Args:
        node: The node of the multiplication or division, with one result under it.
    """
    return next((found for found in (saved(node, "other"), saved(node, "self")) if found is not None), None)
