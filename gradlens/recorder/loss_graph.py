"""What the graph of a loss shows: which modules and parameters it reaches, and how the loss is made.

The edges of the graph and the sizes of its results stay readable after the backward pass, when saved tensors are freed.
No saved tensor is read here, because that could run a checkpointed part of the model once more. Modules are found by
labels that a forward hook leaves on the nodes (``Node.metadata``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

KEY = "gradlens"
"""Key of the labels in a node's metadata."""
MOST_NODES = 50_000
"""Larger graphs are not read to their end."""

Shape = tuple[int, ...]
Facts = dict[str, Any]

VIEWS = {
    "View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Transpose", "Permute", "T", "Clone", "Alias",
    "Slice", "Select", "ToCopy", "Expand", "AsStrided", "Unbind", "Split", "SplitWithSizes", "Narrow", "Flatten",
}  # fmt: skip
LOSSES = {
    "NllLoss", "NllLoss2D", "MseLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy", "SoftMarginLoss",
    "BinaryCrossEntropyWithLogits", "MultiMarginLoss", "MultilabelMarginLoss", "CtcLoss", "CudnnCtcLoss",
}  # fmt: skip
REDUCTIONS = {"Mean": "mean", "Sum": "sum"}
SCALINGS = {"Mul", "Div"}
ARITHMETIC = VIEWS | LOSSES | SCALINGS | set(REDUCTIONS) | {
    "Add", "Sub", "Rsub", "Neg", "Pow", "Abs", "Sqrt", "Rsqrt", "Log", "Log1P", "Log2", "Exp", "Expm1", "Clamp",
    "ClampMin", "ClampMax", "Where", "MaskedFill", "MaskedSelect", "Index", "IndexSelect", "Gather", "Stack", "Cat",
    "Maximum", "Minimum", "Max", "Min", "Amax", "Amin", "Norm", "LinalgVectorNorm", "LogSigmoid", "Logsumexp", "Var",
    "Std", "StdMean", "VarMean", "Square", "LogSoftmax", "Reciprocal", "Xlogy", "Addcmul", "Addcdiv", "Lerp",
}  # fmt: skip
"""Operations from which a loss is computed; what is not among them, or is a module's output, is the model's."""
COMPARISONS = {"Sub", "Rsub", "MseLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy"} | {
    "BinaryCrossEntropyWithLogits",
    "SoftMarginLoss",
}
ACTIVATIONS = {
    "Relu", "Softmax", "LogSoftmax", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Gelu", "Silu", "Softplus", "Hardtanh",
    "Threshold", "PreluKernel", "Hardsigmoid", "Hardswish", "Clamp", "ClampMin",
}  # fmt: skip
BATCH_NORMS = {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"}


def label(tensor: Tensor, name: str) -> None:
    """Leave a module's name on the node that made its output."""
    if tensor.grad_fn is not None:
        metadata: Any = tensor.grad_fn.metadata
        metadata.setdefault(KEY, []).append(name)


def op_of(node: Any) -> str:
    """Return an operation's name: "Addmm" of ``AddmmBackward0``."""
    name: str = node.name().rpartition("::")[2]
    return name.rstrip("0123456789").removesuffix("Backward")


def labels_of(node: Any) -> list[str]:
    """Return the names of the modules whose output a node made."""
    return list(node.metadata.get(KEY, ()))


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


@dataclass
class Reading:
    """What one pass through a graph shows."""

    modules: set[str] = field(default_factory=set)
    """Names of modules whose output is reached."""
    leaves: dict[int, Tensor] = field(default_factory=dict)
    """Tensors that receive the gradient, by ``id``."""
    between: set[int] = field(default_factory=set)
    """Leaves with modules of the model on both sides: toward the input and toward the loss."""
    softmax_dims: list[Facts] = field(default_factory=list)
    normalisation: dict[tuple[str, bool], int] = field(default_factory=dict)
    complete: bool = True


def read_graph(roots: Sequence[Any], known: Mapping[int, str]) -> Reading:
    """Walk through the whole graph.

    Args:
        roots: Its last nodes.
        known: ``id`` of the model's parameters; other leaves are examined more closely.

    Returns:
        What was found.
    """
    found = Reading()
    order = _inputs_first(roots, found)
    has_module: set[Any] = set()
    only_leaf: dict[Any, int] = {}
    joins: dict[Any, list[int]] = {}
    for node in order:
        below = [child for child, _ in children(node)]
        names, op = labels_of(node), op_of(node)
        found.modules.update(names)
        if names or any(child in has_module for child in below):
            has_module.add(node)
        if op == "AccumulateGrad":
            leaf = node.variable
            found.leaves[id(leaf)] = leaf
            if id(leaf) not in known:
                only_leaf[node] = id(leaf)
        elif len(below) == 1 and below[0] in only_leaf:
            only_leaf[node] = only_leaf[below[0]]
        elif any(child in only_leaf for child in below) and any(child in has_module for child in below):
            joins[node] = [only_leaf[child] for child in below if child in only_leaf]
        _note_operation(node, op, names, found)
    under: set[Any] = set()
    for node in reversed(order):
        if node in joins and node in under:
            found.between.update(joins[node])
        if node in under or labels_of(node):
            under.update(child for child, _ in children(node))
    return found


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
    elif op in ("Softmax", "LogSoftmax"):
        shape = shape_of(node)
        dim = dim_of(node, len(shape))
        if dim is not None and shape and (shape[dim] == 1 or (dim == 0 and len(shape) > 1)):
            fact = {"op": op, "layer": names[0] if names else None, "dim": dim, "shape": list(shape)}
            found.softmax_dims.append(fact | {"elements": shape[dim]})
    elif op.startswith("CompiledFunction"):
        found.complete = False  # modules inside left no labels


@dataclass
class LossReading:
    """How one loss is computed from the model's outputs."""

    losses: list[Facts] = field(default_factory=list)
    outputs: list[Facts] = field(default_factory=list)
    softmax_twice: list[Facts] = field(default_factory=list)
    probabilities_as_logs: list[Facts] = field(default_factory=list)
    broadcast: list[Facts] = field(default_factory=list)


def read_loss(root: Any) -> LossReading:
    """Walk from a loss to the model's outputs: the last modules, or the last operation that is no arithmetic.

    Args:
        root: The loss's node.

    Returns:
        What was found.
    """
    found = LossReading()
    stack: list[tuple[Any, str | None]] = [(root, None)]
    seen = {root}
    top: Facts = {}
    while stack and len(seen) < MOST_NODES:
        node, loss = stack.pop()
        op = op_of(node)
        if op in LOSSES:
            loss = op
            found.losses.append(_describe_loss(node, op))
            _look_under_loss(node, op, found)
        elif op in REDUCTIONS and not top:
            top = {"op": op, "reduction": REDUCTIONS[op], "classes": None, "shape": list(_input_shape(node))}
        if op == "LogSoftmax":
            shape = shape_of(node)
            top.setdefault("classes", None)
            top["classes"] = top["classes"] or (shape[dim_of(node, len(shape)) or 0] if shape else None)
            _look_for_twice(node, op, found)
        if op == "AccumulateGrad":
            continue
        if op not in ARITHMETIC or (labels_of(node) and op not in LOSSES):
            found.outputs.append(_describe_output(node, loss))
            continue
        below = children(node)
        if op in COMPARISONS and len(below) == 1:
            _look_for_broadcast(node, op, found)
        for child, _ in below:
            if child not in seen:
                seen.add(child)
                stack.append((child, loss))
    if not found.losses and "op" in top:
        found.losses.append(top)
    return found


def _input_shape(node: Any) -> Shape:
    return next((shape_of(child, index) for child, index in children(node)), ())


def _describe_loss(node: Any, op: str) -> Facts:
    reduction = {0: "none", 1: "mean", 2: "sum"}.get(getattr(node, "_saved_reduction", -1))
    shape, classes = _input_shape(node), None
    for child, _ in children(node):
        under, _ = through_views(child)
        if op.startswith("NllLoss") and op_of(under) in ("LogSoftmax", "Log"):
            size = shape_of(under)
            dim = dim_of(under, len(size)) if op_of(under) == "LogSoftmax" else min(1, len(size) - 1)
            classes = size[dim] if dim is not None and size else None
    return {"op": op, "reduction": reduction, "classes": classes, "shape": list(shape)}


def _describe_output(node: Any, loss: str | None) -> Facts:
    shape = shape_of(node)
    made, names = through_views(node)
    op = op_of(made)
    fact: Facts = {"op": op, "layer": names[0] if names else None, "behind": None, "behind_op": None}
    if op in ACTIVATIONS and children(made):
        under, labels = through_views(children(made)[0][0])
        fact |= {"behind": labels[0] if labels else None, "behind_op": op_of(under)}
    return fact | {"shape": list(shape), "loss": loss}


def _look_under_loss(node: Any, op: str, found: LossReading) -> None:
    if op == "BinaryCrossEntropyWithLogits":
        _look_for_twice(node, op, found)
    elif op.startswith("NllLoss"):
        for child, _ in children(node):
            under, names = through_views(child)
            if op_of(under) not in ("LogSoftmax", "Log", "LogSigmoid", "Logsumexp", "Add", "Sub", "Mul"):
                found.probabilities_as_logs.append(
                    {"loss": op, "op": op_of(under), "layer": names[0] if names else None}
                )


def _look_for_twice(node: Any, loss: str, found: LossReading) -> None:
    """Look for an activation directly under a loss that applies its own; scaling by a constant may lie between."""
    for child, _ in children(node):
        under, names = through_views(child)
        while op_of(under) in SCALINGS and len(children(under)) == 1:
            under, names = through_views(children(under)[0][0])
        if op_of(under) in ("Softmax", "Sigmoid", "LogSoftmax"):
            found.softmax_twice.append({"loss": loss, "op": op_of(under), "layer": names[0] if names else None})


def _look_for_broadcast(node: Any, op: str, found: LossReading) -> None:
    """Look for a vector of N outputs that is compared with N targets in a table of N x N."""
    child, index = children(node)[0]
    result = shape_of(node)
    if op in LOSSES:  # they expand their arguments beforehand
        result = shape_of(child, index)
        if op_of(child) != "Expand" or not children(child):
            return
        child, index = children(child)[0]
    output = shape_of(child, index)
    sizes = [size for size in output if size > 1]
    if op_of(child) != "Unsqueeze" and len(sizes) == 1 and [size for size in result if size > 1] == 2 * sizes:
        found.broadcast.append({"op": op, "output": list(output), "result": list(result)})


def find_holders(model: nn.Module) -> dict[int, str]:
    """Find parameters that modules hold in plain attributes, such as a list of modules.

    Args:
        model: The model.

    Returns:
        ``id`` of each parameter to the attribute that holds it.
    """
    registered = {id(parameter) for parameter in model.parameters()}
    found: dict[int, str] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith(("_parameters", "_modules", "_buffers", "_forward", "_backward")):
                for tensor in _tensors_in(value, 3):
                    if id(tensor) not in registered:
                        found.setdefault(id(tensor), f"{name}.{key}".lstrip("."))
    return found


def _tensors_in(value: Any, depth: int) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    if isinstance(value, nn.Module):
        return list(value.parameters())
    if depth and isinstance(value, Mapping):
        value = list(value.values())
    if depth and isinstance(value, list | tuple | set):
        return [tensor for part in value for tensor in _tensors_in(part, depth - 1)]
    return []


class LossGraph:
    """Collects what the graphs of the first losses show.

    Args:
        model: The model.
        names: ``id`` of its parameters to their names.
    """

    def __init__(self, model: nn.Module, names: Mapping[int, str]) -> None:
        self._model, self._names = model, names
        self.reached: set[str] = set()
        self.ran: dict[str, int] = {}
        """Modules with parameters that require a gradient, in the order in which they ran, and when first."""
        self.without_graph: set[str] = set()
        """Those that ran without a graph, and never with one."""
        self._order: list[str] = []
        self._facts: dict[str, list[Facts]] = defaultdict(list)
        self._keys: dict[tuple[str, str], Facts] = {}
        self._leaves: dict[Any, Facts] = {}
        self._no_graph: Facts | None = None
        self._source = ""
        self._steps: list[int] = []
        self._complete = True
        self._passes = 0

    def note_call(self, name: str, tensors: Sequence[Tensor], *, trains: bool, step: int) -> None:
        """Note that a module ran, and label its outputs.

        Args:
            name: Its name.
            tensors: Its outputs.
            trains: Whether it owns a parameter that requires a gradient.
            step: The step in progress.
        """
        graphs = [tensor for tensor in tensors if tensor.grad_fn is not None]
        for tensor in graphs:
            label(tensor, name)
        if name not in self._order:
            self._order.append(name)
        if trains and tensors:
            if graphs:
                self.without_graph.discard(name)
            elif name not in self.ran:
                self.without_graph.add(name)
            self.ran.setdefault(name, step)

    @property
    def was_read(self) -> bool:
        """Whether a loss was read."""
        return self._passes > 0

    def read(
        self, tensors: Sequence[Tensor], step: int, source: str, in_optimizer: set[int], *, is_inner: bool = False
    ) -> None:
        """Read the graph of a loss.

        Args:
            tensors: What ``backward`` was called with.
            step: The step in progress.
            source: "backward" or "log".
            in_optimizer: ``id`` of all parameters in optimizers.
            is_inner: Whether the pass is part of another one, as in a checkpointed model.
        """
        roots = list({tensor.grad_fn: None for tensor in tensors if tensor.grad_fn is not None})
        if is_inner:
            self.reached |= read_graph(roots, self._names).modules
            return
        self._source = self._source or source
        self._steps.append(step)
        self._passes += 1
        bare = [tensor for tensor in tensors if tensor.grad_fn is None and tensor.requires_grad]
        if bare and not any(id(tensor) in self._names for tensor in bare):
            self._no_graph = self._no_graph or {"since": step, "passes": 0}
            self._no_graph["passes"] += 1
        if not roots:
            return
        graph = read_graph(roots, self._names)
        self.reached |= graph.modules
        self._complete &= graph.complete
        for fact in graph.softmax_dims:
            self._add("softmax_dims", fact, step)
        for (op, training), count in graph.normalisation.items():
            self._add("normalisation", {"op": op, "training": training, "count": count}, step)
        self._note_leaves(graph, step, in_optimizer)
        for root in roots:
            loss = read_loss(root)
            for kind, facts in vars(loss).items():
                for fact in facts:
                    self._add(kind, fact, step)

    def _add(self, kind: str, fact: Facts, step: int) -> None:
        """Add a fact, or count it if it is known; shapes may differ from step to step."""
        key = kind, repr({name: value for name, value in fact.items() if name not in ("shape", "output", "result")})
        if key in self._keys:
            if kind == "losses":
                self._keys[key]["passes"] += 1
        elif len(self._facts[kind]) < 16:
            self._keys[key] = fact | {"since": step} | ({"passes": 1} if kind == "losses" else {})
            self._facts[kind].append(self._keys[key])

    def _note_leaves(self, graph: Reading, step: int, in_optimizer: set[int]) -> None:
        others = {key: leaf for key, leaf in graph.leaves.items() if key not in self._names}
        holders = find_holders(self._model) if others else {}
        for key, leaf in others.items():
            self._leaves.setdefault(
                key if isinstance(leaf, nn.Parameter) else tuple(leaf.shape),  # an input is another one in each step
                {
                    "shape": list(leaf.shape),
                    "parameter": isinstance(leaf, nn.Parameter),
                    "held_in": holders.get(key),
                    "in_optimizer": key in in_optimizer,
                    "between": key in graph.between,
                    "since": step,
                },
            )

    def facts(self, with_gradient: set[str]) -> Facts:
        """Return what was found; see ``docs/facts.md``.

        Args:
            with_gradient: Modules of whose parameters one had a gradient at some look; they are not cut.
        """
        if not self._steps:
            return {}
        kinds = ("losses", "outputs", "softmax_twice", "probabilities_as_logs", "softmax_dims", "broadcast")
        return {
            "source": self._source,
            "step": self._steps[0],
            "last_step": self._steps[-1],
            "passes": self._passes,
            "complete": self._complete,
            **{kind: self._facts[kind] for kind in kinds},
            "unregistered": self._group_leaves(),
            "cut": self._cuts(with_gradient) if self._complete and not self._no_graph else [],
            "no_graph": self._no_graph,
            "normalisation": self._facts["normalisation"],
        }

    def _group_leaves(self) -> list[Facts]:
        groups: dict[str, Facts] = {}
        for leaf in self._leaves.values():
            key = {name: leaf[name] for name in ("parameter", "held_in", "in_optimizer", "between", "since")}
            group = groups.setdefault(repr(key), key | {"count": 0, "numel": 0, "shapes": []})
            group["count"] += 1
            size = 1
            for length in leaf["shape"]:
                size *= length
            group["numel"] += size
            if leaf["shape"] not in group["shapes"][:8]:
                group["shapes"].append(leaf["shape"])
        return list(groups.values())

    def _cuts(self, with_gradient: set[str]) -> list[Facts]:
        """Group neighbouring modules that the loss does not reach."""
        cuts: list[Facts] = []
        for name in self._order:
            is_cut = name in self.ran and name not in self.reached and name not in with_gradient
            how = "no_grad" if name in self.without_graph else "detached"
            if is_cut and cuts and cuts[-1]["next"] is None and cuts[-1]["how"] == how:
                cuts[-1]["layers"].append(name)
                cuts[-1]["last"] = name
            elif is_cut:
                cuts.append({"layers": [name], "last": name, "next": None, "how": how, "since": self.ran[name]})
            elif cuts and cuts[-1]["next"] is None and name in self.reached:
                cuts[-1]["next"] = name
        return cuts
