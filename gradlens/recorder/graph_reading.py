"""Read the graph of a loss: which modules and parameters it reaches, and through which operations.

The edges of the graph and the sizes of its results stay readable after the backward pass, when saved tensors are freed.
No saved tensor is unpacked here, because that could run a checkpointed part of the model once more. Modules are
found by labels that a forward hook leaves on the nodes (``Node.metadata``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

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
CLAMPS = {"Clamp", "ClampMin", "ClampMax", "Hardtanh"}
"""Operations whose derivative is 0 outside a range."""
KINKED = {"ThresholdBackward": "Relu", "LeakyReluBackward": "LeakyRelu", "HardtanhBackward": "Hardtanh"}
"""Operations that the derivative of a piecewise linear function leaves in a graph, each with that function."""
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


def is_returned(node: Any) -> bool:
    """Return whether a node made what the model as a whole returned."""
    return _key(MODEL_KEY) in node.metadata


def op_of(node: Any) -> str:
    """Return an operation's name: "Addmm" of ``AddmmBackward0``."""
    name: str = node.name().rpartition("::")[2]
    return name.rstrip("0123456789").removesuffix("Backward")


def labels_of(node: Any) -> list[str]:
    """Return the names of the modules whose output a node made."""
    return list(node.metadata.get(_key(KEY), ()))


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


COMPARED = {"Sub", "MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss"}
"""Operations that compare two tensors."""
LOGARITHMS = {"Log", "Log2", "Log10", "Xlogy"}


@dataclass
class Reading:
    """What one pass through a graph shows."""

    modules: Counter[str] = field(default_factory=Counter)
    """Names of modules whose output is reached, and how many outputs of theirs."""
    leaves: dict[int, Tensor] = field(default_factory=dict)
    """Tensors that receive the gradient, by ``id``."""
    between: set[int] = field(default_factory=set)
    """Leaves with modules of the model on both sides: toward the input and toward the loss."""
    inside: set[int] = field(default_factory=set)
    """Leaves on which an output of the model as a whole depends."""
    has_model: bool = False
    """Whether such an output is in the graph."""
    own_functions: set[str] = field(default_factory=set)
    """Names of autograd functions of a program's own, in Python, that get parameters or other leaves."""
    flat: list[Facts] = field(default_factory=list)
    """Operations of ``FLAT``, each with the nearest modules toward the input and toward the loss."""
    softmax_dims: list[Facts] = field(default_factory=list)
    bounded: list[Facts] = field(default_factory=list)
    """Modules whose output goes into a tanh or sigmoid."""
    clamped: list[Facts] = field(default_factory=list)
    """Modules of which a parameter goes through a clamp."""
    curvature: list[Facts] = field(default_factory=list)
    """Piecewise linear functions through whose derivative passes what has no graph: zeros, in a second derivative."""
    mixed_views: list[Facts] = field(default_factory=list)
    """Outputs of three dimensions of which a view makes rows that begin with their second one."""
    stacked: list[Facts] = field(default_factory=list)
    """Layers with weights whose output goes into the next one with nothing but views between them."""
    doubled: list[Facts] = field(default_factory=list)
    """Outputs of modules that are added to themselves."""
    divided: list[Facts] = field(default_factory=list)
    """What is divided by its own sum over one element."""
    written: list[Facts] = field(default_factory=list)
    """Functions whose backward pass was written by hand (``torch.autograd.Function``), inside the model."""
    with_itself: list[Facts] = field(default_factory=list)
    """Outputs of modules that are compared with themselves."""
    logs_of_logs: list[Facts] = field(default_factory=list)
    """Logarithms of what is a logarithm of probabilities already."""
    normalisation: dict[tuple[str, bool], int] = field(default_factory=dict)
    complete: bool = True
    nodes: list[Any] = field(default_factory=list)
    """All nodes, inputs first."""


def read_graph(roots: Sequence[Any], known: Mapping[int, str]) -> Reading:
    """Walk through the whole graph.

    Args:
        roots: Its last nodes.
        known: ``id`` of the model's parameters; other leaves are examined more closely.

    Returns:
        What was found.
    """
    found = Reading()
    order = found.nodes = _inputs_first(roots, found)
    has_module: set[Any] = set()
    only_leaf: dict[Any, int] = {}
    joins: dict[Any, list[int]] = {}
    before: dict[Any, str] = {}
    for node in order:
        below = [child for child, _ in children(node)]
        names, op = labels_of(node), op_of(node)
        found.modules.update(names)
        near = names[-1:] or [before[child] for child in below if child in before]
        if near:
            before[node] = near[0]
        if names or any(child in has_module for child in below):
            has_module.add(node)
        if isinstance(node, BackwardCFunction) and any(op_of(child) == "AccumulateGrad" for child in below):
            found.own_functions.add(op)
        if op == "AccumulateGrad":
            leaf = node.variable
            found.leaves[id(leaf)] = leaf
            if id(leaf) not in known:
                only_leaf[node] = id(leaf)
        elif len(below) == 1 and below[0] in only_leaf:
            only_leaf[node] = only_leaf[below[0]]
        elif op in CLAMPS and below and op_of(below[0]) == "AccumulateGrad" and len(found.clamped) < MOST_FACTS:
            layer = known[id(below[0].variable)]
            found.clamped += [fact for fact in [{"op": op, "layer": layer}] if fact not in found.clamped]
        elif any(child in only_leaf for child in below) and any(child in has_module for child in below):
            joins[node] = [only_leaf[child] for child in below if child in only_leaf]
        if op in KINKED and len(below) == 1 and len(found.curvature) < MOST_FACTS:
            found.curvature.append({"op": KINKED[op], "layer": before.get(below[0])})
        twice = len(below) == 2 and node.next_functions[0] == node.next_functions[1]
        if twice and op == "Add" and near and len(shape_of(node)) > 1 and len(found.doubled) < MOST_FACTS:
            found.doubled.append({"layer": near[0]})
        if op == "Div" and near and len(found.divided) < MOST_FACTS and _is_divided_by_itself(node, below):
            found.divided.append({"layer": near[0], "shape": list(shape_of(node))})
        if below and len(found.written) < MOST_FACTS and _is_written_by_hand(node):
            found.written.append({"name": op, "layer": near[0] if near else None})
        if op in COMPARED and near and (twice or _has_same_target(node)) and len(found.with_itself) < MOST_FACTS:
            found.with_itself.append({"op": op, "layer": near[0]})
        _note_operation(node, op, names, found)
    under: set[Any] = set()
    in_model: set[Any] = set()
    after: dict[Any, str] = {}
    for node in reversed(order):
        above = labels_of(node)[:1] or ([after[node]] if node in after else [])
        for child, _ in children(node) if above else ():
            after.setdefault(child, above[0])
        if op_of(node) in FLAT:
            nearest = next((before[child] for child, _ in children(node) if child in before), None)
            weights = _weights_under(node, known)
            found.flat.append({"op": op_of(node), "layer": nearest, "next": after.get(node), "weights": weights})
        if node in in_model or is_returned(node):
            found.has_model = True
            in_model.update(child for child, _ in children(node))
            if op_of(node) == "AccumulateGrad":
                found.inside.add(id(node.variable))
        if node in joins and node in under:
            found.between.update(joins[node])
        if node in under or labels_of(node):
            under.update(child for child, _ in children(node))
    return found


def _is_written_by_hand(node: Any) -> bool:
    """Return whether the backward pass of an operation is the user's: no C++ of torch, and no Python of torch's own."""
    made = getattr(type(node), "_forward_cls", None) if isinstance(node, BackwardCFunction) else None
    return made is not None and not str(made.__module__).startswith("torch.")


def _is_divided_by_itself(node: Any, below: Sequence[Any]) -> bool:
    """Return whether something is divided by its own sum over one element, to which a small number may be added."""
    if len(below) != 2:
        return False
    total = below[1]
    while op_of(total) in ("Add", "Clamp", "ClampMin", *VIEWS) and len(children(total)) == 1:
        total = children(total)[0][0]
    summed = children(total)
    if op_of(total) != "Sum" or len(summed) != 1 or through_views(summed[0][0])[0] is not through_views(below[0])[0]:
        return False
    return prod(shape_of(*summed[0])) == prod(shape_of(total)) > 1


def _has_same_target(loss: Any) -> bool:
    """Return whether a loss compares a tensor with itself, or with the same numbers without a graph."""
    values, target = saved(loss, "self"), saved(loss, "target")
    if values is None or target is None or values.shape != target.shape or values.stride() != target.stride():
        return False
    return values.device.type != "meta" and values.data_ptr() == target.data_ptr()


def _weights_under(node: Any, known: Mapping[int, str]) -> str | None:
    """Return the layer whose parameter an operation gets, and nothing else that has a graph; None for other inputs."""
    while len(below := children(node)) == 1 and not labels_of(below[0][0]):
        node = below[0][0]
        if op_of(node) == "AccumulateGrad":
            return known.get(id(node.variable))
    return None


def _inputs_first(roots: Sequence[Any], found: Reading) -> list[Any]:
    """List all nodes, each after those that it depends on."""
    order, seen = [], set(roots)
    stack: list[tuple[Any, Iterator[tuple[Any, int]]]] = [(root, iter(children(root))) for root in roots]
    while stack:
        node, rest = stack[-1]
        child = next((below for below, _ in rest if below not in seen), None)
        if child is None:
            order.append(node)
            stack.pop()
        elif len(seen) < MOST_NODES:
            seen.add(child)
            stack.append((child, iter(children(child))))
        else:
            found.complete = False
            stack.pop()
    return order


def _note_operation(node: Any, op: str, names: list[str], found: Reading) -> None:
    if op in BATCH_NORMS:
        key = op, bool(getattr(node, "_saved_training", True))
        found.normalisation[key] = found.normalisation.get(key, 0) + 1
    elif op in RESHAPES and len(found.mixed_views) < MOST_FACTS:
        found.mixed_views += _rows_of_the_second(node)
    elif op in WEIGHTED and names and len(found.stacked) < MOST_FACTS:
        below = [through_views(child) for child, _ in children(node)]
        found.stacked += [
            {"layer": under[0], "next": names[0]} for made, under in below if under and op_of(made) in WEIGHTED
        ]
    elif op in ("Sigmoid", "Tanh") and len(found.bounded) < MOST_FACTS:
        made = [through_views(child)[1] for child, _ in children(node)]
        found.bounded += [{"op": op, "layer": labels[0]} for labels in made if labels]
    elif op in LOGARITHMS and len(found.logs_of_logs) < MOST_FACTS:
        found.logs_of_logs += [
            {"op": op, "of": op_of(each), "layer": labels[0] if labels else None}
            for each, labels in [through_views(child) for child, _ in children(node)][:1]
            if op_of(each) in ("LogSoftmax", "LogSigmoid")
        ]
    elif op in ("Softmax", "LogSoftmax"):
        shape = shape_of(node)
        dim = dim_of(node, len(shape))
        if dim is not None and shape and (shape[dim] == 1 or (dim == 0 and len(shape) > 1)):
            behind = [label for child, _ in children(node) for label in through_views(child)[1][:1]]
            fact = {"op": op, "layer": names[0] if names else None, "dim": dim, "shape": list(shape)}
            fact |= {"behind": behind[0] if behind else None}
            found.softmax_dims.append(fact | {"elements": shape[dim]})
    elif op.startswith("CompiledFunction"):
        found.complete = False  # modules inside left no labels


def _rows_of_the_second(node: Any) -> list[Facts]:
    """Describe a view of a module's output (D, B, H) as (B, D * H): its rows hold parts of different examples."""
    below = [(shape_of(child, index), through_views(child)[1]) for child, index in children(node)]
    result = shape_of(node)
    return [
        {"layer": names[0], "shape": list(shape), "result": list(result)}
        for shape, names in below
        if names and len(shape) == 3 and shape[0] != shape[1] and min(shape[:2]) > 1
        if result == (shape[1], shape[0] * shape[2])
    ]
